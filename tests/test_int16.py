"""Activations of 16 bits: nearer to float than int8 of the same weights, by the same clips and rule."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

if importlib.util.find_spec("tensorflow") is None:
    pytest.skip("tensorflow is not installed (requirements-host.txt)", allow_module_level=True)

from models.evaluate import load_folder
from models.recipe import load_recipe
from quantize.calibrate import representative_codes
from quantize.int16 import compare, main, scores_of
from toolkit.bundle import load_bundle
from toolkit.errors import VerificationError
from toolkit.interpreter import StepModel

MODELS = Path(__file__).parents[1] / "models"
RECIPE, WEIGHTS = MODELS / "recipes" / "kws.yaml", MODELS / "zoo" / "kws" / "weights.npz"


@pytest.fixture(scope="module")
def codes():
    return representative_codes(load_recipe(RECIPE), MODELS / "samples" / "calibration", is_dataset=False)[::8]


def test_scores_are_those_of_the_runtime(codes):
    model = load_bundle("kws").members["model"]
    step = StepModel(model)
    step.reset()
    expected = (step.process(codes[0]).astype(np.float32) - step.output.zero_point) * step.output.scale
    used = codes[:1, : len(expected) * step.stride]
    assert np.array_equal(scores_of(model, used)[0], expected) and np.ptp(expected) > 1


def test_sixteen_bits_are_nearer_to_float_than_eight(codes):
    recipe = load_recipe(RECIPE)
    waves, truth = load_folder(MODELS / "samples" / "evaluation", recipe.labels, 1.0, 16000)
    found = compare(recipe, WEIGHTS, codes, waves[::8], truth[::8])
    assert list(found) == ["float", "int16x8", "int8"]
    assert found["int16x8"]["sqnr_db"] > found["int8"]["sqnr_db"] + 3
    assert found["int16x8"]["bytes"] > found["int8"]["bytes"]
    assert all(figures["clips"] == len(truth[::8]) and figures["accuracy"] > 0.8 for figures in found.values())


def test_what_is_no_model_is_one_sentence(codes, capsys, tmp_path):
    with pytest.raises(VerificationError, match="does not take the model"):
        scores_of(b"\0" * 1000, codes)
    assert main([str(RECIPE), "--weights", str(tmp_path / "none.npz")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("int16: ") and "none.npz" in error
