"""What a release publishes: accuracy of all trainings, and of the chosen one its streams, conditions and cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from models.compare import block_costs, paired_bootstrap
from models.conditions import measure_conditions
from models.data import Dataset
from models.decide import predictions
from models.det import choose_decision, curves, point_at, rank_of
from models.epochs import codes_of
from models.evaluate import accuracy_entry, load_folder, mean_accuracy, other_words, predict, result_of, score_streams
from models.recipe import SILENCE, Recipe, load_recipe
from models.streams import condition
from models.waves import load_waves
from toolkit.bundle import Bundle
from toolkit.errors import BudgetError
from toolkit.manifest import Decision
from toolkit.stream import BundleStage

from .__main__ import SAMPLES, say
from .arena import measure_arena
from .convert import Converted, convert, float_scores
from .facts import facts_of_release
from .gate import FAIL, NOT_MEASURED, Line, allowed, gate, sentence, shown
from .verify import check_integer

SPLITS = ("tune", "report")
SNRS_DB = (None, 10.0)  # of the streams: clean, and in noise
WINDOWS = (1.0, 1.2)  # of a stream, to choose from: times that of a clip, which cannot be longer than the clip
HOLDS = (5, 8, 12, 18, 25, 30)  # outputs for which a word must lead, to choose from
TUNE_SHARE = 0.65  # of the allowed false accepts, that a threshold may use up on tune: other voices are not the same
OF_A_RELEASE = ("accuracy", "mean_accuracy", "mean_accuracy_loss_upper", "false_accepts_per_hour", "false_reject_rate")


@dataclass(frozen=True)
class Tried:
    """One training in int8: which clips it gets right, bool [clips], by split and by "float" or "int8"."""

    seed: int
    run: Path
    converted: Converted
    correct: dict[str, dict[str, np.ndarray]]


def measure_runs(
    recipe: Recipe,
    dataset: Dataset,
    runs: list[Path],
    calibration: np.ndarray,
    pack: Callable[[Converted, Path], Bundle],
) -> list[Tried]:
    """Every run converted, and measured on tune and report."""
    rate, flush = recipe.features.sample_rate_hz, recipe.decision.flush_frames * recipe.features.hop_length
    waves = {split: load_waves(dataset.clips(split), recipe.data.clip_s, rate) for split in SPLITS}
    truth = {split: dataset.classes(dataset.clips(split)) for split in SPLITS}
    tried = []
    for run in runs:
        seed, weights = load_recipe(run / "recipe.yaml").train.seed, run / "weights.npz"
        say(f"seed {seed}: converting and measuring {run}")
        converted = convert(recipe, weights, calibration)
        check_integer(converted.model)
        bundle, correct = pack(converted, weights), {}
        for split in SPLITS:
            scores = float_scores(recipe, weights, codes_of(waves[split], recipe.features, flush))
            in_float = predictions(scores, recipe, converted.stride)
            correct[split] = {
                "float": in_float == truth[split],
                "int8": predict(bundle, waves[split]) == truth[split],
            }
            accuracy = ", ".join(f"{name} {hits.mean():.4f}" for name, hits in correct[split].items())
            say(f"seed {seed}: {split} {accuracy}")
        tried.append(Tried(seed, run, converted, correct))
    return tried


def choose_on_streams(
    recipe: Recipe, bundles: list[Bundle], dataset: Dataset, negatives: list[Path]
) -> tuple[int, Decision, list[dict]]:
    """(which bundle, its decision, what that gives) on the streams of tune: of all that keep the false accepts within
    TUNE_SHARE of the budget, the one that misses fewest words, clean and in noise; of equal ones that with fewer false
    accepts, then fewer confused, then the first. Raises BudgetError if none keeps them."""
    target, found = tune_target(recipe), []
    for number, bundle in enumerate(bundles):
        scores = score_streams(bundle, dataset, "tune", negatives, snrs_db=SNRS_DB, say=say)
        clip = scores.rule.decision.window_frames
        candidates = [(round(factor * clip), hold) for factor in WINDOWS for hold in HOLDS]
        chosen = choose_decision(scores.rule, scores.keywords, scores.negatives, candidates, target)
        if chosen is None:
            say(f"training {number + 1}: no threshold keeps the false accepts on tune within {target} per hour")
            continue
        decision, points = chosen
        missed, accepted, _ = rank_of(points)
        say(
            f"training {number + 1}: {missed} missed, {accepted} false accepts, at threshold {decision.threshold}, "
            f"window {decision.stream_window_frames}, hold {decision.hold_frames}"
        )
        found.append((rank_of(points), number, decision, _points(points, target)))
    if not found:
        raise BudgetError(
            f"no threshold of any training keeps the false accepts on tune within {target} per hour (upper 95 % "
            "bound); train with more keyword-free audio, or give more hours of it."
        )
    return min(found, key=lambda one: one[:2])[1:]


def tune_target(recipe: Recipe) -> float:
    """False accepts per hour, upper 95 % bound, that a threshold is chosen for."""
    return round(TUNE_SHARE * recipe.budget.false_accepts_per_hour, 4)


def measure_streams(
    recipe: Recipe, bundle: Bundle, dataset: Dataset, negatives: list[Path], decision: Decision, png: Path
) -> dict:
    """What a decision gives on the streams of report; draws the trade-off."""
    from models.charts import draw_det

    target = recipe.budget.false_accepts_per_hour
    scores = score_streams(bundle, dataset, "report", negatives, snrs_db=SNRS_DB, say=say)
    rule = replace(scores.rule, decision=decision)
    found = curves(rule, scores.keywords, scores.negatives)
    draw_det(dict(zip(map(condition, SNRS_DB), found)), decision.threshold, target, png)
    return {
        "report": _points([point_at(points, decision.threshold) for points in found], target),
        "other_words": other_words(rule, scores.other_words[0], decision.threshold),
    }


def _points(points: list, target: float) -> list[dict]:
    return [{"background": condition(snr), **point.to_dict(target)} for snr, point in zip(SNRS_DB, points)]


def publish(
    recipe: Recipe, dataset: Dataset, tried: list[Tried], best: Tried, bundle: Bundle
) -> tuple[list[dict], dict]:
    """(the figures of the manifest, the details of the card), all on report."""
    rate, clips = recipe.features.sample_rate_hz, dataset.clips("report")
    waves, truth = load_waves(clips, recipe.data.clip_s, rate), dataset.classes(clips)
    chosen = result_of(recipe.labels, truth, predict(bundle, waves))
    in_float, int8 = (np.stack([t.correct["report"][kind] for t in tried]) for kind in ("float", "int8"))
    words = truth != recipe.labels.index(SILENCE)
    name = {"speech_commands": "Speech Commands v0.02"}.get(recipe.data.layout, recipe.data.layout)
    figure = {**accuracy_entry(chosen, recipe, name, "report"), "seeds": [best.seed]}
    mean = {**_interval(mean_accuracy(int8)), "seeds": sorted(t.seed for t in tried)}
    figures = [figure, {**figure, "metric": "mean accuracy int8 step over trainings", **mean}]
    embedded = SAMPLES / "evaluation"
    details = {
        "seeds": [
            {"seed": t.seed}
            | {f"{s}_{k}": round(float(t.correct[s][k].mean()), 4) for s in SPLITS for k in ("float", "int8")}
            for t in tried
        ],
        "mean_float": _interval(mean_accuracy(in_float)),
        "mean_without_silence": _interval(mean_accuracy(int8[:, words])),
        "loss_by_int8": _interval(paired_bootstrap(in_float, int8)),
        "report": chosen.to_dict(),
        "mistakes": _mistakes(chosen),
        "conditions": measure_conditions(bundle, dataset, "report"),
    }
    if all((embedded / label).is_dir() for label in recipe.labels):
        spoken, said = load_folder(embedded, recipe.labels, recipe.data.clip_s, rate)
        details["embedded"] = result_of(recipe.labels, said, predict(bundle, spoken)).to_dict()
    return figures, details


def measure_cost(bundle: Bundle, converted: Converted, calibration: np.ndarray) -> dict:
    """Bytes, arena, multiply-accumulates, and the time of a 20 ms block on this machine."""
    arena = measure_arena(converted.model, calibration[:2])
    return {
        "model_bytes": len(converted.model),
        "arena": arena.to_dict(),
        "macs_per_second": converted.macs_per_second,
        "block_us": round(block_costs([bundle])[0], 1),
        "block_runtime": BundleStage(bundle).model.runtime,
    }


def check_release(recipe: Recipe, known: dict) -> None:
    """Says every limit of a release that is broken or that it did not measure, and raises BudgetError for the first."""
    lines = gate(recipe, (), None, facts_of_release(known))
    broken = [replace(line, is_breach=True) for line in lines if _closes(line)]
    for line in broken:
        say(f"{line.verdict} {line.title}: {shown(line.name, line.measured)} ({allowed(line.name, line.limit)})")
    if broken:
        raise BudgetError(f"nothing was released: {sentence(broken)}.")


def _closes(line: Line) -> bool:
    return line.verdict == FAIL or (line.verdict == NOT_MEASURED and line.name in OF_A_RELEASE)


def _interval(values: tuple[float, float, float]) -> dict:
    return dict(zip(("value", "low", "high"), (round(v, 4) for v in values)))


def _mistakes(result) -> list[list]:
    """The commonest confusions: [what was said, what was heard, times]."""
    wrong = result.confusion - np.diag(np.diag(result.confusion))
    order = np.argsort(-wrong, axis=None, kind="stable")[:8]
    pairs = [np.unravel_index(i, wrong.shape) for i in order]
    return [[result.labels[a], result.labels[b], int(wrong[a, b])] for a, b in pairs if wrong[a, b]]
