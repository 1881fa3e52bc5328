"""python -m quantize.qat RECIPE --weights FLOAT.npz --data DIR: fine-tuning of float weights for int8.

By the recipe's section `quantize`:

    method: aware   the network is trained as it will be computed: kernels and activations rounded as int8 rounds them
                    (Jacob et al. 2018, arXiv:1712.05877). Writes ranges.json beside weights.npz.
    clusters: N     the weights of each kernel of a convolution share N values (quantize/cluster.py)

Weights that are zero stay zero, so that what pruning made survives. What leaves is float weights as before, for `python
-m quantize RECIPE --weights RUN/weights.npz`, which converts them with the trained ranges. A few epochs at a twentieth
of the learning rate will do; tune_accuracy in the history is that of the rounded network.

Where is rounded, the converter says: the given weights are calibrated on clips of the training set, and each operator
of the fused graph names the layer that it ends with. Its range is kept through the training, and given back to the
converter. Kernels need no ranges: batch normalization scales each channel, which rounding to 127 steps of the channel's
greatest weight commutes with, so that the rounded kernel is that of the folded convolution. Layer by layer the int8
model then computes what was trained, but for values at a half, where the last bit of a float decides.

The quantize_model of tensorflow-model-optimization 0.8.1 is not used: on the networks of models/layers.py it ends in a
RecursionError, and it would make another model, whose layers are not those of the step form. Its rounding of
activations is the same, but their ranges follow the training there, and are then known to it alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from models.recipe import Recipe, load_recipe
from toolkit.arguments import Parser
from toolkit.errors import ConfigError, EdgeAudioError, UsageError

from .cluster import Clusters
from .ranges import FILE, Ranges, read_ranges, write_ranges

LEAST = 1e-9  # greatest weight of a channel that is taken for zero


class FineTuning:
    """Rounding in the model's forward pass, zeros that stay, and clusters. An Adaptation of models/train.py.

    ranges: of activations by layer; None leaves the forward pass alone. clusters: values per kernel; 0: any.
    """

    def __init__(self, model, ranges: Ranges | None, clusters: int):
        self._ranges = ranges
        self.prepare(model)
        kernels = [(i, v) for i, v in enumerate(model.weights) if "kernel" in v.name]
        self._masks = [(i, v, v.numpy() != 0) for i, v in kernels]
        self._masks = [(i, v, mask) for i, v, mask in self._masks if not mask.all()]
        self._clusters = Clusters(model, clusters) if clusters else None

    def prepare(self, averaged) -> None:
        if self._ranges is not None:
            round_in_place(averaged, self._ranges)

    def after_step(self, step: int) -> None:
        for _, variable, mask in self._masks:
            variable.assign(variable * mask.astype(np.float32))
        if self._clusters:
            self._clusters.after_step()

    def of_average(self, values: list[np.ndarray]) -> list[np.ndarray]:
        values = list(values)
        for i, _, mask in self._masks:
            values[i] = values[i] * mask
        return self._clusters.of_average(values) if self._clusters else values

    def is_done(self, step: int) -> bool:
        return True


def round_in_place(model, ranges: Ranges) -> None:
    """From now on `model` rounds its kernels and, after each layer in `ranges`, its activations to int8; the gradients
    pass (straight-through estimator), but not those of values out of range. Raises ConfigError for layers whose
    rounding is unknown here, such as an LSTM."""
    from models.layers import keras, tf

    kernels = {  # the weights, and the axes that share a scale
        keras.layers.Conv2D: ("kernel", (0, 1, 2)),
        keras.layers.DepthwiseConv2D: ("depthwise_kernel", (0, 1)),
    }
    wrong = next((n for n in ranges if n not in {layer.name for layer in model.layers}), None)
    if wrong:
        raise ConfigError(f"{FILE} has a range of {wrong}, which is no layer of the network.")
    for layer in model.layers:
        kernel = kernels.get(type(layer))
        if layer.weights and not kernel and type(layer) is not keras.layers.BatchNormalization:
            raise ConfigError(
                f"quantize.method is aware, and {layer.name} is a {type(layer).__name__}: only convolutions are "
                "trained with rounding; post_training takes the others as they are."
            )
        if kernel:
            layer.call = _with_rounded(layer, *kernel, tf)
        if layer.name in ranges:
            layer.call = _rounded(layer.call, *ranges[layer.name], tf)


def _with_rounded(layer, attribute: str, axes: tuple[int, ...], tf) -> Callable:
    """The layer's call with its kernel rounded; it finds the rounded one where its variable was. Not by
    fake_quant_with_min_max_vars_per_channel: it takes some channels' greatest weight for out of range, by the last bit
    of a float, and gives it no gradient."""
    call, variable = layer.call, getattr(layer, attribute)

    def rounded_call(inputs):
        greatest = tf.reduce_max(tf.abs(variable), axes, keepdims=True)
        scale = tf.maximum(greatest, LEAST) / 127
        rounding = tf.round(variable / scale) * scale - variable
        vars(layer)[attribute] = variable + tf.stop_gradient(rounding)
        try:
            return call(inputs)
        finally:
            vars(layer)[attribute] = variable

    return rounded_call


def _rounded(call: Callable, low: float, high: float, tf) -> Callable:
    def rounded_call(*args, **kwargs):
        return tf.quantization.fake_quant_with_min_max_args(call(*args, **kwargs), low, high, 8)

    return rounded_call


def fine_tune(recipe: Recipe, data: Path, run: Path, cache: Path | None = None, log: Callable = print) -> dict:
    """Trains recipe.train.start on, and returns the last line of the history. Raises ConfigError, DataError,
    VerificationError."""
    from models.train import train

    from .calibrate import representative_codes
    from .convert import calibrated_ranges

    ranges = None
    if recipe.quantize.method == "aware":
        if not (run / "checkpoints" / "checkpoint").exists():
            log(f"calibrating {recipe.train.start} on {data}")
            codes = representative_codes(recipe, data, is_dataset=True)
            found = calibrated_ranges(recipe, Path(recipe.train.start), codes)
            run.mkdir(parents=True, exist_ok=True)
            write_ranges(run / FILE, found)
        ranges = read_ranges(run / "weights.npz")
    return train(recipe, data, run, cache, log, lambda model, _: FineTuning(model, ranges, recipe.quantize.clusters))


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m quantize.qat", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--weights", type=Path, help="float weights.npz to begin with (default: train.start)")
    parser.add_argument("--data", type=Path, required=True, help="root of the data set")
    parser.add_argument("--run", type=Path, help="folder of the result (default: runs/NAME-qat-SEED)")
    parser.add_argument("--seed", type=int, help="instead of the recipe's train.seed")
    parser.add_argument("--cache", type=Path, default=Path("runs/epochs"), help="where augmented epochs are kept")
    try:
        arguments = parser.parse_args(argv)
        return _fine_tune(arguments)
    except EdgeAudioError as error:
        print(f"qat: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("qat: stopped; the same command resumes", file=sys.stderr)
        return 130


def _fine_tune(arguments) -> int:
    from models.charts import draw_training
    from models.strategy import make_crew

    recipe = load_recipe(arguments.recipe)
    if recipe.quantize.method != "aware" and not recipe.quantize.clusters:
        raise UsageError(
            f"{arguments.recipe} has neither quantize.method: aware nor quantize.clusters: python -m models train "
            "trains it."
        )
    start = str(arguments.weights) if arguments.weights else recipe.train.start
    if not start:
        raise UsageError(f"{arguments.recipe} has no train.start: give the float weights, --weights FILE.")
    seed = recipe.train.seed if arguments.seed is None else arguments.seed
    recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, start=start, seed=seed))
    run = arguments.run or Path("runs") / f"{recipe.name}-qat-{seed}"
    last = fine_tune(recipe, arguments.data, run, arguments.cache, _say)
    if make_crew(recipe.train).is_chief:
        draw_training(recipe, arguments.data, run)
        print(json.dumps({"run": str(run), **last}))
    return 0


def _say(text: str) -> None:
    print(f"qat: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
