"""A device for deployment tests: a real sshd, a root in a temporary folder, the real runtime and the real service.

Fake are its edges: ``systemctl`` (starts what the installed unit says, without systemd), ``arecord`` and, inside of the
runtime, ``sounddevice`` (tests/fake_sounddevice.py with a clock), whose mood the test writes into a file.

    make_wheels    the checkout's wheel, and one wheel that stands for everything it needs: it lets the environment on
                   the device see this interpreter's packages, so that nothing is fetched
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from bundle_factory import OWNER

from devices.__main__ import main
from tests.sshd import Server, serve
from toolkit.bundle import load_bundle, write_bundle

CHECKOUT = Path(__file__).parents[1]
HEALTH_S = "15"  # of which it must be well for a tenth
ETC = ["--etc", "../etc"]  # of a device, beside its root
ARCHITECTURE = {"x86_64": "x86-64", "aarch64": "aarch64", "armv7l": "armv7"}.get(platform.machine(), "x86-64")
PROFILE = f"""schema: 1
name: board
board: this machine
architecture: {ARCHITECTURE}
runtime: native
flash_bytes: 1000000
ram_bytes: 1000000
macs_per_second: 100000000
hop_deadline_ms: 10
transport: ssh
audio_device: default
"""
# sh: ExecStartPre and ExecStart of the unit that was installed, as systemd would start them. A unit is enabled if there
# is a file of its name in the folder `enabled`.
SYSTEMCTL = r"""#!/bin/sh
for name; do :; done
[ "$1" != is-enabled ] || {{ [ -e {folder}/enabled/$name ]; exit; }}
echo "$*" >> {folder}/systemctl.log
unit={folder}/etc/systemd/system/edge-audio.service
stop() {{
    [ -e {folder}/pid ] || return 0
    kill "$(cat {folder}/pid)" 2>/dev/null
    while kill -0 "$(cat {folder}/pid)" 2>/dev/null; do sleep 0.05; done
    rm {folder}/pid
}}
case "$1" in
enable) [ -e {folder}/etc/systemd/system/$name ] && touch {folder}/enabled/$name ;;
disable) rm -f {folder}/enabled/$name ;;
stop) stop ;;
restart)
    stop
    $(sed -n 's/^ExecStartPre=+//p' $unit) || exit 1
    setsid $(sed -n 's/^ExecStart=//p' $unit) </dev/null >>{folder}/journal 2>&1 &
    echo $! > {folder}/pid ;;
esac
"""
SOUNDDEVICE = '''
import os, pathlib, sys, threading, time
import numpy as np
from fake_sounddevice import FakeSound, FakeStream

class LiveStream(FakeStream):
    """Delivers a block every 20 ms: noise, or what the mood says."""

    def start(self):
        super().start()
        threading.Thread(target=self.play, daemon=True).start()

    def play(self):
        noise = np.random.default_rng(0).integers(-999, 999, (320, self.options.channels), dtype=np.int16)
        while self.state == "started":
            time.sleep(0.02)
            mood, _, version = pathlib.Path(os.environ["EDGE_AUDIO_MOOD"]).read_text().partition(" ")
            is_meant = version in pathlib.Path(sys.argv[-1], "release.json").read_text()
            if mood != "silent" or not is_meant:
                self.deliver(noise * 0 if mood == "deaf" and is_meant else noise)

class LiveSound(FakeSound):
    def RawInputStream(self, **options):
        return LiveStream(self, **options)

sys.modules[__name__] = LiveSound()
'''


@dataclass
class Device:
    """What a test needs of one: where it is, how to reach it, and what happened there."""

    folder: Path
    server: Server
    environment: dict[str, str]  # of all that runs there

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def arguments(self) -> list[str]:
        return [*self.server.arguments, "--root", str(self.root)]

    @property
    def units(self) -> Path:
        return self.folder / "etc" / "systemd" / "system"

    def set_mood(self, mood: str) -> None:
        """``well``, or ``deaf`` or ``silent`` with the version of a bundle: the microphone of releases that hold it."""
        (self.folder / "mood.new").write_text(mood)
        (self.folder / "mood.new").rename(self.folder / "mood")

    def linked(self, name: str) -> str | None:
        path = self.root / name
        return os.readlink(path).removeprefix("releases/") if path.is_symlink() else None

    def bundles(self, link: str = "committed") -> dict[str, str]:
        """Versions by name, of the release behind a link."""
        release = json.loads((self.root / link / "release.json").read_text())
        return {bundle["name"]: bundle["version"] for bundle in release["bundles"]}

    def snapshot(self) -> list[str]:
        """Every path below the root, but those of environments."""
        return sorted(str(path) for path in self.root.rglob("*") if "runtimes" not in path.parts)

    def copy_from(self, other: Device) -> None:
        """The state of another device, its environments shared, and its service running."""
        self.root.mkdir(exist_ok=True)
        for path in other.root.iterdir():
            if path.name == "runtimes":
                (self.root / "runtimes").mkdir()
                for runtime in path.iterdir():
                    (self.root / "runtimes" / runtime.name).symlink_to(runtime)
            elif path.is_symlink():
                (self.root / path.name).symlink_to(os.readlink(path))
            elif path.is_dir():
                shutil.copytree(path, self.root / path.name, symlinks=True)
            else:
                shutil.copy2(path, self.root)
        for path in other.units.iterdir():
            (self.units / path.name).write_text(path.read_text().replace(str(other.root), str(self.root)))
        shutil.copytree(other.folder / "enabled", self.folder / "enabled", dirs_exist_ok=True)
        self.start()

    def start(self) -> None:
        """The service, as at boot, until it listens."""
        subprocess.run([self.folder / "bin" / "systemctl", "restart"], check=True, env=self.environment)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            status = self.folder / "status.json"
            if status.exists() and json.loads(status.read_text())["state"] == "listening":
                return
            time.sleep(0.1)
        pytest.fail(f"the service did not start: {(self.folder / 'journal').read_text()}")

    def run_unit(self, name: str) -> subprocess.CompletedProcess:
        """ExecStart of a oneshot service that was installed, as systemd would start it, with update.conf."""
        text = (self.units / name).read_text().replace("\\\n", "").replace("/run/edge-audio", str(self.folder))
        (line,) = [line for line in text.splitlines() if line.startswith("ExecStart=")]
        words = [word.replace("$$", "$") for word in shlex.split(line.removeprefix("ExecStart="))]
        conf = self.folder / "etc" / "edge-audio" / "update.conf"
        settings = dict(re.findall(r"^(\w+)=(.*)$", conf.read_text() if conf.exists() else "", re.M))
        return subprocess.run(words, cwd=self.root, env=self.environment | settings, capture_output=True, text=True)

    def systemctl(self) -> list[str]:
        log = self.folder / "systemctl.log"
        return log.read_text().splitlines() if log.exists() else []


@dataclass
class Desk:
    """The host: bundles kws 0.4.0 to 0.6.0, keys, wheels."""

    folder: Path
    wheel: Path
    needed: Path

    def order(self, version: str = "0.5.0", *more: str) -> list[str]:
        return ["deploy", str(self.folder / "board.yaml"), str(self.folder / f"{version}.eab"), "--health-s", HEALTH_S,
                *more]

    @property
    def runtime(self) -> list[str]:
        return ["--wheel", str(self.wheel), "--requirements", str(self.needed)]


def command(device: Device, arguments: list[str], capsys) -> tuple[int, dict | None, str]:
    """(exit status, the JSON line, what people read) of ``python -m devices``."""
    status = main([*arguments, *device.arguments, *(ETC if arguments[0] == "deploy" else [])])
    out, err = capsys.readouterr()
    return status, json.loads(out.splitlines()[-1]) if out else None, err


@contextmanager
def make_device(folder: Path) -> Iterator[Device]:
    """A running one, on which nothing is installed."""
    programs = folder / "bin"
    for path in (programs, folder / "etc" / "systemd" / "system", folder / "enabled"):
        path.mkdir(parents=True)
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    _program(programs / "python3", f'#!/bin/sh\nexec {python} "$@"\n')
    _program(programs / "systemctl", SYSTEMCTL.format(folder=folder))
    _program(programs / "arecord", "#!/bin/sh\necho 'card 0: Fake [Fake], device 0: Fake'\n")
    environment = {"PATH": f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin", "EDGE_AUDIO_MOOD": str(folder / "mood"),
                   "EDGE_AUDIO_STATUS": str(folder / "status.json")}
    with serve(folder, **environment) as server:
        device = Device(folder, server, {**os.environ, **environment})
        device.set_mood("well")
        try:
            yield device
        finally:
            subprocess.run([programs / "systemctl", "stop"], check=True, env=device.environment)


def _program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def make_wheels(folder: Path) -> tuple[Path, Path]:
    """(the wheel of the checkout, the folder of what it needs)."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed")
    source = folder / "source"
    shutil.copytree(CHECKOUT / "toolkit", source / "toolkit", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "Makefile", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, source)
    project = (CHECKOUT / "pyproject.toml").read_text("utf-8")
    lists, only = r"^(dependencies|listen) = \[.*?\]$", r'\1 = ["this-interpreter"]'
    project, n = re.subn(lists, only, project, flags=re.S | re.M)
    assert n == 2
    (source / "pyproject.toml").write_text(project, "utf-8")
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "-w", folder, source], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    needed = folder / "needed"
    needed.mkdir()
    _wheel_of_this_interpreter(needed)
    return wheel, needed


def _wheel_of_this_interpreter(folder: Path) -> None:
    packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    about = "this_interpreter-1.dist-info"
    files = {
        "this_interpreter.pth": "\n".join(packages) + "\n",
        "fake_sounddevice.py": (CHECKOUT / "tests" / "fake_sounddevice.py").read_text("utf-8"),
        "sounddevice.py": SOUNDDEVICE,
        f"{about}/METADATA": "Metadata-Version: 2.1\nName: this-interpreter\nVersion: 1\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{about}/RECORD"])
    with zipfile.ZipFile(folder / "this_interpreter-1-py3-none-any.whl", "w") as wheel:
        for name, text in {**files, f"{about}/RECORD": record}.items():
            wheel.writestr(name, text)


def make_version(path: Path, version: str, key=OWNER, name: str = "kws", breaks: str | None = None) -> Path:
    """The released bundle ``kws`` as another version, signed by ``key``; ``breaks``: a role whose bytes are altered."""
    released = load_bundle("kws", "off")
    files = {role: member.file for role, member in released.manifest.members.items()}
    members = {role: (files[role], data) for role, data in released.members.items()}
    if breaks:
        file, data = members[breaks]
        members[breaks] = (file, data[::-1])
    write_bundle(path, replace(released.manifest, version=version, name=name), members, key)
    return path
