"""What zeros in the weights of an int8 model are worth: fewer bytes where it is stored compressed, and no time.

The dense kernels of every runtime here multiply zeros as they multiply other weights. That is measured too.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence

import numpy as np

from toolkit.engine import Engine
from toolkit.errors import MissingPartError, UnsupportedError
from toolkit.flatbuffer import read_model

WEIGHTS = {  # operator: its inputs that are weights
    "CONV_2D": (1,),
    "DEPTHWISE_CONV_2D": (1,),
    "FULLY_CONNECTED": (1,),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": range(1, 9),  # -1: one gate less
}
NOTE = "zeros save bytes where a model is stored compressed, not time: dense int8 kernels multiply them all the same"
ROUNDS, STEPS = 25, 20


def sparsity(model: bytes) -> dict:
    """Keys: weights, non_zero (share of them that are not 0), model_bytes, compressed_bytes (zlib), layers: op, shapes
    as TFLite has them and non_zero of every operator with weights. Raises UnsupportedError."""
    graph, layers = read_model(model), []
    for op in graph.operators:
        weights = [graph.tensors[op.inputs[i]].data for i in WEIGHTS.get(op.name, ()) if op.inputs[i] >= 0]
        if weights:
            size, non_zero = sum(w.size for w in weights), sum(int(np.count_nonzero(w)) for w in weights)
            layers.append((size, non_zero, {"op": op.name, "shapes": [list(w.shape) for w in weights]}))
    total = sum(size for size, _, _ in layers)
    return {
        "weights": total,
        "non_zero": round(sum(n for _, n, _ in layers) / max(total, 1), 4),
        "model_bytes": len(model),
        "compressed_bytes": len(zlib.compress(model, 9)),
        "layers": [{**layer, "non_zero": round(n / size, 4)} for size, n, layer in layers],
    }


def step_costs(models: Sequence[bytes]) -> list[float | None]:
    """Microseconds of CPU per step of each model in the C core: the median over rounds in which they take turns. None
    where the core is not built or has not all operators of a model."""
    engines = [_engine(model) for model in models]
    micros: list[list[float]] = [[] for _ in models]
    for _ in range(ROUNDS):
        for engine, of_model in zip(engines, micros):
            if engine:
                codes = np.zeros((STEPS * engine.frames_per_step, engine.input.shape[2]), np.int8)
                before = time.thread_time_ns()
                engine.process(codes)
                of_model.append((time.thread_time_ns() - before) / 1000 / STEPS)
    return [round(float(np.median(m[1:])), 2) if m else None for m in micros]  # the first round warms up


def _engine(model: bytes) -> Engine | None:
    try:
        return Engine(model)
    except (UnsupportedError, MissingPartError):
        return None
