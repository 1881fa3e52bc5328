"""Detection-error trade-off: misses of keywords against false accepts per hour, over the detector's threshold.

Scores of long audio (models/streams.py) are kept, and the detector is replayed over them (models/replay.py). Counts:

found            the keyword is reported between its onset and LATE_S after the end of its clip
confused         not found, but another keyword is reported in that time: a false reject, and counted apart
extra            any other report in a scene of words: a second one, or between words
false rejects    keywords not found, of all keywords; Wilson's interval (1927), 95 %
false accepts    reports in recordings without keywords, and the hours of audio that were processed. Of their rate
                 per hour the exact Poisson interval (Garwood 1936), two-sided 95 %, and the one-sided upper 95 % bound,
                 which is what a target is compared with: no event in 6 h is at most 0.499 per hour

A rate is stated only if the hours can carry it. The bound of no event at all in h hours is 3 / h ("rule of three"), so
that fewer than 3 / target hours cannot show a target: then the rate is None, and the count and the hours remain.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import chi2

from models.replay import Peaks, Report, Rule, detections, find_peaks
from models.streams import Event, Scored
from toolkit.manifest import Decision

LATE_S = 0.7  # after the end of a clip until which its report counts
Z95 = 1.959964
LOGITS = (-2.0, 9.0)  # of the thresholds of a sweep: from 0.119 to 0.9999
THRESHOLDS = tuple(np.round(1 / (1 + np.exp(-np.linspace(*LOGITS, 61))), 6).tolist())
TABLE_ROWS = 20


@dataclass(frozen=True)
class Words:
    """The fate of the keywords of a scene."""

    keywords: int
    found: int
    confused: int
    extra: int

    @property
    def false_rejects(self) -> int:
        return self.keywords - self.found

    def to_dict(self) -> dict:
        low, high = wilson(self.false_rejects, self.keywords)
        return {
            "keywords": self.keywords,
            "false_rejects": self.false_rejects,
            "confused": self.confused,
            "extra": self.extra,
            "false_reject_rate": round(self.false_rejects / self.keywords, 4),
            "false_reject_rate_low": round(low, 4),
            "false_reject_rate_high": round(high, 4),
        }


@dataclass(frozen=True)
class FalseAccepts:
    """Reports in audio without keywords, and its hours."""

    events: int
    hours: float

    @property
    def upper(self) -> float:
        """One-sided 95 % bound of the rate per hour."""
        return poisson_upper(self.events) / self.hours if self.hours else np.inf

    def to_dict(self, target: float) -> dict:
        """Count and hours; the rates only if the hours can carry the target per hour, else None."""
        rates = (None,) * 4
        if self.hours >= hours_needed(target):
            rates = (self.events, *poisson_interval(self.events), poisson_upper(self.events))
            rates = tuple(round(value / self.hours, 4) for value in rates)
        names = ("", "_low", "_high", "_upper")
        return {
            "false_accepts": self.events,
            "hours": round(self.hours, 4),
            **{f"false_accepts_per_hour{name}": rate for name, rate in zip(names, rates)},
        }


@dataclass(frozen=True)
class Point:
    """One threshold of a curve."""

    threshold: float
    words: Words
    accepts: FalseAccepts

    def to_dict(self, target: float) -> dict:
        return {"threshold": self.threshold, **self.words.to_dict(), **self.accepts.to_dict(target)}


def count_words(reports: Sequence[Report], events: Sequence[Event]) -> Words:
    """Reports in order of time against the keywords of a scene, whose times must not overlap."""
    times, found, confused = [report.time for report in reports], 0, 0
    for event in events:
        heard = reports[bisect_left(times, event.onset) : bisect_right(times, event.offset + LATE_S)]
        heard = [report.label for report in heard]
        found += event.label in heard
        confused += bool(heard) and event.label not in heard
    return Words(len(events), found, confused, len(reports) - found - confused)


def wilson(hits: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Interval of a proportion (Wilson 1927)."""
    p, d = hits / n, 1 + z * z / n
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / d
    middle = (p + z * z / (2 * n)) / d
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))


def poisson_interval(events: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval of the mean of a Poisson count (Garwood 1936)."""
    tail = (1 - confidence) / 2
    low = chi2.ppf(tail, 2 * events) / 2 if events else 0.0
    return float(low), float(chi2.ppf(1 - tail, 2 * events + 2) / 2)


def poisson_upper(events: int, confidence: float = 0.95) -> float:
    """Exact one-sided upper bound of the mean of a Poisson count: 2.996 of none."""
    return float(chi2.ppf(confidence, 2 * events + 2) / 2)


def hours_needed(target_fa_per_hour: float) -> float:
    """Hours without keywords that can show a rate per hour at all: no event in them bounds it by the target."""
    return 3 / target_fa_per_hour


def curves(
    rule: Rule, scenes: Sequence[Scored], negatives: Sequence[Scored], thresholds: Sequence[float] = THRESHOLDS
) -> list[list[Point]]:
    """One curve for each scene, ascending by threshold; all share the false accepts in the negatives."""
    return _curves(rule, _peaks_of(rule, scenes, negatives, min(thresholds)), thresholds)


def operating_threshold(points: Sequence[Point], target_fa_per_hour: float) -> float | None:
    """The smallest threshold from which on the upper bound of the false accepts per hour keeps within the target.

    None where there is none, or where the hours cannot carry the target.
    """
    chosen = None
    for point in sorted(points, key=lambda point: -point.threshold):
        if point.accepts.hours < hours_needed(target_fa_per_hour) or point.accepts.upper > target_fa_per_hour:
            break
        chosen = point.threshold
    return chosen


def point_at(points: Sequence[Point], threshold: float) -> Point:
    """The point of a curve at a threshold that is one of its own."""
    return next(point for point in points if point.threshold == threshold)


def choose_decision(
    rule: Rule,
    scenes: Sequence[Scored],
    negatives: Sequence[Scored],
    candidates: Iterable[tuple[int, int]],
    target_fa_per_hour: float,
    thresholds: Sequence[float] = THRESHOLDS,
) -> tuple[Decision, list[Point]] | None:
    """Of the candidates (stream_window_frames, hold_frames) the one that misses fewest keywords of all scenes.

    Each at its own operating threshold for the target; of equal ones that with fewer false accepts, then fewer
    confused, then the first. To be called with scores of `tune`. Returns the rule's decision with window, hold and
    threshold replaced, and its point in each scene; None where no candidate keeps the target.
    """
    best, candidates = None, list(candidates)
    for window in dict.fromkeys(window for window, _ in candidates):
        rule = _with(rule, stream_window_frames=window)
        peaks = _peaks_of(rule, scenes, negatives, min(thresholds))
        for hold in (hold for other, hold in candidates if other == window):
            rule = _with(rule, hold_frames=hold)
            found = _curves(rule, peaks, thresholds)
            threshold = operating_threshold(found[0], target_fa_per_hour)
            if threshold is None:
                continue
            points = [point_at(curve, threshold) for curve in found]
            if best is None or rank_of(points) < rank_of(best[1]):
                best = _with(rule, threshold=threshold).decision, points
    return best


def rank_of(points: Sequence[Point]) -> tuple[int, int, int]:
    """By which choices are compared, less is better: words missed in all scenes, false accepts, words confused."""
    missed, confused = (sum(getattr(p.words, n) for p in points) for n in ("false_rejects", "confused"))
    return missed, points[0].accepts.events, confused


def false_accepts(rule: Rule, negatives: Sequence[Scored], threshold: float) -> Iterator[tuple[Scored, Report]]:
    """Each report in recordings without keywords."""
    for recording in negatives:
        for report in detections(find_peaks(recording.scores, rule, threshold), rule, threshold):
            yield recording, report


def table(points: Sequence[Point], target_fa_per_hour: float, marked: float | None = None) -> str:
    """Points as lines for a person, with intervals; a star at the threshold `marked`, a dash for a refused rate."""
    end = next((i + 1 for i, point in enumerate(points) if not point.words.found), len(points))
    step = -(-end // TABLE_ROWS)
    rows = [p for i, p in enumerate(points) if i < end and i % step == 0 or p.threshold == marked]
    lines = [
        f"{'threshold':>11}  {'missed':>6} {'of':>5} {'':6} {'95 %':^14}  {'confused':>8} {'extra':>5}  "
        f"{'false accepts':>13} {'hours':>7} {'per hour':>9}  95 % and upper bound"
    ]
    for point in rows:
        d = point.to_dict(target_fa_per_hour)
        missed = f"{d['false_rejects']:6d} {d['keywords']:5d} {d['false_reject_rate']:6.1%}"
        missed += f" {d['false_reject_rate_low']:6.1%} - {d['false_reject_rate_high']:5.1%}"
        rates = [d[f"false_accepts_per_hour{name}"] for name in ("", "_low", "_high", "_upper")]
        rate = "{:9.3f}  {:.3f} - {:.3f}, < {:.3f}".format(*rates) if rates[0] is not None else f"{'-':>9}"
        lines.append(
            f"{'*' if point.threshold == marked else ' '}{point.threshold:10.6f}  {missed}  {d['confused']:8d} "
            f"{d['extra']:5d}  {d['false_accepts']:13d} {d['hours']:7.2f} {rate}"
        )
    return "\n".join(lines)


_Peaks = tuple[list[tuple[Peaks, tuple[Event, ...]]], list[Peaks], float]  # of scenes, of negatives, their hours


def _peaks_of(rule: Rule, scenes: Sequence[Scored], negatives: Sequence[Scored], floor: float) -> _Peaks:
    of_scenes = [(find_peaks(scene.scores, rule, floor), scene.events) for scene in scenes]
    hours = sum(recording.seconds for recording in negatives) / 3600
    return of_scenes, [find_peaks(recording.scores, rule, floor) for recording in negatives], hours


def _curves(rule: Rule, peaks: _Peaks, thresholds: Sequence[float]) -> list[list[Point]]:
    scenes, negatives, hours = peaks
    thresholds = sorted(thresholds)
    accepts = [
        FalseAccepts(sum(len(detections(recording, rule, threshold)) for recording in negatives), hours)
        for threshold in thresholds
    ]
    return [
        [
            Point(threshold, count_words(detections(found, rule, threshold), events), false)
            for threshold, false in zip(thresholds, accepts)
        ]
        for found, events in scenes
    ]


def _with(rule: Rule, **decision) -> Rule:
    return replace(rule, decision=replace(rule.decision, **decision))
