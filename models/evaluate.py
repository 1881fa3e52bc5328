"""Accuracy as it is published: with data set, split, clip count, decision rule, runtime and interval."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from models.data import Dataset
from models.recipe import Recipe
from models.waves import load_waves, read_wave
from toolkit.bundle import Bundle
from toolkit.interpreter import runtime_name
from toolkit.kws import NOT_KEYWORDS
from toolkit.stream import Pipeline

Z95 = 1.959964
GAP_S = (0.4, 1.2)  # between the clips of a joined stream
GAP_NOISE_DB = -50.0  # of full scale, between the clips of a joined stream
LATE_S = 0.7  # after the end of a clip until which its detection counts


@dataclass(frozen=True)
class Result:
    """Accuracy of one set of clips: confusion[true, predicted]."""

    labels: tuple[str, ...]
    confusion: np.ndarray

    @property
    def clips(self) -> int:
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        return float(np.trace(self.confusion) / self.clips)

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, Wilson."""
        return wilson(int(np.trace(self.confusion)), self.clips)

    def to_dict(self) -> dict:
        recall = {
            label: round(float(row[i] / row.sum()), 4)
            for i, (label, row) in enumerate(zip(self.labels, self.confusion))
            if row.sum()
        }
        low, high = self.interval
        return {
            "accuracy": round(self.accuracy, 4),
            "low": round(low, 4),
            "high": round(high, 4),
            "clips": self.clips,
            "recall": recall,
        }


def wilson(hits: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Interval of a proportion (Wilson 1927)."""
    p, d = hits / n, 1 + z * z / n
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / d
    middle = (p + z * z / (2 * n)) / d
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))


def result_of(labels: tuple[str, ...], truth: np.ndarray, predicted: np.ndarray) -> Result:
    """truth and predicted: class indices [n]."""
    confusion = np.zeros((len(labels), len(labels)), int)
    np.add.at(confusion, (truth, predicted), 1)
    return Result(labels, confusion)


def predict(bundle: Bundle, waves: np.ndarray) -> np.ndarray:
    """Class index [n] of clips int16 [n, samples] through the device's own path, one by one from the reset state."""
    pipeline, labels = Pipeline([bundle]), bundle.manifest.labels
    return np.array([labels.index(next(iter(pipeline.classify(wave)[0]))) for wave in waves])


def evaluate_bundle(bundle: Bundle, waves: np.ndarray, truth: np.ndarray) -> Result:
    """Accuracy of a bundle on clips int16 [n, samples] of classes truth [n]."""
    return result_of(bundle.manifest.labels, truth, predict(bundle, waves))


def evaluate_stream(
    bundle: Bundle, dataset: Dataset, split: str, threshold: float | None = None, seed: int = 1
) -> dict:
    """The split's clips joined into one stream with noise between them and no reset.

    A keyword clip is found if its label is reported between its start and LATE_S after its end. Anything reported that
    no clip explains is a false accept. Compared with the same keyword clips classified one by one.
    """
    rng = np.random.default_rng(seed)
    rate = Pipeline([bundle]).sample_rate_hz
    clips = [c for c in dataset.clips(split) if c.label != "silence"]
    clips = [clips[i] for i in rng.permutation(len(clips))]
    waves = load_waves(clips, dataset.settings.clip_s, rate)
    gaps = (rng.uniform(*GAP_S, len(clips)) * rate).astype(int)
    starts = np.cumsum(gaps) + np.arange(len(clips)) * waves.shape[1]
    background = read_wave(dataset.backgrounds(split)[0], rate).astype(float)
    background *= 32768 * 10 ** (GAP_NOISE_DB / 20) / np.sqrt(np.mean(background**2))
    stream = np.resize(np.round(background), starts[-1] + waves.shape[1] + rate).clip(-32768, 32767).astype(np.int16)
    for start, wave in zip(starts, waves):
        stream[start : start + len(wave)] = wave

    pipeline = Pipeline([bundle], threshold=threshold)
    detections = [d for i in range(0, len(stream), rate // 50) for d in pipeline.process(stream[i : i + rate // 50])]
    found, used = 0, set()
    keywords = [i for i, c in enumerate(clips) if c.label not in NOT_KEYWORDS]
    alone = sum(next(iter(pipeline.classify(waves[i])[0])) == clips[i].label for i in keywords)
    for i in keywords:
        begin, end = starts[i] / rate, (starts[i] + waves.shape[1]) / rate + LATE_S
        hits = [k for k, d in enumerate(detections) if begin <= d.time <= end and d.label == clips[i].label]
        found += bool(hits)
        used.update(hits)
    return {
        "split": split,
        "keywords": len(keywords),
        "found_in_stream": found,
        "found_as_clips": alone,
        "other_words": len(clips) - len(keywords),
        "false_accepts": len(detections) - len(used),
        "hours": round(len(stream) / rate / 3600, 3),
        "threshold": bundle.manifest.decision.threshold if threshold is None else threshold,
    }


def mean_accuracy(correct: np.ndarray, seed: int = 1, draws: int = 2000) -> tuple[float, float, float]:
    """(mean, low, high at 95 %) of correct bool [trainings, clips], by a bootstrap over the clips."""
    rng = np.random.default_rng(seed)
    per_clip = correct.mean(axis=0)
    means = [per_clip[rng.integers(len(per_clip), size=len(per_clip))].mean() for _ in range(draws)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(per_clip.mean()), float(low), float(high)


def accuracy_entry(result: Result, recipe: Recipe, data: str, split: str, metric: str = "accuracy int8 step") -> dict:
    """The figure as a bundle's manifest holds it (manifest.Accuracy)."""
    low, high = result.interval
    return {
        "metric": metric,
        "value": round(result.accuracy, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "confidence": 0.95,
        "data": data,
        "split": split,
        "clips": result.clips,
        "seeds": (recipe.train.seed,),
        "rule": f"peak, {asdict(recipe.decision)['window_frames']} frames",
        "runtime": runtime_name(),
    }


def load_folder(root: Path, labels: tuple[str, ...], clip_s: float, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """A folder per label of clips that are all for evaluation: (int16 [n, samples], class index [n])."""
    from models.data import Clip
    from toolkit.audio import list_audio
    from toolkit.errors import DataError

    clips = []
    for label in labels:
        if not (root / label).is_dir():
            raise DataError(f"the evaluation set {root} holds no clip of {label!r}; every label needs some.")
        clips += [Clip(path, label, path.stem, label) for path in list_audio(root / label)]
    return load_waves(clips, clip_s, rate), np.array([labels.index(c.label) for c in clips])
