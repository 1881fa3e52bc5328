"""The health gate, on a clock of its own: what a service must say, and for how long, before it is committed."""

from __future__ import annotations

import pytest

from toolkit.ota import health

GOOD = {"schema": 1, "pid": 7, "release": "new", "started": 1000.0, "time": 1000.0, "state": "listening",
        "dropped_blocks": 0, "block_ms": {"p50": 1.0, "p99": 2.0, "max": 30.0}, "block_deadline_ms": 20, "deaf_s": 0.0,
        "last_audio_age_s": 0.02, "sentence": None}


@pytest.fixture
def gate(monkeypatch):
    """gate(service): (reason, seconds it took); ``service(age)`` is what the status says after so many seconds."""
    def run(service, before=None, timeout_s=30.0):
        now = [1000.0]
        monkeypatch.setattr(health.time, "time", lambda: now[0])
        monkeypatch.setattr(health.time, "monotonic", lambda: now[0])
        monkeypatch.setattr(health.time, "sleep", lambda seconds: now.append(now.pop() + seconds))
        monkeypatch.setattr(health, "read_status", lambda: service(now[0] - 1000.0))
        return health.wait_until_healthy("new", before, timeout_s), now[0] - 1000.0

    return run


def steady(**changes):
    """A service that says the same all the time."""
    return lambda age: {**GOOD, "time": 1000.0 + age, **changes}


def test_a_healthy_service_holds_for_a_tenth_of_the_time(gate):
    reason, took_s = gate(steady())
    assert reason is None and 3 <= took_s < 3.5
    assert gate(lambda age: steady()(age) if age > 20 else None)[0] is None


@pytest.mark.parametrize(("changes", "words"), [
    ({"release": "old"}, "the service runs the release old, not new"),
    ({"state": "no microphone", "sentence": "It is gone."}, "is in the state 'no microphone' (It is gone)."),
    ({"last_audio_age_s": 1.5}, "no audio has come from the microphone for 1.5 s"),
    ({"last_audio_age_s": None}, "no audio has come"),
    ({"deaf_s": 12.0}, "given a constant signal for 12.0 s"),
    ({"block_ms": {"p50": 9.0, "p99": 20.0, "max": 30.0}}, "blocks of 20 ms take 20.0 ms (p99)"),
    ({"block_ms": {"p50": None, "p99": None, "max": None}}, "blocks of 20 ms take None"),
    ({"time": 900.0}, "last wrote its status 13"), ({"dropped_blocks": None}, "does not count"),
    ({"block_ms": None}, "cannot be understood"), ({"time": "now"}, "cannot be understood"),
])
def test_each_reason(gate, changes, words):
    reason, took_s = gate(steady(**changes))
    assert words in reason and reason.endswith((".", "?", "edge-audio.")) and took_s >= 30


def test_no_service(gate):
    assert "has not written its status" in gate(lambda age: None)[0]
    assert "cannot be understood" in gate(lambda age: {})[0]


def test_dropped_blocks_begin_the_wait_anew(gate):
    assert gate(lambda age: {**steady()(age), "dropped_blocks": int(age)})[0] == "1 blocks of audio were dropped."
    reason, took_s = gate(lambda age: {**steady()(age), "dropped_blocks": min(4, int(age))})  # while it loads
    assert reason is None and 7 <= took_s < 8


def test_health_that_comes_and_goes_is_none(gate):
    reason, _ = gate(lambda age: steady(**({"deaf_s": 2.0} if int(age) % 3 == 2 else {}))(age))
    assert reason is not None


def test_the_service_must_have_been_started_again(gate):
    assert gate(steady(), before=GOOD)[0] == "the service was not started again."
    assert gate(steady(started=1000.002), before=GOOD)[0] == "the service was not started again."
    assert gate(steady(started=1001.0), before=GOOD)[0] is None
    assert gate(steady(pid=8, started=10.0), before=GOOD)[0] is None  # the clock was set back
    assert gate(steady(), before={})[0] is None


def test_a_stop_is_obeyed_at_once(gate, monkeypatch):
    gate(steady())
    assert health.wait_until_healthy("new", None, 30, lambda: "stopped.") == "stopped."
