"""The arena that is published is the arena that is needed, or nothing with the reason."""

import importlib.util

import numpy as np
import pytest

if importlib.util.find_spec("tensorflow") is None:
    pytest.skip("tensorflow is not installed (requirements-host.txt)", allow_module_level=True)

from quantize import arena
from tests.released import released
from toolkit.errors import VerificationError


@pytest.fixture(scope="module")
def model() -> bytes:
    return released().members["model"]


@pytest.fixture(scope="module")
def codes() -> np.ndarray:
    return np.random.default_rng(1).integers(-128, 128, (2, 60, 40)).astype(np.int8)


@pytest.fixture
def python():
    found = arena.tflm_python()
    if found is None:
        pytest.skip(arena.NOT_INSTALLED)
    return found


def test_without_tflite_micro_there_is_a_reason_and_no_number(model, codes, monkeypatch, tmp_path):
    monkeypatch.setattr(arena, "ROOT", tmp_path)
    monkeypatch.delenv("EDGE_AUDIO_TFLM", raising=False)
    measured = arena.measure_arena(model, codes)
    assert measured.bytes is None and "tflite-micro is not installed" in measured.reason
    assert measured.to_dict()["arena_bytes"] is None


def test_the_same_integers_as_on_the_device(model, codes, python):
    measured = arena.measure_arena(model, codes)
    assert measured.lsb == {0: 2 * 30 * 10}
    assert measured.runtime.startswith("tflite-micro-0.") and measured.reason is None


def test_the_model_runs_in_just_that_arena_and_in_no_smaller_one(model, codes, python):
    needed, _, scores = arena.run_micro(python, model, codes)
    again, _, tight = arena.run_micro(python, model, codes, needed)
    assert again == needed and np.array_equal(tight, scores)
    with pytest.raises(VerificationError, match="does not run the model"):
        arena.run_micro(python, model, codes, needed * 15 // 16)


def test_a_python_without_it_is_one_sentence(model, codes, monkeypatch):
    monkeypatch.setenv("EDGE_AUDIO_TFLM", "/nonexistent/python")
    with pytest.raises(VerificationError, match="does not start"):
        arena.measure_arena(model, codes)
