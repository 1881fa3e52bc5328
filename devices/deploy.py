"""``python -m devices deploy PROFILE BUNDLE... --host user@host``: a device brought to what the command says.

    check here -> look there -> trust -> send what is missing -> runtime -> stage -> units -> try -> clean

Nothing that runs on the device changes before ``try``, and that is toolkit/ota's: it goes back by itself, with or
without this host. So every step may be cut off anywhere, and the same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devices.plan import Order, changes, make_order
from devices.preflight import VENV_BYTES, probe, problems
from devices.remote import ROOT, Remote, Say
from devices.ssh import ConnectionLost, Ssh
from devices.trust import Trust, keys_there, read_trust
from devices.units import ETC, NEVER, install_units, plan_units, url_problem
from toolkit.errors import DeployError, UsageError
from toolkit.profile import load_profile

HEALTH_S = 30
PATIENCE_S = 1800  # an environment made on a Pi Zero, with pip compiling nothing, takes minutes
UNPACKED = 4  # times the size of its wheels, an environment needs: numpy 1.26 has 18 and 62 MB
FROM_INDEX_BYTES = 250_000_000  # numpy and a TFLite runtime, with pip's cache


@dataclass(frozen=True)
class Way:
    """How an order gets onto a device."""

    root: str = ROOT
    trust: Path | None = None  # folder of *.pub, or of keyrings; None: what the device trusts already
    allow_older: bool = False
    dry_run: bool = False
    health_s: float = HEALTH_S
    update_url: str | None = None  # from where it fetches later releases itself; None: as before
    etc: str = ETC


def deploy(ssh: Ssh, order: Order, way: Way, say: Say) -> dict[str, Any]:
    """Bring a device to an order: {host, release, committed, is_noop, changes, sent_bytes, reason}.

    ``committed`` is False, with the reason, where the device tried the release and went back. Everything else that
    stops it is an EdgeAudioError; then the device runs what it ran.
    """
    trust = read_trust(way.trust) if way.trust else None
    if trust is not None:
        order.check_signatures(trust.keys)
    facts = probe(ssh, way.root)
    remote = Remote(ssh, way.root, sudo=not facts.is_root and facts.can_sudo)
    if facts.is_busy:
        _wait_for_the_other(remote, order, say)
    present = remote.release("committed")
    release = order.release(present)
    if found := problems(facts, order.profile, _needed_bytes(order, present), way.root):
        raise DeployError(f"{ssh.target} is not ready: " + "; and ".join(found))
    if trust is None:
        order.check_signatures(keys_there(remote))
    different = changes(present, release) + (trust.changes(remote) if trust is not None else [])
    units = plan_units(remote, way.etc, way.update_url, order.profile.name)
    lines = [*different, *units.changes]
    for line in lines or ["nothing changes"]:
        say(line)
    result = {"host": ssh.target, "release": None, "committed": None, "is_noop": not lines, "changes": lines,
              "sent_bytes": 0, "reason": None}
    if way.dry_run:
        return {**result, "is_dry_run": True}
    if different:
        result["sent_bytes"] = _send(remote, order, release, say)
        if release["runtime"] != (present or {}).get("runtime"):
            say("making the runtime, which takes minutes on a small board")
        release_id = _stage(remote, release, trust, way, say)
    else:
        release_id = remote.status()["committed"]
    install_units(remote, units, not different, say)  # else the trial starts it anew
    say(f"trying it: live audio, in time, within {way.health_s:g} s" if different else "looking whether it is well")
    answer = try_release(remote, ["try", release_id], way.health_s)
    return {**result, **answer, "is_noop": answer["is_noop"] and not lines}


def _send(remote: Remote, order: Order, release: dict, say: Say) -> int:
    """Send what is missing there of the release's files; bytes that were sent."""
    sent = 0
    if order.runtime is not None:
        sent += remote.use_wheel(order.files[order.runtime["sha256"]], say)
    for item in remote.ask("missing", stdin=_json(release))["missing"]:
        file = order.files.get(item["sha256"])
        if file is None:
            raise DeployError(f"{remote.ssh.target}: has lost the file {item['sha256'][:16]} of its runtime; name the "
                              f"wheel with --wheel")
        sent += remote.send(file, item["received_bytes"], say)
    return sent


def _stage(remote: Remote, release: dict, trust: Trust | None, way: Way, say: Say) -> str:
    """The release made and checked on the device, beside the one that runs: its id."""
    remote.use_runtime(remote.ask("runtime", stdin=_json(release))["python"])
    if trust is not None:  # only now is there a library that checks the signatures of a keyring
        trust.install(remote, say)
    say("checking: signatures, versions, the self-test of every bundle")
    return remote.ask("stage", *(["--allow-older"] if way.allow_older else []), stdin=_json(release))["release"]


def try_release(remote: Remote, command: list[str], health_s: float) -> dict[str, Any]:
    """``try ID`` or ``rollback``: switch, health gate, commit or back: {release, committed, is_noop, reason}."""
    try:
        answer = remote.ask(*command, "--health-s", f"{health_s:g}", allow_failure=True)
    except ConnectionLost:
        raise ConnectionLost(f"{remote.ssh.target}: the connection was lost while the release was being tried; the "
                             f"device ends that by itself, and the same command tells how") from None
    if answer["committed"] and not answer["is_noop"]:
        remote.ask("clean")
    return {key: answer[key] for key in ("release", "committed", "is_noop", "reason")}


def _wait_for_the_other(remote: Remote, order: Order, say: Say) -> None:
    """Let a change end that goes on without its host; DeployError if it was a trial of this order, and went back."""
    status = remote.status()
    tried = remote.release("current") if status and status["is_trial"] else None
    say("another change is under way there, perhaps of a connection that was lost; waiting for its end")
    remote.must(f"flock -w {PATIENCE_S} {remote.root}/lock true || {{ echo 'it has not ended in {PATIENCE_S} s; see "
                f"edge-audio ota status there' >&2; exit 1; }}", "waiting for another change")
    outcome = (remote.status() or {}).get("outcome") or {}
    if tried is not None and tried == order.release(tried) and outcome.get("reason"):
        raise DeployError(f"{remote.ssh.target}: the release {outcome['release']} was tried without this connection, "
                          f"and the device went back: {outcome['reason']}")


def _needed_bytes(order: Order, present: dict | None) -> int:
    """An estimate from above of what the device's disk must take."""
    needed = sum(len(file.data) for file in order.files.values())
    if order.runtime is not None and order.runtime != (present or {}).get("runtime"):
        wheels = [order.files[each["sha256"]] for each in (order.runtime, *order.runtime["requirements"])]
        needed += VENV_BYTES + UNPACKED * sum(len(file.data) for file in wheels)
        needed += 0 if order.runtime["requirements"] else FROM_INDEX_BYTES
    return needed


def _json(release: dict) -> bytes:
    return json.dumps(release).encode()


# --- the command ----------------------------------------------------------------------------------


def add_command(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("deploy", help="bring a device to these bundles and this runtime, over SSH",
                                 description="The device then has what this command says, and nothing else; or what "
                                             "it had before. The same command again goes on, or changes nothing.")
    parser.add_argument("profile", metavar="PROFILE", help="name in devices/profiles, or a .yaml file")
    parser.add_argument("bundles", metavar="BUNDLE", nargs="+", help="path, or name of a released bundle")
    add_host_arguments(parser)
    parser.add_argument("--wheel", type=Path, help="the toolkit's (make wheels); else the runtime there stays")
    parser.add_argument("--requirements", metavar="DIR", type=Path,
                        help="wheels of what that needs; else the device's pip asks its index")
    parser.add_argument("--trust", metavar="DIR", type=Path,
                        help="whose bundles it takes: public keys or keyrings; else as it did before")
    parser.add_argument("--device", metavar="MIC", help="microphone: index or part of its name (else the profile's)")
    parser.add_argument("--channel", metavar="N", type=int, default=0, help="of the microphone (default: %(default)s)")
    parser.add_argument("--threshold", metavar="X", type=float, help="of detections (default: the bundle's)")
    parser.add_argument("--allow-older", action="store_true", help="take versions older than those it had")
    parser.add_argument("--dry-run", action="store_true", help="say what would change, and change nothing")
    parser.add_argument("--health-s", metavar="S", type=float, default=HEALTH_S,
                        help="time to become healthy before it goes back (default: %(default)s)")
    parser.add_argument("--update-url", metavar="URL",
                        help=f"from where it fetches later releases by itself, every hour, or {NEVER}; else as before")
    parser.add_argument("--etc", metavar="DIR", default=ETC, help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def add_host_arguments(parser: argparse.ArgumentParser) -> None:
    """How to reach one device."""
    parser.add_argument("--host", metavar="USER@HOST", required=True, help="as ssh takes it; your ssh config counts")
    parser.add_argument("--port", type=int, help="of its sshd")
    parser.add_argument("--identity", metavar="FILE", help="private key")
    parser.add_argument("--ssh-option", metavar="NAME=VALUE", action="append", default=[], help="as ssh -o takes it")
    parser.add_argument("--root", default=ROOT, help="folder of all releases there (default: %(default)s)")


def ssh_of(arguments: argparse.Namespace) -> Ssh:
    return Ssh(arguments.host, arguments.port, arguments.identity, arguments.ssh_option)


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def run(arguments: argparse.Namespace) -> None:
    if arguments.update_url is not None and (problem := url_problem(arguments.update_url)):
        raise UsageError(problem)
    order = make_order(load_profile(arguments.profile), arguments.bundles, arguments.wheel, arguments.requirements,
                       arguments.device, arguments.channel, arguments.threshold)
    way = Way(arguments.root, arguments.trust, arguments.allow_older, arguments.dry_run, arguments.health_s,
              arguments.update_url, arguments.etc)
    with ssh_of(arguments) as ssh:
        report(deploy(ssh, order, way, say))


def report(result: dict[str, Any]) -> None:
    """The result for programs, and the end of it for people; DeployError if the device went back."""
    print(json.dumps(result), flush=True)
    if result["committed"] is False:
        raise DeployError(f"{result['host']}: went back from the release {result['release']}: {result['reason']}")
    if result["is_noop"]:
        say(f"{result['host']}: is as it should be, nothing was changed")
    elif result["committed"]:
        say(f"{result['host']}: runs the release {result['release']}")
