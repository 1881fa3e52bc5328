"""python -m quantize.prune cut | train | report: networks of fewer channels, and weights that are zero.

    cut     whole channels, the least important per MAC first, until a share of the MACs is left: a smaller network with
            the weights of the large one. It costs less on every device. Writes DIR/recipe.yaml, which names
            DIR/weights.npz as train.start, for `python -m models train DIR/recipe.yaml`: that fine-tunes it.
    train   trains a recipe as `python -m models train` does, while its section `prune` makes weights zero. They are
            stored in fewer bytes where something compresses them; they take as long as others.
    report  what the zeros of bundles or .tflite files are worth: non-zero weights, bytes, compressed bytes, time

What is cut is the result of a command, because it is found once, from weights: the recipe then states what is left, and
trains to it without those weights too. What becomes zero is found step by step in a training: its schedule belongs to
the recipe.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from models.recipe import PruneSettings, Recipe, load_recipe
from toolkit.arguments import Parser
from toolkit.config import dump_config
from toolkit.errors import EdgeAudioError, UsageError

BLOCK = (4, 1)  # of the pattern "block": consecutive inputs, as SIMD takes them; outputs
M_BY_N = (2, 4)  # zeros among consecutive inputs
LEAST, MULTIPLE = 8, 4  # channels that each group keeps, and of which it keeps some: kernels take four int8 at a time
POWER = 3  # of the schedule: most weights go early, while the others can still make up for them


class Masks:
    """Zeros in the kernels of convolutions and LSTMs, by tensorflow-model-optimization: its PolynomialDecay says how
    many, its masks say which. Depthwise kernels are left alone: they are few, and each is a channel's only one.

    What is zero when it begins stays zero, unless it is chosen anew: so a training that resumes goes on where it was.
    An Adaptation of models/train.py, of a model under any strategy.
    """

    def __init__(self, settings: PruneSettings, model, steps: int):
        from tensorflow_model_optimization.python.core.sparsity.keras import pruning_impl
        from tensorflow_model_optimization.sparsity.keras import PolynomialDecay

        from models.layers import tf

        self._tf = tf
        begin, end = round(settings.begin * steps), max(1, round(settings.end * steps))
        every = min(settings.every, end - begin)
        self._end = begin + (end - begin) // every * every  # the schedule's last choice must be one of every `every`
        self._step = tf.Variable(0, trainable=False)
        schedule = PolynomialDecay(0.0, settings.sparsity, begin, self._end, POWER, every)
        self._chooses = lambda: bool(schedule(self._step)[0])
        self._block = settings.pattern == "block"
        m_by_n = M_BY_N if settings.pattern == "2:4" else None
        self._pruning = pruning_impl.Pruning(
            lambda: self._step, [], schedule, BLOCK if self._block else (1, 1), "AVG", m_by_n
        )
        self._weights = [(i, v) for i, v in enumerate(model.weights) if is_pruned(v.name)]
        self._masks = {i: v.numpy() != 0 for i, v in self._weights}

    def prepare(self, averaged) -> None:
        """Nothing: zeros are in the weights."""

    def after_step(self, step: int) -> None:
        self._step.assign(step)
        chooses = self._chooses()
        for i, variable in self._weights:
            if chooses:
                self._masks[i] = self._mask(variable)
            if not self._masks[i].all():
                variable.assign(variable * self._masks[i].astype(np.float32))

    def of_average(self, values: list[np.ndarray]) -> list[np.ndarray]:
        return [value * self._masks[i] if i in self._masks else value for i, value in enumerate(values)]

    def is_done(self, step: int) -> bool:
        return step >= self._end

    def _mask(self, variable) -> np.ndarray:
        """bool, in the form of the variable."""
        tf = self._tf
        weights = tf.convert_to_tensor(variable)
        matrix = tf.reshape(weights, (-1, weights.shape[-1])) if self._block else weights
        _, mask = self._pruning._maybe_update_block_mask(matrix)
        return mask.numpy().reshape(weights.shape) != 0


def is_pruned(weight: str) -> bool:
    """Whether a weight of this name is the kernel of a convolution or an LSTM."""
    return weight.removesuffix(":0").rpartition("/")[2] in ("kernel", "recurrent_kernel")


def masks(recipe: Recipe) -> Callable[..., Masks]:
    """For models.train.train(..., adapt=masks(recipe))."""
    return lambda model, steps_per_epoch: Masks(recipe.prune, model, recipe.train.epochs * steps_per_epoch)


def cut(
    recipe: Recipe,
    weights: Path,
    share: float,
    out: Path,
    data: Path | None = None,
    least: int = LEAST,
    multiple: int = MULTIPLE,
) -> dict:
    """Writes out/recipe.yaml and out/weights.npz of the network with at most `share` of the MACs. data: of the Taylor
    importance; without it channels are judged by the scale of their normalization. Raises ConfigError, DataError,
    and VerificationError for weights that cannot be used.

    Returns macs_per_second and parameters (each before and after), and groups: layers and channels (before, after).
    """
    from models.train import make_model, save_weights

    from .channels import ChannelGraph, choose
    from .convert import load_model
    from .importance import scale, taylor

    whole, _, module = load_model(recipe, weights)
    graph = ChannelGraph(whole, recipe.features.sample_rate_hz / recipe.features.hop_length)
    importance = taylor(graph, whole, recipe, module.STRIDE, data) if data else scale(graph, whole)
    kept = choose(graph, importance, share, least, multiple)
    channels = {**recipe.model.channels, **(graph.sizes(kept) if not kept.all() else {})}
    smaller = dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, channels=channels),
        train=dataclasses.replace(recipe.train, start=str(out / "weights.npz")),
    )
    model, _, _ = make_model(smaller)
    model.set_weights(graph.weights(kept))
    out.mkdir(parents=True, exist_ok=True)
    save_weights(out / "weights.npz", model)
    (out / "recipe.yaml").write_text(dump_config(smaller))
    return {
        "macs_per_second": [graph.macs_per_second(graph.everything), graph.macs_per_second(kept)],
        "parameters": [sum(int(np.prod(w.shape)) for w in m.trainable_weights) for m in (whole, model)],
        "groups": [
            {"layers": list(group.layers), "channels": [len(group.channels), int(kept[group.channels].sum())]}
            for group in graph.groups
        ],
    }


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m quantize.prune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    cutting = commands.add_parser("cut", help="a smaller network with the weights of a large one")
    cutting.add_argument("recipe", type=Path)
    cutting.add_argument("--weights", type=Path, required=True, help="weights.npz of the recipe")
    cutting.add_argument("--macs", type=float, required=True, help="greatest share of the MACs that is left, as 0.5")
    cutting.add_argument("--out", type=Path, required=True, help="folder of the result")
    cutting.add_argument("--importance", choices=("scale", "taylor"), default="scale", help="quantize/importance.py")
    cutting.add_argument("--data", type=Path, help="root of the data set, for taylor")
    cutting.add_argument("--least", type=int, default=LEAST, help=f"channels that every group keeps ({LEAST})")
    cutting.add_argument("--multiple", type=int, default=MULTIPLE, help=f"of which it keeps some ({MULTIPLE})")
    training = commands.add_parser("train", help="train a recipe with its section prune; the same command resumes")
    training.add_argument("recipe", type=Path)
    training.add_argument("--data", type=Path, required=True, help="root of the data set")
    training.add_argument("--run", type=Path, help="folder of the result (default: runs/NAME-SEED)")
    training.add_argument("--seed", type=int, help="instead of the recipe's train.seed")
    training.add_argument("--cache", type=Path, default=Path("runs/epochs"), help="where augmented epochs are kept")
    report = commands.add_parser("report", help="what zeros are worth; the first model is the one to compare with")
    report.add_argument("models", nargs="+", help="bundles, by path or released name, or .tflite files")
    try:
        arguments = parser.parse_args(argv)
        return {"cut": _cut, "train": _train, "report": _report}[arguments.command](arguments)
    except EdgeAudioError as error:
        print(f"prune: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("prune: stopped; the same command resumes", file=sys.stderr)
        return 130


def _cut(arguments) -> int:
    it = arguments
    if (it.importance == "taylor") != (it.data is not None):
        raise UsageError("--importance taylor needs --data, and only that does: give both, or neither.")
    if not 0 < it.macs <= 1 or it.least < 1 or it.multiple < 1:
        raise UsageError(
            f"--macs {it.macs} --least {it.least} --multiple {it.multiple}: expected a share above 0 up to 1, and "
            "counts from 1."
        )
    print(json.dumps(cut(load_recipe(it.recipe), it.weights, it.macs, it.out, it.data, it.least, it.multiple)))
    _say(f"python -m models train {it.out / 'recipe.yaml'} --data ... fine-tunes it")
    return 0


def _train(arguments) -> int:
    from models.charts import draw_training
    from models.strategy import make_crew
    from models.train import train

    recipe = load_recipe(arguments.recipe)
    if not recipe.prune.sparsity:
        raise UsageError(f"{arguments.recipe} has no prune.sparsity: python -m models train trains it.")
    if arguments.seed is not None:
        recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, seed=arguments.seed))
    run = arguments.run or Path("runs") / f"{recipe.name}-{recipe.train.seed}"
    last = train(recipe, arguments.data, run, arguments.cache, _say, masks(recipe))
    if make_crew(recipe.train).is_chief:
        draw_training(recipe, arguments.data, run)
        print(json.dumps({"run": str(run), **last}))
    return 0


def _report(arguments) -> int:
    from toolkit.bundle import load_bundle

    from .sparsity import NOTE, sparsity, step_costs

    named = [Path(name) for name in arguments.models]
    models = [p.read_bytes() if p.suffix == ".tflite" else load_bundle(str(p)).members["model"] for p in named]
    for name, model, micros in zip(arguments.models, models, step_costs(models)):
        print(json.dumps({"model": name, "step_us": micros, **sparsity(model)}))
    _say(NOTE)
    return 0


def _say(text: str) -> None:
    print(f"prune: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
