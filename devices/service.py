"""``python -m devices status | rollback | logs --host user@host``: the service of one device, from afar."""

from __future__ import annotations

import argparse
import json
from typing import Any

from devices.deploy import HEALTH_S, add_host_arguments, report, say, ssh_of, try_release
from devices.preflight import probe
from devices.remote import Remote
from devices.ssh import Ssh
from toolkit.errors import DeployError

UNITS = "-u edge-audio -u edge-audio-recover -u edge-audio-update"
FRESH_S = 5.0  # a status file that was not renewed for longer is of a service that hangs


def add_command(commands: argparse._SubParsersAction) -> None:
    status = commands.add_parser("status", help="what a device runs, and whether it is well")
    rollback = commands.add_parser("rollback", help="bring a device back to the release before the present one")
    rollback.add_argument("--health-s", metavar="S", type=float, default=HEALTH_S,
                          help="time to become healthy before it goes back (default: %(default)s)")
    logs = commands.add_parser("logs", help="detections and sentences of a device's service")
    logs.add_argument("-n", "--lines", metavar="N", type=int, default=50, help="the last N (default: %(default)s)")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what comes")
    for parser, run in ((status, run_status), (rollback, run_rollback), (logs, run_logs)):
        add_host_arguments(parser)
        parser.set_defaults(run=run)


def run_status(arguments: argparse.Namespace) -> None:
    with ssh_of(arguments) as ssh:
        status = read_status(ssh, arguments.root)
    print(json.dumps(status), flush=True)
    say(f"{status['host']}: " + (status["problem"] or f"well, with the release {status['committed']}"))
    for doubt in status.get("doubts", ()):
        say(f"{status['host']}: {doubt}")


def run_rollback(arguments: argparse.Namespace) -> None:
    with ssh_of(arguments) as ssh:
        report(roll_back(ssh, arguments.root, arguments.health_s))


def run_logs(arguments: argparse.Namespace) -> None:
    with ssh_of(arguments) as ssh:
        status = ssh.pass_through(f"exec journalctl {UNITS} -o cat -n {arguments.lines}"
                                  + (" -f" if arguments.follow else ""))
    if status:
        raise DeployError(f"{ssh.target}: journalctl ended with status {status}; is the user in the group "
                          f"`systemd-journal`? (sudo usermod -aG systemd-journal USER)")


def read_status(ssh: Ssh, root: str) -> dict[str, Any]:
    """``ota status`` of the device, with ``host`` and ``problem`` (a sentence, None if all is well)."""
    status = _remote(ssh, root).status()
    if status is None:
        status = {"committed": None}
    return {"host": ssh.target, "problem": why_unhealthy(status), **status}


def roll_back(ssh: Ssh, root: str, health_s: float) -> dict[str, Any]:
    """The release before the present one, tried as any other: {host, release, committed, is_noop, reason}."""
    return {"host": ssh.target, **try_release(_remote(ssh, root), ["rollback"], health_s)}


def _remote(ssh: Ssh, root: str) -> Remote:
    facts = probe(ssh, root)
    return Remote(ssh, root, sudo=not facts.is_root and facts.can_sudo)


def why_unhealthy(status: dict[str, Any]) -> str | None:
    """What is wrong with a device of this status (of ``Remote.status``), as a sentence; None: all is well."""
    service, committed = status.get("service"), status.get("committed")
    if committed is None:
        return "no release was committed; deploy one"
    if status["is_trial"]:
        return f"the release {status['current']} is being tried"
    if service is None:
        return "the service is not running; logs say why"
    if service["release"] != committed:
        return f"the service runs the release {service['release']}, not {committed}, which was committed"
    age_s, silence_s = status["now"] - service["time"], service["last_audio_age_s"] or 0
    if abs(age_s) > FRESH_S:
        return f"the service gave its last sign of life {age_s:.0f} s ago; logs say why"
    if service["state"] != "listening":
        return f"the service says {service['state']!r}" + (f": {said}" if (said := service["sentence"]) else "")
    if max(silence_s, service["deaf_s"]) >= 1:
        return f"the service hears nothing live for {max(silence_s, service['deaf_s']):.0f} s; see to the microphone"
    return None
