"""The kill matrix: the installer under every fault, at every system call that changes the device.

    python tests/kill_matrix.py [--full] [--table] [--operation NAME]

The calls that an operation makes inside ROOT are counted in a clean run. Then it is run again and again, on a fresh
device, with one of them failing (ENOSPC, EIO) or its last (SIGKILL); and the power is cut after each, in each way in
which unsynced writes can be lost (tests/kill_replay.py; equal disks are one case). After each a reboot, and then
* ``current`` is ``committed``, and both are the old or the new release, with every byte of it;
* the lowest version that is taken has not moved but by a commit, and nothing outside of ROOT has changed;
* the same command, run again, ends where it would have ended, and leaves nothing behind that `clean` does not remove.
One JSON line per case on stdout; exit 1 if one of them did not survive. Without --full a sample of all cases.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).absolute().parent), str(Path(__file__).absolute().parents[1])]

from kill_device import Device, Ended, floor, incomplete, linked, numbers  # noqa: E402
from kill_log import CHANGING, Call, read_log  # noqa: E402
from kill_replay import Disk, Tree, contents  # noqa: E402

FAULTS = {"SIGKILL": "signal=KILL", "ENOSPC": "error=ENOSPC", "EIO": "error=EIO"}
POWER_CUT = "power cut"
COLUMNS = (*FAULTS, POWER_CUT)
MARKERS = ("<!-- kill matrix -->", "<!-- /kill matrix -->")
README = Path(__file__).absolute().parents[1] / "README.md"
HEALTH = ("--health-s", "1")
SAMPLE = 7  # without --full every seventh case
PASSING = ("outcome.json", "lock")  # that may differ after another way to the same end


@dataclass(frozen=True)
class Operation:
    """A command of the installer on a device in a certain state, and how it should end."""

    name: str
    state: str
    argv: tuple[str, ...]  # {old}, {new}: the ID of a release
    before: str | None  # the release committed before, and
    after: str | None  # after
    stdin: str = ""  # which of the device's inputs it reads
    unhealthy: str = ""  # the release whose service does not become healthy
    makes: tuple[str, ...] = ()  # paths that are there after a success
    removes: tuple[str, ...] = ()


OPERATIONS = (
    Operation("receive", "steady", ("receive", "{bundle}", "--size", "{size}"), "old", "old", "bundle",
              makes=("blobs/{bundle}",)),
    Operation("runtime", "bare", ("runtime",), None, None, "old", makes=("runtimes/{key}/ready",)),
    Operation("stage", "received", ("stage",), "old", "old", "new", makes=("releases/{new}",)),
    Operation("try, first", "never committed", ("try", "{old}", *HEALTH), None, "old"),
    Operation("try, first, goes back", "never committed", ("try", "{old}", *HEALTH), None, None, unhealthy="old"),
    Operation("try, healthy", "staged", ("try", "{new}", *HEALTH), "old", "new"),
    Operation("try, goes back", "staged", ("try", "{new}", *HEALTH), "old", "old", unhealthy="new"),
    Operation("rollback", "upgraded", ("rollback", *HEALTH), "new", "old"),
    Operation("recover", "cut off", ("recover",), "old", "old"),
    Operation("recover, half committed", "half committed", ("recover",), "new", "new"),
    Operation("boot", "cut off", ("boot",), "old", "old"),
    Operation("trust", "steady", ("trust",), "old", "old", "keyring 2", makes=("trusts/2/keyring.json",)),
    Operation("clean", "full of litter", ("clean",), "new", "new",
              removes=("releases/{first}", "releases/{other}", "runtimes/2222222222222222")),
)


@dataclass(frozen=True)
class CleanRun:
    """What an operation does without a fault."""

    calls: list[Call]  # all that touch ROOT, also those that only open
    pid: int  # of the installer; `boot` has several processes
    ended: Ended
    floor: dict  # before
    tree: dict  # what the device holds after
    end: dict  # and after `clean`, too


@dataclass(frozen=True)
class Case:
    """One fault in one operation, and what was wrong after it."""

    operation: str
    fault: str
    at: str  # the system call, and what it was about
    complaints: tuple[str, ...]


class Matrix:
    """All cases on one device."""

    def __init__(self, device: Device, broken: str | None = None):
        self.device, self.broken = device, broken
        self.log = device.side.parent / "log"
        self.clean_runs: dict[str, CleanRun] = {}

    # --- running an operation -----------------------------------------------------------------------

    def fill(self, text: str) -> str:
        device = self.device
        return text.format(**device.id, key=device.key, bundle=device.digest["bundle"],
                           size=len(device.inputs["bundle"]))

    def begin(self, operation: Operation, tree: Tree | None = None) -> None:
        device = self.device
        device.load(device.states[operation.state] if tree is None else tree,
                    running=device.id.get(operation.before, ""), unhealthy=device.id.get(operation.unhealthy, ""))

    def run(self, operation: Operation, *inject: str, follow: bool = False) -> Ended:
        """The operation under strace; ``follow``: with its children, and with the bytes that are written."""
        self.log.unlink(missing_ok=True)
        tracer = ("strace", "-o", str(self.log), "-y", "-xx", "-s", str(1 << 24 if follow else 0),
                  "-e", f"trace={','.join(CHANGING)}", *(("-f",) if follow else ()), *inject)
        return self._start(operation, tracer)

    def _start(self, operation: Operation, tracer: tuple[str, ...] = ()) -> Ended:
        device = self.device
        if operation.name == "boot":
            return device.run_boot(tracer)
        return device.run(*map(self.fill, operation.argv), stdin=device.inputs.get(operation.stdin, b""),
                          broken=self.broken, tracer=tracer)

    def clean_run(self, operation: Operation) -> CleanRun:
        """The run without a fault that all others are compared with; done once."""
        if operation.name not in self.clean_runs:
            self.begin(operation)
            floor_before = floor(self.device.root)
            ended = self.run(operation, follow=True)
            calls = read_log(self.log)
            if ended.code != self.expected_code(operation):
                raise RuntimeError(f"{operation.name} ends with {ended.code} without any fault: {ended.stderr}")
            if stray := self.outside(calls):
                raise RuntimeError(f"{operation.name} changes {stray}, which is outside of ROOT")
            root = str(self.device.root)
            self.clean_runs[operation.name] = CleanRun(
                [call for call in calls if call.inside(root)], calls[0].pid, ended, floor_before,
                contents(self.device.tree()), self.cleaned())
        return self.clean_runs[operation.name]

    def outside(self, calls: Iterable[Call]) -> str | None:
        """Something that was changed and is neither ROOT, nor the test's, nor a device."""
        allowed = (str(self.device.root), str(self.device.side), "/dev/", "pipe:", "socket:")
        return next((path for call in calls if call.changes() and call.result is not None and call.result >= 0
                     for path in call.paths() if not path.startswith(allowed)), None)

    # --- what must hold -----------------------------------------------------------------------------

    def complaints(self, operation: Operation, ended: Ended | None) -> Iterator[str]:
        """Reboots the device and looks at it; then runs the operation again and looks once more."""
        device, root = self.device, self.device.root
        if ended is not None:
            yield from self.said(ended) if operation.name != "boot" else ()  # systemd starts it again
            if (current := linked(root, "current")) and (problem := incomplete(root, current)):
                yield f"before the reboot, current: {problem}"
        if problem := device.reboot():
            yield problem
        yield from self.state(operation)
        if ended is not None and ended.code == 0:
            yield from self.success(operation)
        ended = self.again(operation)
        if ended.code != self.expected_code(operation):
            yield f"run again, it ended with {ended.code}: {ended.stderr.strip()[-300:]}"
            return
        yield from self.state(operation)
        yield from self.success(operation)
        if difference := self.difference(operation):
            yield f"run again, it ended in another state: {difference}"

    def at_rest(self) -> Iterator[str]:
        """After a fault that was outlived nothing uncommitted runs, before any reboot."""
        current, committed = (linked(self.device.root, name) for name in ("current", "committed"))
        started = (self.device.side / "starts").read_text().split()
        if current != committed:
            yield f"before the reboot, current is {current}, but {committed} is committed"
        elif committed and started[-1:] != [committed]:
            yield f"before the reboot, {started[-1:]} runs, but {committed} is committed"

    @staticmethod
    def said(ended: Ended) -> Iterator[str]:
        """An installer that outlived a fault says in one sentence what it was."""
        if "Traceback" in ended.stderr:
            yield f"a traceback: {ended.stderr.strip().splitlines()[-1]}"
        if ended.code not in (0, 1, -9):
            yield f"ended with {ended.code}"
        if ended.code == 1 and not ended.stderr.strip() and not ended.stdout:
            yield f"failed without a sentence: {ended.stderr!r}"

    def state(self, operation: Operation) -> Iterator[str]:
        """What must hold whenever the device has booted."""
        device, root, clean = self.device, self.device.root, self.clean_run(operation)
        current, committed = linked(root, "current"), linked(root, "committed")
        if current != committed:
            yield f"current is {current}, committed is {committed}"
        if committed not in (device.id.get(operation.before), device.id.get(operation.after)):
            yield f"committed is {committed}, neither the old nor the new release"
        for name in ("current", "committed", "previous"):
            if (release_id := linked(root, name)) and (problem := incomplete(root, release_id)):
                yield f"{name}: {problem}"
        lowest = clean.floor.copy()
        if committed != device.id.get(operation.before):  # it was committed: only that lets the floor rise
            lowest["kws"] = max(lowest.get("kws", ()), numbers(device.version.get(committed, "")))
        try:
            if (found := floor(root)) != lowest:
                yield f"the floor is {found}, expected {lowest}"
        except (OSError, ValueError) as error:
            yield f"the floor cannot be read ({error})"
        trust = {path.name: path.read_bytes() for path in (root / "trust").glob("*")}
        folder = os.readlink(root / "trust") if (root / "trust").is_symlink() else "trust"
        if not trust or trust != {Path(name).name: content for name, (_, content) in clean.end.items()
                                  if name.startswith(f"{folder}/")}:
            yield f"{folder} holds other keys than it should"

    def success(self, operation: Operation) -> Iterator[str]:
        """What a command that said that it is done has done."""
        root = self.device.root
        if linked(root, "committed") != self.device.id.get(operation.after):
            yield f"committed is {linked(root, 'committed')} after a success"
        for path in map(self.fill, operation.makes):
            problem = None if (root / path).exists() else "missing"
            if path.startswith("releases/"):
                problem = incomplete(root, path.removeprefix("releases/"))
            if path.startswith("blobs/") and not problem:
                problem = None if (root / path).read_bytes() == self.device.inputs["bundle"] else "damaged"
            if problem:
                yield f"{path} after a success: {problem}"
        for path in map(self.fill, operation.removes):
            if (root / path).exists():
                yield f"{path} is there after a success"

    def again(self, operation: Operation) -> Ended:
        """The operation without a fault, as a host repeats it."""
        device = self.device
        if operation.name == "receive":
            digest, data = device.digest["bundle"], device.inputs["bundle"]
            for _ in range(2):  # what was damaged is removed, and sent once more
                answer = device.do("missing", stdin="new")["missing"]
                offset = next((item["received_bytes"] for item in answer if item["sha256"] == digest), None)
                if offset is None:
                    return Ended(0, "", "")
                ended = device.run("receive", digest, "--size", str(len(data)), "--offset", str(offset),
                                   stdin=data[offset:], broken=self.broken)
                if ended.code == 0:
                    break
            return ended
        if operation.name == "rollback" and linked(device.root, "committed") == device.id["old"]:
            return Ended(0, "", "")  # rolling back once more would go to the new one
        return self._start(operation)

    @staticmethod
    def expected_code(operation: Operation) -> int:
        return 1 if operation.unhealthy else 0

    def difference(self, operation: Operation) -> str | None:
        """What is other than after a run without a fault, when all that nobody needs has been removed."""
        found, expected = self.cleaned(), self.clean_run(operation).end
        return ", ".join(f"{name} is {'gone' if name not in found else 'other' if name in expected else 'extra'}"
                         for name in sorted({*found, *expected}) if found.get(name) != expected.get(name))

    def cleaned(self) -> dict:
        self.device.do("clean")
        return {name: what for name, what in contents(self.device.tree()).items() if name not in PASSING}

    # --- cases --------------------------------------------------------------------------------------

    def targets(self, operation: Operation) -> list[Call]:
        """The calls to make fail: those of the installer itself, but all of `boot`, whose every line is a process."""
        clean = self.clean_run(operation)
        return [call for call in clean.calls if call.changes() and (call.pid == clean.pid or operation.name == "boot")]

    def inject(self, operation: Operation, target: Call, fault: str, tries: int = 3) -> Case:
        clean = self.clean_run(operation)
        self.begin(operation)
        ended = self.run(operation, "-e", f"inject={target.name}:{FAULTS[fault]}:when={target.nth}",
                         follow=target.pid != clean.pid)
        calls = read_log(self.log)
        hit = [call for call in calls if call.is_injected or call.result is None]
        if not any((call.name, call.paths()) == (target.name, target.paths()) for call in hit):
            if tries > 1:
                return self.inject(operation, target, fault, tries - 1)  # strace may come late on a busy machine
            raise RuntimeError(f"{operation.name}: {fault} should have hit {describe(target)}, but hit "
                               f"{', '.join(map(describe, hit)) or 'nothing'}")
        is_trial = operation.name.startswith(("try", "rollback")) and ended.code != -9
        found = [*(self.at_rest() if is_trial else ()), *self.complaints(operation, ended)]
        if stray := self.outside(calls):
            found.append(f"{stray} was changed")
        return Case(operation.name, fault, self.short(describe(target)), tuple(map(self.short, found)))

    def power_cuts(self, operation: Operation) -> list[tuple[str, Tree, bool]]:
        """(description, tree, whether the command had ended) of every disk that a power cut can leave, each once."""
        clean = self.clean_run(operation)
        self.begin(operation)
        disk, found = Disk(self.device.root), {}
        last = len(clean.calls) - 1
        for i, call in enumerate(clean.calls):
            disk.apply(call)
            for variant, tree in disk.after_power_cut() if call.changes() or i == last else ():
                key = i == last, frozenset(contents(tree).items())
                found.setdefault(key, (f"{describe(call)}, {variant}", tree, i == last))
        if contents(disk.now()) != clean.tree:
            raise RuntimeError(f"{operation.name}: the log does not lead to what is on the disk")
        return list(found.values())

    def cut_power(self, operation: Operation, at: str, tree: Tree, has_ended: bool) -> Case:
        clean = self.clean_run(operation)
        self.begin(operation, tree)
        found = list(self.complaints(operation, clean.ended if has_ended else None))
        return Case(operation.name, POWER_CUT, self.short(at), tuple(map(self.short, found)))

    def short(self, text: str) -> str:
        return text.replace(str(self.device.root), "ROOT")

    def cases(self, operation: Operation, every: int = 1) -> Iterator[Case]:
        """All cases of an operation, or every n-th."""
        faults = [(target, fault) for target in self.targets(operation) for fault in FAULTS]
        for target, fault in faults[::every]:
            yield self.inject(operation, target, fault)
        for at, tree, has_ended in self.power_cuts(operation)[::every]:
            yield self.cut_power(operation, at, tree, has_ended)


def describe(call: Call) -> str:
    return f"{call.name}({', '.join(call.paths())})"


def table(cases: list[Case]) -> str:
    """Operation x fault -> number of cases, and how many of them the device survived."""
    lines = [f"| operation | {' | '.join(COLUMNS)} | survived |", "|---|" + "---|" * (len(COLUMNS) + 1)]
    for name in [*dict.fromkeys(case.operation for case in cases), "all"]:
        chosen = [case for case in cases if name in ("all", case.operation)]
        counts = Counter(case.fault for case in chosen)
        survived = sum(not case.complaints for case in chosen)
        cells = [name, *(str(counts[column]) for column in COLUMNS), f"{survived} of {len(chosen)}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_table(cases: list[Case], path: Path = README) -> None:
    """Puts the table between its markers."""
    text = path.read_text("utf-8")
    start, end = text.index(MARKERS[0]) + len(MARKERS[0]), text.index(MARKERS[1])
    path.write_text(f"{text[:start]}\n{table(cases)}\n{text[end:]}", "utf-8")


def unavailable() -> str | None:
    """Why faults cannot be injected here, None if they can."""
    if not shutil.which("strace"):
        return "no strace is installed (Debian: strace)"
    done = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, text=True)
    return f"strace cannot trace here ({done.stderr.strip()})" if done.returncode else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--full", action="store_true", help=f"every case (else every {SAMPLE}th)")
    parser.add_argument("--table", action="store_true", help="write the table into README.md (needs --full)")
    parser.add_argument("--operation", choices=[operation.name for operation in OPERATIONS], help="only this one")
    arguments = parser.parse_args()
    if arguments.table and (not arguments.full or arguments.operation):
        parser.error("--table is of all cases: give --full, and no --operation")
    if arguments.table and MARKERS[0] not in README.read_text("utf-8"):
        parser.error(f"{README} has no lines {' and '.join(MARKERS)}, between which the table belongs")
    if reason := unavailable():
        print(f"kill matrix: {reason}", file=sys.stderr)
        return 1
    cases: list[Case] = []
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kill-matrix-") as folder:
        device = Device(Path(folder))
        matrix = Matrix(device)
        for operation in OPERATIONS:
            if arguments.operation not in (None, operation.name):
                continue
            for case in matrix.cases(operation, 1 if arguments.full else SAMPLE):
                cases.append(case)
                print(json.dumps({"operation": case.operation, "fault": case.fault, "at": case.at,
                                  "survived": not case.complaints, "complaints": case.complaints}), flush=True)
            print(f"{operation.name}: {len(cases)} cases after {time.monotonic() - begun:.0f} s", file=sys.stderr)
        device.close()
    print(table(cases), file=sys.stderr)
    if arguments.table:
        write_table(cases)
    return int(any(case.complaints for case in cases))


if __name__ == "__main__":
    sys.exit(main())
