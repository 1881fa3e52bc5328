"""`edge-audio listen` on a virtual microphone: what is said into it is detected as if it had been read from a file."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from released import FIRST_WORDS, LATEST_S, released, scene, spoken_keywords
from virtual_microphone import mortal_microphone, virtual_microphone  # noqa: F401

from toolkit.stream import Pipeline

RATE_HZ = 16000
LISTENING_S = 10  # the first words of the scene are 8.3 s
TIMEOUT_S = 30.0

# The command itself; what it hears is kept as well.
LISTEN_AND_KEEP = """
import sys
from toolkit import mic
from toolkit.__main__ import main
heard, next_block = open(sys.argv[1], "wb"), mic.Microphone.__next__
def keep(microphone):
    block = next_block(microphone)
    heard.write(block.tobytes())
    return block
mic.Microphone.__next__ = keep
sys.exit(main(sys.argv[2:]))
"""


@contextlib.contextmanager
def listening(microphone, *argv: str, kept="/dev/null") -> Iterator[subprocess.Popen[str]]:
    """`edge-audio listen kws` with these options, once it says that it listens; killed when it takes too long."""
    released()
    command = [sys.executable, "-c", LISTEN_AND_KEEP, str(kept), "listen", "kws", *argv]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=microphone.environment, **pipes) as child:
        watchdog = threading.Timer(TIMEOUT_S, child.kill)
        watchdog.start()
        try:
            assert child.stderr.readline() == "edge-audio: listening to default; stop with Ctrl-C\n"
            yield child
        finally:
            watchdog.cancel()
            child.kill()


def test_what_is_said_is_detected_as_from_a_file(virtual_microphone, tmp_path):  # noqa: F811
    said = scene()[:FIRST_WORDS]
    expected = Pipeline([released()]).process(said)
    with listening(virtual_microphone, "--seconds", str(LISTENING_S), kept=tmp_path / "heard") as child:
        virtual_microphone.play(said)
        out, err = child.communicate()
    assert (child.returncode, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert {line.pop("stream") for line in lines} == {"default"}

    heard = np.frombuffer((tmp_path / "heard").read_bytes(), np.int16)
    assert len(heard) == LISTENING_S * RATE_HZ
    assert lines == [detection.to_dict() for detection in Pipeline([released()]).process(heard)]

    words = spoken_keywords(FIRST_WORDS / RATE_HZ)
    assert len(words) == 3
    for word in words:
        latest = word["offset"] + LATEST_S
        (at,) = [d.time for d in expected if d.label == word["label"] and word["onset"] <= d.time <= latest]
        place_s = place_of(heard, said, round(at * RATE_HZ)) / RATE_HZ
        assert [line["label"] for line in lines if abs(line["time"] - place_s) <= 0.1] == [word["label"]]


def place_of(heard: np.ndarray, said: np.ndarray, end: int) -> int:
    """Where sample `end` of what was said lies in what was heard: by the last 50 ms before it that came through whole,
    for a sound server on a busy machine may insert silence.
    """
    for start in range(end - 800, 0, -400):
        found = heard.tobytes().find(said[start : start + 800].tobytes())
        if found >= 0:
            return found // 2 + end - start
    raise AssertionError("nothing of what was said was heard")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_stops_quietly_when_told(virtual_microphone, number):  # noqa: F811
    with listening(virtual_microphone) as child:
        child.send_signal(number)
        assert child.communicate() == ("", "") and child.returncode == 0


def test_a_microphone_that_vanishes_is_one_sentence(mortal_microphone):  # noqa: F811
    with listening(mortal_microphone) as child:
        mortal_microphone.server.kill()
        out, err = child.communicate()
    assert out == "" and child.returncode == 1
    own = [line for line in err.splitlines() if not line.startswith("Expression '")]  # those are PortAudio's
    assert len(own) == 1 and own[0].startswith("edge-audio: 'default' ")
    assert "has vanished" in own[0] or "delivers no samples" in own[0]


def test_a_busy_machine_is_told(virtual_microphone):  # noqa: F811
    """The reader stands still for longer than the queue is: blocks are dropped, and that is said."""
    released()
    slow = LISTEN_AND_KEEP.replace("    block =", "    __import__('time').sleep(0 if heard.tell() else 3)\n    block =")
    command = [sys.executable, "-c", slow, "/dev/null", "listen", "kws", "--seconds", "2"]
    environment = virtual_microphone.environment
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0 and done.stdout == ""
    warning = r"^edge-audio: warning: this machine is too slow, [1-9]\d* blocks were dropped so far$"
    assert re.search(warning, done.stderr, re.M)
