"""A net with an LSTM, small enough for the repository: `python tests/golden_lstm.py` writes tests/golden/lstm.* anew.

A convolution over two frames without a past of its own, and a fused int8 UNIDIRECTIONAL_SEQUENCE_LSTM that keeps all
the model's state inside; random weights. lstm.scores holds the scores of `codes()`, which are the same on every machine
and in every runtime (BUILTIN_REF).
"""

from __future__ import annotations

import json
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

FOLDER = ROOT / "tests" / "golden"
WIDTH, STRIDE, FILTERS, UNITS, LABELS = 8, 2, 6, 5, 3


def codes(n: int = 600, seed: int = 1) -> np.ndarray:
    """int8 [n, WIDTH] over the whole range, by integers alone: the same everywhere."""
    state, out = seed, np.empty(n * WIDTH, np.int8)
    for i in range(len(out)):
        state = (1664525 * state + 1013904223) % 2**32
        out[i] = (state >> 24) - 128
    return out.reshape(n, WIDTH)


def convert() -> bytes:
    """Runs in a process of its own: TensorFlow and tflite-runtime do not get on in one."""
    from models.layers import keras, tf

    keras.utils.set_random_seed(1)
    frames = keras.Input((STRIDE, WIDTH), batch_size=1, name="frames")
    x = keras.layers.Reshape((-1, 1, WIDTH))(frames)
    x = keras.layers.Conv2D(FILTERS, (STRIDE, 1), (STRIDE, 1), activation="relu")(x)
    x = keras.layers.Reshape((-1, FILTERS))(x)
    x = keras.layers.LSTM(UNITS, return_sequences=True, recurrent_initializer=keras.initializers.Orthogonal(2.0))(x)
    x = keras.layers.Conv2D(LABELS, 1)(keras.layers.Reshape((-1, 1, UNITS))(x))
    model = keras.Model(frames, keras.layers.Reshape((-1, LABELS))(x))
    examples = codes(2000, seed=2).reshape(-1, 1, STRIDE, WIDTH).astype(np.float32) / 32
    with tempfile.TemporaryDirectory() as folder:
        serve = tf.function(lambda frames: {"scores": model(frames)}).get_concrete_function(
            tf.TensorSpec((1, STRIDE, WIDTH), tf.float32, name="frames"))
        tf.saved_model.save(model, folder, signatures=serve)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ({"frames": example} for example in examples)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
        return converter.convert()


def main() -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        model = pool.submit(convert).result()
    from quantize.slim import slim
    from toolkit.interpreter import StepModel

    model = slim(model)
    scores = StepModel(model).process(codes())
    (FOLDER / "lstm.tflite").write_bytes(model)
    (FOLDER / "lstm.scores").write_bytes(scores.tobytes())
    ranges = np.ptp(scores.astype(int), axis=0).tolist()
    print(json.dumps({"model_bytes": len(model), "scores": len(scores), "ranges": ranges}))


if __name__ == "__main__":
    main()
