"""TFLite Micro as one more runtime of the comparison, where it is installed (quantize/arena.py).

Its integers are those of the runtimes here; of an LSTM they may differ in the last bit or two.
"""

from __future__ import annotations

import numpy as np

from . import arena
from .verify import RuntimeResult


def run_micro(model: bytes, codes: np.ndarray) -> RuntimeResult | None:
    """Scores of int8 codes [n, T, width], each clip from the reset state and by steps; None without TFLite Micro.
    Raises VerificationError if it is there and does not run the model."""
    python = arena.tflm_python()
    if python is None:
        return None
    _, runtime, scores = arena.run_micro(python, model, codes)
    return RuntimeResult(runtime, scores)
