"""Every gate of the quantization stage is shown closing, and the released bundle is what it makes."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

if importlib.util.find_spec("tensorflow") is None:
    pytest.skip("tensorflow is not installed (requirements-host.txt)", allow_module_level=True)

from models.evaluate import load_folder, wilson
from models.recipe import load_recipe
from quantize.calibrate import representative_codes
from quantize.verify import MAX_LSB, RuntimeResult, check_integer, lsb_histogram, run_everywhere
from toolkit.audio import write_wav
from toolkit.bundle import load_bundle
from toolkit.errors import DataError, UnsupportedError, VerificationError
from toolkit.interpreter import StepModel

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "models" / "recipes" / "kws.yaml"
CALIBRATION = ROOT / "models" / "samples" / "calibration"


@pytest.fixture(scope="module")
def recipe():
    return load_recipe(RECIPE)


def test_a_calibration_set_of_silence_is_refused(recipe, tmp_path):
    for i in range(20):
        write_wav(tmp_path / f"{i}.wav", np.full(16000, i % 2, np.int16), 16000)
    with pytest.raises(DataError, match="silent or constant"):
        representative_codes(recipe, tmp_path, is_dataset=False)


def test_an_evaluation_set_without_a_class_is_refused(recipe, tmp_path):
    (tmp_path / "yes").mkdir()
    write_wav(tmp_path / "yes" / "a.wav", np.ones(16000, np.int16), 16000)
    with pytest.raises(DataError, match="'no'"):
        load_folder(tmp_path, recipe.labels, 1.0, 16000)


def float_model(tmp_path, body: str) -> bytes:
    """A TFLite model made from a few lines of TensorFlow in a process of its own."""
    program = f"""
import os, sys
os.environ["TF_USE_LEGACY_KERAS"] = "1"
import numpy as np, tensorflow as tf, tf_keras as keras
frames = keras.Input((2, 40), batch_size=1, name="frames")
scores = keras.layers.Reshape((1, 10), name="scores")(keras.layers.Dense(10)(keras.layers.Reshape((80,))(frames)))
model = keras.Model({{"frames": frames}}, {{"scores": scores}})
converter = tf.lite.TFLiteConverter.from_keras_model(model)
{body}
open(sys.argv[1], "wb").write(converter.convert())
"""
    out = tmp_path / "model.tflite"
    subprocess.run([sys.executable, "-c", program, str(out)], check=True, capture_output=True)
    return out.read_bytes()


def test_a_float_model_is_refused(tmp_path):
    with pytest.raises((UnsupportedError, VerificationError), match="float32"):
        check_integer(float_model(tmp_path, ""))


def test_a_float_tensor_inside_is_refused(tmp_path):
    hybrid = """
converter.optimizations = [tf.lite.Optimize.DEFAULT]
converter.representative_dataset = lambda: ([np.random.rand(1, 2, 40).astype("f")] for _ in range(8))
"""  # int8 inside, float at both ends
    with pytest.raises((UnsupportedError, VerificationError), match="float32"):
        check_integer(float_model(tmp_path, hybrid))


def test_an_input_of_another_scale_than_training_s_is_refused(tmp_path):
    integer = """
converter.optimizations = [tf.lite.Optimize.DEFAULT]
converter.representative_dataset = lambda: ([np.random.rand(1, 2, 40).astype("f")] for _ in range(8))
converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
converter.inference_input_type = converter.inference_output_type = tf.int8
"""
    with pytest.raises(VerificationError, match="scale is 0.003.* trained with 0.03125"):
        check_integer(float_model(tmp_path, integer))


@pytest.mark.parametrize(
    "dtype, shape, scales, refused",
    [(np.int16, (1, 4), [0.5], True), (np.int16, (1, 4), [], True), (np.float32, (0,), [], False)],
)
def test_sixteen_bits_belong_to_an_lstm(monkeypatch, dtype, shape, scales, refused):
    """`kws` has none, so that neither its data nor its scratch may be int16."""
    strange = {"index": 10**6, "name": "x", "dtype": dtype, "shape": np.array(shape)}
    strange["quantization_parameters"] = {"scales": np.array(scales)}
    tensors = StepModel.tensors
    monkeypatch.setattr(StepModel, "tensors", lambda step: [*tensors(step), strange])
    model = load_bundle("kws").members["model"]
    if refused:
        with pytest.raises(VerificationError, match="'x' is int16"):
            check_integer(model)
    else:
        check_integer(model)


def test_a_damaged_flatbuffer_is_one_sentence():
    with pytest.raises(UnsupportedError, match="cannot load the model"):
        check_integer(b"\0" * 1000)


def test_runtimes_agree_within_the_bound(recipe):
    """The released model in every installed runtime: step = whole is checked inside."""
    model = load_bundle("kws").members["model"]
    codes = representative_codes(recipe, CALIBRATION, is_dataset=False)[::10]
    results = run_everywhere(model, codes)
    assert [r.runtime.rsplit("-", 1)[0] for r in results] == ["tflite-runtime", "ai-edge-litert"]
    assert max(lsb_histogram(*results)) <= MAX_LSB
    assert np.ptp(results[0].scores.astype(int)) > 100  # not constant


def test_lsb_histogram_counts_every_difference():
    a = RuntimeResult("a", np.array([[1, 2, 3]], np.int8))
    b = RuntimeResult("b", np.array([[1, 4, -128]], np.int8))
    assert lsb_histogram(a, b) == {0: 1, 2: 1, 131: 1}


def test_wilson_against_published_values():
    low, high = wilson(81, 263)  # Newcombe 1998, table I: 0.2553 to 0.3662
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def test_make_quantize_makes_the_released_bundle(tmp_path):
    """Weights, recipe and embedded sets of the repository give the released bundle, byte for byte."""
    command = [sys.executable, "-m", "quantize", str(RECIPE), "--out", str(tmp_path), "--profile", "rpi-zero2w"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["verdict"] == "pass" and report["bundle"] == str(tmp_path / "kws.eab")
    assert {"recipe kws", "profile rpi-zero2w"} <= {line["source"] for line in report["gate"]}
    assert {path.suffix for path in tmp_path.glob("report.*")} == {".json", ".md", ".html"}
    made, released = load_bundle(tmp_path / "kws.eab"), load_bundle("kws")
    assert json.loads(done.stdout.splitlines()[-1])["embedded"]["int8"]["accuracy"] >= 0.9
    if dict(made.manifest.tools) != dict(released.manifest.tools):
        pytest.skip("other tool versions than the release was made with: " + json.dumps(dict(made.manifest.tools)))
    assert made.members["model"] == released.members["model"]
    assert made.sha256 == released.sha256


def test_the_released_accuracy_belongs_to_the_released_model():
    known = json.loads((ROOT / "models" / "zoo" / "kws" / "accuracy.json").read_text())
    released = load_bundle("kws")
    assert known["model_sha256"] == released.manifest.members["model"].sha256
    assert len(released.manifest.accuracy) == len(known["figures"]) > 0
    assert dataclasses.asdict(released.manifest.accuracy[0])["value"] == known["figures"][0]["value"]
