"""The service in a process of its own: a sounddevice that does what a file says, a socket as systemd's, a release."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from released import released

ROOT = Path(__file__).resolve().parents[1]

SOUNDDEVICE = """
import os, threading, time
import numpy as np
from fake_sounddevice import FakeSound, FakeStream

FOLDER = os.path.dirname(__file__)
SAID = np.fromfile(FOLDER + "/said", np.int16)

def mode():
    with open(FOLDER + "/mode") as file:
        return file.read()

class Stream(FakeStream):
    def start(self):
        self.state = "started"
        threading.Thread(target=self.play, daemon=True).start()
    def play(self):
        position = 0
        while self.state == "started":
            time.sleep(0.02)
            if mode() in ("vanish", "none"):
                return self.options.finished_callback()
            if mode() == "constant":
                self.deliver(np.full((320, 1), 7, np.int16))
            if mode() == "sound":
                self.deliver(np.take(SAID, np.arange(position, position + 320), mode="wrap").reshape(-1, 1))
                position += 320
    def abort(self):
        while mode() == "hang at closing":
            time.sleep(60)
        super().abort()

class Sound(FakeSound):
    def RawInputStream(self, **options):
        while mode() == "hang at opening":
            time.sleep(60)
        return Stream(self, **options)
    def query_devices(self):
        return self.devices[:1] if mode() == "none" else self.devices

import sys
sys.modules["sounddevice"] = Sound()
"""


class Device:
    """The real service in a process of its own; ``mode`` is what its microphone does."""

    def __init__(self, folder: Path, mode: str, said: np.ndarray) -> None:
        self.folder, self.status_file = folder, folder / "status.json"
        (folder / "sounddevice.py").write_text(SOUNDDEVICE)
        said.astype(np.int16).tofile(folder / "said")
        self.mode = mode
        (folder / "mode").write_text(mode)

    def sound(self, mode: str) -> None:
        self.mode = mode
        (self.folder / "new").write_text(mode)
        os.replace(self.folder / "new", self.folder / "mode")

    def environment(self, **more: str) -> dict[str, str]:
        path = os.pathsep.join([str(self.folder), str(ROOT), str(ROOT / "tests")])
        clean = {key: value for key, value in os.environ.items() if key not in ("NOTIFY_SOCKET", "WATCHDOG_USEC")}
        return {**clean, "PYTHONPATH": path, "EDGE_AUDIO_STATUS": str(self.status_file), **more}

    @contextlib.contextmanager
    def running(self, *command: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen([sys.executable, "-m", *command], env=self.environment(**environment), **pipes) as child:
            killer = threading.Timer(40, child.kill)
            killer.start()
            try:
                yield child
            finally:
                killer.cancel()
                child.kill()

    def status(self, accept=lambda status: True) -> dict:
        """The status once it is accepted."""
        deadline_s = time.monotonic() + 20
        while time.monotonic() < deadline_s:
            with contextlib.suppress(FileNotFoundError):
                if accept(status := json.loads(self.status_file.read_text())):
                    return status
            time.sleep(0.02)
        raise AssertionError(f"not within 20 s: {self.status_file.exists() and self.status_file.read_text()}")


def end(child: subprocess.Popen[str]) -> tuple[str, str]:
    """Stop it as systemd does -> what it has printed; it must end well within a second."""
    started_s = time.monotonic()
    child.send_signal(signal.SIGTERM)
    child.wait(10)
    took_s = time.monotonic() - started_s
    out, err = child.communicate()
    assert child.returncode == 0 and took_s < 1.0, (child.returncode, took_s, err)
    return out, err


@contextlib.contextmanager
def notify_socket(abstract: bool = False) -> Iterator[tuple[socket.socket, str]]:
    """A socket as systemd's, and its NOTIFY_SOCKET; in a short folder, for a socket's path has 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="notify-") as folder:
        name = f"@{folder}" if abstract else f"{folder}/notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
            server.bind(name.replace("@", "\0", 1))
            server.settimeout(5)
            yield server, name


class Systemd:
    """Reads the socket all the time; ``heard`` are the datagrams."""

    def __init__(self, server: socket.socket, name: str) -> None:
        self.name, self.heard = name, []
        server.settimeout(None)
        threading.Thread(target=self._read, args=(server,), daemon=True).start()

    def _read(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the test has ended
            while message := server.recv(1000).decode():
                self.heard.append(message)

    def next(self, wanted: str, timeout_s: float = 15, first: int | None = None) -> str | None:
        """The next datagram from now on (or from the one with this index) that holds this; None if none is in time."""
        first, deadline_s = len(self.heard) if first is None else first, time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            for message in self.heard[first:]:
                if wanted in message:
                    return message
            time.sleep(0.01)
        return None


def release(folder: Path, **listen) -> Path:
    """A release's folder as staged on a device, behind the link `current`."""
    bundle = released()
    runtime = {"wheel": "toolkit.whl", "sha256": "0" * 64, "requirements": [], "system_site_packages": False}
    document = {"schema": 1, "runtime": runtime, "listen": {"device": None, "channel": 0, "threshold": None, **listen},
                "bundles": [{"name": "kws", "version": bundle.manifest.version, "sha256": bundle.sha256}]}
    data = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    staged = folder / "releases" / hashlib.sha256(data).hexdigest()[:16]
    (staged / "bundles").mkdir(parents=True)
    (staged / "release.json").write_bytes(data)
    shutil.copy(bundle.path, staged / "bundles" / "kws.eab")
    (folder / "current").symlink_to(staged)
    return folder / "current"
