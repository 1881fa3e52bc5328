"""Float weights -> one full-integer int8 TFLite step model.

Converted once, as `step`, in a child process with a time limit, because some models crash the converter. The
representative data are frames with the states that the float model itself computes over whole clips. Only an LSTM keeps
its state itself, in the calibrator as on the device; the calibrator never resets it, so that it hears the clips as one
stream, and sets the range of its cell from that.
"""

from __future__ import annotations

import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from models.recipe import Recipe
from toolkit.errors import ConfigError, VerificationError

from .ranges import Ranges, ranges_of, read_ranges, with_ranges
from .slim import slim, tflite_schema

TIME_LIMIT_S = 600
STEP_TOLERANCE = 1e-4  # float step against float whole, in logits


@dataclass(frozen=True)
class Converted:
    """An int8 step model and what its architecture says of it."""

    model: bytes
    stride: int  # frames per score
    macs_per_second: int  # of audio


def convert(recipe: Recipe, weights: Path, codes: np.ndarray) -> Converted:
    """The recipe's step model, calibrated on int8 codes [n, T, width]; with quantize.method aware, with the ranges
    beside the weights. Raises VerificationError if weights or ranges are not as they must be, if the converter dies or
    hangs, or if the float step is not the float whole."""
    ranges = read_ranges(weights) if recipe.quantize.method == "aware" else None
    return in_child(_convert, recipe, weights, codes, ranges)


def calibrated_ranges(recipe: Recipe, weights: Path, codes: np.ndarray) -> Ranges:
    """Of every activation, on int8 codes [n, T, width], by the layer at which int8 rounds it. Raises as convert."""
    return in_child(_calibrated_ranges, recipe, weights, codes)


def int16_model(recipe: Recipe, weights: Path, codes: np.ndarray) -> bytes:
    """The same step model with activations of 16 bits and weights of 8, calibrated on int8 codes [n, T, width]: to
    measure (quantize/int16.py), not to be shipped. Raises as convert."""
    return in_child(_int16_model, recipe, weights, codes)


def float_scores(recipe: Recipe, weights: Path, codes: np.ndarray) -> np.ndarray:
    """Logits float [n, T/stride, labels] of the float whole model on int8 codes [n, T, width]."""
    return in_child(_float_scores, recipe, weights, codes)


def in_child(work, *arguments, doing: str = "the converter", limit_s: float | None = TIME_LIMIT_S):
    """work(*arguments) in a process of its own. TensorFlow lives in child processes only: some models crash the
    converter, and tflite-runtime refuses to load a model in a process that holds TensorFlow. doing: what is at work,
    for the sentence of the VerificationError if it crashes, or does not finish in `limit_s`."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        future = pool.submit(work, *arguments)
        try:
            return future.result(limit_s)
        except (TimeoutError, KeyboardInterrupt) as stop:
            for process in pool._processes.values():
                process.kill()
            if isinstance(stop, KeyboardInterrupt):
                raise
            raise VerificationError(f"{doing} did not finish within {limit_s} s.") from None
        except BrokenProcessPool:
            raise VerificationError(f"{doing} crashed on this model; simplify the architecture.") from None


def load_model(recipe: Recipe, weights: Path) -> tuple:
    """(whole model, its Net, the architecture's module) of a recipe, with the weights of a file.

    Raises VerificationError for weights that are missing, damaged or of another network: the command makes sense, and
    the model fails. To be called in a process that may hold TensorFlow.
    """
    from models.train import load_weights, make_model

    made = make_model(recipe)
    try:
        load_weights(weights, made[0])
    except ConfigError as error:
        raise VerificationError(str(error)) from None
    except Exception as error:  # zipfile and numpy have many kinds of them for a damaged file
        raise VerificationError(f"{weights} holds no weights that can be read ({error}).") from None
    return made


def _float_scores(recipe: Recipe, weights: Path, codes: np.ndarray) -> np.ndarray:
    from models.train import scores_of

    whole, _, _ = load_model(recipe, weights)
    return scores_of(whole, codes)


def _convert(recipe: Recipe, weights: Path, codes: np.ndarray, ranges: Ranges | None) -> Converted:
    step, representative_dataset, stride = _step_form(recipe, weights, codes)
    model = int8_model(step, representative_dataset, ranges)
    steps_per_second = recipe.features.sample_rate_hz / recipe.features.hop_length / stride
    return Converted(model, stride, round(macs_per_step(model) * steps_per_second))


def _calibrated_ranges(recipe: Recipe, weights: Path, codes: np.ndarray) -> Ranges:
    step, representative_dataset, _ = _step_form(recipe, weights, codes)
    return ranges_of(_calibrated(step, representative_dataset))


def _int16_model(recipe: Recipe, weights: Path, codes: np.ndarray) -> bytes:
    step, representative_dataset, _ = _step_form(recipe, weights, codes)
    return slim(_converted(step, representative_dataset, "int16"))


def _step_form(recipe: Recipe, weights: Path, codes: np.ndarray) -> tuple:
    """(the float step model as it is converted, its representative data set, its stride)."""
    from models.epochs import MODEL_SCALE
    from models.layers import build_step, tf

    whole, net, module = load_model(recipe, weights)
    form = (module.build, recipe.features.width, len(recipe.labels), recipe.model.parameters, module.STRIDE, net.layers)
    step, fused = build_step(*form), build_step(*form, fused=True)
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
        first, _ = next(steps(frames[0]))
        for code in (-128, 127):  # the input's range is that of int8 itself, so that its scale is exactly MODEL_SCALE
            extreme = _with_code(first["frames"], net.layers, code * MODEL_SCALE)
            yield {t.name: {**first, "frames": extreme}[t.name] for t in fused.inputs}
        for clip in frames:
            for inputs, _ in steps(clip):
                yield {t.name: inputs[t.name] for t in fused.inputs}

    return fused, representative_dataset, module.STRIDE


def int8_model(step, representative_dataset, ranges: Ranges | None = None) -> bytes:
    """The flatbuffer of a Keras step model, full-integer, slim. representative_dataset() yields {input: float32[...]};
    ranges: for the ones that it would give to the activations of each layer.
    To be called in a process that may hold TensorFlow."""
    if ranges is None:
        return slim(_converted(step, representative_dataset))
    from tensorflow.lite.python.convert import mlir_quantize

    from models.layers import tf

    return slim(
        mlir_quantize(
            with_ranges(_calibrated(step, representative_dataset), ranges),
            fully_quantize=True,
            input_data_type=tf.int8,
            output_data_type=tf.int8,
            disable_per_channel_for_dense_layers=True,
        )
    )


def _calibrated(step, representative_dataset) -> bytes:
    """The fused flatbuffer in float, with the range of each activation."""
    return _converted(step, representative_dataset, _experimental_calibrate_only=True)


def _converted(step, representative_dataset, activations: str = "int8", **options) -> bytes:
    from models.layers import tf

    kinds = tf.lite.OpsSet
    int16x8 = kinds.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
    ops, dtype = {"int8": (kinds.TFLITE_BUILTINS_INT8, tf.int8), "int16": (int16x8, tf.int16)}[activations]

    with tempfile.TemporaryDirectory() as folder:
        holder = tf.Module()
        holder.model = step
        holder.serve = tf.function(lambda **inputs: step(inputs, training=False))
        signature = {t.name: tf.TensorSpec(t.shape, tf.float32, name=t.name) for t in step.inputs}
        tf.saved_model.save(holder, folder, signatures=holder.serve.get_concrete_function(**signature))
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = representative_dataset
        converter.target_spec.supported_ops = [ops]
        converter.inference_input_type = converter.inference_output_type = dtype
        converter._experimental_disable_per_channel_quantization_for_dense_layers = True
        for name, value in options.items():
            setattr(converter, name, value)
        with warnings.catch_warnings():  # the converter itself calls what it warns of
            warnings.filterwarnings("ignore", r"(?s).*tf\.lite\.Interpreter is deprecated")
            return converter.convert()


def macs_per_step(model: bytes) -> int:
    """Multiplications with weights in one invocation of a flatbuffer; those with padding count."""
    schema = tflite_schema()
    tree = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))
    kinds, graph, macs = schema.BuiltinOperator, tree.subgraphs[0], 0
    for op in graph.operators:
        code = tree.operatorCodes[op.opcodeIndex]
        kind = max(code.builtinCode, code.deprecatedBuiltinCode)  # old converters fill the latter alone
        result = graph.tensors[op.outputs[0]].shape
        if kind in (kinds.CONV_2D, kinds.DEPTHWISE_CONV_2D, kinds.FULLY_CONNECTED):
            weights = op.inputs[1:2]
        elif kind == kinds.UNIDIRECTIONAL_SEQUENCE_LSTM:  # four gates for x, four for its own past; -1: one gate less
            weights = [i for i in op.inputs[1:9] if i >= 0]
        else:
            continue
        uses = np.prod(result[:-1])  # [1, T, bands, channels] or [1, T, units]
        macs += int(uses) * sum(int(np.prod(graph.tensors[i].shape)) for i in weights)
    return macs


def _check_step_is_whole(whole, steps, clips: np.ndarray) -> None:
    for clip in clips:
        stepped = np.concatenate([scores for _, scores in steps(clip)])
        error = np.abs(whole(clip[None], training=False).numpy()[0] - stepped).max()
        if error > STEP_TOLERANCE:
            raise VerificationError(
                f"the float step model differs from the whole model by {error:.2g} (limit {STEP_TOLERANCE})."
            )


def _with_code(frames: np.ndarray, layers: dict, value: float) -> np.ndarray:
    """The value once in the feature that the first layer weighs least; in the first feature where a kernel slides over
    all of them (an MFCC's c0 comes nearest to both ends by itself)."""
    kernel = next(layer for layer in layers.values() if layer.weights).weights[0]  # [..., features or 1, filters]
    weight = np.moveaxis(np.abs(kernel.numpy()), -2, 0).reshape(kernel.shape[-2], -1).sum(axis=1)
    frames = frames.copy()
    frames[:, 0, np.argmin(weight)] = value
    return frames
