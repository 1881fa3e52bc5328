"""A model that was not trained here goes through the same proof and gate, or is refused in one sentence."""

import importlib.util
import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("tensorflow") is None:
    pytest.skip("tensorflow is not installed (requirements-host.txt)", allow_module_level=True)

from quantize.own import NOT_MEASURED, main
from tests.released import released
from toolkit.bundle import load_bundle

ROOT = Path(__file__).resolve().parents[1]
KWS, TWO = '["yes", "no", up, down, left, right, stop, go]', '["yes", "no"]'
RECIPE = """schema: 1
name: mine
version: 1.2.3
data: {{words: {words}}}
quantize: {{representative_clips: 24}}
decision: {{window_frames: 100, flush_frames: 20}}
budget: {{{budget}}}
"""
MAKER = """
import sys
from pathlib import Path
import numpy as np
from models.layers import keras, tf
from quantize.convert import int8_model

def model(kept, time, form):
    frames = keras.Input((2, 40), batch_size=1, name="frames")
    past = keras.Input((2, 1, 40), batch_size=1, name="first_state")
    z = keras.layers.Concatenate(axis=1)([past, keras.layers.Reshape((time, 1, 40))(frames)])
    x = keras.layers.Conv2D(8, (4, 1), (2, 1), activation="relu")(z)
    scores = keras.layers.Reshape((-1, 4), name="scores")(keras.layers.Conv2D(4, 1)(x))
    kept = keras.layers.Activation("linear", name="first_state_out")(kept(z))
    if form is list:
        return keras.Model([frames, past], [scores, kept])  # named by their layers
    return keras.Model({"frames": frames, "first_state": past}, {"scores": scores, "first_state_out": kept})

def representative():
    for x in (-4, 127 / 32):
        yield {"frames": np.full((1, 2, 40), x, "f"), "first_state": np.full((1, 2, 1, 40), x, "f")}

folder = Path(sys.argv[1])
step = model(lambda z: z[:, -2:], -1, dict)
step.save(folder / "dict.keras")
model(lambda z: z[:, -2:], -1, list).save(folder / "list.h5")
fixed = model(lambda z: z[:, 2:], 2, dict)
(folder / "fixed.tflite").write_bytes(int8_model(fixed, representative))
(folder / "float.tflite").write_bytes(tf.lite.TFLiteConverter.from_keras_model(step).convert())
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder of tiny models over two frames with four labels, made in a process that may hold TensorFlow."""
    folder = tmp_path_factory.mktemp("made")
    subprocess.run([sys.executable, "-c", MAKER, str(folder)], check=True, capture_output=True, cwd=ROOT)
    return folder


def recipe(folder: Path, budget: str = "", words: str = KWS) -> Path:
    path = folder / "mine.yaml"
    path.write_text(RECIPE.format(words=words, budget=budget))
    return path


def tflite(folder: Path, model: bytes | None = None) -> Path:
    """The released keyword model as a file of a stranger, or other bytes."""
    path = folder / "mine.tflite"
    path.write_bytes(released().members["model"] if model is None else model)
    return path


def own(folder: Path, model: Path, recipe: Path, *arguments: str) -> int:
    return main([str(model), "--recipe", str(recipe), "--out", str(folder / "out"), *arguments])


def refused(capsys, folder: Path, model: Path, recipe: Path) -> str:
    """The one sentence, after nothing was written."""
    assert own(folder, model, recipe) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("quantize: ")]
    said = [line for line in said if not line.startswith("quantize: converting")]
    assert len(said) == 1 and said[0].endswith(".") and not (folder / "out").exists(), said
    return said[0]


def test_an_int8_model_is_proved_and_bundled(tmp_path, capsys):
    (tmp_path / "card.md").write_text("# My words\n")
    limits = "embedded_accuracy_floor: 0.9, max_accuracy_loss: 0.01"
    assert own(tmp_path, tflite(tmp_path), recipe(tmp_path, limits)) == 0
    said = json.loads(capsys.readouterr().out)
    bundle = load_bundle(said["bundle"], "require")
    assert (bundle.manifest.name, bundle.manifest.version, bundle.sha256) == ("mine", "1.2.3", said["bundle_sha256"])
    assert bundle.members["model"] == released().members["model"] and bundle.members["card"] == b"# My words\n"
    assert bundle.manifest.labels == released().manifest.labels
    assert said["macs_per_second"] == released().manifest.model.macs_per_second
    assert said["embedded"]["int8"]["accuracy"] >= 0.9 and said["embedded"]["int8"]["clips"] == 120
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    loss = next(line for line in report["gate"] if line["name"] == "accuracy_loss")
    assert (loss["verdict"], loss["note"]) == ("not measured", NOT_MEASURED)
    assert "embedded, int8" in (tmp_path / "out" / "report.html").read_text()
    assert "| embedded | 120 | - |" in (tmp_path / "out" / "report.md").read_text()


def test_a_closed_gate_leaves_reports_and_no_bundle(tmp_path, capsys):
    """A limit of a profile is broken, and one that must be measured is not."""
    text = (ROOT / "devices" / "profiles" / "rpi-zero2w.yaml").read_text().replace("name: rpi-zero2w", "name: tiny")
    (tmp_path / "tiny.yaml").write_text(re.sub(r"flash_bytes: \d+", "flash_bytes: 20000", text))
    mine = recipe(tmp_path, "max_accuracy_loss: 0.01, must_measure: [max_accuracy_loss]")
    assert own(tmp_path, tflite(tmp_path), mine, "--profile", str(tmp_path / "tiny.yaml")) == 1
    said = capsys.readouterr()
    assert f"was not measured ({NOT_MEASURED})" in said.err.splitlines()[-1]
    assert "1 more limit is broken" in said.err.splitlines()[-1] and not said.out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    broken = [(line["name"], line["limit"]) for line in report["gate"] if line["verdict"] == "FAIL"]
    assert broken == [("bundle_bytes", 20000)] and report["bundle"] is None
    assert (tmp_path / "out" / "report.html").exists() and not list((tmp_path / "out").glob("*.eab"))


def test_another_number_of_labels_is_refused(tmp_path, capsys):
    said = refused(capsys, tmp_path, tflite(tmp_path), recipe(tmp_path, words=TWO))
    assert "40 features into 10 scores" in said and "4 labels: yes, no, unknown, silence" in said


def test_a_damaged_file_is_refused(tmp_path, capsys):
    model = released().members["model"]
    for damaged in (b"", b"\0" * 1000, model[: len(model) // 2], struct.pack("<I", 1 << 30) + model[4:]):
        assert "is damaged" in refused(capsys, tmp_path, tflite(tmp_path, damaged), recipe(tmp_path))


def test_a_missing_file_and_one_of_another_kind_are_refused(tmp_path, capsys):
    assert "No such file" in refused(capsys, tmp_path, tmp_path / "mine.tflite", recipe(tmp_path))
    (tmp_path / "mine.onnx").write_bytes(b"onnx")
    assert "expected a .tflite in int8, or .keras or .h5 in float" in refused(
        capsys, tmp_path, tmp_path / "mine.onnx", recipe(tmp_path)
    )


def test_a_float_tflite_is_refused(tmp_path, capsys, made):
    assert "float32" in refused(capsys, tmp_path, made / "float.tflite", recipe(tmp_path, words=TWO))


def test_a_model_that_takes_no_longer_steps_is_refused(tmp_path, capsys, made):
    said = refused(capsys, tmp_path, made / "fixed.tflite", recipe(tmp_path, words=TWO))
    assert "fixed.tflite takes no longer steps" in said and "reshape with -1 in place of T" in said


def test_a_keras_step_model_becomes_int8(tmp_path, capsys, made):
    assert own(tmp_path, made / "list.h5", recipe(tmp_path, words=TWO)) == 0, capsys.readouterr().err
    model = load_bundle(json.loads(capsys.readouterr().out)["bundle"], "require").manifest.model
    assert (model.frames_per_step, model.input.scale, model.input.zero_point) == (2, 1 / 32, 0)
    assert [state.input for state in model.states] == ["first_state"]
    assert model.macs_per_second == (4 * 40 * 8 + 8 * 4) * 50  # a step is two frames of 10 ms
    assert "tensorflow" not in sys.modules


def test_a_keras_model_of_another_form_is_refused(tmp_path, capsys, made):
    said = refused(capsys, tmp_path, made / "dict.keras", recipe(tmp_path))
    assert "first_state_out [1, 2, 1, 40]" in said and "scores [1, 1, 4]" in said and "frames [1, 2, 40]" in said
    assert "frames [1, T, 40]" in said and "scores [1, T / stride, 10]" in said


def test_what_keras_cannot_load_is_refused(tmp_path, capsys):
    (tmp_path / "mine.h5").write_bytes(b"no model")
    assert "tf_keras cannot load" in refused(capsys, tmp_path, tmp_path / "mine.h5", recipe(tmp_path))
