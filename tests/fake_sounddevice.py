"""A fake sounddevice: microphones that deliver, refuse and fail as a test wants, at the edge to PortAudio."""

from __future__ import annotations

import types
from collections.abc import Callable

import numpy as np


class FakeError(Exception):
    """sounddevice.PortAudioError: message, PaErrorCode."""


class FakeStream:
    """RawInputStream; a test delivers blocks by calling ``deliver``."""

    def __init__(self, sound: FakeSound, **options) -> None:
        self.options = types.SimpleNamespace(**options)
        self.state = "open"
        if error := sound.refuse(self.options):
            raise error
        sound.streams.append(self)

    def start(self) -> None:
        self.state = "started"

    def abort(self) -> None:
        self.state = "aborted"
        self.options.finished_callback()

    def close(self) -> None:
        self.state = "closed"

    def deliver(self, frames: np.ndarray, overflow: bool = False) -> None:
        status = types.SimpleNamespace(input_overflow=overflow)
        self.options.callback(memoryview(frames.tobytes()), len(frames), None, status)


class FakeSound(types.ModuleType):
    """The part of sounddevice that mic.py touches, with two microphones and a loudspeaker."""

    PortAudioError = FakeError

    def __init__(self) -> None:
        super().__init__("sounddevice")
        self.streams: list[FakeStream] = []
        self.refuse: Callable[[types.SimpleNamespace], FakeError | None] = lambda options: None
        self.restarts = 0
        self.default = types.SimpleNamespace(device=(2, 0))
        self.devices = [
            self.device(0, "Loudspeaker", 0, 48000.0),
            self.device(1, "USB PnP Sound Device: Audio (hw:1,0)", 2, 44100.0),
            self.device(2, "Array: four capsules (hw:2,0)", 4, 48000.0),
        ]

    def device(self, index: int, name: str, channels: int, rate: float) -> dict:
        return {
            "index": index, "name": name, "hostapi": 0, "max_input_channels": channels, "default_samplerate": rate
        }  # fmt: skip

    def RawInputStream(self, **options) -> FakeStream:  # noqa: N802
        return FakeStream(self, **options)

    def query_hostapis(self):
        return ({"name": "ALSA"},)

    def query_devices(self):
        return self.devices

    def _terminate(self) -> None:
        assert all(stream.state == "closed" for stream in self.streams), "PortAudio stopped under an open stream"

    def _initialize(self) -> None:
        self.restarts += 1
