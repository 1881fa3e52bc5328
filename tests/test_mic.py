"""The microphone: real capture from a virtual one, and every failure that no virtual one can show, from a fake."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import types

import numpy as np
import pytest
from fake_sounddevice import FakeError, FakeSound, FakeStream
from virtual_microphone import mortal_microphone, virtual_microphone  # noqa: F401

from toolkit import mic
from toolkit.errors import MicrophoneError, MissingPartError
from toolkit.mic import ClockCheck, Microphone, find_device, list_devices

# Real capture


CAPTURE = """
import sys
from toolkit.mic import Microphone, list_devices
print([device["name"] for device in list_devices() if device["default"]])
with Microphone(device="KITCH") as microphone:
    blocks = [next(microphone)]
    print("recording", flush=True)
    while not blocks[-1].any() and len(blocks) < 300:
        blocks.append(next(microphone))
    blocks += [next(microphone) for _ in range(30)]  # 0.3 s of sound, 0.3 s of silence
    assert {(block.shape, block.dtype.name) for block in blocks} == {((320,), "int16")}
    print(microphone.device_name, microphone.device_rate_hz, microphone.notices)
    print(microphone.captured_samples // 320 - len(blocks))
    print(microphone.dropped_blocks, microphone.input_overflows, microphone.lost_samples_estimate)
    print(microphone.deaf_s, flush=True)
sys.stdout.buffer.write(b"".join(block.tobytes() for block in blocks))
"""


def test_what_is_played_is_captured_bit_for_bit(virtual_microphone):  # noqa: F811
    played = np.random.default_rng(1).integers(-32768, 32768, 4800).astype(np.int16)
    with virtual_microphone.python(CAPTURE) as child:
        assert child.stdout.readline() == b"['default']\n"
        assert child.stdout.readline() == b"recording\n"
        virtual_microphone.play(played)
        assert child.stdout.readline() == b"kitchen 16000 []\n"
        assert 0 <= int(child.stdout.readline()) <= 100  # still in the queue
        assert child.stdout.readline() == b"0 0 0\n"
        deaf_s = float(child.stdout.readline())
        captured = np.frombuffer(child.stdout.read(), np.int16)
    assert child.returncode == 0
    start = int(np.flatnonzero(captured)[0])
    assert np.array_equal(captured[start : start + 4800], played)
    assert not captured[start + 4800 :].any()
    silent_s = (len(captured) - start - 4800) / 16000
    assert deaf_s == pytest.approx(silent_s, abs=0.3)  # deaf since the last sound


SURVIVE = """
from toolkit.errors import MicrophoneError
from toolkit.mic import Microphone
def record():
    try:
        with Microphone(read_timeout_s=0.5) as microphone:
            next(microphone)
            print("recording", flush=True)
            for block in microphone:
                pass
    except MicrophoneError as error:
        print(error, flush=True)
for line in iter(input, "end"):
    record()
"""


def test_a_vanished_microphone_is_an_error_and_a_returned_one_works(mortal_microphone):  # noqa: F811
    with mortal_microphone.python(SURVIVE) as child:

        def told(command: bytes = b"") -> str:
            child.stdin.write(command)
            child.stdin.flush()
            return child.stdout.readline().decode().rstrip()

        assert told(b"record\n") == "recording"
        mortal_microphone.server.kill()
        assert told() == "'default' has vanished; check its cable and the sound server"
        assert told(b"record\n") == "no microphone was found; plug one in and look for it with `arecord -l`"
        mortal_microphone.start_server()
        assert told(b"record\n") == "recording"
        mortal_microphone.server.send_signal(signal.SIGSTOP)  # a sound server that hangs
        stopped_s = time.monotonic()
        assert told().startswith("'default' delivers no samples for 0.5 s; check its cable and the sound server")
        child.communicate(b"end\n")
    assert child.returncode == 0 and time.monotonic() - stopped_s < 5.0  # neither closing nor exiting waits for it


# Everything else, from a fake sounddevice


@pytest.fixture
def sound(monkeypatch) -> FakeSound:
    fake = FakeSound()
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    monkeypatch.setattr(mic, "_users", 0)
    return fake


def ramp(start: int, count: int = 320, channels: int = 1) -> np.ndarray:
    """Frames whose sample k is start + k in the first channel, and 1000 more in each further one."""
    return (start + np.arange(count)[:, None] + 1000 * np.arange(channels)).astype(np.int16)


def test_devices_are_listed_and_looked_up_afresh(sound):
    listed = list_devices()
    assert listed == [
        {"index": 1, "name": "USB PnP Sound Device: Audio (hw:1,0)", "host_api": "ALSA", "channels": 2,
         "default_rate_hz": 44100, "default": False},
        {"index": 2, "name": "Array: four capsules (hw:2,0)", "host_api": "ALSA", "channels": 4,
         "default_rate_hz": 48000, "default": True},
    ]  # fmt: skip
    assert sound.restarts == 1
    with Microphone():
        assert sound.restarts == 2
        list_devices()  # PortAudio must not be restarted under an open stream; _terminate checks that
        assert sound.restarts == 2
    list_devices()
    assert sound.restarts == 3


@pytest.mark.parametrize(
    ("device", "index"), [(None, 2), (1, 1), ("1", 1), ("usb", 1), ("ARRAY", 2), ("Array: four capsules (hw:2,0)", 2)]
)
def test_a_device_is_found_by_index_or_part_of_its_name(sound, device, index):
    with Microphone(device=device):
        assert sound.streams[-1].options.device == index


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("hw:", "'hw:' fits 2 microphones; choose one by its index: 1 'USB PnP"),
        ("Aray: for capsules (hw:2,0)", "did you mean 'Array: four capsules (hw:2,0)'?"),
        ("bathroom", "no microphone's name holds 'bathroom'; there are 1 'USB PnP"),
        (0, "no microphone has the index 0; there are 1 'USB"),  # the loudspeaker
        ("7", "no microphone has the index 7"),
    ],
)
def test_a_wrong_device_is_one_sentence(sound, device, words):
    with pytest.raises(MicrophoneError) as error:
        Microphone(device=device)
    assert words in str(error.value)
    assert mic._users == 0


def test_no_device_at_all_is_one_sentence(sound):
    sound.devices = sound.devices[:1]
    with pytest.raises(MicrophoneError, match="no microphone was found; plug one in"):
        Microphone()
    with pytest.raises(MicrophoneError, match="names no default microphone; choose one with --device: 5 'x'"):
        find_device([{"index": 5, "name": "x", "default": False}], None)


def test_an_exact_name_wins_over_a_longer_one():
    devices = [
        {"index": 0, "name": "default extra", "default": True},
        {"index": 1, "name": "Default", "default": False},
    ]
    assert find_device(devices, "default")["index"] == 1


def test_blocks_are_one_channel_of_what_was_delivered(sound):
    with Microphone(channel=2) as microphone:
        options = sound.streams[0].options
        assert (options.samplerate, options.blocksize, options.channels, options.dtype) == (16000, 320, 3, "int16")
        for start in (0, 320):
            sound.streams[0].deliver(ramp(start, channels=3))
        assert np.array_equal(np.concatenate([next(microphone), next(microphone)]), ramp(2000, 640)[:, 0])
        assert (microphone.captured_samples, microphone.dropped_blocks, microphone.input_overflows) == (640, 0, 0)
    assert sound.streams[0].state == "closed"
    with pytest.raises(MicrophoneError, match="has no channel 4; choose --channel 0 to 3"):
        Microphone(channel=4)


def test_a_late_reader_loses_the_oldest_blocks_and_sees_where(sound):
    with Microphone(queue_blocks=3) as microphone:
        sound.streams[0].deliver(ramp(0))
        assert next(microphone)[0] == 0 and microphone.dropped_blocks == 0
        for number in range(1, 8):
            sound.streams[0].deliver(ramp(320 * number), overflow=number == 2)
        assert next(microphone)[0] == 320 * 5  # 1 to 4 are gone
        assert microphone.dropped_blocks == 4 and microphone.input_overflows == 1
        assert next(microphone)[0] == 320 * 6 and next(microphone)[0] == 320 * 7
        assert microphone.dropped_blocks == 4 and microphone.captured_samples == 8 * 320


def test_a_microphone_that_delivers_nothing_is_an_error(sound):
    with Microphone(read_timeout_s=0.05) as microphone:
        sound.streams[0].deliver(ramp(0))
        next(microphone)
        with pytest.raises(MicrophoneError, match=r"'Array: four.*' delivers no samples for 0.05 s; check its cable"):
            next(microphone)


def test_a_stream_that_ends_by_itself_is_an_error_after_its_last_block(sound):
    with Microphone() as microphone:
        sound.streams[0].deliver(ramp(0))
        sound.streams[0].options.finished_callback()
        next(microphone)
        with pytest.raises(MicrophoneError, match="has vanished"):
            next(microphone)


@pytest.mark.parametrize("value", [0, -1, 32767])
def test_constant_samples_count_as_deaf(sound, monkeypatch, value):
    now = [100.0]
    monkeypatch.setattr(mic, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    with Microphone() as microphone:

        def read(frames: np.ndarray) -> None:
            now[0] += 1.0
            sound.streams[0].deliver(frames)
            next(microphone)

        read(ramp(0))
        assert microphone.deaf_s == 0.0
        for _ in range(5):
            read(np.full((320, 1), value, np.int16))
        assert microphone.deaf_s == 5.0 and microphone.last_block_monotonic_s == 106.0
        read(np.array([[value]] * 319 + [[value - 1]], np.int16))  # one step of one bit is alive
        assert microphone.deaf_s == 0.0


@pytest.mark.parametrize("from_other_thread", [True, False])
def test_close_ends_the_iteration(sound, from_other_thread):
    microphone = Microphone(read_timeout_s=10)
    sound.streams[0].deliver(ramp(0))
    if from_other_thread:
        threading.Timer(0.05, microphone.close).start()
    blocks = []
    for block in microphone:
        blocks.append(block)
        if not from_other_thread:
            microphone.close()
    assert len(blocks) == 1
    microphone.close()
    assert list(microphone) == []


def test_close_does_not_wait_for_a_sound_server_that_hangs(sound, monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(FakeStream, "abort", lambda stream: released.wait(10))
    microphone = Microphone(read_timeout_s=10)
    reader = threading.Thread(target=list, args=(microphone,))
    reader.start()
    started_s = time.monotonic()
    microphone.close()
    reader.join(10)
    assert time.monotonic() - started_s < 1.0
    list_devices()
    assert sound.restarts == 1  # not again, for the stream is still open
    released.set()
    microphone._closer.join()


def test_an_interrupt_closes_the_stream(sound):
    started_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Microphone(read_timeout_s=10) as microphone:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()  # what Ctrl-C does
        next(microphone)
    assert time.monotonic() - started_s < 1.0
    assert sound.streams[0].state == "closed" and mic._users == 0


def test_a_device_that_refuses_the_rate_is_resampled(sound):
    pytest.importorskip("soxr", reason="pip install soxr")
    sound.refuse = lambda options: FakeError("Invalid sample rate", -9997) if options.samplerate == 16000 else None
    with Microphone(device="usb") as microphone:
        options = sound.streams[0].options
        assert (options.samplerate, options.blocksize) == (44100, 882) and microphone.device_rate_hz == 44100
        assert microphone.notices == ["'USB PnP Sound Device: Audio (hw:1,0)': 44100 Hz resampled to 16000 Hz"]
        tone = 16000 * np.sin(2 * np.pi * 1000 * np.arange(44100) / 44100)
        for start in range(0, 44100, 882):
            sound.streams[0].deliver(tone[start : start + 882, None].astype(np.int16))
        samples = np.concatenate([next(microphone) for _ in range(45)])
        assert len(samples) == 45 * 320
        wanted = 16000 * np.sin(2 * np.pi * 1000 * np.arange(len(samples)) / 16000)
        assert np.abs(samples - wanted)[400:].max() < 3


@pytest.mark.parametrize(
    ("message", "code", "words"),
    [
        ("Device unavailable", -9985, "is busy or has gone; end the program that records from it"),
        ("Unanticipated\nhost error", -9999, "cannot be opened at 48000 Hz"),
    ],
)
def test_a_device_that_does_not_open_is_one_sentence(sound, message, code, words):
    sound.refuse = lambda options: FakeError(message, code)
    with pytest.raises(MicrophoneError) as raised:
        Microphone()
    assert words in str(raised.value) and "'Array: four capsules (hw:2,0)'" in str(raised.value)
    assert "\n" not in str(raised.value) and mic._users == 0


def test_missing_parts_are_named_with_their_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(MissingPartError, match="`pip install sounddevice`"):
        Microphone()

    class NoPortAudio:
        """What importing sounddevice does without the library."""

        def find_spec(self, name, path=None, target=None):
            if name == "sounddevice":
                raise OSError("PortAudio library not found")

    monkeypatch.delitem(sys.modules, "sounddevice")
    monkeypatch.setattr(sys, "meta_path", [NoPortAudio(), *sys.meta_path])
    with pytest.raises(MissingPartError, match="`sudo apt install libportaudio2`"):
        list_devices()


# The clock


def lost(arrivals_s: np.ndarray, blocks: np.ndarray) -> int:
    """What ClockCheck finds when block number blocks[i] of 320 samples at 16 kHz arrives at arrivals_s[i]."""
    check = ClockCheck(16000, 320)
    for arrival_s, block in zip(arrivals_s, blocks, strict=True):
        check.update(320 * int(block + 1), float(arrival_s))
    return check.lost_samples


NUMBERS = np.arange(3000)  # one minute
IN_TIME_S = NUMBERS * 0.02


def test_the_clock_check_finds_one_lost_block():
    after = NUMBERS >= 1000
    assert lost(IN_TIME_S + 0.02 * after, NUMBERS) == 320
    assert lost(IN_TIME_S + 0.02 * after + 0.5 * (NUMBERS >= 2000), NUMBERS) == 320 + 8000


def test_the_clock_check_forgives_what_is_no_loss():
    jitter_s = np.random.default_rng(3).exponential(0.02, len(NUMBERS))
    assert lost(IN_TIME_S, NUMBERS) == 0
    assert lost(IN_TIME_S + jitter_s, NUMBERS) == 0  # late deliveries
    assert lost(np.ceil(IN_TIME_S / 0.06) * 0.06, NUMBERS) == 0  # in bursts of three blocks
    assert lost(IN_TIME_S * (1 + 300e-6), NUMBERS) == 0  # 300 ppm: 288 samples in a minute, and none lost
    pause_s = np.where((IN_TIME_S > 20) & (IN_TIME_S < 27), 27.0, IN_TIME_S)
    assert lost(pause_s, NUMBERS) == 0  # everything came, seven seconds late


def test_a_device_that_runs_at_another_rate_shows():
    slow = lost(IN_TIME_S * 16000 / 15625, NUMBERS)
    assert slow == pytest.approx(60 * 375, rel=0.15)
    assert lost(IN_TIME_S * 16000 / 17000, NUMBERS) == 0  # more than asked for is no loss
