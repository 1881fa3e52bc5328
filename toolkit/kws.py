"""Keyword spotting: per-frame int8 scores -> detections of a stream, or one label per clip.

Scores (logits) of the last model outputs, `window_frames` of a clip or `stream_window` of a stream, are summed in int32
outside the graph; near the start, of as many as there are. The posterior is softmax(sum * scale / number of outputs
summed), rounded to 1e-6 so that the last bit of a platform's exp cannot flip a threshold.

In a stream a keyword leads while it is the best label and the posterior that any keyword was said, the sum of theirs,
is at least `threshold`. It is reported when it has led for `hold_frames` outputs in a row, once for as long as it
leads; then nothing is for `refractory_frames`. The sum, because doubt between two keywords is no doubt that there is
one: at equal false accepts fewer are missed than with the best label's own posterior, above all in noise.
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


def mean_logits(scores: np.ndarray, scale: float, window_frames: int) -> np.ndarray:
    """float64 [T, n] over the window that ends at each frame, or what there is of it. `scale` is that of the scores."""
    heard = np.minimum(np.arange(1, len(scores) + 1), window_frames)
    return window_sums(scores, window_frames) * (scale / heard)[:, None]


def posteriors(logits: np.ndarray) -> np.ndarray:
    """softmax of mean logits, float64 [..., n]. The zero point of the scores cancels."""
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.round(e / e.sum(axis=-1, keepdims=True), 6)


def keyword_posteriors(logits: np.ndarray, is_keyword: np.ndarray) -> np.ndarray:
    """The posterior that any keyword was said, float64 [T], of mean logits [T, n]; is_keyword bool [n]. As the
    detector's."""
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.round(e[:, is_keyword].sum(axis=1) / e.sum(axis=1), 6)


def clip_posteriors(scores: np.ndarray, scale: float, decision: Decision, is_keyword: np.ndarray) -> np.ndarray:
    """The posteriors float64 [n] that decide a clip, from its scores [T, n], flush included; is_keyword bool [n]."""
    first = min(decision.window_frames + decision.flush_frames, len(scores))
    candidates = posteriors(mean_logits(scores, scale, decision.window_frames)[first - 1 :])
    return candidates[np.argmax(candidates[:, is_keyword].max(axis=1))]


@dataclass(frozen=True)
class Keyword:
    """A keyword that was detected; score: the posterior that any was said; frame: of the model output that decided."""

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
        self._decision, self._scale, self._window_frames = decision, scale, decision.stream_window
        self._threshold = decision.threshold if threshold is None else threshold
        self.reset()

    def reset(self) -> None:
        """As at the start of a stream."""
        nothing = [0] * len(self._labels)
        self._sums, self._window = nothing, deque([nothing] * self._window_frames)
        self._frame = 0
        self._quiet_until = 0  # the first frame at which the next detection may come
        self._leader, self._led = -1, 0  # the keyword that leads, and for how many frames it has
        self._is_reported = False  # since it leads

    def process(self, scores: np.ndarray) -> list[Keyword]:
        """int8 scores [m, n] -> the keywords detected in them, in order."""
        found = []
        for row in scores.tolist():  # lists, because m and n are small: numpy takes four times as long
            oldest = self._window.popleft()
            self._window.append(row)
            self._sums = sums = [total + new - old for total, new, old in zip(self._sums, row, oldest)]
            best = sums.index(max(sums))
            if self._keyword[best]:  # else spare the exponentials
                found += self._decide(best)
            else:
                self._lead(-1)
            self._frame += 1
        return found

    def _decide(self, best: int) -> list[Keyword]:
        """What is reported of the frame whose best label is this keyword: it or nothing."""
        factor = self._scale / min(self._frame + 1, self._window_frames)
        top = self._sums[best] * factor
        e = [math.exp(total * factor - top) for total in self._sums]
        score = round(sum(value for value, is_keyword in zip(e, self._keyword) if is_keyword) / sum(e), 6)
        self._lead(best if score >= self._threshold else -1)
        if self._is_reported or self._led < self._decision.hold_frames or self._frame < self._quiet_until:
            return []
        self._quiet_until, self._is_reported = self._frame + self._decision.refractory_frames, True
        return [Keyword(self._labels[best], score, self._frame)]

    def _lead(self, label: int) -> None:
        if label != self._leader:
            self._leader, self._led, self._is_reported = label, 0, False
        self._led += label >= 0
