"""A device in a folder, for the kill matrix: its releases, a fake systemd, pip and reboot, and what must hold.

The bundles are the released one and the same with an older version, signed with the development key; the installer is
that of the checkout (tests/kill_installer.py runs it).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from kill_replay import Disk, Tree, write_tree

CHECKOUT = Path(os.path.abspath(__file__)).parents[1]
INSTALLER = str(CHECKOUT / "tests/kill_installer.py")
RUNTIME_FILES = ("ready", "installed", "bin/python")

SYSTEMCTL = """#!/bin/sh
# A service that starts as its unit says: boot first, then what `current` names; its status file is written by World.
running=
if [ "$1" = restart ] && "$EDGE_AUDIO_ROOT/boot"; then running=$(readlink "$EDGE_AUDIO_ROOT/current"); fi
echo "${running##*/}" >> "{side}/starts"
"""
PYTHON3 = """#!/bin/sh
# `python3 -m venv FOLDER` in milliseconds
for folder; do :; done
exec "{python}" -I -S -c '
import os, shutil, sys
os.makedirs(sys.argv[1] + "/bin")
shutil.copy("{side}/python", sys.argv[1] + "/bin/python")' "$folder"
"""
RUNTIME = """#!/bin/sh
# The Python of a release: pip installs one file; a self-test is replayed once for the same bundles and then remembered.
case "$*" in
*"-m pip"*)
    exec "{python}" -I -S -c 'import sys; open(sys.argv[1] + "/../installed", "w").write("toolkit")' "${0%/*}" ;;
esac
memory="{side}/selftests/$(cat ./*.eab "$EDGE_AUDIO_TRUST"/*.pub | sha256sum | cut -c 1-64)"
if [ ! -e "$memory" ]; then
    shift # -I
    PYTHONPATH="{checkout}" "{python}" -B "$@" > "$memory.new" || exit
    mv "$memory.new" "$memory"
fi
cat "$memory"
"""


class Device:
    """ROOT with everything around it, in ``folder``; the trees of all states that operations begin with."""

    def __init__(self, folder: Path):
        folder = folder.resolve()
        self.root, self.side = folder / "root", folder / "side"
        for path in (self.root, self.side / "bin", self.side / "selftests"):
            path.mkdir(parents=True)
        for path, script in ((self.side / "bin/systemctl", SYSTEMCTL), (self.side / "bin/python3", PYTHON3),
                             (self.side / "python", RUNTIME)):
            for name, value in (("side", self.side), ("python", sys.executable), ("checkout", CHECKOUT)):
                script = script.replace(f"{{{name}}}", str(value))
            path.write_text(script)
            path.chmod(0o755)
        self.environment = {"PATH": f"{self.side}/bin:/usr/bin:/bin", "EDGE_AUDIO_ROOT": str(self.root),
                            "EDGE_AUDIO_STATUS": str(self.side / "status.json"), "LC_ALL": "C.UTF-8"}
        self.installer = subprocess.Popen([sys.executable, "-I", "-S", "-B", INSTALLER], stdin=subprocess.PIPE,
                                          stdout=subprocess.PIPE, text=True)
        self.plan()
        self.states: dict[str, Tree] = {}
        self.make_states()

    # --- what it runs -------------------------------------------------------------------------------

    def plan(self) -> None:
        """What is sent to it: releases ``first`` and ``old`` of an older bundle, ``new`` of the released; keyrings."""
        from keyrings import A, B, X, Y, keyring, signed

        from toolkit.bundle import load_bundle, pack_bundle, released_bundles
        from toolkit.signature import read_private_key

        bundle = load_bundle("kws", "off")
        development = read_private_key(CHECKOUT / "devices/keys/development.key")
        members = {role: (member.file, bundle.members[role]) for role, member in bundle.manifest.members.items()}
        older = pack_bundle(replace(bundle.manifest, version="0.0.1", members={}), members, development)
        self.inputs = {"wheel": b"a wheel", "old bundle": older, "bundle": released_bundles()["kws"].read_bytes()}
        for version, key in ((1, X), (2, Y)):
            parts = signed(keyring(version, bundle=(development, key)), A, B)
            self.inputs[f"keyring {version}"] = b"\n".join(parts) if not parts[0].endswith(b"\n") else b"".join(parts)
        self.digest = {name: hashlib.sha256(data).hexdigest() for name, data in self.inputs.items()}
        runtime = {"wheel": "toolkit-1-py3-none-any.whl", "sha256": self.digest["wheel"], "requirements": [],
                   "system_site_packages": False}
        self.key = short_id(canonical(runtime))
        self.id: dict[str, str] = {}  # of releases, by name
        self.version: dict[str | None, str] = {}  # of their bundle, by ID
        for name, source, version, channel in (
                ("first", "old bundle", "0.0.1", 1), ("old", "old bundle", "0.0.1", 0),
                ("new", "bundle", bundle.manifest.version, 0), ("other", "old bundle", "0.0.1", 2)):
            data = canonical({"schema": 1, "runtime": runtime,
                              "bundles": [{"name": "kws", "version": version, "sha256": self.digest[source]}],
                              "listen": {"device": None, "channel": channel, "threshold": None}})
            self.inputs[name], self.id[name], self.version[short_id(data)] = data, short_id(data), version

    def make_states(self) -> None:
        """By the installer itself; what a state lacks for the next one is done between."""
        self.load({}, "")
        self.do("trust", stdin="keyring 1")
        self.send("wheel")
        self.send("old bundle")
        self.states["bare"] = self.tree()
        self.do("runtime", stdin="first")
        self.do("stage", stdin="old")
        self.states["never committed"] = self.tree()
        self.do("stage", stdin="first")
        for name in ("first", "old"):
            self.do("try", self.id[name], "--health-s", "1")
        self.states["steady"] = self.tree()
        self.send("bundle")
        self.states["received"] = self.tree()
        self.do("stage", stdin="new")
        self.states["staged"] = self.tree()
        tree = self.states["staged"]
        new, old = (("link", os.fsencode(f"releases/{self.id[name]}")) for name in ("new", "old"))
        self.states["cut off"] = {**tree, "current": new}  # in the midst of a trial
        self.states["half committed"] = {**tree, "current": new, "committed": new, ".previous.new": old}
        self.do("try", self.id["new"], "--health-s", "1")
        self.states["upgraded"] = self.tree()
        self.do("stage", "--allow-older", stdin="other")
        (self.root / "blobs" / ("0" * 64)).write_bytes(b"needed by nobody")
        (self.root / "incoming" / ("1" * 64 + ".part")).write_bytes(b"begun")
        shutil.copytree(self.root / "runtimes" / self.key, self.root / "runtimes" / ("2" * 16))
        self.states["full of litter"] = self.tree()

    # --- what happens to it -------------------------------------------------------------------------

    def tree(self) -> Tree:
        return Disk(self.root).now()

    def load(self, tree: Tree, running: str, unhealthy: str = "") -> None:
        """ROOT holds the tree, the service runs one release, and another one will not be healthy."""
        shutil.rmtree(self.root)
        write_tree(tree, self.root)
        (self.side / "unhealthy").write_text(unhealthy)
        self.start_service(running)

    def start_service(self, running: str) -> None:
        (self.side / "starts").write_text(f"{running}\n")
        (self.side / "status.json").unlink(missing_ok=True)

    def run(self, *argv: str, stdin: bytes = b"", broken: str | None = None,
            tracer: tuple[str, ...] = ()) -> Ended:
        """One command of the installer, with ``tracer`` (strace and its options) attached to it.

        What it has started is killed when it ends, as by a power cut. Only `trust` finds the libraries of this Python.
        """
        (self.side / "stdin").write_bytes(stdin)
        for name in ("stdout", "stderr"):
            (self.side / name).write_bytes(b"")
        process = self.tell({"side": str(self.side), "argv": argv, "broken": broken, "traced": bool(tracer),
                             "environment": self.environment, "libraries": sys.path if argv[0] == "trust" else []})
        strace = self.attach(tracer, process) if tracer else None
        if strace:
            self.tell(None, answer=False)
        code = int(self.installer.stdout.readline())
        self.end(process)
        if strace:
            strace.wait(10)
        return Ended(code, (self.side / "stdout").read_text(), (self.side / "stderr").read_text(errors="replace"))

    def tell(self, request: dict | None, answer: bool = True) -> int:
        """One line to the installer's process, and its answer."""
        self.installer.stdin.write("\n" if request is None else json.dumps(request) + "\n")
        self.installer.stdin.flush()
        return int(self.installer.stdout.readline()) if answer else 0

    def attach(self, tracer: tuple[str, ...], process: int) -> subprocess.Popen:
        strace = subprocess.Popen([*tracer, "-p", str(process)], stderr=subprocess.DEVNULL)
        while "TracerPid:\t0\n" in Path(f"/proc/{process}/status").read_text():
            if strace.poll() is not None:
                raise RuntimeError("strace cannot attach to a process: ptrace is not allowed here")
            time.sleep(0.001)
        return strace

    def run_boot(self, tracer: tuple[str, ...] = ()) -> Ended:
        """ROOT/boot, which is on the device itself."""
        with open(self.side / "stdout", "wb") as out, open(self.side / "stderr", "wb") as err:
            process = subprocess.Popen([*tracer, self.root / "boot"], stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                                       env=self.environment, cwd="/", start_new_session=True)
            code = process.wait(60)
        self.end(process.pid)
        return Ended(code, (self.side / "stdout").read_text(), (self.side / "stderr").read_text(errors="replace"))

    @staticmethod
    def end(process: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)

    def close(self) -> None:
        self.installer.stdin.close()
        self.installer.wait(10)

    def do(self, *argv: str, stdin: str = "") -> dict:
        """A command that must succeed, fed with one of ``inputs``, and what it says."""
        ended = self.run(*argv, stdin=self.inputs.get(stdin, b""))
        if ended.code:
            raise RuntimeError(f"{' '.join(argv)} failed: {ended.stderr}")
        return json.loads(ended.stdout)

    def send(self, name: str) -> None:
        self.do("receive", self.digest[name], "--size", str(len(self.inputs[name])), stdin=name)

    def reboot(self) -> str | None:
        """The power comes back: the service starts as its unit says. A complaint, or None."""
        if not (self.root / "boot").exists():
            return None if not (self.root / "current").is_symlink() else "boot is missing"
        ended = self.run_boot()
        self.start_service(linked(self.root, "current") or "")
        if ended.code and (self.root / "committed").is_symlink():
            return f"boot failed: {ended.stderr.strip()}"
        return None


@dataclass
class Ended:
    """A process that has ended."""

    code: int
    stdout: str
    stderr: str


# --- what must hold ---------------------------------------------------------------------------------


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def short_id(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def linked(root: Path, name: str) -> str | None:
    """The ID that a link names, None if there is no link; its target as it is if it is of another form."""
    try:
        target = os.readlink(root / name)
    except OSError:
        return None
    return target.removeprefix("releases/")


def incomplete(root: Path, release_id: str) -> str | None:
    """What a release lacks to be the one that its ID names; None if every byte is right and its runtime is finished."""
    folder = root / "releases" / release_id
    try:
        data = (folder / "release.json").read_bytes()
        if short_id(data) != release_id:
            return f"release.json of {release_id} is not what its ID says"
        release = json.loads(data)
        for bundle in release["bundles"]:
            data = (folder / "bundles" / f"{bundle['name']}.eab").read_bytes()
            if hashlib.sha256(data).hexdigest() != bundle["sha256"]:
                return f"{bundle['name']}.eab of {release_id} is damaged"
        expected = root / "runtimes" / short_id(canonical(release["runtime"]))
        if (folder / "runtime").resolve(strict=True) != expected.resolve(strict=True):
            return f"{release_id} has another runtime"
        for name in RUNTIME_FILES:
            if not (expected / name).is_file():
                return f"the runtime of {release_id} lacks {name}"
        if not (expected / "installed").read_bytes() or not os.access(expected / "bin/python", os.X_OK):
            return f"the runtime of {release_id} is damaged"
    except OSError as error:
        return f"{release_id} is not complete ({error.strerror}: {os.path.relpath(error.filename, root)})"
    return None


def numbers(version: str) -> tuple[int, ...]:
    """What to compare plain versions by."""
    return tuple(int(number) for number in version.split(".") if number)


def floor(root: Path) -> dict[str, tuple[int, ...]]:
    """The lowest version by bundle that is taken: of floor.json and of the committed release, the higher one."""
    versions = []
    if (root / "floor.json").exists():
        versions += json.loads((root / "floor.json").read_bytes()).items()
    if committed := linked(root, "committed"):
        release = json.loads((root / "releases" / committed / "release.json").read_bytes())
        versions += [(bundle["name"], bundle["version"]) for bundle in release["bundles"]]
    lowest: dict[str, tuple[int, ...]] = {}
    for name, version in versions:
        lowest[name] = max(lowest.get(name, ()), numbers(version))
    return lowest
