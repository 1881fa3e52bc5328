"""The microphone as an iterator of int16 blocks that knows when it has gone deaf (PortAudio, through sounddevice).

    PortAudio callback: copy, queue, count  ->  reader: one channel -> resampler -> blocks int16 [block_samples]

A microphone that fails in the field seldom says so: the stream stays active and delivers nothing, or one value for
ever, or fewer samples than the clock asks for, while PortAudio's status flags stay clear. So each of these is checked
here: no samples for a while is an error, ``deaf_s`` grows while samples do not change, and ``lost_samples_estimate``
compares the sample count with the clock.
"""

from __future__ import annotations

import atexit
import contextlib
import difflib
import math
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from toolkit.audio import Resampler, pick_channel
from toolkit.errors import MicrophoneError, MissingPartError

LATENCY_S = 0.1  # what the device is asked to buffer: with less, a busy small computer loses samples
CLOSE_TIMEOUT_S = 0.5  # a sound server that hangs would hold the closing thread for ever
CLOCK_WINDOW_S = 2.0
PA_DEVICE_UNAVAILABLE = -9985  # portaudio.h, PaErrorCode

_users = 0  # of PortAudio in this process: only without any may it be restarted, which is how it finds new devices
_users_lock = threading.Lock()


def list_devices() -> list[dict[str, Any]]:
    """The input devices, each with index, name, host_api, channels, default_rate_hz, default (bool). May be empty.

    Raises MissingPartError where sounddevice or PortAudio is not installed.
    """
    sd = _acquire_portaudio()
    try:
        return _input_devices(sd)
    finally:
        _release_portaudio()


def find_device(devices: list[dict[str, Any]], device: int | str | None) -> dict[str, Any]:
    """The one of ``list_devices()`` meant by an index, a name or a part of one in any case, or None for the default.

    Raises MicrophoneError where there is none, or where a part of a name fits several.
    """
    if not devices:
        raise MicrophoneError("no microphone was found; plug one in and look for it with `arecord -l`")
    choices = ", ".join(f"{each['index']} {each['name']!r}" for each in devices)
    if device is None:
        for each in devices:
            if each["default"]:
                return each
        raise MicrophoneError(f"the system names no default microphone; choose one with --device: {choices}")
    if isinstance(device, int) or device.isdecimal():
        for each in devices:
            if each["index"] == int(device):
                return each
        raise MicrophoneError(f"no microphone has the index {device}; there are {choices}")
    wanted = device.lower()
    fitting = [each for each in devices if wanted in each["name"].lower()]
    exact = [each for each in fitting if each["name"].lower() == wanted]
    if len(fitting) == 1 or len(exact) == 1:
        return (exact or fitting)[0]
    if fitting:
        names = ", ".join(f"{each['index']} {each['name']!r}" for each in fitting)
        raise MicrophoneError(f"{device!r} fits {len(fitting)} microphones; choose one by its index: {names}")
    names = {each["name"].lower(): each["name"] for each in devices}
    near = difflib.get_close_matches(wanted, names, n=1)
    hint = f"did you mean {names[near[0]]!r}?" if near else f"there are {choices}"
    raise MicrophoneError(f"no microphone's name holds {device!r}; {hint}")


class Microphone:
    """An open microphone: a context manager and an iterator of blocks int16 [block_samples] at sample_rate_hz.

    ``device`` is an index, a part of a name, or None for the system's default; ``channel`` is 0-based. Where the
    reader falls behind by more than ``queue_blocks``, the oldest blocks are dropped and counted. A device that refuses
    sample_rate_hz is opened at its own rate and resampled. Iteration ends when ``close`` is called, from any thread.

    Attributes: ``device_name``, ``device_rate_hz``, ``notices`` (sentences for stderr), and the counters
    ``captured_samples``    delivered by the device, at its rate, those of dropped blocks included
    ``dropped_blocks``      dropped because the reader was late; where it has grown, the block just read follows a gap
    ``input_overflows``     times that PortAudio itself reported a loss
    ``last_block_monotonic_s``    time.monotonic() when the device last delivered; of opening before it first did

    Raises MicrophoneError (no such device or channel, busy, vanished, no samples for ``read_timeout_s``) and
    MissingPartError (sounddevice, PortAudio, soxr).
    """

    def __init__(
        self,
        sample_rate_hz: int = 16000,
        block_samples: int = 320,
        device: int | str | None = None,
        channel: int = 0,
        queue_blocks: int = 100,
        read_timeout_s: float = 2.0,
    ) -> None:
        self.sample_rate_hz, self.block_samples, self.channel = sample_rate_hz, block_samples, channel
        self.notices: list[str] = []
        self.captured_samples = self.dropped_blocks = self.input_overflows = 0
        self._queue: queue.SimpleQueue[tuple[int, float, bytes] | None] = queue.SimpleQueue()  # None: the stream ended
        self._queue_blocks, self._read_timeout_s = queue_blocks, read_timeout_s
        self._read_samples = 0  # of captured_samples, read or known to be dropped
        self._held = np.empty(0, np.int16)  # read, and not yet a whole block
        self._closed = threading.Event()
        self._close_lock = threading.Lock()
        self._closer = threading.Thread(target=self._close_stream, name="microphone-close", daemon=True)
        self.last_block_monotonic_s = self._last_change_s = time.monotonic()
        self._sd = _acquire_portaudio()
        try:
            chosen = find_device(_input_devices(self._sd), device)
            self.device_name = chosen["name"]
            last = chosen["channels"] - 1
            if not 0 <= channel <= last:
                raise MicrophoneError(f"{self.device_name!r} has no channel {channel}; choose --channel 0 to {last}")
            self._open(chosen)
        except BaseException:
            _release_portaudio()
            raise

    @property
    def deaf_s(self) -> float:
        """Seconds since a block was read whose samples differ from each other; since opening before the first.

        Health is fresh audio that changes: a dead, muted or unplugged microphone, a sound server that hangs and a
        reader that stands still all let this grow. A live one in a silent room stays below the latency and a block.
        """
        return time.monotonic() - self._last_change_s

    @property
    def lost_samples_estimate(self) -> int:
        """Samples that the clock asked for and the device never delivered, at the device's rate (see ClockCheck)."""
        return self._clock.lost_samples

    def __enter__(self) -> Microphone:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Microphone:
        return self

    def __next__(self) -> np.ndarray:
        while len(self._held) < self.block_samples:
            samples = self._next_captured()
            if samples.min() != samples.max():
                self._last_change_s = time.monotonic()
            if self._resampler is not None:
                samples = self._resampler.process(samples)
            self._held = np.concatenate((self._held, samples)) if len(self._held) else samples
        block, self._held = self._held[: self.block_samples], self._held[self.block_samples :]
        return block

    def close(self) -> None:
        """Stop capturing and end the iteration, within a second even where the sound server hangs. May be repeated."""
        with self._close_lock:
            if not self._closed.is_set():
                self._closed.set()
                self._queue.put(None)
                self._closer.start()
        self._closer.join(CLOSE_TIMEOUT_S)
        if self._closer.is_alive():  # when Python exits, sounddevice would wait for the same stream once more
            atexit.unregister(getattr(self._sd, "_exit_handler", None))

    def _close_stream(self) -> None:
        self._stream.abort()
        self._stream.close()
        self._stream = None  # it holds this object through its callbacks
        _release_portaudio()  # not reached where the server hangs: then PortAudio must not be restarted

    def _open(self, device: dict[str, Any]) -> None:
        """Open and start the stream, at the device's own rate where it refuses the wanted one."""
        wanted, own = self.sample_rate_hz, device["default_rate_hz"]
        for rate_hz in (wanted, own):
            try:
                self._start(device["index"], rate_hz)
                break
            except self._sd.PortAudioError as error:
                if error.args[1:2] == (PA_DEVICE_UNAVAILABLE,):
                    raise MicrophoneError(
                        f"{self.device_name!r} is busy or has gone; end the program that records from it, or choose "
                        f"another with --device"
                    ) from None
                if rate_hz == own:
                    reason = " ".join(str(error).split())
                    raise MicrophoneError(
                        f"{self.device_name!r} cannot be opened at {rate_hz} Hz ({reason}); choose another with "
                        f"--device"
                    ) from None
        if rate_hz != wanted:
            self.notices.append(f"{self.device_name!r}: {rate_hz} Hz resampled to {wanted} Hz")

    def _start(self, index: int, rate_hz: int) -> None:
        self.device_rate_hz = rate_hz
        self._device_block = math.ceil(self.block_samples * rate_hz / self.sample_rate_hz)
        self._resampler = Resampler(rate_hz, self.sample_rate_hz) if rate_hz != self.sample_rate_hz else None
        self._clock = ClockCheck(rate_hz, self._device_block)
        with _native_stderr_hidden():
            self._stream = self._sd.RawInputStream(
                samplerate=rate_hz,
                blocksize=self._device_block,
                device=index,
                channels=self.channel + 1,
                dtype="int16",
                latency=LATENCY_S,
                callback=self._on_block,
                finished_callback=lambda: self._queue.put(None),
            )
            try:
                self._stream.start()
            except self._sd.PortAudioError:
                self._stream.close()
                raise

    def _on_block(self, data: Any, frames: int, _time: Any, status: Any) -> None:
        """PortAudio's callback, in its thread: copies, queues and counts; nothing else."""
        self.last_block_monotonic_s = time.monotonic()
        self._queue.put((self.captured_samples, self.last_block_monotonic_s, bytes(data)))
        self.captured_samples += frames
        if status.input_overflow:
            self.input_overflows += 1
        if self._queue.qsize() > self._queue_blocks:
            with contextlib.suppress(queue.Empty):  # the reader was quicker
                self._queue.get_nowait()

    def _next_captured(self) -> np.ndarray:
        """The next captured block: int16 [n], one channel, at the device's rate."""
        try:
            item = None if self._closed.is_set() else self._queue.get(timeout=self._read_timeout_s)
        except queue.Empty:
            raise MicrophoneError(
                f"{self.device_name!r} delivers no samples for {self._read_timeout_s:g} s; check its cable and the "
                f"sound server, or choose another with --device"
            ) from None
        if self._closed.is_set():
            raise StopIteration
        if item is None:
            raise MicrophoneError(f"{self.device_name!r} has vanished; check its cable and the sound server")
        start, when_s, data = item
        frames = np.frombuffer(data, np.int16).reshape(-1, self.channel + 1)
        self.dropped_blocks += (start - self._read_samples) // self._device_block
        self._read_samples = start + len(frames)
        self._clock.update(self._read_samples, when_s)
        return pick_channel(frames, self.channel)


class ClockCheck:
    """Finds samples that a stream never delivered by comparing their count with the clock.

    The lag is what the clock asks for less what has come. A late delivery raises it for a moment, a loss for good, and
    the drift between two quartzes (100 ppm) slowly. So the smallest lag of each window of CLOCK_WINDOW_S is compared
    with that of the window before: a step of more than half a block is a loss (or takes one back, after a delay that
    filled a window); drift stays far below. A loss shows after one to two windows.
    """

    def __init__(self, rate_hz: int, block_samples: int) -> None:
        self._rate_hz, self._step_samples = rate_hz, block_samples / 2
        self._start: tuple[float, int] | None = None
        self._window_end_s = 0.0
        self._smallest = math.inf
        self._smallest_before: float | None = None
        self._lost = 0.0

    @property
    def lost_samples(self) -> int:
        return max(0, round(self._lost))

    def update(self, captured_samples: int, now_s: float) -> None:
        """Note that captured_samples had come in all at now_s."""
        if self._start is None:
            self._start, self._window_end_s = (now_s, captured_samples), now_s + CLOCK_WINDOW_S
        start_s, start_samples = self._start
        lag = (now_s - start_s) * self._rate_hz - (captured_samples - start_samples)
        self._smallest = min(self._smallest, lag)
        if now_s < self._window_end_s:
            return
        if self._smallest_before is not None and abs(self._smallest - self._smallest_before) > self._step_samples:
            self._lost += self._smallest - self._smallest_before
        self._smallest_before, self._smallest = self._smallest, math.inf
        self._window_end_s = now_s + CLOCK_WINDOW_S


def _acquire_portaudio() -> Any:
    """The sounddevice module, its list of devices fresh unless a microphone is open already."""
    global _users
    with _users_lock:
        fresh = "sounddevice" not in sys.modules
        try:
            import sounddevice as sd
        except ImportError:
            raise MissingPartError("sounddevice, which records, is not installed; `pip install sounddevice`") from None
        except OSError:
            raise MissingPartError(
                "PortAudio, the library that records, is not installed; `sudo apt install libportaudio2`"
            ) from None
        if _users == 0 and not fresh:
            sd._terminate()
            sd._initialize()
        _users += 1
    return sd


def _release_portaudio() -> None:
    global _users
    with _users_lock:
        _users -= 1


def _input_devices(sd: Any) -> list[dict[str, Any]]:
    apis = sd.query_hostapis()
    return [
        {
            "index": device["index"],
            "name": device["name"],
            "host_api": apis[device["hostapi"]]["name"],
            "channels": device["max_input_channels"],
            "default_rate_hz": int(device["default_samplerate"]),
            "default": device["index"] == sd.default.device[0],
        }
        for device in sd.query_devices()
        if device["max_input_channels"] > 0
    ]


@contextlib.contextmanager
def _native_stderr_hidden() -> Iterator[None]:
    """Hide what PortAudio and ALSA print when a device refuses a rate; the error is raised all the same."""
    try:
        saved = os.dup(2)
    except OSError:  # a service without stderr
        yield
        return
    try:
        with open(os.devnull, "wb") as devnull:
            os.dup2(devnull.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
