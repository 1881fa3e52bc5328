"""The service: what it tells systemd, a person and the status file, with clock and microphones of the test's making."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from service_process import notify_socket

from toolkit.errors import MicrophoneError, MissingPartError
from toolkit.live import status as status_module
from toolkit.live.notify import Notifier
from toolkit.live.service import Service
from toolkit.live.status import Status, StatusFile, status_path
from toolkit.stream import Detection

BLOCK_S, WORK_S = 0.02, 0.004


# --- a fake minute: clock, microphones and systemd of the test's making ---


class Minute:
    """Runs Service.listen over microphones given as scripts, with a clock that moves when they deliver or it waits.

    A script is a list of (number of blocks, value or None for sound that changes), errors to raise, and functions to
    call; or an error, raised at opening. ``events`` is all that could be seen from outside: (seconds, what).
    """

    def __init__(self, *scripts, detect_at: int = -1) -> None:
        self.now_s, self.events, self.scripts, self.opened = 1000.0, [], list(scripts), []
        self.wall_s = 5e8  # before the network has told the time
        self.service = Service(
            types.SimpleNamespace(reset=lambda: self.note("reset"), process=self.process), self.open,
            [lambda detection, stream: self.note(f"{detection.label} in {stream}")],
            lambda text: self.note(f"> {text}"),
            Status([{"name": "kws", "version": "1.2.3", "sha256": "ab"}], "0123", self.clock, lambda: self.wall_s),
            StatusFile(None), types.SimpleNamespace(feed_s=1.0, send=lambda *states: self.note(*states) or True),
            self.clock, self.wait)
        self.processed, self.detect_at = 0, detect_at

    def clock(self) -> float:
        return self.now_s

    def wait(self, event: threading.Event, seconds: float) -> bool:
        self.note(f"pause {seconds:g}")
        self.now_s += seconds
        return event.is_set()

    def note(self, *what: str) -> None:
        self.events += [(round(self.now_s - 1000, 3), each) for each in what]

    def open(self) -> FakeMicrophone:
        script = self.scripts.pop(0)
        if isinstance(script, Exception):
            if not self.scripts:
                self.service._stopping.set()
            raise script
        self.opened.append(FakeMicrophone(self, script))
        return self.opened[-1]

    def process(self, block: np.ndarray) -> list[Detection]:
        self.now_s += WORK_S
        self.processed += 1
        return [Detection("kws", "1.2.3", "kws", "yes", 0.9, 1.0)] if self.processed == self.detect_at else []

    def listen(self) -> list[str]:
        """Until the last script has ended; what happened, without times."""
        self.service.listen()
        return [what for _, what in self.events]

    def times(self, wanted: str) -> list[float]:
        return [at for at, what in self.events if what == wanted]

    @property
    def document(self) -> dict:
        return self.service._status.document()


class FakeMicrophone:
    """Of toolkit.mic.Microphone what the service uses; deaf_s counts from the opening, as there."""

    notices = ["a notice"]

    def __init__(self, minute: Minute, script: list) -> None:
        self.minute, self.device_name = minute, "kitchen"
        self.dropped_blocks = self.lost_samples_estimate = 0
        self._changed_s, self._blocks, self.is_closed = minute.now_s, self._play(script), False
        minute.now_s += 0.03  # what opening takes

    @property
    def deaf_s(self) -> float:
        return self.minute.now_s - self._changed_s

    def _play(self, script: list) -> Iterator[np.ndarray]:
        for step in script:
            if isinstance(step, Exception):
                raise step
            if callable(step):
                step(self)
                continue
            count, value = step
            for _ in range(count):
                self.minute.now_s += BLOCK_S - (WORK_S if self.minute.processed else 0)
                if value is None:
                    self._changed_s = self.minute.now_s
                yield np.full(320, value or 0, np.int16)
        if not self.minute.scripts:
            self.minute.service._stopping.set()

    def __iter__(self):
        return self._blocks

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.is_closed = True


GONE = MicrophoneError("'kitchen' has vanished; check its cable and the sound server")
ABSENT = MicrophoneError("no microphone was found; plug one in and look for it with `arecord -l`")


def test_readiness_comes_with_the_first_block_and_the_watchdog_is_fed_once_a_second():
    minute = Minute([(500, None)])  # 10 s
    happened = minute.listen()
    assert happened[:6] == ["reset", "> listening to kitchen", "> a notice", "STATUS=listening to kitchen", "READY=1",
                            "STATUS=listening to kitchen"]
    assert minute.times("READY=1")[0] > 0 and happened.count("READY=1") == 1
    fed = minute.times("WATCHDOG=1")
    assert len(fed) == 10 and np.all(np.diff(fed) >= 1.0) and np.all(np.diff(fed) < 1.05)
    assert minute.opened[0].is_closed


@pytest.mark.parametrize("value", [0, -1, 32767])
def test_one_value_for_ever_is_processed_but_never_feeds_the_watchdog(value):
    minute = Minute(*[[(5000, value)]] * 20, [])
    happened = minute.listen()
    assert "WATCHDOG=1" not in happened and happened.count("READY=1") == 1
    assert not any(what.startswith("> listening") for what in happened)
    deaf = [what for what in happened if what.startswith("> ")]
    assert deaf == ["> 'kitchen' has delivered one constant value for 10 s; unmute it, or check its cable"]
    assert happened.count("reset") == 21  # reopened each time, and the pipeline reset
    assert [what for what in happened if what.startswith("pause")] == (
        ["pause 0.5", "pause 1", "pause 2", "pause 4", "pause 8"] + ["pause 10"] * 15)
    assert minute.document["deaf_s"] > 20 * 10 and minute.document["reopened"] == 20


def test_the_watchdog_stops_with_the_sound():
    minute = Minute([(200, None), (300, 7), (100, None)])
    minute.listen()
    fed = np.array(minute.times("WATCHDOG=1"))
    assert len(fed) >= 5 and not np.any((fed > 4.2) & (fed < 10.0)) and fed[-1] > 10.0


def test_no_microphone_is_said_once_and_never_given_up():
    minute = Minute(*[ABSENT] * 50, [(100, None)])
    happened = minute.listen()
    assert happened.count(f"> {ABSENT}") == 1 and happened.count(f"STATUS=no microphone: {ABSENT}") == 1
    assert minute.times("READY=1")[0] > 400 and minute.times("WATCHDOG=1")[0] > 400
    pauses = [float(what.split()[1]) for what in happened if what.startswith("pause")]
    assert pauses == [0.5, 1, 2, 4, 8] + [10] * 45


def test_a_microphone_that_vanishes_is_opened_again_with_growing_pauses():
    minute = Minute([(100, None), GONE], ABSENT, ABSENT, [(100, None), GONE], [(10, None)])
    happened = [what for what in minute.listen() if what != "WATCHDOG=1"]
    spoken = [what for what in happened if what.startswith(("> ", "pause", "reset"))]
    assert spoken == ["reset", "> listening to kitchen", "> a notice", f"> {GONE}", "pause 0.5", f"> {ABSENT}",
                      "pause 1", "pause 2", "reset", "> listening to kitchen", "> a notice", f"> {GONE}", "pause 0.5",
                      "reset", "> listening to kitchen", "> a notice"]
    assert happened.count("READY=1") == 1 and all(microphone.is_closed for microphone in minute.opened)
    assert minute.document["reopened"] == 2 and minute.document["blocks"] == 210
    assert minute.document["sentence"] == str(GONE) and minute.document["state"] == "listening"


def test_an_error_of_portaudio_is_a_sentence_and_one_that_no_time_mends_ends_it():
    minute = Minute(RuntimeError("Unanticipated\nhost error"), [(10, None)])
    assert "> the microphone cannot be opened (Unanticipated host error); check the sound system" in minute.listen()
    with pytest.raises(MissingPartError):
        Minute(MissingPartError("sounddevice is not installed"), [(10, None)]).listen()


def test_detections_go_to_every_consumer_and_are_counted():
    minute = Minute([(10, None)], detect_at=7)
    assert minute.listen().count("yes in kitchen") == 1 and minute.document["detections"] == 1


def test_losses_are_added_over_microphones_and_told_once_a_minute():
    def lose(blocks: int):
        return lambda microphone: microphone.__dict__.update(dropped_blocks=blocks, lost_samples_estimate=320 * blocks)

    minute = Minute([(10, None), lose(3), (10, None), lose(5), (10, None), GONE],
                    [(10, None), lose(4), (4000, None), lose(6), (10, None)])
    minute.listen()
    warnings = [(at, what) for at, what in minute.events if what.startswith("> warning")]
    assert [what.split(", ")[1] for _, what in warnings] == [f"{n} blocks were dropped so far" for n in (3, 9)]
    assert warnings[1][0] - warnings[0][0] == pytest.approx(60, abs=0.1)
    assert (minute.document["dropped_blocks"], minute.document["lost_samples_estimate"]) == (11, 320 * 11)


# --- the status file ---


def test_the_document_before_while_and_after():
    minute = Minute([(300, None), lambda _: seen.append(minute.document), GONE], [])
    seen = []
    before = minute.document
    assert list(before) == ["schema", "pid", "release", "started", "time", "state", "microphone", "bundles", "blocks",
                            "dropped_blocks", "lost_samples_estimate", "block_ms", "block_deadline_ms", "deaf_s",
                            "last_audio_age_s", "detections", "reopened", "sentence"]
    assert (before["schema"], before["pid"], before["release"]) == (1, os.getpid(), "0123")
    assert before["bundles"] == [{"name": "kws", "version": "1.2.3", "sha256": "ab"}]
    assert (before["state"], before["microphone"], before["sentence"]) == ("starting", None, None)
    assert before["block_ms"] == {"p50": None, "p99": None, "max": None} and before["block_deadline_ms"] == 20
    assert before["last_audio_age_s"] is None and before["deaf_s"] == 0
    assert before["started"] == before["time"] == 5e8
    minute.listen()
    (during,) = seen
    assert (during["state"], during["microphone"], during["blocks"]) == ("listening", "kitchen", 300)
    assert during["block_ms"] == {"p50": 4.0, "p99": 4.0, "max": 4.0}
    assert during["last_audio_age_s"] < 0.05 and during["deaf_s"] < 0.05
    minute.now_s, minute.wall_s = 1100.0, 1.7e9  # the network has told the time
    after = minute.document
    assert (after["time"], after["started"]) == (1.7e9, 1.7e9 - 100)
    assert 90 < after["last_audio_age_s"] <= after["deaf_s"] < 100
    assert after["sentence"] == str(GONE)


def test_block_times_are_ranks_of_the_last_500():
    status = Status([])
    for milliseconds in [1000.0] * 10 + list(range(1, 501)):
        status.processed(milliseconds / 1000, 0.0, 0, 0, 0)
    assert status.document()["block_ms"] == {"p50": 250.0, "p99": 495.0, "max": 500.0}


def test_who_reads_the_file_finds_a_whole_one_at_any_time(tmp_path):
    file, stop, read = StatusFile(tmp_path / "status.json"), threading.Event(), []
    file.write({"n": -1})

    def reader() -> None:
        while not stop.is_set():
            read.append(json.loads((tmp_path / "status.json").read_text())["n"])

    thread = threading.Thread(target=reader)
    thread.start()
    for n in range(200):
        file.write({"n": n, "padding": "x" * (7919 * n % 20000)})
    stop.set()
    thread.join()
    assert len(set(read)) > 3 and read == sorted(read)  # a torn file would have ended the reader
    assert os.listdir(tmp_path) == ["status.json"]
    file.remove()
    assert os.listdir(tmp_path) == []


def test_a_status_that_cannot_be_written_is_said_once_and_the_service_goes_on(tmp_path, monkeypatch):
    minute = Minute([])
    minute.service._file = StatusFile(tmp_path / "status.json")
    minute.service.report()
    with monkeypatch.context() as patch:
        patch.setattr(status_module.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        minute.service.report()
        minute.service.report()
    (said,) = [what for _, what in minute.events]
    assert said.startswith(f"> the status file {tmp_path}/status.json cannot be written (No space left); ")
    assert os.listdir(tmp_path) == ["status.json"]  # the former one, and nothing half written
    minute.service.report()
    assert len(minute.events) == 1


def test_where_the_status_file_is():
    assert status_path({}) is None
    assert status_path({"RUNTIME_DIRECTORY": "/run/a:/run/b"}) == Path("/run/a/status.json")
    assert status_path({"RUNTIME_DIRECTORY": "/run/a", "EDGE_AUDIO_STATUS": "/x/y"}) == Path("/x/y")


# --- sd_notify ---


@pytest.mark.parametrize("abstract", [False, True])
def test_states_are_datagrams(abstract):
    if abstract and not sys.platform.startswith("linux"):
        pytest.skip("abstract sockets are Linux's")
    with notify_socket(abstract) as (server, name):
        assert Notifier({"NOTIFY_SOCKET": name}).send("READY=1", "STATUS=hört zu")
        assert server.recv(1000) == "READY=1\nSTATUS=hört zu".encode()


def test_without_systemd_nothing_is_sent_and_a_deaf_one_does_not_hold_it_up(tmp_path):
    assert Notifier({}).send("READY=1") and Notifier({"NOTIFY_SOCKET": "vsock:2:1234"}).send("READY=1")
    assert not Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).send("READY=1")
    with notify_socket() as (_, name):
        notifier, started_s = Notifier({"NOTIFY_SOCKET": name}), time.monotonic()
        while notifier.send("WATCHDOG=1"):  # until its queue is full
            pass
        assert time.monotonic() - started_s < 1


@pytest.mark.parametrize(("environment", "feed_s"), [
    ({}, 1.0), ({"WATCHDOG_USEC": "60000000"}, 1.0), ({"WATCHDOG_USEC": "500000"}, 0.25), ({"WATCHDOG_USEC": "0"}, 1.0),
    ({"WATCHDOG_USEC": "soon"}, 1.0), ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, 1.0),
    ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.25)])
def test_the_watchdog_is_fed_at_half_of_its_time_and_once_a_second(environment, feed_s):
    assert Notifier(environment).feed_s == feed_s
