"""toolkit.kws.KeywordDetector again, exactly and for many thresholds, over scores that are kept.

Posteriors are computed at once for all frames; then only those frames are looked at in which some keyword comes near
a threshold. Scores are of one recording, from the reset state.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toolkit.errors import UsageError
from toolkit.kws import NOT_KEYWORDS, keyword_posteriors, mean_logits
from toolkit.manifest import Decision
from toolkit.stream import BundleStage


@dataclass(frozen=True)
class Rule:
    """How a bundle's scores become reports, and when: output k is decided at `first_s` + k * `step_s` seconds."""

    labels: tuple[str, ...]
    decision: Decision
    scale: float
    first_s: float
    step_s: float


@dataclass(frozen=True)
class Peaks:
    """The frames in which the posterior of all keywords reaches `floor`: in no other can a keyword lead."""

    floor: float
    frames: np.ndarray  # int[k], ascending
    best: np.ndarray  # int[k], the best label, -1 where it is no keyword
    scores: np.ndarray  # float64[k], the posterior that any keyword was said


@dataclass(frozen=True)
class Report:
    """A keyword that the detector reports: `time` in seconds as in toolkit.stream.Detection."""

    label: str
    score: float
    frame: int
    time: float


def rule_of(stage: BundleStage) -> Rule:
    """The rule in a bundle's manifest."""
    t, manifest = stage.tables, stage.manifest
    first_s = ((stage.stride - 1) * t.hop_length + t.win_length) / t.sample_rate_hz
    step_s = stage.stride * t.hop_length / t.sample_rate_hz
    return Rule(manifest.labels, manifest.decision, stage.model.output.scale, first_s, step_s)


def find_peaks(scores: np.ndarray, rule: Rule, floor: float) -> Peaks:
    """What `detections` needs of scores int8[T, labels] for any threshold from `floor` on."""
    is_keyword = np.array([label not in NOT_KEYWORDS for label in rule.labels])
    logits = mean_logits(scores, rule.scale, rule.decision.stream_window)
    p = keyword_posteriors(logits, is_keyword)
    frames = np.flatnonzero(p >= floor)
    best = logits[frames].argmax(axis=1)
    return Peaks(floor, frames, np.where(is_keyword[best], best, -1), p[frames])


def detections(peaks: Peaks, rule: Rule, threshold: float) -> list[Report]:
    """What KeywordDetector reports of the scores, with their first frame as the first of the stream."""
    if threshold < peaks.floor:
        raise UsageError(f"the threshold {threshold} is below the floor of the peaks, {peaks.floor}; find them anew")
    frames, hold = peaks.frames, rule.decision.hold_frames
    leader = np.where(peaks.scores >= threshold, peaks.best, -1)
    begins = np.flatnonzero(np.diff(leader, prepend=-2) | (np.diff(frames, prepend=-1) != 1))  # of runs of one leader
    ends = np.append(begins[1:], len(frames))
    held_long = (leader[begins] >= 0) & (ends - begins >= hold)
    found: list[Report] = []
    quiet_until = 0
    for begin, end in zip(begins[held_long], ends[held_long]):  # in a run at most one report
        frame = max(int(frames[begin]) + hold - 1, quiet_until)
        if frame > frames[end - 1]:
            continue
        quiet_until = frame + rule.decision.refractory_frames
        score = float(peaks.scores[begin + frame - int(frames[begin])])
        found.append(Report(rule.labels[leader[begin]], score, frame, rule.first_s + frame * rule.step_s))
    return found
