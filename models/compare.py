"""Models side by side: size, cost, accuracy in float and int8, and what int8 costs of it.

What is compared are run folders of `python -m models train` (recipe.yaml, weights.npz) and bundles. A run folder's
bundle is RUN/NAME.eab, as `python -m quantize RUN/recipe.yaml --weights RUN/weights.npz --out RUN` makes it; without
one, the row has no int8 figures. Runs whose recipes differ in nothing but the seed become one row, with the mean over
them. A bundle that stands alone has no float figures.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from models.data import load_dataset
from models.decide import predictions
from models.epochs import codes_of
from models.evaluate import mean_accuracy, predict
from models.recipe import Recipe, load_recipe
from models.waves import load_waves
from toolkit.bench import BLOCKS_PER_SECOND
from toolkit.bundle import Bundle, load_bundle
from toolkit.errors import DataError, UsageError, VerificationError
from toolkit.stream import Pipeline

NOT_TRAINED = ("moving_mean", "moving_variance")  # weights that follow the data instead of the loss
CHUNK_BLOCKS = 20  # 0.4 s of one model before it is the next one's turn


@dataclasses.dataclass(frozen=True)
class Entry:
    """One training, one bundle, or both."""

    recipe: Recipe
    weights: Path | None
    bundle: Bundle | None

    @property
    def alike(self) -> str:
        """Equal for trainings that differ in the seed alone."""
        train = dataclasses.replace(self.recipe.train, seed=0)
        return repr(dataclasses.replace(self.recipe, train=train)) if self.weights else self.bundle.sha256


def compare(
    paths: Sequence[str], recipe: Recipe | None = None, data: Path | None = None, split: str = "report"
) -> list[dict]:
    """A row per model in the order of the paths (run folders, bundles, names of released ones).

    recipe: of the bundles that stand alone, for its data section. data: root of the data set; without, no accuracy.
    Keys of a row: model, architecture, seeds, parameters, model_bytes, arena_bytes, macs_per_second, block_us,
    relative_cost, split, clips, and float, int8, loss as {value, low, high} at 95 %; None where nothing was measured.
    Raises UsageError, ConfigError, DataError, VerificationError and what load_bundle raises.
    """
    entries = [read_entry(path, recipe) for path in paths]
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.alike, []).append(entry)
    rows = [_describe(group) for group in groups.values()]
    with ProcessPoolExecutor(1, get_context("spawn")) as child:  # TensorFlow and tflite-runtime do not share a process
        for row, group in zip(rows, groups.values()):
            if data is not None:
                row.update(_accuracy(group, data, split, child))
    measured = [(row, group[0].bundle) for row, group in zip(rows, groups.values()) if group[0].bundle]
    costs = block_costs([bundle for _, bundle in measured]) if measured else []
    for (row, _), cost in zip(measured, costs):
        row.update(block_us=round(cost, 1), relative_cost=round(cost / costs[0], 3))
    return rows


def read_entry(path: str, recipe: Recipe | None = None) -> Entry:
    """A run folder with its bundle, or a bundle, whose recipe is the given one."""
    run = Path(path)
    if not run.is_dir():
        bundle = load_bundle(path)
        if recipe is None:
            raise UsageError(f"{path} is a bundle, which does not name its data; give its recipe with --recipe.")
        if bundle.manifest.labels != recipe.labels:
            raise UsageError(f"{path} knows {', '.join(bundle.manifest.labels)}; the recipe has {recipe.labels}.")
        return Entry(recipe, None, bundle)
    for name in ("recipe.yaml", "weights.npz"):
        if not (run / name).exists():
            raise UsageError(f"{run} holds no {name}; give folders that `python -m models train` has made.")
    recipe, weights = load_recipe(run / "recipe.yaml"), run / "weights.npz"
    bundle = load_bundle(run / f"{recipe.name}.eab") if (run / f"{recipe.name}.eab").exists() else None
    if bundle and bundle.manifest.created_from.weights_sha256 != hashlib.sha256(weights.read_bytes()).hexdigest():
        raise VerificationError(f"{bundle.path} was made of other weights than {weights}; make it again.")
    return Entry(recipe, weights, bundle)


def paired_bootstrap(
    float_correct: np.ndarray, int8_correct: np.ndarray, seed: int = 1, draws: int = 10_000
) -> tuple[float, float, float]:
    """(loss, low, high at 95 %): accuracy of float less that of int8, from bool [seeds, clips] of the same clips.

    Clips are drawn with replacement, each with all its seeds and both forms: what is hard for one training is hard for
    the next, and for int8 as for float, so only the differences count (Efron and Tibshirani 1993, chapter 8).
    """
    if float_correct.shape != int8_correct.shape or float_correct.ndim != 2:
        raise DataError(
            f"float is {list(float_correct.shape)} and int8 {list(int8_correct.shape)}; both must be [seeds, clips] of "
            "the same clips."
        )
    difference = float_correct.mean(axis=0) - int8_correct.mean(axis=0)
    rng, n = np.random.default_rng(seed), len(difference)
    means = [difference[rng.integers(n, size=n)].mean() for _ in range(draws)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(difference.mean()), float(low), float(high)


def block_costs(bundles: Sequence[Bundle], seconds: float = 6.0) -> list[float]:
    """Microseconds of CPU per 20 ms block of each bundle by itself, front end included: the median over chunks of
    CHUNK_BLOCKS, in which the models take turns, so that whatever else the machine does meets all alike."""
    rng = np.random.default_rng(1)
    pipelines = [Pipeline([bundle]) for bundle in bundles]
    blocks = [
        (3000 * rng.standard_normal((CHUNK_BLOCKS, p.sample_rate_hz // BLOCKS_PER_SECOND))).astype(np.int16)
        for p in pipelines
    ]
    micros = []
    for _ in range(max(2, round(seconds * BLOCKS_PER_SECOND / CHUNK_BLOCKS))):
        micros.append([])
        for pipeline, chunk in zip(pipelines, blocks):
            before = time.thread_time_ns()
            for block in chunk:
                pipeline.process(block)
            micros[-1].append((time.thread_time_ns() - before) / 1000 / CHUNK_BLOCKS)
    return [float(v) for v in np.median(micros[1:], axis=0)]  # the first round warms up


def parameters_of(weights: Path) -> int:
    """Trained numbers in a weights.npz."""
    with np.load(weights, allow_pickle=False) as arrays:
        return sum(arrays[name].size for name in arrays.files if not name.endswith(NOT_TRAINED))


def markdown(rows: list[dict]) -> str:
    """The table for people."""
    columns = {
        "model": lambda r: r["model"] + (f": {r['architecture']}" if r["architecture"] else ""),
        "parameters": lambda r: _number(r["parameters"]),
        "float": lambda r: _interval(r["float"]),
        "int8 step": lambda r: _interval(r["int8"]),
        "loss by int8": lambda r: _interval(r["loss"], " points"),
        "seeds": lambda r: ", ".join(map(str, r["seeds"])),
        "TFLite bytes": lambda r: _number(r["model_bytes"]),
        "arena bytes": lambda r: _number(r["arena_bytes"]),
        "MAC/s": lambda r: _number(r["macs_per_second"]),
        "us per 20 ms": lambda r: _number(r["block_us"]),
        "cost": lambda r: "-" if r["relative_cost"] is None else f"{r['relative_cost']:.2f}",
    }
    lines = [list(columns), ["---"] * len(columns), *([cell(row) for cell in columns.values()] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _describe(group: list[Entry]) -> dict:
    """Everything about a row that needs no measuring; of several seeds the largest."""
    first, bundles = group[0], [entry.bundle for entry in group if entry.bundle]
    settings = first.recipe.model
    words = [settings.architecture, *(f"{k}={v}" for k, v in settings.parameters.items())] if first.weights else []
    models = [bundle.manifest.model for bundle in bundles]
    arenas = [_arena_bytes(entry) for entry in group if entry.bundle]
    return {
        "model": first.recipe.name if first.weights else f"{bundles[0].manifest.name} {bundles[0].manifest.version}",
        "architecture": " ".join(words) or None,
        "seeds": [entry.recipe.train.seed for entry in group] if first.weights else [],
        "parameters": parameters_of(first.weights) if first.weights else None,
        "model_bytes": max((model.size_bytes for model in models), default=None),
        "arena_bytes": max(arenas) if arenas and None not in arenas else None,
        "macs_per_second": max((model.macs_per_second for model in models), default=None),
        **dict.fromkeys(("block_us", "relative_cost", "split", "clips", "float", "int8", "loss")),
    }


def _arena_bytes(entry: Entry) -> int | None:
    """Of TFLite Micro, as the bundle's manifest says, or the report that `quantize` wrote beside it."""
    report = entry.weights and entry.weights.with_name("report.json")
    if entry.bundle.manifest.model.arena_bytes or not (report and report.exists()):
        return entry.bundle.manifest.model.arena_bytes
    found = json.loads(report.read_text())
    return found["arena"]["arena_bytes"] if found["bundle_sha256"] == entry.bundle.sha256 else None


def _accuracy(group: list[Entry], data: Path, split: str, child: ProcessPoolExecutor) -> dict:
    """split, clips, float, int8 and loss of a row."""
    recipe = group[0].recipe
    rate, flush = recipe.features.sample_rate_hz, recipe.decision.flush_frames * recipe.features.hop_length
    dataset = load_dataset(data, recipe.data, rate)
    clips = dataset.clips(split)
    waves, truth = load_waves(clips, recipe.data.clip_s, rate), dataset.classes(clips)
    codes = codes_of(waves, recipe.features, flush)
    in_float, in_int8 = [], []
    for entry in group:
        say(f"measuring {entry.weights or entry.bundle.path} on {len(clips)} clips of {split}")
        if entry.weights:
            in_float.append(child.submit(_float_predictions, entry.recipe, entry.weights, codes).result() == truth)
        if entry.bundle:
            in_int8.append(predict(entry.bundle, waves) == truth)
    in_float, in_int8 = np.array(in_float), np.array(in_int8)
    both = len(in_float) == len(in_int8) > 0
    return {
        "split": split,
        "clips": len(clips),
        "float": _figure(mean_accuracy(in_float)) if len(in_float) else None,
        "int8": _figure(mean_accuracy(in_int8)) if len(in_int8) else None,
        "loss": _figure(paired_bootstrap(in_float, in_int8)) if both else None,
    }


def _float_predictions(recipe: Recipe, weights: Path, codes: np.ndarray) -> np.ndarray:
    """In a process that holds TensorFlow: class index [n] of int8 codes [n, T, width]."""
    from models.train import load_weights, make_model, scores_of

    model, _, module = make_model(recipe)
    load_weights(weights, model)
    return predictions(scores_of(model, codes), recipe, module.STRIDE)


def _figure(measured: tuple[float, float, float]) -> dict:
    return dict(zip(("value", "low", "high"), (round(v, 4) for v in measured)))


def _interval(figure: dict | None, unit: str = " %") -> str:
    if figure is None:
        return "-"
    value, low, high = (100 * figure[k] for k in ("value", "low", "high"))
    return f"{value:.2f}{unit} ({low:.2f} to {high:.2f})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,}"


def say(text: str) -> None:
    """Progress, for people."""
    print(f"compare: {text}", file=sys.stderr, flush=True)
