"""Pictures of a training: learning curves and the confusion matrix on `tune`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from models.data import load_dataset
from models.decide import predictions
from models.det import Point, hours_needed, point_at, poisson_interval, wilson
from models.epochs import codes_of
from models.evaluate import Result, result_of
from models.recipe import Recipe
from models.waves import load_waves

LEAST_EVENTS = 0.5  # where no false accept lies on an axis of logarithms


def draw_training(recipe: Recipe, data: Path, run: Path) -> None:
    """curves.png and confusion.png in the run folder, from history.jsonl and weights.npz."""
    from models.train import load_weights, make_model, scores_of

    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    draw_curves(history, run / "curves.png")
    dataset = load_dataset(data, recipe.data, recipe.features.sample_rate_hz)
    clips = dataset.clips("tune")
    waves = load_waves(clips, recipe.data.clip_s, recipe.features.sample_rate_hz)
    model, _, module = make_model(recipe)
    load_weights(run / "weights.npz", model)
    codes = codes_of(waves, recipe.features, recipe.decision.flush_frames * recipe.features.hop_length)
    predicted = predictions(scores_of(model, codes), recipe, module.STRIDE)
    draw_confusion(result_of(recipe.labels, dataset.classes(clips), predicted), run / "confusion.png")


def draw_curves(history: list[dict], path: Path) -> None:
    """Loss and tune accuracy over epochs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    epochs = [line["epoch"] for line in history]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.plot(epochs, [line["loss"] for line in history])
    left.set(xlabel="epoch", ylabel="training loss")
    right.plot(epochs, [100 * line["tune_accuracy"] for line in history])
    right.set(xlabel="epoch", ylabel="tune accuracy / %")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_confusion(result: Result, path: Path) -> None:
    """Confusion matrix, rows true, in per cent of the row."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    share = 100 * result.confusion / np.maximum(result.confusion.sum(axis=1, keepdims=True), 1)
    figure, axes = plt.subplots(figsize=(6, 5.4), layout="constrained")
    axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    for (row, column), value in np.ndenumerate(share):
        if value:
            axes.text(
                column,
                row,
                f"{value:.0f}",
                ha="center",
                va="center",
                color="white" if value > 50 else "black",
                fontsize=8,
            )
    axes.set_xticks(range(len(result.labels)), result.labels, rotation=60)
    axes.set_yticks(range(len(result.labels)), result.labels)
    axes.set(xlabel="predicted", ylabel="true", title=f"{100 * result.accuracy:.1f} % of {result.clips} clips")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_det(curves: dict[str, list[Point]], threshold: float, target_fa_per_hour: float, path: Path) -> None:
    """Missed keywords over false accepts per hour, a curve for each condition, with 95 % intervals of both.

    The numbers on a curve are false accepts that were counted; a point without any lies at half a one with an arrow:
    the rate may be any smaller one. Where the hours cannot carry the target, counts take the place of rates.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    hours = next(iter(curves.values()))[0].accepts.hours
    is_rate = hours >= hours_needed(target_fa_per_hour)
    per = hours if is_rate else 1.0
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for colour, (condition, points) in zip(plt.rcParams["axes.prop_cycle"].by_key()["color"], curves.items()):
        marked = point_at(points, threshold)
        none = next((point for point in points if not point.accepts.events), points[-1])
        points = points[: max(points.index(none), points.index(marked)) + 1]  # beyond, only misses grow
        events = np.array([point.accepts.events for point in points])
        low, high = np.array([poisson_interval(n) for n in events]).T / per
        missed = np.array([100 * point.words.false_rejects / point.words.keywords for point in points])
        x = np.maximum(events, LEAST_EVENTS) / per
        axes.plot(x, missed, color=colour, label=f"{condition}, {marked.words.keywords} keywords")
        axes.fill_betweenx(missed, np.maximum(low, LEAST_EVENTS / per), high, color=colour, alpha=0.15, linewidth=0)
        for count in {0, 1, 3, 10, 30, 100, 300, 1000} & set(events.tolist()):
            i = int(np.argmax(events == count))
            axes.annotate(str(count), (x[i], missed[i]), textcoords="offset points", xytext=(4, 4), fontsize=8)
        axes.plot(x[events == 0], missed[events == 0], "<", color=colour)
        i, interval = points.index(marked), wilson(marked.words.false_rejects, marked.words.keywords)
        ends = np.abs(100 * np.array(interval) - missed[i])[:, None]
        axes.errorbar(x[i], missed[i], yerr=ends, fmt="o", color=colour, capsize=4)
    if is_rate:
        axes.axvline(target_fa_per_hour, color="grey", linestyle=":", label=f"target {target_fa_per_hour:g} per hour")
    axes.set_xscale("log")
    axes.set(
        xlabel="false accepts per hour" if is_rate else f"false accepts; {hours:.2f} h carry no rate",
        ylabel="missed keywords / %",
        title=f"threshold {threshold:g}: {marked.accepts.events} false accepts in {hours:.2f} h",
        ylim=(0, None),
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)
