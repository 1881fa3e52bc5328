"""Accuracy as it is published: with data set, split, clip count, decision rule, runtime and interval."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from models.data import Dataset
from models.det import (
    THRESHOLDS,
    FalseAccepts,
    Point,
    count_words,
    curves,
    false_accepts,
    hours_needed,
    operating_threshold,
    point_at,
    wilson,
)
from models.recipe import Recipe
from models.replay import Report, Rule, detections, find_peaks, rule_of
from models.streams import Scored, Scorer, check_transcripts, unheard, word_scene
from models.waves import load_waves
from toolkit.bundle import Bundle
from toolkit.errors import DataError, UsageError
from toolkit.interpreter import runtime_name
from toolkit.kws import NOT_KEYWORDS
from toolkit.stream import Pipeline


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
    """The words of a split in two clean streams without a reset, keywords and other words, at one threshold.

    Counted as in models/det.py; false accepts are all reports that are not the right keyword in its time. Compared with
    the same keyword clips classified one by one.
    """
    threshold = bundle.manifest.decision.threshold if threshold is None else threshold
    scores = score_streams(bundle, dataset, split, seed=seed)
    (keywords,), (others,) = scores.keywords, scores.other_words
    words, mistaken = (count_words(_reports(scores.rule, s, threshold), s.events) for s in (keywords, others))
    clips = [clip for clip in dataset.clips(split) if clip.label not in NOT_KEYWORDS]
    pipeline = Pipeline([bundle])
    waves = load_waves(clips, dataset.settings.clip_s, pipeline.sample_rate_hz)
    return {
        "split": split,
        "keywords": words.keywords,
        "found_in_stream": words.found,
        "found_as_clips": sum(next(iter(pipeline.classify(w)[0])) == c.label for w, c in zip(waves, clips)),
        "other_words": mistaken.keywords,
        "false_accepts": words.confused + words.extra + mistaken.confused + mistaken.extra,
        "hours": round((keywords.seconds + others.seconds) / 3600, 3),
        "threshold": threshold,
    }


@dataclass(frozen=True)
class StreamScores:
    """A bundle's scores of the streams of one split; the scenes are one for each of the backgrounds snrs_db."""

    rule: Rule
    split: str
    snrs_db: tuple[float | None, ...]
    keywords: tuple[Scored, ...]
    other_words: tuple[Scored, ...]
    folders: dict[str, tuple[Scored, ...]]  # of recordings without keywords

    @property
    def negatives(self) -> list[Scored]:
        """The recordings of all folders."""
        return [scored for folder in self.folders.values() for scored in folder]


def score_streams(
    bundle: Bundle,
    dataset: Dataset,
    split: str,
    negatives: Sequence[Path] = (),
    noise: Sequence[Path] = (),
    snrs_db: Sequence[float | None] = (None,),
    seed: int = 1,
    say: Callable[[str], None] = lambda text: None,
) -> StreamScores:
    """Hear the words of a split over background at each of snrs_db (None: clean), and all recordings of `negatives`.

    noise: folders of more background recordings. Raises DataError for what training has heard, for a transcript that
    holds a keyword, and for a bundle of other words than the data set.
    """
    if bundle.manifest.labels != dataset.labels:
        raise DataError(
            f"{bundle.path} knows the labels {', '.join(bundle.manifest.labels)} and the recipe names "
            f"{', '.join(dataset.labels)}; name the recipe of the bundle"
        )
    check_transcripts(negatives, dataset.settings.words)
    recordings = {str(folder): unheard([folder], dataset) for folder in negatives}
    backgrounds = unheard(noise, dataset)
    scorer = Scorer(bundle)
    rate = scorer.sample_rate_hz
    heard = {folder: scorer.recordings(paths, say) for folder, paths in recordings.items()}
    keywords, others = (
        tuple(scorer.scene(word_scene(dataset, split, rate, kind, snr, backgrounds, seed)) for snr in snrs_db)
        for kind in (True, False)
    )
    return StreamScores(rule_of(scorer.stage), split, tuple(snrs_db), keywords, others, heard)


def choose_threshold(
    scores: StreamScores, target_fa_per_hour: float, given: float | None = None
) -> tuple[list[list[Point]], float, str]:
    """(curves of all scenes, the threshold to state, why that one, in a sentence).

    On `tune` the operating threshold for the target, if there is one; elsewhere, where a threshold may only be stated
    and not chosen, that of the bundle; `given` replaces both. Raises UsageError.
    """
    if target_fa_per_hour <= 0 or not 0 <= (given or 0) <= 1:
        raise UsageError(
            f"the target is {target_fa_per_hour} false accepts per hour and the threshold {given}; expected more than "
            "0, and 0 to 1"
        )
    threshold = scores.rule.decision.threshold if given is None else given
    found = curves(scores.rule, scores.keywords, scores.negatives, sorted({*THRESHOLDS, threshold}))
    hours, needed = found[0][0].accepts.hours, hours_needed(target_fa_per_hour)
    short = (
        f"{hours:.2f} h without keywords cannot show {target_fa_per_hour:g} false accepts per hour, for which "
        f"{needed:.2f} h are needed; "
    )
    why = (short if hours < needed else "") + ("the threshold of the bundle" if given is None else "as given")
    if given is None and scores.split == "tune" and hours >= needed:
        chosen = operating_threshold(found[0], target_fa_per_hour)
        why = "chosen on tune" if chosen else "no threshold keeps the target on tune; the threshold of the bundle"
        threshold = chosen or threshold
    return found, threshold, why


def stream_lines(scores: StreamScores, found: list[list[Point]], threshold: float, target: float) -> Iterator[dict]:
    """The curves point by point, then all that is reported at one threshold of theirs, for JSON."""
    for snr_db, points in zip(scores.snrs_db, found):
        for point in points:
            yield {"point": {"snr_db": snr_db, **point.to_dict(target)}}
    for snr_db, points, others in zip(scores.snrs_db, found, scores.other_words):
        where = {"split": scores.split, "snr_db": snr_db}
        yield {"operating_point": {**where, **point_at(points, threshold).to_dict(target)}}
        yield {"other_words": {**where, "threshold": threshold, **other_words(scores.rule, others, threshold)}}
    for folder, heard in scores.folders.items():
        reports = list(false_accepts(scores.rule, heard, threshold))
        total = FalseAccepts(len(reports), sum(recording.seconds for recording in heard) / 3600)
        yield {"negatives": {"folder": folder, "recordings": len(heard), **total.to_dict(target)}}
        for recording, report in reports:
            where = {"file": recording.name, "time": round(report.time, 3)}
            yield {"false_accept": {**where, "label": report.label, "score": round(report.score, 4)}}


def other_words(rule: Rule, scene: Scored, threshold: float) -> dict:
    """False accepts of a scene of single words that are no keywords, and how many of 100 words are mistaken."""
    fate = count_words(_reports(rule, scene, threshold), scene.events)
    low, high = wilson(fate.confused, fate.keywords)
    return {
        "words": fate.keywords,
        "false_accepts": fate.confused + fate.extra,
        "mistaken": fate.confused,
        "mistaken_per_100": round(100 * fate.confused / fate.keywords, 2),
        "mistaken_per_100_low": round(100 * low, 2),
        "mistaken_per_100_high": round(100 * high, 2),
    }


def _reports(rule: Rule, scene: Scored, threshold: float) -> list[Report]:
    return detections(find_peaks(scene.scores, rule, threshold), rule, threshold)


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
