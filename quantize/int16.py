"""python -m quantize.int16 RECIPE --weights FLOAT.npz: what int8 would win with activations of 16 bits.

Prints, of the same weights in float, with int16 activations and int8 weights (int16x8), and in int8: accuracy, the
ratio of the scores' signal to the error of quantization, and bytes. Where int16x8 is as good as float, int8 loses by
its activations: bound them (ReLU6), or train with rounding (python -m quantize.qat). Where it is as bad as int8, it
loses by its weights.

It is a measurement, not a format: bundles hold int8, because int16x8 is not the same integers in tflite-runtime and
ai-edge-litert (they differ by 1 to 3 LSB), has no LSTM, and doubles the ring buffers.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.data import load_dataset
from models.decide import predictions
from models.epochs import MODEL_SCALE, codes_of
from models.evaluate import load_folder, result_of
from models.recipe import Recipe, load_recipe
from models.waves import load_waves
from toolkit.arguments import Parser
from toolkit.errors import EdgeAudioError, VerificationError
from toolkit.interpreter import INPUT, OUTPUT, _runtime

from .__main__ import SAMPLES
from .calibrate import representative_codes
from .convert import convert, float_scores, int16_model
from .layer_error import sqnr_db


def compare(recipe: Recipe, weights: Path, calibration: np.ndarray, waves: np.ndarray, truth: np.ndarray) -> dict:
    """{"float" | "int16x8" | "int8": accuracy, low, high, clips, and but for float sqnr_db, bytes}. calibration: int8
    codes [n, T, width]; waves, truth: clips int16 [n, samples] and their classes [n]."""
    int8, int16 = convert(recipe, weights, calibration), int16_model(recipe, weights, calibration)
    codes = codes_of(waves, recipe.features, recipe.decision.flush_frames * recipe.features.hop_length)
    codes = codes[:, : codes.shape[1] // int8.stride * int8.stride]
    in_float, found = float_scores(recipe, weights, codes), {}
    models = {"float": None, "int16x8": int16, "int8": int8.model}
    for name, model in models.items():
        scores = in_float if model is None else scores_of(model, codes)
        result = result_of(recipe.labels, truth, predictions(scores, recipe, int8.stride)).to_dict()
        found[name] = {key: result[key] for key in ("accuracy", "low", "high", "clips")}
        if model is not None:
            signal, error = (float(np.square(values, dtype=float).sum()) for values in (in_float, scores - in_float))
            found[name] |= {"sqnr_db": round(sqnr_db(signal, error), 1), "bytes": len(model)}
    return found


def scores_of(model: bytes, codes: np.ndarray) -> np.ndarray:
    """float [n, T/stride, labels] of int8 codes [n, T, width] by an integer step model of any width, each clip from the
    reset state in one invocation. Raises VerificationError for a model that the runtime does not take."""
    make, options, runtime = _runtime()
    try:
        interpreter = make(model_content=model, **options)
        inputs, outputs = _signature(interpreter)
        frames, scores = inputs.pop(INPUT), outputs[OUTPUT]
        interpreter.resize_tensor_input(frames.index, (1, *codes.shape[1:]))
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise VerificationError(f"{runtime} does not take the model: {' '.join(str(error).split())[:200]}.") from None
    clips = []
    for clip in _quantized(codes.astype(np.float32) * MODEL_SCALE, frames):
        interpreter.set_tensor(frames.index, clip[None])
        for state in inputs.values():
            interpreter.set_tensor(state.index, np.full(state.shape, state.zero_point, state.dtype))
        interpreter.invoke()
        clips.append(interpreter.get_tensor(scores.index)[0])
    return (np.stack(clips).astype(np.float32) - scores.zero_point) * scores.scale


@dataclass(frozen=True)
class _Tensor:
    """Real value = scale * (integer - zero_point)."""

    index: int
    shape: tuple[int, ...]
    dtype: type
    scale: float
    zero_point: int


def _signature(interpreter) -> tuple[dict[str, _Tensor], dict[str, _Tensor]]:
    """(inputs, outputs) by name; the runner that knows them must be gone before the model is resized."""
    runner = interpreter.get_signature_runner()
    return tuple(
        {n: _Tensor(d["index"], tuple(d["shape"]), d["dtype"], *d["quantization"]) for n, d in side.items()}
        for side in (runner.get_input_details(), runner.get_output_details())
    )


def _quantized(values: np.ndarray, tensor: _Tensor) -> np.ndarray:
    bounds = np.iinfo(tensor.dtype)
    codes = np.round(values / tensor.scale + tensor.zero_point)
    return np.clip(codes, bounds.min, bounds.max).astype(tensor.dtype)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m quantize.int16", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--weights", type=Path, required=True, help="float weights.npz of the recipe")
    parser.add_argument("--data", type=Path, help="root of the data set: its split report, instead of --evaluation")
    parser.add_argument("--evaluation", type=Path, default=SAMPLES / "evaluation", help="folder of clips per label")
    parser.add_argument(
        "--calibration", type=Path, default=SAMPLES / "calibration", help="folder of representative clips"
    )
    try:
        arguments = parser.parse_args(argv)
        print(json.dumps(_compare(arguments)))
        return 0
    except EdgeAudioError as error:
        print(f"int16: {error}", file=sys.stderr)
        return error.exit_code


def _compare(arguments) -> dict:
    recipe = load_recipe(arguments.recipe)
    rate = recipe.features.sample_rate_hz
    if arguments.data:
        dataset = load_dataset(arguments.data, recipe.data, rate)
        clips = dataset.clips("report")
        waves, truth = load_waves(clips, recipe.data.clip_s, rate), dataset.classes(clips)
    else:
        waves, truth = load_folder(arguments.evaluation, recipe.labels, recipe.data.clip_s, rate)
    calibration = representative_codes(recipe, arguments.calibration, is_dataset=False)
    return compare(recipe, arguments.weights, calibration, waves, truth)


if __name__ == "__main__":
    sys.exit(main())
