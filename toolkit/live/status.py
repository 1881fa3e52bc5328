"""What the service knows of itself: counters, and the file that `edge-audio ota` and its health gate read.

The file is there while the service runs and is replaced once a second by a rename, so that a reader sees a whole one at
any time. It is not synced: it belongs into memory (systemd's RUNTIME_DIRECTORY), for a card would wear out. No numpy
here: readers of the file do not have it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..ota.service import STATUS_VARIABLE

SCHEMA = 1
KEPT_BLOCKS = 500  # 10 s
BLOCK_DEADLINE_MS = 20  # a block's length: what takes longer falls behind

STARTING, LISTENING, NO_MICROPHONE = "starting", "listening", "no microphone"


class Status:
    """Counters of the service; one thread writes, others read, hence the lock.

    bundles:    name, version, sha256 of each
    release:    id of the release that they are of, or None
    clock:      seconds that never jump, as time.monotonic
    wall_clock: Unix time; a small computer learns it minutes after its start, so only its present value is believed
    """

    def __init__(self, bundles: list[dict[str, str]], release: str | None = None,
                 clock: Callable[[], float] = time.monotonic, wall_clock: Callable[[], float] = time.time):
        self._bundles, self._release = bundles, release
        self._clock, self._wall_clock = clock, wall_clock
        self._lock = threading.Lock()
        self._start_s = self._alive_s = clock()  # _alive_s: when audio was last not constant
        self._audio_s: float | None = None
        self.state, self.microphone, self.sentence = STARTING, None, None
        self._blocks = self._detections = self._openings = 0
        self.dropped_blocks = self._lost = 0
        self._dropped_before = self._lost_before = 0  # by former microphones
        self._block_ms: deque[float] = deque(maxlen=KEPT_BLOCKS)

    def opened(self, microphone: str) -> None:
        """A microphone of this name was opened; nothing has been heard of it yet."""
        with self._lock:
            self.microphone = microphone
            self._openings += 1
            self._dropped_before, self._lost_before = self.dropped_blocks, self._lost

    def processed(self, block_s: float, deaf_s: float | None, detections: int, dropped: int, lost: int) -> None:
        """A block was processed in block_s; deaf_s (None: not heard yet) and what was lost are of this microphone."""
        with self._lock:
            self.state = LISTENING
            self._audio_s = self._clock()
            if deaf_s is not None:
                self._alive_s = max(self._alive_s, self._audio_s - deaf_s)
            self._blocks += 1
            self._detections += detections
            self.dropped_blocks, self._lost = self._dropped_before + dropped, self._lost_before + lost
            self._block_ms.append(1000 * block_s)

    def lost(self, sentence: str) -> None:
        """The microphone is gone, or was not there."""
        with self._lock:
            self.state, self.microphone, self.sentence = NO_MICROPHONE, None, sentence

    def document(self) -> dict[str, Any]:
        """The content of the status file; times in seconds, ages None before there was any audio."""
        with self._lock:
            now, unix_s = self._clock(), self._wall_clock()
            times = sorted(self._block_ms)
            return {
                "schema": SCHEMA, "pid": os.getpid(), "release": self._release,
                "started": round(unix_s - (now - self._start_s), 3), "time": round(unix_s, 3),
                "state": self.state, "microphone": self.microphone, "bundles": self._bundles,
                "blocks": self._blocks, "dropped_blocks": self.dropped_blocks, "lost_samples_estimate": self._lost,
                "block_ms": {"p50": _rank(times, 0.5), "p99": _rank(times, 0.99), "max": _rank(times, 1.0)},
                "block_deadline_ms": BLOCK_DEADLINE_MS,
                "deaf_s": round(now - self._alive_s, 3),
                "last_audio_age_s": None if self._audio_s is None else round(now - self._audio_s, 3),
                "detections": self._detections, "reopened": max(0, self._openings - 1), "sentence": self.sentence,
            }


def _rank(ordered: list[float], part: float) -> float | None:
    """The smallest value that `part` of all do not exceed (nearest rank), with 3 decimals."""
    return round(ordered[math.ceil(part * len(ordered)) - 1], 3) if ordered else None


class StatusFile:
    """The file at ``path``; None: nowhere, and nothing happens."""

    def __init__(self, path: Path | None):
        self.path = path
        self._temporary = path and path.with_name(f".{path.name}.{os.getpid()}.tmp")

    def write(self, document: Mapping[str, Any]) -> None:
        """Replace the file as a whole. UsageError if that fails; then the former one is still there."""
        if self.path is None:
            return
        try:
            try:
                self._temporary.write_text(json.dumps(document) + "\n", encoding="ascii")
                os.replace(self._temporary, self.path)
            except OSError:
                self._discard(self._temporary)
                raise
        except OSError as error:
            raise UsageError(f"the status file {self.path} cannot be written ({error.strerror}); name one in a folder "
                             f"that is there, with --status-file or {STATUS_VARIABLE}.") from None

    def remove(self) -> None:
        """No service, no file."""
        if self.path is not None:
            self._discard(self.path)

    @staticmethod
    def _discard(path: Path) -> None:
        with contextlib.suppress(OSError):
            path.unlink()


def status_path(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Where the status file is: EDGE_AUDIO_STATUS, else status.json in systemd's RUNTIME_DIRECTORY, else nowhere."""
    if path := environment.get(STATUS_VARIABLE):
        return Path(path)
    folder = environment.get("RUNTIME_DIRECTORY", "").split(":")[0]  # the first of several
    return Path(folder) / "status.json" if folder else None
