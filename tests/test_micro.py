"""TFLite Micro takes part in the comparison of runtimes where it is installed, and says nothing where it is not."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

if importlib.util.find_spec("tensorflow") is None:
    pytest.skip("tensorflow is not installed (requirements-host.txt)", allow_module_level=True)

from quantize import arena
from quantize.micro import run_micro
from quantize.verify import RuntimeResult, lsb_histogram
from tests.released import released
from toolkit.errors import VerificationError
from toolkit.interpreter import StepModel

GOLDEN = Path(__file__).parent / "golden"
LSTM_LSB = 2  # by which an LSTM's scores may differ


def codes_for(width: int) -> np.ndarray:
    return np.random.default_rng(1).integers(-128, 128, (2, 41, width)).astype(np.int8)  # not a multiple of the stride


def here(model: bytes, codes: np.ndarray) -> RuntimeResult:
    step, scores = StepModel(model), []
    for clip in codes:
        step.reset()
        scores.append(step.process(clip))
    return RuntimeResult(step.runtime, np.stack(scores))


@pytest.fixture
def micro():
    if arena.tflm_python() is None:
        pytest.skip(arena.NOT_INSTALLED)
    return run_micro


def test_nothing_where_it_is_not_installed(monkeypatch, tmp_path):
    monkeypatch.setattr(arena, "ROOT", tmp_path)
    monkeypatch.delenv("EDGE_AUDIO_TFLM", raising=False)
    assert run_micro(released().members["model"], codes_for(40)) is None


def test_a_python_without_it_is_no_missing_part(monkeypatch):
    monkeypatch.setenv("EDGE_AUDIO_TFLM", "/nonexistent/python")
    with pytest.raises(VerificationError, match="does not start"):
        run_micro(released().members["model"], codes_for(40))


def test_the_same_integers_as_the_runtime_here(micro):
    model, codes = released().members["model"], codes_for(40)
    result, expected = micro(model, codes), here(model, codes)
    assert result.runtime.startswith("tflite-micro-") and result.scores.dtype == np.int8
    assert lsb_histogram(expected, result) == {0: expected.scores.size}
    assert np.ptp(result.scores.astype(int)) > 50  # not constant


def test_an_lstm_differs_by_a_bit_or_two(micro):
    model = (GOLDEN / "lstm.tflite").read_bytes()
    result, expected = micro(model, codes_for(8)), here(model, codes_for(8))
    assert result.scores.shape == expected.scores.shape and max(lsb_histogram(expected, result)) <= LSTM_LSB
