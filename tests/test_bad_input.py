"""Everything that can be wrong with what the command line is given: one sentence on stderr, the right status."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bundle_factory import STRANGER
from fake_sounddevice import FakeError, FakeSound
from released import SCENE, changed, released, scene
from wav_files import needs_soundfile, wav_bytes

from toolkit.__main__ import main
from toolkit.bundle import MAX_FILE_BYTES, build_zip, walk
from toolkit.wav import write_wav

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def refusal(capsys):
    """Run a command that must fail with the status -> its one sentence, without the prefix."""

    def run(status: int, *argv) -> str:
        assert main([str(arg) for arg in argv]) == status
        output = capsys.readouterr()
        assert output.out == "" and re.fullmatch(r"edge-audio: [^\n]+\n", output.err), output.err
        assert "Traceback" not in output.err and "Error" not in output.err
        return output.err.removeprefix("edge-audio: ").rstrip("\n")

    return run


# --- recordings ---

PCM = scene()[16_000:24_000].tobytes() if SCENE.exists() else bytes(16_000)
AUDIO = {  # name: (bytes, words of the sentence)
    "empty.wav": (b"", "is empty"),
    "header.wav": (wav_bytes(b""), "holds no samples"),
    "truncated.wav": (wav_bytes(PCM)[:-1000], "is truncated"),
    "cut_header.wav": (wav_bytes(PCM)[:30], "is truncated"),
    "half_sample.wav": (wav_bytes(PCM[:-1])[:-1], "is truncated"),
    "stereo.wav": (wav_bytes(PCM, channels=2), "has 2 channels and one is needed; choose it with --channel 0 to 1"),
    "rate.wav": (wav_bytes(PCM, rate=7), "its sample rate, 7 Hz, is not within"),
    "text.wav": (b"This is no sound.\n" * 50, "is not audio"),
    "random.flac": (np.random.default_rng(1).bytes(5000), "is not audio"),
    "nan.wav": (wav_bytes(struct.pack("<4f", 0, float("nan"), 0, 0) * 500, tag=3, bits=32), "holds NaN"),
    "bits.wav": (wav_bytes(PCM, bits=64), "is not audio"),
}
NEED_SOUNDFILE = ("text.wav", "random.flac", "nan.wav", "bits.wav")
COMMANDS = {"run": [], "classify": [], "features": ["out.npy"], "plot": ["out.png"]}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", [pytest.param(name, marks=needs_soundfile if name in NEED_SOUNDFILE else ())
                                  for name in AUDIO])
def test_bad_recordings(refusal, tmp_path, command, name):
    released()
    content, words = AUDIO[name]
    path = tmp_path / name
    path.write_bytes(content)
    sentence = refusal(1, command, "kws", path, *(tmp_path / output for output in COMMANDS[command]))
    assert sentence.startswith(str(path)) and words in sentence
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_recording_that_is_not_there(refusal, tmp_path, command):
    released()
    sentence = refusal(1, command, "kws", tmp_path / "a.wav", *COMMANDS[command])
    assert sentence == f"{tmp_path / 'a.wav'} does not exist; check the path"


@pytest.mark.parametrize("command, words", [("run", "holds no audio files"), ("classify", "holds no audio files"),
                                            ("features", "is a directory"), ("plot", "is a directory")])
def test_a_folder_without_recordings(refusal, tmp_path, command, words):
    released()
    assert words in refusal(1, command, "kws", tmp_path, *COMMANDS[command])


@pytest.mark.parametrize("name", ["float.wav", "rate.wav"])
def test_a_format_whose_library_is_missing(refusal, tmp_path, monkeypatch, name):
    released()
    content = {"float.wav": wav_bytes(bytes(4000), tag=3, bits=32), "rate.wav": wav_bytes(PCM, rate=44100)}[name]
    (tmp_path / name).write_bytes(content)
    for module in ("soundfile", "soxr"):
        monkeypatch.setitem(sys.modules, module, None)
    library = {"float.wav": "soundfile", "rate.wav": "soxr"}[name]
    assert f"`pip install {library}`" in refusal(1, "run", "kws", tmp_path / name)


@pytest.mark.parametrize("command", ["run", "classify"])
def test_one_bad_file_does_not_stop_the_others(capsys, tmp_path, command):
    released()
    for name in ("a.wav", "c.wav"):
        write_wav(tmp_path / name, scene()[: 3 * 16000])
    (tmp_path / "b.wav").write_bytes(wav_bytes(PCM)[:-1000])
    assert main([command, "kws", str(tmp_path)]) == 1
    output = capsys.readouterr()
    files = dict.fromkeys(json.loads(line)["file"] for line in output.out.splitlines())
    assert list(files) == [str(tmp_path / "a.wav"), str(tmp_path / "c.wav")]
    first, second = output.err.splitlines()
    assert first.startswith(f"edge-audio: {tmp_path / 'b.wav'} is truncated")
    assert second == "edge-audio: 1 of 3 files could not be used."


@pytest.mark.parametrize("content, words", [
    (b"", "standard input holds no samples"), (PCM[:-1], "ended in the middle of a sample"),
    (wav_bytes(PCM), "standard input holds a WAV file")])
def test_bad_standard_input(content, words):
    released()
    done = edge_audio("run", "kws", "-", input=content)
    assert done.returncode == 1 and done.stdout == b""
    assert re.fullmatch(r"edge-audio: [^\n]+\n", done.stderr.decode()) and words in done.stderr.decode()


def edge_audio(*argv, **options) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    command = [sys.executable, "-m", "toolkit", *map(str, argv)]
    return subprocess.run(command, env=environment, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options})


# --- bundles ---


def spoilt_bundles() -> dict[str, tuple[bytes, str]]:
    """File name -> (bytes, words of the sentence)."""
    data = released().path.read_bytes()
    middle = len(data) // 2
    entries = walk(data, "kws")
    other_signature = entries["manifest.sig"][:-9] + b"AAAAAA==\n"
    unsigned = build_zip({name: content for name, content in entries.items() if name != "manifest.sig"})
    return {
        "empty.eab": (b"", "is empty"),
        "text.eab": (b"#!/bin/sh\n", "not a bundle"),
        "cut.eab": (data[:middle], "cut short at byte"),
        "no_end.eab": (data[:-1], "cut short"),
        "flipped.eab": (data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :], "damaged"),
        "longer.eab": (data + b"\0", "longer than its directory"),
        "oversized.eab": (data + bytes(MAX_FILE_BYTES), f"larger than {MAX_FILE_BYTES} bytes"),
        "altered.eab": (build_zip({**entries, "card.md": entries["card.md"] + b"x"}), "is not what the manifest says"),
        "resigned.eab": (build_zip({**entries, "manifest.sig": other_signature}), "it again"),
        "unsigned.eab": (unsigned, ""),
    }


@pytest.mark.parametrize("name", ["empty.eab", "text.eab", "cut.eab", "no_end.eab", "flipped.eab", "longer.eab",
                                  "oversized.eab", "altered.eab", "resigned.eab"])
def test_spoilt_bundles(refusal, tmp_path, name):
    content, words = spoilt_bundles()[name]
    (tmp_path / name).write_bytes(content)
    for argv in (["run", tmp_path / name, SCENE], ["info", tmp_path / name], ["selftest", tmp_path / name]):
        sentence = refusal(1, *argv)
        assert sentence.startswith(f"{tmp_path / name}: ") and words in sentence


def test_one_spoilt_bundle_among_good_ones(refusal, tmp_path):
    (tmp_path / "x.eab").write_bytes(spoilt_bundles()["cut.eab"][0])
    assert "x.eab: cut short" in refusal(1, "run", "kws", tmp_path / "x.eab", SCENE)


def test_an_unsigned_bundle(refusal, capsys, tmp_path):
    path = tmp_path / "x.eab"
    path.write_bytes(spoilt_bundles()["unsigned.eab"][0])
    assert f"{path}: not signed; policy require" in refusal(1, "run", path, SCENE, "--signature", "require")
    assert main(["info", str(path)]) == 0
    assert capsys.readouterr().err == f"edge-audio: {path}: not signed; loaded all the same, for the policy is warn\n"
    assert main(["info", str(path), "--signature", "off"]) == 0
    assert capsys.readouterr().err == ""


def test_a_bundle_of_a_stranger(refusal, capsys, tmp_path):
    path = tmp_path / "x.eab"
    changed(path, key=STRANGER)
    sentence = refusal(1, "run", path, SCENE, "--signature", "require")
    assert f"signed by the key {STRANGER.public_key().key_id}, which is not among" in sentence
    assert main(["info", str(path)]) == 0 and "which is not among" in capsys.readouterr().err


def test_a_trusted_bundle_is_taken_where_it_is_required(capsys):
    released()
    assert main(["info", "kws", "--signature", "require"]) == 0
    assert capsys.readouterr().err == ""


def test_names_and_paths_of_bundles(refusal, tmp_path, monkeypatch):
    released()
    monkeypatch.chdir(tmp_path)
    shutil.copy(released().path, tmp_path / "mine.eab")
    assert refusal(1, "run", "kwz", SCENE) == "kwz: no released bundle has this name; did you mean kws?"
    assert "did you mean" in refusal(1, "info", "mime.eab")
    assert "not a file but a folder" in refusal(1, "info", f"{tmp_path}/")
    monkeypatch.setenv("EDGE_AUDIO_TRUST", str(tmp_path / "keys"))
    assert "not a folder of trusted keys" in refusal(2, "info", "kws")


def test_a_bundle_that_this_version_does_not_run(refusal, tmp_path):
    changed(tmp_path / "x.eab", task="sed")
    assert "this version runs kws" in refusal(1, "run", tmp_path / "x.eab", SCENE, "--signature", "off")


# --- microphones ---


@pytest.fixture
def sound(monkeypatch):
    fake = FakeSound()
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    return fake


def test_no_microphone(refusal, sound):
    released()
    sound.devices = sound.devices[:1]
    assert refusal(1, "listen", "kws") == "no microphone was found; plug one in and look for it with `arecord -l`"


def test_no_such_microphone(capsys, sound):
    released()
    for device, words in (("usp", "no microphone's name holds 'usp'"), ("7", "no microphone has the index 7")):
        assert main(["listen", "kws", "--device", device]) == 1
        output = capsys.readouterr()
        assert output.out == "" and words in output.err and output.err.count("\n") == 1


def test_a_busy_microphone(refusal, sound):
    released()
    sound.refuse = lambda options: FakeError("Device unavailable", -9985)
    assert "is busy or has gone" in refusal(1, "listen", "kws")
    assert "has no channel 9" in refusal(1, "listen", "kws", "--channel", "9")


def test_no_portaudio(refusal, monkeypatch):
    released()
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert "`pip install sounddevice`" in refusal(1, "listen", "kws")
    assert "`pip install sounddevice`" in refusal(1, "listen", "--list-devices")


def test_listen_needs_the_core_unless_told(refusal, sound, monkeypatch):
    from toolkit import native

    released()
    monkeypatch.setattr(native, "library", lambda: None)
    assert refusal(1, "listen", "kws") == f"{native.HOW_TO_BUILD} --numpy goes on without it."


# --- outputs ---


@pytest.mark.parametrize("command, output, words", [
    ("features", "gone/out.npy", "cannot be written (No such file or directory)"),
    ("features", "out.txt", "does not end in .npy"),
    ("features", "folder.npy", "cannot be written (Is a directory)"),
    ("plot", "gone/out.png", "cannot be written (No such file or directory)"),
    ("plot", "out.wav", "'wav' is not supported"),
    ("plot", "folder.png", "cannot be written (Is a directory)")])
def test_outputs_that_cannot_be_written(refusal, tmp_path, command, output, words):
    released()
    if command == "plot":
        pytest.importorskip("matplotlib")
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "folder.png").mkdir()
    sentence = refusal(2, command, "kws", SCENE, tmp_path / output)
    assert sentence.startswith(str(tmp_path / output)) and words in sentence
    assert sorted(os.listdir(tmp_path)) == ["folder.npy", "folder.png"]


def test_no_matplotlib(refusal, tmp_path, monkeypatch):
    released()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "`pip install matplotlib`" in refusal(1, "plot", "kws", SCENE, tmp_path / "a.png")


@pytest.mark.parametrize("command", [["run", "kws", SCENE], ["info", "kws"], ["classify", "kws", SCENE]])
def test_a_full_disk(command):
    released()
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "wb") as full:
        done = edge_audio(*command, stdout=full)
    sentence = b"edge-audio: standard output cannot be written (No space left on device); free some space.\n"
    assert (done.returncode, done.stderr) == (1, sentence)


# --- misuse ---


@pytest.mark.parametrize("argv, words", [
    ([], "the following arguments are required: COMMAND"),
    (["rnu", "kws"], "invalid choice: 'rnu'"),
    (["run", "kws"], "the following arguments are required: INPUT"),
    (["run", "kws", SCENE, "--thresold", "1"], "unrecognized arguments: --thresold"),
    (["run", "kws", SCENE, "--threshold", "1.5"], "--threshold is 1.5, expected 0 to 1"),
    (["run", "kws", SCENE, "--threshold", "nan"], "--threshold is nan, expected 0 to 1"),
    (["run", "kws", SCENE, "--threshold", "high"], "invalid float value: 'high'"),
    (["run", "kws", SCENE, "--format", "xml"], "invalid choice: 'xml'"),
    (["run", "kws", SCENE, "--channel", "left"], "--channel is 'left', expected 0, 1, ... or mix"),
    (["classify", "kws", SCENE, "--channel", "-1"], "--channel is '-1', expected 0, 1, ... or mix"),
    (["run", "kws", SCENE, "--signature", "maybe"], "invalid choice: 'maybe'"),
    (["bench", "kws", "--seconds", "0"], "--seconds is 0.0, expected 1 to 3600"),
    (["listen"], "listen needs a BUNDLE"),
    (["listen", "kws", "--seconds", "nan"], "--seconds is nan, expected more than 0"),
    (["listen", "kws", "--channel", "mix"], "--channel mix is for recordings")])
def test_misuse(refusal, argv, words):
    released()
    assert words in refusal(2, *argv)


@pytest.mark.parametrize("variable, value, status, words", [
    ("EDGE_AUDIO_RUNTIME", "onnx", 2, "is 'onnx'; expected tflite-runtime, ai-edge-litert or native"),
    ("EDGE_AUDIO_TRUST", "/nowhere", 2, "/nowhere: not a folder of trusted keys")])
def test_wrong_environment(variable, value, status, words):
    released()
    done = subprocess.run([sys.executable, "-m", "toolkit", "run", "kws", str(SCENE)], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT), variable: value})
    assert (done.returncode, done.stdout) == (status, "")
    assert re.fullmatch(r"edge-audio: [^\n]+\n", done.stderr) and words in done.stderr
