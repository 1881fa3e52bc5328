"""``python -m devices fleet INVENTORY deploy|status|rollback``: many devices, never all of them wrong at once.

    canary -> soak: healthy throughout? -> wave, each device in a thread of its own -> healthy? -> wave ...

The first device that is not well stops everything that has not begun; a table then says what each of them has now. The
inventory is the whole state: the same command again changes only what is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devices.deploy import HEALTH_S, Way, deploy, say
from devices.inventory import Host, make_orders, read_inventory
from devices.remote import Say
from devices.service import read_status, roll_back
from devices.ssh import ConnectionLost, Ssh
from devices.units import ETC
from toolkit.errors import DeployError, EdgeAudioError, UsageError

POLL_S = 5.0  # between two looks at a soaking device
MAX_THREADS = 32  # of one look at all devices
GOOD = ("updated", "unchanged")

Connect = Callable[[Host], Ssh]


@dataclass(frozen=True)
class Pace:
    """How carefully a fleet is changed."""

    canary: int = 1  # devices that go first
    wave_size: int = 5  # devices at a time after them
    soak_s: float = 60  # for which the canaries must be healthy before the others follow
    continue_after: int = 0  # devices that may fail before it halts


@dataclass
class Row:
    """What became of one device."""

    host: str
    state: str = "untouched"  # updated, unchanged, went back, failed, unreachable, unhealthy, untouched
    release: str | None = None  # that it has now, as far as it said so
    bundles: dict[str, str] = field(default_factory=dict)  # version by name, that the service runs
    reason: str | None = None

    def note(self, status: dict[str, Any]) -> None:
        """What ``read_status`` said."""
        self.release = status.get("committed")
        service = status.get("service") or {}
        self.bundles = {bundle["name"]: bundle["version"] for bundle in service.get("bundles", ())}


def change(hosts: Sequence[Host], step: Callable[[Host], dict[str, Any]], look: Callable[[Host], dict[str, Any]],
           pace: Pace, say: Say, sleep: Callable[[float], None]) -> tuple[list[Row], str | None]:
    """Apply ``step`` in waves: (a row per host, in their order; the sentence with which it halted, or None).

    ``step`` gives {release, committed, is_noop, reason} as ``deploy`` does, ``look`` what ``read_status`` gives;
    ``sleep`` is time's, or a test's.
    """
    rows = {host.name: Row(host.name) for host in hosts}
    halted = None
    for number, wave in enumerate(_waves(hosts, pace)):
        is_canary = number == 0 and pace.canary > 0
        say(f"{'canary' if is_canary else f'wave {number}'}: {', '.join(host.name for host in wave)}")
        _in_parallel(lambda host: _apply(host, step, rows[host.name], say), wave)
        well = [host for host in wave if rows[host.name].state in GOOD]
        _soak(well, look, rows, pace.soak_s if is_canary else 0, say, sleep)
        bad = [row for row in rows.values() if row.state not in (*GOOD, "untouched")]
        if len(bad) > pace.continue_after:
            left = sum(row.state == "untouched" for row in rows.values())
            halted = (f"halted: of {len(hosts)} devices {len(bad)} failed and {left} were not touched; the first is "
                      f"{bad[0].host}: {bad[0].reason}")
            break
    return list(rows.values()), halted


def survey(hosts: Sequence[Host], look: Callable[[Host], dict[str, Any]], rows: Sequence[Row]) -> None:
    """Write into the rows what each device has now; a device that does not answer keeps what is in its row."""
    for row, (status, failure) in zip(rows, _in_parallel(lambda host: _ask(look, host), hosts), strict=True):
        if status is not None:
            row.note(status)
        elif row.state == "untouched":
            row.reason = failure[1]


def examine(hosts: Sequence[Host], look: Callable[[Host], dict[str, Any]]) -> list[Row]:
    """A row per host: healthy, unhealthy or unreachable."""
    rows = [Row(host.name) for host in hosts]
    for row, (status, failure) in zip(rows, _in_parallel(lambda host: _ask(look, host), hosts), strict=True):
        if status is None:
            row.state, row.reason = failure
        else:
            row.note(status)
            row.state, row.reason = "unhealthy" if status["problem"] else "healthy", status["problem"]
    return rows


def _waves(hosts: Sequence[Host], pace: Pace) -> list[Sequence[Host]]:
    canary, rest = hosts[:pace.canary], hosts[pace.canary:]
    waves = [rest[start:start + pace.wave_size] for start in range(0, len(rest), pace.wave_size)]
    return [canary, *waves] if canary else waves


def _in_parallel(function: Callable, items: Sequence) -> list:
    with ThreadPoolExecutor(max(1, min(len(items), MAX_THREADS))) as threads:
        return list(threads.map(function, items))


def _ask(function: Callable[[Host], dict[str, Any]],
         host: Host) -> tuple[dict[str, Any], None] | tuple[None, tuple[str, str]]:
    """(what it gives, None), or (None, (state, reason)) whatever happens: the other devices go on."""
    try:
        return function(host), None
    except ConnectionLost as error:
        return None, ("unreachable", str(error))
    except EdgeAudioError as error:
        return None, ("failed", str(error))
    except Exception as error:  # a defect of ours, with one device, must not leave the fleet without its table
        return None, ("failed", f"{host.name}: {type(error).__name__}: {error}")


def _apply(host: Host, step: Callable[[Host], dict[str, Any]], row: Row, say: Say) -> None:
    """One device, and what became of it."""
    result, failure = _ask(step, host)
    if result is None:
        row.state, row.reason = failure
    else:
        row.release, row.reason = result["release"], result["reason"]
        row.state = "went back" if not result["committed"] else "unchanged" if result["is_noop"] else "updated"
    say(f"{host.name}: {row.state}" + (f": {row.reason}" if row.reason else ""))


def _soak(hosts: Sequence[Host], look: Callable[[Host], dict[str, Any]], rows: dict[str, Row], soak_s: float, say: Say,
          sleep: Callable[[float], None]) -> None:
    """Look at these devices for ``soak_s``, once at least; who is not healthy every time becomes so in its row."""
    if hosts and soak_s:
        say(f"watching {', '.join(host.name for host in hosts)} for {soak_s:g} s")
    left_s = soak_s
    while hosts:
        for row in examine(hosts, look):
            if row.state != "healthy":
                rows[row.host].state, rows[row.host].reason = "unhealthy", f"{row.reason} (after the change)"
                say(f"{row.host}: unhealthy: {row.reason}")
        hosts = [host for host in hosts if rows[host.name].state in GOOD]
        if left_s <= 0 or not hosts:
            return
        sleep(min(POLL_S, left_s))
        left_s -= POLL_S


# --- the command ----------------------------------------------------------------------------------


def add_command(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("fleet", help="deploy to, look at or roll back many devices",
                                 description="INVENTORY names devices and what they shall have: devices/inventory.py.")
    parser.add_argument("inventory", metavar="INVENTORY", type=Path)
    parser.add_argument("action", choices=("deploy", "status", "rollback"))
    parser.add_argument("--only", metavar="NAME", nargs="+", default=[], help="these hosts or groups alone")
    for name, kind, text in (("canary", int, "devices that go first"), ("wave_size", int, "devices at a time then"),
                             ("soak_s", float, "the canaries must be healthy for so long"),
                             ("continue_after", int, "devices that may fail before it halts")):
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="N" if kind is int else "S", type=kind,
                            default=getattr(Pace, name), help=f"{text} (default: %(default)s)")
    parser.add_argument("--health-s", metavar="S", type=float, default=HEALTH_S,
                        help="time to become healthy before a device goes back (default: %(default)s)")
    parser.add_argument("--allow-older", action="store_true", help="take versions older than those they had")
    parser.add_argument("--etc", metavar="DIR", default=ETC, help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, connect: Connect = Host.connect,
        sleep: Callable[[float], None] = time.sleep) -> None:
    pace = Pace(arguments.canary, arguments.wave_size, arguments.soak_s, arguments.continue_after)
    if pace.canary < 0 or pace.wave_size < 1 or pace.soak_s < 0 or pace.continue_after < 0:
        raise UsageError("--canary, --soak-s and --continue-after must be at least 0, --wave-size at least 1")
    hosts = read_inventory(arguments.inventory, arguments.only)
    orders = make_orders(hosts) if arguments.action == "deploy" else {}

    def step(host: Host) -> dict[str, Any]:
        with connect(host) as ssh:
            if arguments.action == "rollback":
                return roll_back(ssh, host.root, arguments.health_s)
            way = Way(host.root, host.trust, arguments.allow_older, False, arguments.health_s,
                      host.settings.update_url, arguments.etc)
            return deploy(ssh, orders[host.name], way, lambda sentence: say(f"{host.name}: {sentence}"))

    def look(host: Host) -> dict[str, Any]:
        with connect(host) as ssh:
            return read_status(ssh, host.root)

    halted = None
    if arguments.action == "status":
        rows = examine(hosts, look)
        unwell = [row.host for row in rows if row.state != "healthy"]
        halted = f"{len(unwell)} of {len(rows)} devices are not well: {', '.join(unwell)}" if unwell else None
    else:
        rows, halted = change(hosts, step, look, pace, say, sleep)
        survey(hosts, look, rows)
    for row in rows:
        print(json.dumps(vars(row)), flush=True)
    show(rows)
    if halted:
        raise DeployError(halted)


def show(rows: Sequence[Row]) -> None:
    """The table on stderr: with rich where it is installed, else plain."""
    titles = ("host", "state", "release", "runs", "reason")
    cells = [(row.host, row.state, row.release or "-", ", ".join(f"{name} {version}" for name, version in
              row.bundles.items()) or "-", row.reason or "") for row in rows]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(map(len, column)) for column in zip(titles, *cells)]
        for line in (titles, *cells):
            say("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
        return
    table = Table(*titles)
    for line in cells:
        table.add_row(*line)
    Console(file=sys.stderr).print(table)
