"""The service as a device runs it: a real process, socket and signals; every trouble is a sentence; and the unit."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from released import FIRST_WORDS, released, scene
from service_process import ROOT, Device, Systemd, end, notify_socket, release
from virtual_microphone import mortal_microphone  # noqa: F401

from toolkit.__main__ import main
from toolkit.live import __main__ as live
from toolkit.live.status import status_path
from toolkit.stream import Pipeline

UNIT = ROOT / "devices" / "rpi" / "edge-audio.service"


def test_a_day_of_a_device(tmp_path):
    """From start to SIGTERM, with all that systemd, the health gate, the journal and a person see of it."""
    current = release(tmp_path)
    device = Device(tmp_path, "nothing", scene()[:FIRST_WORDS])
    with contextlib.ExitStack() as stack:
        systemd = Systemd(*stack.enter_context(notify_socket()))
        child = stack.enter_context(device.running("toolkit.live", str(current), NOTIFY_SOCKET=systemd.name,
                                                   WATCHDOG_USEC="400000"))
        status = device.status(lambda status: status["microphone"])  # it is open, and delivers nothing
        assert status["state"] == "starting" and status["last_audio_age_s"] is None and status["blocks"] == 0
        assert systemd.next("", 0.3) is None and systemd.heard == []

        device.sound("sound")
        assert systemd.next("READY=1", first=0) == "READY=1\nSTATUS=listening to Array: four capsules (hw:2,0)"
        assert systemd.next("WATCHDOG=1")
        lines = [json.loads(child.stdout.readline())]
        status = device.status(lambda status: status["detections"] >= 1)
        assert status["state"] == "listening" and status["microphone"] == "Array: four capsules (hw:2,0)"
        assert status["pid"] == child.pid and status["release"] == current.resolve().name
        assert status["bundles"][0]["sha256"] == released().sha256 and status["last_audio_age_s"] < 1
        assert 0 < status["block_ms"]["p50"] <= status["block_ms"]["p99"] <= status["block_ms"]["max"]
        assert status["sentence"] is None and abs(status["time"] - time.time()) < 3 > status["deaf_s"]

        device.sound("constant")
        status = device.status(lambda status: status["deaf_s"] > 1)
        assert status["state"] == "listening" and status["last_audio_age_s"] < 1
        assert systemd.next("WATCHDOG=1", 0.6) is None  # three times as long as between two

        device.sound("vanish")
        status = device.status(lambda status: status["state"] == "no microphone")
        assert "has vanished" in status["sentence"] and status["microphone"] is None
        later = device.status(lambda other: other["time"] > status["time"])  # written without a microphone, too
        assert later["last_audio_age_s"] > 0.5

        device.sound("sound")
        assert systemd.next("WATCHDOG=1")
        status = device.status(lambda status: status["state"] == "listening")
        assert status["reopened"] >= 1 and status["dropped_blocks"] == 0
        out, err = end(child)
        assert systemd.heard[-1].startswith("STOPPING=1")
    name = "Array: four capsules (hw:2,0)"
    gone = f"edge-audio: '{name}' has vanished; check its cable and the sound server"
    assert err.splitlines() == [f"edge-audio: listening to {name}", gone, f"edge-audio: listening to {name}"]
    lines += [json.loads(line) for line in out.splitlines()]
    assert {line.pop("stream") for line in lines} == {name}
    assert lines[0] == Pipeline([released()]).process(scene()[:FIRST_WORDS])[0].to_dict()
    assert not device.status_file.exists()


def test_a_sound_server_that_dies_hangs_and_comes_back(mortal_microphone, tmp_path):  # noqa: F811
    """The same on PortAudio itself: what it does is not what a fake does."""
    released()
    noise = np.random.default_rng(1).integers(-3000, 3000, 30 * 16000)
    device = Device(tmp_path, "real", noise)
    (tmp_path / "sounddevice.py").unlink()
    mortal_microphone.play(noise)
    with device.running("toolkit", "listen", "kws", "--service", **sound_of(mortal_microphone)) as child:
        device.status(lambda status: status["state"] == "listening" and status["deaf_s"] < 0.5)
        mortal_microphone.server.kill()
        device.status(lambda status: status["state"] == "no microphone")
        mortal_microphone.start_server()
        mortal_microphone.play(noise)
        status = device.status(lambda status: status["state"] == "listening" and status["deaf_s"] < 0.5)
        assert status["reopened"] >= 1 and status["microphone"] == "default"
        mortal_microphone.server.send_signal(signal.SIGSTOP)
        status = device.status(lambda status: status["state"] == "no microphone")
        time.sleep(1)  # now it hangs at opening
        out, err = end(child)
    own = [line for line in err.splitlines() if line.startswith("edge-audio: ")]
    assert own.count("edge-audio: listening to default") == 2 and "Traceback" not in err


def sound_of(microphone) -> dict[str, str]:
    keys = ("HOME", "XDG_RUNTIME_DIR", "PULSE_SERVER", "ALSA_CONFIG_PATH")
    return {key: microphone.environment[key] for key in keys}


REACHED = {
    "sound": lambda status: status["state"] == "listening" and status["deaf_s"] < 1,
    "constant": lambda status: status["state"] == "listening",
    "nothing": lambda status: status["microphone"] is not None,  # blocked in a read
    "none": lambda status: status["state"] == "no microphone",  # in a pause
    "hang at opening": lambda status: time.time() - status["started"] > 0.3,
    "hang at closing": lambda status: status["microphone"] is not None,
}


@pytest.mark.parametrize("mode", REACHED)
def test_sigterm_ends_it_within_a_second(tmp_path, mode):
    released()
    device = Device(tmp_path, mode, scene()[:FIRST_WORDS])
    with device.running("toolkit", "listen", "kws", "--service") as child:
        device.status(REACHED[mode])
        out, err = end(child)
    lines = err.splitlines()
    assert out == "" and len(lines) == (mode in ("sound", "none")), err
    assert all(line.startswith("edge-audio: ") for line in lines) and not device.status_file.exists()


def test_a_reader_that_goes_ends_it_for_systemd_to_start_it_again(tmp_path):
    current = release(tmp_path)
    device = Device(tmp_path, "sound", scene()[:FIRST_WORDS])
    with device.running("toolkit.live", str(current)) as child:
        child.stdout.close()
        assert child.wait(20) == 1
        lines = child.stderr.read().splitlines()
    assert lines[1:] == ["edge-audio: standard output was closed; the service ends, for nobody reads its detections."]


# --- misuse, and what is not as it must be ---


@pytest.fixture
def refusal(capsys):
    """Run something that must fail with the status -> its one sentence."""

    def run(status: int, call, *argv) -> str:
        assert call([str(arg) for arg in argv]) == status
        output = capsys.readouterr()
        assert output.out == "" and output.err.startswith("edge-audio: ") and output.err.count("\n") == 1, output.err
        return output.err.removeprefix("edge-audio: ").rstrip("\n")

    return run


@pytest.fixture
def _signals():
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_signals")
def test_a_bad_command_is_one_sentence(refusal, tmp_path):
    released()
    missing = tmp_path / "no" / "status.json"
    service = (2, main, "listen", "kws", "--service")
    sentence = refusal(*service, "--status-file", missing)
    assert sentence.startswith(f"the status file {missing} cannot be written (No such file or directory); name one in")
    assert "cannot be written (Is a directory)" in refusal(*service, "--status-file", tmp_path)
    assert os.listdir(tmp_path) == []
    assert refusal(2, main, "listen", "kws", "--status-file", "x") == (
        "--status-file is written by a service; add --service.")
    assert "leave out --seconds" in refusal(*service, "--seconds", "3")
    assert "the threshold is 2.0" in refusal(*service, "--threshold", "2")


@pytest.mark.usefixtures("_signals")
def test_a_service_requires_signatures(refusal, tmp_path, monkeypatch):
    released()
    monkeypatch.setenv("EDGE_AUDIO_TRUST", str(tmp_path))
    assert "policy require takes only bundles signed by a trusted key" in refusal(1, main, "listen", "kws", "--service")


@pytest.mark.usefixtures("_signals")
def test_a_release_that_is_not_whole_is_one_sentence(refusal, tmp_path):
    current = release(tmp_path)
    bundle, file = current / "bundles" / "kws.eab", current / "release.json"
    other = ROOT / "toolkit" / "bundles" / "kws-large.eab"
    text = file.read_text()
    for change, words in [
        (lambda: shutil.copy(other, bundle), "is not the file that was staged"),
        (lambda: bundle.write_bytes(b"PK"), "not a bundle"),
        (bundle.unlink, "no such file"),
        (lambda: file.write_text(text.replace('"schema":1', '"schema":9')), "schema"),
        (lambda: file.write_text(text.replace('"channel":0', '"channel":"mix"')), "'mix'"),
        (lambda: file.write_text("[]"), "release.json"),
        (lambda: file.write_text("{"), "not JSON"),
        (file.unlink, "cannot be read (No such file or directory)"),
    ]:
        change()
        assert words in refusal(1, live.main, current)


def test_the_options_of_a_release_reach_the_microphone(tmp_path, monkeypatch):
    from toolkit.live import service

    seen = {}
    monkeypatch.setattr(service, "serve", lambda bundles, consumers, say, **options: seen.update(options))
    current = release(tmp_path, device="usb", channel=1, threshold=0.5)
    live.run(current)
    assert seen == {"device": "usb", "channel": 1, "threshold": 0.5, "release": current.resolve().name,
                    "status_file": status_path()}


# --- the unit ---


def test_systemd_takes_the_unit_and_finds_little_exposed(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed (Debian: systemd)")
    unit = tmp_path / "etc" / "systemd" / "system" / UNIT.name
    unit.parent.mkdir(parents=True)
    shutil.copy(UNIT, unit)
    for program in ("boot", "current/runtime/bin/python"):
        path = tmp_path / "opt" / "edge-audio" / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    command = ["systemd-analyze", f"--root={tmp_path}", "--recursive-errors=no", "verify", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")  # for a misspelt key it prints, and returns 0
    done = subprocess.run(["systemd-analyze", "security", "--offline=true", "--threshold=10", str(UNIT)],
                          capture_output=True, text=True)  # in tenths: 1.0 of 10
    assert done.returncode == 0, done.stdout[-300:] + done.stderr
