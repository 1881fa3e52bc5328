"""The command line where all is well: what each command prints, and the same from every kind of input."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from fake_sounddevice import FakeSound
from released import FIRST_WORDS, SAMPLES, SCENE, changed, match_keywords, released, scene
from wav_files import needs_soundfile, needs_soxr, wav_bytes

from toolkit import __version__
from toolkit.__main__ import main
from toolkit.features import FeatureConfig, FrontEnd, make_tables
from toolkit.stream import Pipeline
from toolkit.wav import write_wav

ROOT = Path(__file__).resolve().parents[1]
DETECTION = ["file", "bundle", "version", "task", "label", "score", "time"]


@pytest.fixture(autouse=True)
def _there_is_a_bundle():
    released()


@pytest.fixture
def edge_audio(capsys):
    """Run a command in this process -> its JSON lines; it must end with the status and, unless told, be silent."""

    def run(*argv, status: int = 0, stderr: str | None = "") -> list[dict]:
        assert main([str(arg) for arg in argv]) == status
        output = capsys.readouterr()
        assert stderr is None or output.err == stderr
        return [json.loads(line) for line in output.out.splitlines()]

    return run


def start(*argv, **options) -> subprocess.Popen[bytes]:
    """The command in a process of its own, as a shell would start it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-m", "toolkit", *map(str, argv)], env=environment, **{**pipes, **options})


@pytest.fixture(scope="module")
def first_words(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("audio") / "words.wav"
    write_wav(path, scene()[: FIRST_WORDS])
    return path


# --- run ---


def test_run_finds_the_keywords_of_the_scene(edge_audio):
    lines = edge_audio("run", "kws", SCENE)
    for line in lines:
        assert list(line) == DETECTION
        assert (line["file"], line["bundle"], line["task"]) == (str(SCENE), "kws", "kws")
        assert line["version"] == released().manifest.version and line["label"] in released().manifest.labels
        assert released().manifest.decision.threshold <= line["score"] <= 1 and line["time"] == round(line["time"], 3)
    missed, extra = match_keywords([(line["label"], line["time"]) for line in lines])
    assert missed == [] and len(extra) <= 1


def test_run_in_blocks_is_the_pipeline_in_one_call(edge_audio):
    expected = [d.to_dict() for d in Pipeline([released()]).process(scene())]
    assert edge_audio("run", "kws", SCENE) == [{"file": str(SCENE), **d} for d in expected]


def test_run_reads_raw_samples_from_a_pipe(edge_audio):
    with start("run", "kws", "-") as child:
        out, err = child.communicate(scene().astype("<i2").tobytes())
    assert (child.returncode, err) == (0, b"")
    lines = [json.loads(line) for line in out.splitlines()]
    assert list(lines[0]) == ["stream", *DETECTION[1:]] and {line.pop("stream") for line in lines} == {"stdin"}
    from_file = edge_audio("run", "kws", SCENE)
    assert lines == [{key: value for key, value in line.items() if key != "file"} for line in from_file]


def test_run_takes_a_folder_each_file_from_the_start(edge_audio, first_words, tmp_path):
    for name in ("b.wav", "a.wav", "deep/c.wav", ".hidden.wav", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(first_words, tmp_path / name)
    alone = edge_audio("run", "kws", first_words)
    assert len(alone) >= 3
    expected = [{**line, "file": str(tmp_path / name)} for name in ("a.wav", "b.wav", "deep/c.wav") for line in alone]
    assert edge_audio("run", "kws", tmp_path) == expected


def test_run_takes_several_bundles_by_name_and_path(edge_audio, first_words, tmp_path):
    changed(tmp_path / "other.eab", name="other")
    lines = edge_audio("run", "--signature", "off", "kws", tmp_path / "other.eab", first_words)
    kws = [line for line in lines if line["bundle"] == "kws"]
    assert kws == edge_audio("run", "kws", first_words)
    assert [{**line, "bundle": "kws"} for line in lines if line["bundle"] == "other"] == kws


def test_run_as_tsv(edge_audio, first_words, capsys):
    lines = edge_audio("run", "kws", first_words)
    assert main(["run", "kws", str(first_words), "--format", "tsv"]) == 0
    rows = [row.split("\t") for row in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["filename", "onset", "offset", "event_label"]
    assert rows[1:] == [[str(first_words), f"{d['time']:.3f}", f"{d['time']:.3f}", d["label"]] for d in lines]


def test_tsv_keeps_file_names_that_are_no_text(first_words, tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9.wav"
    try:
        shutil.copy(first_words, name)
    except OSError:
        pytest.skip("this file system takes only names in UTF-8")
    with start("run", "kws", os.fsdecode(name), "--format", "tsv") as child:
        out, err = child.communicate()
    assert (child.returncode, err) == (0, b"") and out.splitlines()[1].split(b"\t")[0] == name


def test_run_with_another_threshold(edge_audio, first_words):
    """The higher the threshold, the fewer lines, down to none."""
    found = [edge_audio("run", "kws", first_words, "--threshold", value) for value in ("0.05", "0.8", "0.99", "1.0")]
    counts = [len(lines) for lines in found]
    assert counts == sorted(counts, reverse=True) and counts[0] > 0 and counts[-1] == 0
    assert {d["label"] for d in found[0]}.isdisjoint({"unknown", "silence"})


def test_a_recording_without_words_gives_no_line(edge_audio, tmp_path):
    (tmp_path / "silence.wav").write_bytes(wav_bytes(bytes(64_000)))
    assert edge_audio("run", "kws", tmp_path / "silence.wav") == []


@needs_soxr
def test_other_rates_are_resampled_and_said(edge_audio, tmp_path):
    import soxr

    cd = tmp_path / "cd.wav"
    write_wav(cd, soxr.resample(scene()[: FIRST_WORDS], 16000, 44100), 44100)
    said = f"edge-audio: {cd}: 44100 Hz resampled to 16000 Hz\n"
    lines = edge_audio("run", "kws", cd, "--threshold", "0.8", stderr=said)
    missed, extra = match_keywords([(line["label"], line["time"]) for line in lines], FIRST_WORDS / 16000)
    assert missed == [] and len(extra) <= 1


def test_a_channel_is_chosen_and_said(edge_audio, first_words, tmp_path):
    words = scene()[: FIRST_WORDS]
    stereo = tmp_path / "stereo.wav"
    stereo.write_bytes(wav_bytes(np.stack([0 * words, words], axis=1).tobytes(), channels=2))
    alone = edge_audio("run", "kws", first_words)
    said = f"edge-audio: {stereo}: channel 1 of 2 channels is used\n"
    second = edge_audio("run", "kws", stereo, "--channel", "1", stderr=said)
    assert second == [{**d, "file": str(stereo)} for d in alone] != []
    assert edge_audio("run", "kws", stereo, "--channel", "0", stderr=None) == []


@needs_soundfile
@pytest.mark.parametrize("subtype", ["PCM_24", "FLOAT"])
def test_more_than_16_bits_are_rounded_and_said(edge_audio, first_words, tmp_path, subtype):
    import soundfile

    fine = tmp_path / "fine.wav"
    soundfile.write(fine, scene()[: FIRST_WORDS] / 32768, 16000, subtype)
    lines = edge_audio("run", "kws", fine, stderr=f"edge-audio: {fine}: {subtype} samples rounded to 16 bits\n")
    assert [{**line, "file": str(first_words)} for line in lines] == edge_audio("run", "kws", first_words)


def test_without_the_core_files_are_processed_with_a_warning(edge_audio, first_words, monkeypatch):
    from toolkit import native

    expected = edge_audio("run", "kws", first_words)
    monkeypatch.setattr(native, "library", lambda: None)
    going_on = "Going on with the slow numpy front end (the same integers)."
    warning = f"edge-audio: warning: {native.HOW_TO_BUILD} {going_on}\n"
    assert edge_audio("run", "kws", first_words, stderr=warning) == expected


# --- a reader that goes, a stop ---


@pytest.mark.parametrize("command", [["run", "kws"], ["classify", "kws"]])
def test_a_reader_that_has_enough_ends_it_quietly(command, first_words, tmp_path):
    for i in range(20):
        shutil.copy(first_words, tmp_path / f"{i}.wav")
    with start(*command, tmp_path) as child:
        assert child.stdout.readline().startswith(b"{")
        child.stdout.close()  # `| head -1`
        assert child.stderr.read() == b""
    assert child.returncode == 0


def test_ctrl_c_ends_it_quietly():
    with start("run", "kws", "-") as child:
        child.stdin.write(scene()[:80_000].tobytes())
        child.stdin.flush()
        assert child.stdout.readline().startswith(b"{")
        child.send_signal(signal.SIGINT)
        assert child.stderr.read() == b""
    assert child.returncode == 130


# --- the other commands ---


@needs_soundfile
def test_classify_the_evaluation_clips(edge_audio):
    lines = edge_audio("classify", "kws", SAMPLES / "evaluation", stderr=None)
    labels = released().manifest.labels
    for line in lines:
        assert list(line) == ["file", "label", "score", "scores"] and sorted(line["scores"]) == sorted(labels)
        assert (line["label"], line["score"]) == next(iter(line["scores"].items()))
        values = line["scores"].values()
        assert line["score"] == max(values) and sum(values) == pytest.approx(1, abs=1e-3)
    known = [line for line in lines if Path(line["file"]).parent.name in labels]  # the folder holds other words too
    right = sum(Path(line["file"]).parent.name == line["label"] for line in known)
    assert len(known) == 12 * len(labels) and right >= 0.9 * len(known)


def test_classify_files_and_folders(edge_audio, first_words, tmp_path):
    shutil.copy(first_words, tmp_path / "b.wav")
    shutil.copy(SCENE, tmp_path / "a.wav")
    lines = edge_audio("classify", "kws", first_words, tmp_path)
    assert [line["file"] for line in lines] == [str(first_words), str(tmp_path / "a.wav"), str(tmp_path / "b.wav")]
    assert {**lines[2], "file": str(first_words)} == lines[0]
    expected = Pipeline([released()]).classify(scene())[0]
    assert lines[1]["scores"] == {label: round(score, 4) for label, score in expected.items()}


def test_features(edge_audio, first_words, tmp_path):
    (line,) = edge_audio("features", "kws", first_words, tmp_path / "out.npy")
    features = np.load(tmp_path / "out.npy")
    config = released().manifest.front_end.config
    expected = FrontEnd(make_tables(FeatureConfig(**config)), "numpy").process(scene()[: FIRST_WORDS])
    assert features.dtype == np.int16 and np.array_equal(features, expected)
    assert line == {"file": str(first_words), "output": str(tmp_path / "out.npy"), "frames": len(expected),
                    "width": expected.shape[1], "fraction_bits": config["output_fraction_bits"],
                    "front_end": released().manifest.front_end.id, "backend": line["backend"]}


def test_info(capsys):
    assert main(["info", "kws"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document.pop("path"), document.pop("sha256")) == (str(released().path), released().sha256)
    assert document.pop("signed_by") is not None and document == released().manifest.to_dict()


def test_selftest(edge_audio):
    (line,) = edge_audio("selftest", "kws")
    assert line["passed"] is True


def test_bench_and_its_bar(edge_audio):
    """200 times faster than real time on one x86 core: at most 100 us of CPU per 20 ms block; the best of four."""
    best = 1.0
    for _ in range(4):
        (line,) = edge_audio("bench", "kws", "--seconds", "4")
        assert line["bundles"] == ["kws"] and line["blocks"] == 200 and line["max_rss_mb"] > 10
        assert 0 < line["p50_us"] <= line["p99_us"] <= line["max_us"]
        assert line["real_time_factor"] == pytest.approx(line["p50_us"] / 20_000, rel=0.9)
        best = min(best, line["real_time_factor"])
    print(f"{line['runtime']}, {line['backend']}: {1 / best:.0f} times faster than real time")
    if platform.machine() in ("x86_64", "AMD64") and line["backend"] == "native":
        assert best <= 1 / 200


def test_plot(edge_audio, first_words, tmp_path):
    pytest.importorskip("matplotlib")
    found = edge_audio("run", "kws", first_words)
    (line,) = edge_audio("plot", "kws", first_words, tmp_path / "out.png")
    assert line == {"file": str(first_words), "output": str(tmp_path / "out.png"), "detections": len(found)}
    from matplotlib.image import imread

    picture = imread(tmp_path / "out.png")
    assert picture.shape[0] >= 500 and picture.shape[1] >= 800
    assert len(np.unique((255 * picture[..., :3]).astype(int).reshape(-1, 3), axis=0)) > 100  # the spectrogram is in it


def test_doctor(capsys):
    status = main(["doctor"])
    output = capsys.readouterr()
    report = json.loads(output.out)
    parts = {part["name"]: part for part in report["parts"]}
    assert report["version"] == __version__ and report["machine"] == platform.machine()
    assert status == (0 if all(part["found"] for part in parts.values() if part["needed"]) else 1)
    assert parts["TFLite runtime"]["found"] and released().manifest.version in parts["released bundles"]["detail"]
    for name, module in (("other audio files (soundfile)", "soundfile"), ("pictures (matplotlib)", "matplotlib")):
        assert parts[name]["found"] == (importlib.util.find_spec(module) is not None)
    assert len(output.err.splitlines()) == len(parts)


def test_one_version_everywhere():
    """Of the package, of its distribution, and the first that the changes speak of."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    changes = [line for line in (ROOT / "CHANGELOG.md").read_text("utf-8").splitlines() if line.startswith("## ")]
    assert project["version"] == __version__ and changes[0] == f"## {__version__}"


def test_list_devices(edge_audio, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", FakeSound())
    lines = edge_audio("listen", "--list-devices")
    assert [line["name"] for line in lines] == ["USB PnP Sound Device: Audio (hw:1,0)", "Array: four capsules (hw:2,0)"]
    assert [line["default"] for line in lines] == [False, True]


@pytest.mark.parametrize("argv", [["--help"], ["run", "--help"], ["--version"]])
def test_help(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    output = capsys.readouterr()
    assert stop.value.code == 0 and output.err == "" and len(output.out) > 10


@pytest.mark.parametrize("command", ["info", "features"])
def test_a_command_imports_no_more_than_it_needs(command, first_words, tmp_path):
    """TFLite is loaded to run a model only, and libraries for sound and pictures are not loaded for a 16-bit WAV."""
    argv = {"info": ["info", "kws"], "features": ["features", "kws", str(first_words), f"{tmp_path}/a.npy"]}[command]
    program = (f"import sys\nfrom toolkit.__main__ import main\nassert main({argv!r}) == 0\n"
               "print(*sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    optional = {"tflite_runtime", "ai_edge_litert", "soundfile", "soxr", "matplotlib", "yaml", "sounddevice"}
    loaded = set(done.stderr.split())
    assert not loaded & optional and "toolkit" in loaded and ("numpy" in loaded) == (command == "features")
