"""The health gate: the service of the release listens, hears something, and is in time; for a while, without a break.

The clock of a device without a battery jumps when the network comes. So a service is new if it is another one than
before the switch, not if it began after a time that was noted; and its status is fresh by the clock of the moment.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from toolkit.ota.service import read_status

POLL_S = 0.2
HOLD_SHARE = 0.1  # of the time limit: for 3 of the usual 30 s everything must hold
MAX_AGE_S = 5.0  # of a status that is written once a second
MAX_SILENCE_S = 1.0
JITTER_S = 0.05  # of the time at which the same service says that it was started


def wait_until_healthy(release_id: str, before: dict[str, Any] | None, timeout_s: float,
                       must_stop: Callable[[], str | None] = lambda: None) -> str | None:
    """None when the service has been healthy without a break; else, after ``timeout_s``, a sentence that says why not.

    ``before`` is the status of the service before it was restarted; a reason from ``must_stop`` ends the wait.
    """
    deadline = time.monotonic() + timeout_s
    healthy_since, dropped = None, None
    while True:
        status = read_status()
        reason = problem(status, release_id, before)
        now = time.monotonic()
        if reason is None and (healthy_since is None or status["dropped_blocks"] != dropped):
            if healthy_since is not None:
                reason = f"{status['dropped_blocks'] - dropped} blocks of audio were dropped."
            healthy_since, dropped = now, status["dropped_blocks"]
        elif reason is not None:
            healthy_since = None
        elif now - healthy_since >= HOLD_SHARE * timeout_s:
            return None
        if stopped := must_stop():
            return stopped
        if now >= deadline:
            return reason or "the service was not healthy for long enough."
        time.sleep(POLL_S)


def problem(status: dict[str, Any] | None, release_id: str, before: dict[str, Any] | None = None) -> str | None:
    """The first thing that is wrong with the service, as a sentence; None if nothing is."""
    if status is None:
        return "the service has not written its status; see journalctl -u edge-audio."
    try:
        return _problem(status, release_id, before)
    except (KeyError, TypeError, AttributeError) as error:
        return f"the service's status cannot be understood ({error!r}); is its toolkit another version?"


def _problem(status: dict[str, Any], release_id: str, before: dict[str, Any] | None) -> str | None:
    block_ms, deadline_ms = status["block_ms"], status["block_deadline_ms"]
    silence_s, deaf_s, age_s = status["last_audio_age_s"], status["deaf_s"], time.time() - status["time"]
    listening = status["state"] == "listening"
    because = f" ({status['sentence'].rstrip('.')})" if status.get("sentence") else ""
    rules = (
        (status["release"] == release_id, f"the service runs the release {status['release']}, not {release_id}"),
        (not before or status["pid"] != before.get("pid") or status["started"] > before.get("started", 0) + JITTER_S,
         "the service was not started again"),
        (abs(age_s) < MAX_AGE_S, f"the service last wrote its status {age_s:.0f} s ago"),
        (listening, f"the service is in the state {status['state']!r}{because}"),
        (not listening or (silence_s is not None and silence_s < MAX_SILENCE_S),
         f"no audio has come from the microphone for {silence_s} s{because}"),
        (not listening or (deaf_s is not None and deaf_s < MAX_SILENCE_S),
         f"the microphone has given a constant signal for {deaf_s} s{because}"),
        (not listening or (block_ms["p99"] is not None and block_ms["p99"] < deadline_ms),
         f"blocks of {deadline_ms} ms take {block_ms['p99']} ms (p99)"),
        (type(status["dropped_blocks"]) is int, "the service does not count the blocks it dropped"),
    )
    return next((f"{complaint}." for holds, complaint in rules if not holds), None)
