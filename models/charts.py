"""Pictures of a training: learning curves and the confusion matrix on `tune`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from models.data import load_dataset
from models.decide import predictions
from models.epochs import codes_of
from models.evaluate import Result, result_of
from models.recipe import Recipe
from models.waves import load_waves


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
