"""Proof that an int8 model is what was meant, before it goes into a bundle.

Each runtime is asked in a process of its own (`python -m quantize.verify MODEL CODES OUT`), because two TFLite
libraries in one process do not always get on.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.epochs import MODEL_SCALE
from toolkit.engine import Engine
from toolkit.errors import MissingPartError, UnsupportedError, VerificationError
from toolkit.interpreter import OPS, RUNTIMES, StepModel

ALLOWED_DTYPES = (np.int8, np.int32)  # int32: biases and shapes
MAX_LSB = 8  # by which the scores of two runtimes may differ: depthwise rounding, see DESIGN


@dataclass(frozen=True)
class RuntimeResult:
    """What one runtime made of the clips, from the reset state each."""

    runtime: str  # "tflite-runtime-2.14"
    scores: np.ndarray  # int8 [n, T/stride, labels], computed by steps; equal to the resized whole model


def check_integer(model: bytes) -> StepModel:
    """Refuses float tensors, operations that not every runtime here computes, and another input scale than training's.
    Of an LSTM the cell state may be int16, as is its scratch (which has no scale); its float tensors hold nothing."""
    step = StepModel(model)
    strange = [op for op in step.ops() if op not in OPS]
    if strange:
        raise VerificationError(
            f"the model uses {strange[0]}; only {', '.join(sorted(OPS - {'DELEGATE'}))} are allowed."
        )
    cells = {state.index for state in step.variables}
    for tensor in step.tensors():
        has_scale = len(tensor["quantization_parameters"]["scales"]) > 0
        of_lstm = cells and tensor["dtype"] is np.int16 and (tensor["index"] in cells or not has_scale)
        is_empty = 0 in tensor["shape"]
        if tensor["dtype"] not in ALLOWED_DTYPES and not of_lstm and not is_empty:
            raise VerificationError(
                f"the tensor {tensor['name']!r} is {np.dtype(tensor['dtype'])}; a full-integer model has "
                "only int8 and int32 tensors, and int16 in the cell state of an LSTM."
            )
    if (step.input.scale, step.input.zero_point) != (MODEL_SCALE, 0):
        raise VerificationError(
            f"the input's scale is {step.input.scale} with zero point {step.input.zero_point}, networks are trained "
            f"with {MODEL_SCALE} and 0."
        )
    return step


def run_everywhere(model: bytes, codes: np.ndarray) -> list[RuntimeResult]:
    """Scores of int8 codes [n, T, width] in every installed runtime; in each, step must equal the resized whole."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "model.tflite").write_bytes(model)
        np.save(folder / "codes.npy", codes)
        for runtime in RUNTIMES:
            out = folder / f"{runtime}.npz"
            command = [sys.executable, "-m", "quantize.verify", "model.tflite", "codes.npy", out.name]
            paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
            environment = {**os.environ, "EDGE_AUDIO_RUNTIME": runtime, "PYTHONPATH": paths}
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
            if done.returncode == 3:
                continue  # not installed
            if done.returncode:
                raise VerificationError(f"in {runtime}: {(done.stderr.strip().splitlines() or ['it crashed'])[-1]}")
            with np.load(out) as result:
                results.append(RuntimeResult(str(result["runtime"]), result["scores"]))
    if not results:
        raise VerificationError("no TFLite runtime is installed to verify the model in.")
    _check_native(model, codes, results[0])
    for other in results[1:]:
        largest = max(lsb_histogram(results[0], other))
        if largest > MAX_LSB:
            raise VerificationError(
                f"{other.runtime} differs from {results[0].runtime} by {largest} LSB (limit {MAX_LSB})."
            )
    return results


def _check_native(model: bytes, codes: np.ndarray, expected: RuntimeResult) -> None:
    """The C core's executor must give the same integers, where it knows the operators."""
    try:
        engine = Engine(model)
    except (UnsupportedError, MissingPartError):
        return
    for clip, scores in zip(codes, expected.scores):
        engine.reset()
        n = int((engine.process(clip)[: len(scores)] != scores).sum())
        if n:
            raise VerificationError(f"the native runtime differs from {expected.runtime} in {n} scores of a clip.")


def lsb_histogram(a: RuntimeResult, b: RuntimeResult) -> dict[int, int]:
    """{difference in LSB: number of scores}."""
    values, counts = np.unique(np.abs(a.scores.astype(int) - b.scores), return_counts=True)
    return {int(v): int(n) for v, n in zip(values, counts)}


def _run(model: bytes, codes: np.ndarray) -> tuple[str, np.ndarray]:
    step = StepModel(model)
    used = codes.shape[1] // step.frames_per_step * step.frames_per_step
    whole = StepModel(model, used)
    scores = []
    for clip in codes[:, :used]:
        step.reset()
        whole.reset()
        scores.append(step.process(clip))
        differing = int((whole.process(clip) != scores[-1]).sum())
        differing += sum(int((a != b).sum()) for a, b in zip(step.state(), whole.state()))
        if differing:
            raise VerificationError(
                f"step and resized whole differ in {differing} integers of one clip; they must be equal."
            )
    return step.runtime, np.stack(scores)


if __name__ == "__main__":
    try:
        name, stepped = _run(Path(sys.argv[1]).read_bytes(), np.load(sys.argv[2]))
    except MissingPartError as error:
        sys.exit(print(error, file=sys.stderr) or 3)
    except VerificationError as error:
        sys.exit(print(error, file=sys.stderr) or 1)
    np.savez(sys.argv[3], runtime=name, scores=stepped)
