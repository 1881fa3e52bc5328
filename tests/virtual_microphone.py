"""A microphone without hardware: a private PulseAudio server that ALSA, and so PortAudio, records from.

    play(int16)  ->  null sink (16 kHz mono)  ->  its monitor  ->  ALSA's pulse plugin  ->  PortAudio

The server lives in a temporary folder and knows nothing of the user's own. Code that records must run in a process of
its own with ``environment``, because PortAudio reads ALSA's configuration once: see ``VirtualMicrophone.python``.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
DEBIAN_PARTS = {"pulseaudio": "pulseaudio", "paplay": "pulseaudio-utils"}
PULSE_PLUGIN = "libasound_module_pcm_pulse.so"
START_TIMEOUT_S = 5.0
CHILD_TIMEOUT_S = 20.0

# Two names for one source, so that a test can choose between devices.
ALSA_CONFIGURATION = """
pcm_type.pulse { lib "libasound_module_pcm_pulse.so" }
pcm.!default { type pulse }
pcm.kitchen { type pulse }
"""


class VirtualMicrophone:
    """A running virtual microphone; ``server`` is the process to kill or to stop where a test wants trouble."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self._socket = self.folder / "pulse.socket"
        configuration = self.folder / "asound.conf"
        configuration.write_text(ALSA_CONFIGURATION)
        self.environment = {
            **os.environ,
            "HOME": folder,
            "XDG_RUNTIME_DIR": folder,
            "PULSE_SERVER": f"unix:{self._socket}",
            "ALSA_CONFIG_PATH": str(configuration),
            "PYTHONPATH": str(REPOSITORY),
        }
        self._started: list[subprocess.Popen[bytes]] = []
        self.start_server()

    def start_server(self) -> None:
        """Start the server, again where a test has killed it."""
        self._socket.unlink(missing_ok=True)
        self.server = self._start(
            *("pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=30", "--use-pid-file=no", "--disable-shm=yes"),
            # With rewinds a null sink renders 2 s at once, and the first samples come that late.
            *("--log-level=error", "-L", "module-null-sink rate=16000 channels=1 format=s16le norewinds=1"),
            *("-L", f"module-native-protocol-unix auth-anonymous=1 socket={self._socket}"),
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._accepts():
            if self.server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"pulseaudio did not start: {(self.folder / 'log').read_text()}")
            time.sleep(0.01)

    def play(self, samples: np.ndarray) -> None:
        """Start playing int16 [n] at 16 kHz into the room; the microphone hears it bit for bit."""
        path = self.folder / "play.raw"
        path.write_bytes(samples.astype("<i2").tobytes())
        self._start(
            "paplay", "--raw", "--rate=16000", "--channels=1", "--format=s16le", "--latency-msec=100", str(path)
        )

    @contextlib.contextmanager
    def python(self, code: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run Python code that may import toolkit and record; stdin and stdout are pipes. Killed after 20 s."""
        with subprocess.Popen(
            [sys.executable, "-c", code], env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as child:
            watchdog = threading.Timer(CHILD_TIMEOUT_S, child.kill)
            watchdog.start()
            try:
                yield child
                child.wait()
            finally:
                watchdog.cancel()
                child.kill()

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()

    def _accepts(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(self._socket)) == 0

    def _start(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._started.append(process)
        return process


def missing_debian_parts() -> list[str]:
    """The Debian packages that a virtual microphone needs and that are not installed."""
    missing = {package for program, package in DEBIAN_PARTS.items() if shutil.which(program) is None}
    if not any(Path("/usr/lib").glob(f"*/alsa-lib/{PULSE_PLUGIN}")):
        missing.add("libasound2-plugins")
    if ctypes.util.find_library("portaudio") is None:
        missing.add("libportaudio2")
    if importlib.util.find_spec("sounddevice") is None:
        missing.add("python3-sounddevice")
    return sorted(missing)


@contextlib.contextmanager
def running_virtual_microphone() -> Iterator[VirtualMicrophone]:
    if missing := missing_debian_parts():
        pytest.skip(f"a virtual microphone needs: sudo apt install {' '.join(missing)}")
    with tempfile.TemporaryDirectory(prefix="virtual-microphone-") as folder:  # short: a socket's path has 107 bytes
        microphone = VirtualMicrophone(folder)
        try:
            yield microphone
        finally:
            microphone.close()


@pytest.fixture(scope="module")
def virtual_microphone() -> Iterator[VirtualMicrophone]:
    """One for the tests of a module that leave it alive."""
    with running_virtual_microphone() as microphone:
        yield microphone


@pytest.fixture
def mortal_microphone() -> Iterator[VirtualMicrophone]:
    """One for a single test, which may kill or stop its server."""
    with running_virtual_microphone() as microphone:
        yield microphone
