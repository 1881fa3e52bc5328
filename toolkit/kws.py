"""Keyword spotting: per-frame int8 scores -> detections of a stream, or one label per clip.

Scores (logits) of the last `window_frames` model outputs are summed in int32 outside the graph; frames before the
start count as nothing. The posterior is softmax(sum * scale / window_frames), rounded to 1e-6 so that the last bit of
a platform's exp cannot flip a threshold.

A stream reports a keyword when it has been the best label, with a posterior of at least `threshold`, for `hold_frames`
outputs in a row; then nothing for `refractory_frames`, and the same keyword again only after it has fallen below the
threshold.
A clip (rule "peak") is decided after the flush: of the windows that end at least window_frames + flush_frames after
its start (for a clip no longer than the window: the last one), the one in which a keyword stands out most; the label is
the best one there.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from .manifest import Decision

NOT_KEYWORDS = ("unknown", "silence")


def window_sums(scores: np.ndarray, window_frames: int) -> np.ndarray:
    """Sums over the window that ends at each frame: integers [T, n] -> int32 [T, n]."""
    total = np.cumsum(scores, axis=0, dtype=np.int32)
    total[window_frames:] -= total[:-window_frames].copy()
    return total


def posteriors(sums: np.ndarray, scale: float, window_frames: int) -> np.ndarray:
    """softmax of the mean logits, float64 [..., n]. The zero point of the scores cancels."""
    logits = sums * (scale / window_frames)
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.round(e / e.sum(axis=-1, keepdims=True), 6)


def clip_posteriors(scores: np.ndarray, scale: float, decision: Decision, is_keyword: np.ndarray) -> np.ndarray:
    """The posteriors float64 [n] that decide a clip, from its scores [T, n], flush included; is_keyword bool [n]."""
    first = min(decision.window_frames + decision.flush_frames, len(scores))
    sums = window_sums(scores, decision.window_frames)[first - 1 :]
    candidates = posteriors(sums, scale, decision.window_frames)
    return candidates[np.argmax(candidates[:, is_keyword].max(axis=1))]


@dataclass(frozen=True)
class Keyword:
    """A keyword that was detected; frame is the index of the model output that decided."""

    label: str
    score: float
    frame: int


class KeywordDetector:
    """Posterior smoothing, threshold and refractory time over a stream of scores.

    labels: of the scores; "unknown" and "silence" are never reported. scale: of the scores' int8.
    """

    def __init__(self, labels: tuple[str, ...], decision: Decision, scale: float, threshold: float | None = None):
        self._labels = labels
        self._keyword = [label not in NOT_KEYWORDS for label in labels]
        self._decision, self._factor = decision, scale / decision.window_frames
        self._threshold = decision.threshold if threshold is None else threshold
        self.reset()

    def reset(self) -> None:
        """As at the start of a stream."""
        nothing = [0] * len(self._labels)
        self._sums, self._window = nothing, deque([nothing] * self._decision.window_frames)
        self._frame = 0
        self._quiet_until = 0  # the first frame at which the next detection may come
        self._held: int | None = None  # the label that was reported and has not yet been below the threshold
        self._leader, self._led = -1, 0  # the best keyword over the threshold, and for how many frames it has been

    def process(self, scores: np.ndarray) -> list[Keyword]:
        """int8 scores [m, n] -> the keywords detected in them, in order."""
        found = []
        for row in scores.tolist():  # lists, because m and n are small: numpy takes four times as long
            oldest = self._window.popleft()
            self._window.append(row)
            self._sums = sums = [total + new - old for total, new, old in zip(self._sums, row, oldest)]
            best = sums.index(max(sums))
            if self._keyword[best] or self._held is not None:  # else spare the exponentials
                found += self._decide(best)
            else:
                self._lead(-1)
            self._frame += 1
        return found

    def _decide(self, best: int) -> list[Keyword]:
        """What is reported of the frame whose best label this is: one keyword or none."""
        top = self._sums[best] * self._factor
        e = [math.exp(total * self._factor - top) for total in self._sums]
        whole = sum(e)  # posterior of label i, as from `posteriors`: round(e[i] / whole, 6)
        if self._held is not None and round(e[self._held] / whole, 6) < self._threshold:
            self._held = None
        score = round(e[best] / whole, 6)
        self._lead(best if self._keyword[best] and score >= self._threshold else -1)
        if self._led < self._decision.hold_frames or best == self._held or self._frame < self._quiet_until:
            return []
        self._quiet_until, self._held = self._frame + self._decision.refractory_frames, best
        return [Keyword(self._labels[best], score, self._frame)]

    def _lead(self, label: int) -> None:
        self._led = 0 if label < 0 else self._led + 1 if label == self._leader else 1
        self._leader = label
