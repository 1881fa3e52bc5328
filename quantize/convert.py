"""Float weights -> one full-integer int8 TFLite step model.

Converted once, as `step`, in a child process with a time limit, because some models crash the converter. The
representative data are frames with the states that the float model itself computes over whole clips.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ProcessPoolExecutor, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from models.recipe import Recipe
from toolkit.errors import VerificationError

TIME_LIMIT_S = 600
STEP_TOLERANCE = 1e-4  # float step against float whole, in logits


@dataclass(frozen=True)
class Converted:
    """An int8 step model and what its architecture says of it."""

    model: bytes
    stride: int  # frames per score
    macs_per_second: int  # of audio


def convert(recipe: Recipe, weights: Path, codes: np.ndarray) -> Converted:
    """The recipe's step model, calibrated on int8 codes [n, T, width]. Raises VerificationError if the converter dies
    or hangs, or if the float step is not the float whole."""
    return _in_child(_convert, recipe, weights, codes)


def float_scores(recipe: Recipe, weights: Path, codes: np.ndarray) -> np.ndarray:
    """Logits float [n, T/stride, labels] of the float whole model on int8 codes [n, T, width]."""
    return _in_child(_float_scores, recipe, weights, codes)


def _in_child(work, *arguments):
    """TensorFlow lives in child processes only: some models crash the converter, and tflite-runtime refuses to load a
    model in a process that holds TensorFlow."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        future = pool.submit(work, *arguments)
        try:
            return future.result(TIME_LIMIT_S)
        except TimeoutError:
            for process in pool._processes.values():
                process.kill()
            raise VerificationError(f"the converter did not finish within {TIME_LIMIT_S} s.") from None
        except BrokenProcessPool:
            raise VerificationError("the converter crashed on this model; simplify the architecture.") from None


def _float_scores(recipe: Recipe, weights: Path, codes: np.ndarray) -> np.ndarray:
    from models.train import load_weights, make_model, scores_of

    whole, _, _ = make_model(recipe)
    load_weights(weights, whole)
    return scores_of(whole, codes)


def _convert(recipe: Recipe, weights: Path, codes: np.ndarray) -> Converted:
    from models.epochs import MODEL_SCALE
    from models.layers import build_step, tf
    from models.train import load_weights, make_model

    whole, net, module = make_model(recipe)
    load_weights(weights, whole)
    width = recipe.features.width
    step = build_step(module.build, width, len(recipe.labels), recipe.model.parameters, module.STRIDE, net.layers)
    run = tf.function(lambda inputs: step(inputs, training=False))
    zero = {t.name: np.zeros(t.shape, np.float32) for t in step.inputs if t.name != "frames"}

    def steps(clip):  # every step's inputs and scores over one clip, from the reset state
        states = zero
        for i in range(0, clip.shape[0] - module.STRIDE + 1, module.STRIDE):
            inputs = {"frames": clip[None, i : i + module.STRIDE], **states}
            outputs = run(inputs)
            yield inputs, outputs["scores"].numpy()[0]
            states = {name: outputs[f"{name}_out"].numpy() for name in zero}

    frames = codes.astype(np.float32) * MODEL_SCALE
    _check_step_is_whole(whole, steps, frames[:: max(1, len(frames) // 4)])

    def representative_dataset():
        first = True
        for clip in frames:
            for inputs, _ in steps(clip):
                if first:  # the input's range is that of int8 itself, so that its scale is exactly MODEL_SCALE
                    first = False
                    inputs = {**inputs, "frames": _with_extremes(inputs["frames"], net.layers, MODEL_SCALE)}
                yield inputs

    with tempfile.TemporaryDirectory() as folder:
        holder = tf.Module()
        holder.model = step
        holder.serve = tf.function(lambda **inputs: step(inputs, training=False))
        signature = {t.name: tf.TensorSpec(t.shape, tf.float32, name=t.name) for t in step.inputs}
        tf.saved_model.save(holder, folder, signatures=holder.serve.get_concrete_function(**signature))
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = representative_dataset
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
        converter._experimental_disable_per_channel_quantization_for_dense_layers = True
        model = converter.convert()
    return Converted(model, module.STRIDE, _macs_per_second(whole, recipe, module.STRIDE))


def _macs_per_second(whole, recipe: Recipe, stride: int) -> int:
    """Every weight of a convolution or dense layer multiplies once per score."""
    weights = [layer.weights[0] for layer in whole.layers if layer.weights and "norm" not in layer.name]
    scores_per_second = recipe.features.sample_rate_hz / recipe.features.hop_length / stride
    return round(sum(int(np.prod(w.shape)) for w in weights) * scores_per_second)


def _check_step_is_whole(whole, steps, clips: np.ndarray) -> None:
    for clip in clips:
        stepped = np.concatenate([scores for _, scores in steps(clip)])
        error = np.abs(whole(clip[None], training=False).numpy()[0] - stepped).max()
        if error > STEP_TOLERANCE:
            raise VerificationError(
                f"the float step model differs from the whole model by {error:.2g} (limit {STEP_TOLERANCE})."
            )


def _with_extremes(frames: np.ndarray, layers: dict, scale: float) -> np.ndarray:
    """Codes -128 and 127 in the two features that the first convolution weighs least."""
    first = next(layer for layer in layers.values() if layer.weights)
    weight = np.abs(first.kernel.numpy()).sum(axis=(0, 1, 3))
    low, high = np.argsort(weight)[:2]
    frames = frames.copy()
    frames[..., 0, low], frames[..., 0, high] = -128 * scale, 127 * scale
    return frames
