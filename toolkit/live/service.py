"""The service: a microphone kept open for as long as the machine runs, and the truth about it told to systemd.

    main thread   signals, status file                                       never waits for sound: SIGTERM ends it
    listener      microphone -> pipeline -> consumers -> status, watchdog    may hang in the sound system, and is left

    open ─> block ─> process ─> consume ─> READY (first) ─> WATCHDOG (samples change) ─> next block
      ^                                                                                    │
      └── pause 0.5, 1, 2 ... 10 s, reset <── vanished, silent, or one value for 10 s <────┘

Nothing but a processed block of audio that changes feeds the watchdog. So whatever makes a device deaf while its
process lives (no microphone, a muted one, a sound server that hangs, a reader that stands still) lets the watchdog run
out, and systemd starts the service anew, with a fresh PortAudio, again and again until there is something to hear.
Before readiness systemd's TimeoutStartSec does the same. Without systemd the microphone is opened again for ever.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from ..bundle import Bundle
from ..errors import EdgeAudioError, MicrophoneError, MissingPartError, UsageError
from ..mic import Microphone
from ..native import HOW_TO_BUILD
from ..stream import Detection, Pipeline
from .notify import Notifier
from .status import BLOCK_DEADLINE_MS, Status, StatusFile

Consumer = Callable[[Detection, str], None]  # a detection, and the name of the stream it was heard in

FRESH_S = 0.1  # a block feeds the watchdog if samples have changed so lately: five blocks
DEAF_S = 10.0  # then the microphone is opened again
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0  # before it is opened again
REPORT_S = 1.0  # between two status files
LEAVE_S = 0.6  # for the listener to end: closing a microphone may take 0.5 s, and all must end within one
REMIND_S = 60.0  # between two warnings of dropped blocks


def serve(bundles: Sequence[Bundle], consumers: Sequence[Consumer], say: Callable[[str], None], *,
          device: int | str | None = None, channel: int = 0, threshold: float | None = None, release: str | None = None,
          status_file: Path | None = None, allow_numpy: bool = False) -> NoReturn:
    """Run the service until SIGTERM or SIGINT, then end the process with status 0. To be called in the main thread.

    ``say`` takes sentences for a person; the rest as in Microphone, Pipeline and Status. EdgeAudioError for what
    opening a microphone again cannot mend: a bundle, a library, the status file's path, an output that is full.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise UsageError(f"the threshold is {threshold}, expected 0 to 1.")
    pipeline = Pipeline(bundles, threshold=threshold)
    if pipeline.backend == "numpy":
        if not allow_numpy:
            raise MissingPartError(f"{HOW_TO_BUILD} --numpy goes on without it.")
        say(f"warning: {HOW_TO_BUILD} Going on with the slow numpy front end (the same integers).")
    rate_hz = pipeline.sample_rate_hz
    open_microphone = partial(Microphone, rate_hz, rate_hz * BLOCK_DEADLINE_MS // 1000, device, channel)
    named = [{"name": b.manifest.name, "version": b.manifest.version, "sha256": b.sha256} for b in bundles]
    service = Service(pipeline, open_microphone, consumers, say, Status(named, release), StatusFile(status_file))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: service.stop())
    service.run()
    os._exit(0)  # all is written; Python's own end takes a small computer a second, and for ever if the sound hangs


class Service:
    """One microphone, opened again and again by ``open_microphone``; ``run`` is the main thread's part.

    clock and wait (of an event, for seconds; whether it is set) are those of the system, or of a test.
    """

    def __init__(self, pipeline: Pipeline, open_microphone: Callable[[], Microphone], consumers: Sequence[Consumer],
                 say: Callable[[str], None], status: Status, file: StatusFile, notifier: Notifier | None = None,
                 clock: Callable[[], float] = time.monotonic,
                 wait: Callable[[threading.Event, float], bool] = threading.Event.wait):
        self._pipeline, self._open_microphone, self._consumers = pipeline, open_microphone, consumers
        self._say, self._status, self._file = say, status, file
        self._notifier = notifier or Notifier()
        self._clock, self._wait = clock, wait
        self._ends: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()  # what ends it: a stop, an error
        self._stopping = threading.Event()
        self._microphone: Microphone | None = None
        self._pause_s = FIRST_PAUSE_S
        self._is_ready = False  # and systemd knows it
        self._fed_s = self._warned_s = float("-inf")
        self._warned_of = 0  # dropped blocks
        self._told = self._file_told = ""  # the last sentence of its kind: it is said once, not at every attempt

    def stop(self) -> None:
        """Let ``run`` return. A signal handler may call it: SimpleQueue.put is made for that, Event.set is not."""
        self._ends.put(None)

    def run(self) -> None:
        """Listen until stopped, and return within LEAVE_S of that, even if the listener hangs in the sound system.

        Raises what ended the listener, and UsageError if the status file cannot be written at the start.
        """
        self._file.write(self._status.document())
        listener = threading.Thread(target=self._work, name="listener", daemon=True)
        listener.start()
        try:
            if error := self._report_until_the_end():
                raise error
        finally:
            self._notifier.send("STOPPING=1", "STATUS=stopping")
            self._stopping.set()
            if self._microphone is not None:  # ends the listener's reading, which then closes it as well
                threading.Thread(target=self._microphone.close, name="closer", daemon=True).start()
            listener.join(LEAVE_S)
            self._file.remove()

    def _report_until_the_end(self) -> BaseException | None:
        while True:
            try:
                return self._ends.get(timeout=REPORT_S)
            except queue.Empty:
                self.report()

    def report(self) -> None:
        """Replace the status file; where that fails it is said once, and the service goes on."""
        try:
            self._file.write(self._status.document())
            self._file_told = ""
        except UsageError as error:
            if str(error) != self._file_told:
                self._file_told = str(error)
                self._say(str(error))

    def _work(self) -> None:
        try:
            self.listen()
        except BaseException as error:  # the main thread raises it
            self._ends.put(error)

    def listen(self) -> None:
        """Hear, and open the microphone again whenever it is lost, until stopped."""
        while not self._stopping.is_set():
            try:
                with self._open() as self._microphone:
                    self._hear(self._microphone)
            except MicrophoneError as error:
                self._lose(str(error))
                self._wait(self._stopping, self._pause_s)
                self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def _open(self) -> Microphone:
        try:
            return self._open_microphone()
        except EdgeAudioError:
            raise
        except Exception as error:  # PortAudio's own, whose class is known to sounddevice alone
            reason = " ".join(str(error).split())
            raise MicrophoneError(f"the microphone cannot be opened ({reason}); check the sound system") from None

    def _hear(self, microphone: Microphone) -> None:
        """All blocks of one microphone, from the reset state."""
        self._pipeline.reset()
        self._status.opened(microphone.device_name)
        opened_s, is_heard = self._clock(), False
        if self._stopping.is_set():  # a stop that came while it was opened
            return
        for block in microphone:
            start_s, deaf_s = self._clock(), microphone.deaf_s
            detections = self._pipeline.process(block)
            for detection in detections:
                for consume in self._consumers:
                    consume(detection, microphone.device_name)
            if not is_heard and deaf_s < start_s - opened_s:  # before the first change deaf_s counts from the opening
                is_heard = True
                self._begin(microphone)
            self._status.processed(self._clock() - start_s, deaf_s if is_heard else None, len(detections),
                                   microphone.dropped_blocks, microphone.lost_samples_estimate)
            self._notify(microphone, is_heard and deaf_s < FRESH_S)
            self._warn()
            if deaf_s > DEAF_S:
                raise MicrophoneError(f"{microphone.device_name!r} has delivered one constant value for {DEAF_S:g} s; "
                                      f"unmute it, or check its cable")

    def _begin(self, microphone: Microphone) -> None:
        """A microphone is heard for the first time since it was opened."""
        self._told, self._pause_s = "", FIRST_PAUSE_S
        for sentence in (f"listening to {microphone.device_name}", *microphone.notices):
            self._say(sentence)
        self._notifier.send(f"STATUS=listening to {microphone.device_name}")

    def _notify(self, microphone: Microphone, is_alive: bool) -> None:
        """What a processed block is worth to systemd: readiness the first, and one that is alive feeds the watchdog."""
        if not self._is_ready:
            self._is_ready = self._notifier.send("READY=1", f"STATUS=listening to {microphone.device_name}")
        now_s = self._clock()
        if is_alive and now_s - self._fed_s >= self._notifier.feed_s and self._notifier.send("WATCHDOG=1"):
            self._fed_s = now_s

    def _warn(self) -> None:
        dropped = self._status.dropped_blocks
        if dropped > self._warned_of and self._clock() - self._warned_s >= REMIND_S:
            self._warned_of, self._warned_s = dropped, self._clock()
            self._say(f"warning: this machine is too slow, {dropped} blocks were dropped so far")

    def _lose(self, sentence: str) -> None:
        self._status.lost(sentence)
        if sentence != self._told:
            self._told = sentence
            self._say(sentence)
            self._notifier.send(f"STATUS=no microphone: {sentence}")
