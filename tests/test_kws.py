"""Keyword decisions against a reference that recounts everything from the start, and the rules in words."""

from __future__ import annotations

import math

import numpy as np
import pytest

from toolkit.kws import NOT_KEYWORDS, Keyword, KeywordDetector, clip_posteriors, mean_logits, posteriors, window_sums
from toolkit.manifest import Decision

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

LABELS = ("yes", "unknown", "no", "silence")
YES, UNKNOWN, NO, SILENCE = range(4)


def decision(window=4, flush=3, threshold=0.6, refractory=5, hold=1) -> Decision:
    return Decision(window, flush, threshold, refractory, "peak", hold)


def rows(*segments: tuple[int, int, int]) -> np.ndarray:
    """int8 [T, 4]: (label, frames, score) after each other; the other labels have 0."""
    out = np.zeros((sum(frames for _, frames, _ in segments), len(LABELS)), np.int8)
    start = 0
    for label, frames, score in segments:
        out[start : start + frames, label] = score
        start += frames
    return out


def detect(scores: np.ndarray, rule: Decision, scale: float = 1.0, labels=LABELS) -> list[tuple[str, int]]:
    return [(found.label, found.frame) for found in KeywordDetector(labels, rule, scale).process(scores)]


# --- against the reference ---


def reference(scores: np.ndarray, labels: tuple[str, ...], rule: Decision, scale: float) -> tuple[list[Keyword], float]:
    """(detections, how near any posterior came to the threshold), from the definition alone: no state is carried."""
    found: list[Keyword] = []
    leads, nearest, reported = [], 1.0, -1  # reported: the first frame of the run of which something was reported
    for t in range(len(scores)):
        window = scores[max(0, t + 1 - rule.window_frames) : t + 1]
        sums = [sum(int(row[i]) for row in window) for i in range(len(labels))]
        e = [math.exp((total - max(sums)) * scale / len(window)) for total in sums]
        p = math.fsum(v for v, label in zip(e, labels) if label not in NOT_KEYWORDS) / math.fsum(e)
        best = sums.index(max(sums))
        nearest = min(nearest, abs(p - rule.threshold))
        leads.append(best if labels[best] not in NOT_KEYWORDS and p >= rule.threshold else None)
        if leads[-1] is None or leads[-rule.hold_frames :] != [best] * rule.hold_frames:
            continue
        begin = max((s + 1 for s in range(t) if leads[s] != best), default=0)
        if begin == reported or (found and t < found[-1].frame + rule.refractory_frames):
            continue
        reported = begin
        found.append(Keyword(labels[best], p, t))
    return found, nearest


SEGMENTS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(-128, 127)), min_size=1, max_size=12)
SCORES = st.one_of(
    SEGMENTS.map(lambda segments: rows(*segments)),
    st.integers(0, 2**32).map(lambda seed: np.random.default_rng(seed).integers(-128, 128, (60, 4)).astype(np.int8)),
)
THRESHOLDS = st.sampled_from([0.0, 0.2, 0.35, 0.5, 0.61, 0.97, 1.0])
RULES = st.builds(decision, st.integers(1, 7), st.integers(0, 5), THRESHOLDS, st.integers(0, 9), st.integers(1, 4))


@hypothesis.settings(max_examples=400)
@hypothesis.given(SCORES, RULES, st.sampled_from([0.01, 0.05, 0.3]), st.permutations(LABELS),
                  st.lists(st.integers(0, 12), min_size=1, max_size=5).filter(any))
def test_any_split_gives_what_the_definition_says(scores, rule, scale, labels, lengths):
    expected, nearest = reference(scores, tuple(labels), rule, scale)
    hypothesis.assume(nearest > 2e-6)  # the detector's posteriors are rounded to 1e-6
    detector = KeywordDetector(tuple(labels), rule, scale)
    found, start = [], 0
    for length in lengths * len(scores):
        found += detector.process(scores[start : start + length])
        start += length
    assert [(k.label, k.frame) for k in found] == [(k.label, k.frame) for k in expected]
    assert [k.score for k in found] == pytest.approx([k.score for k in expected], abs=1e-6)
    detector.reset()
    assert detector.process(scores) == found


def test_the_reference_detects():
    """The comparison above is not one of empty lists."""
    found, _ = reference(rows((YES, 9, 90), (SILENCE, 9, 90), (YES, 9, 90), (NO, 9, 90)), LABELS, decision(), 0.3)
    assert [k.label for k in found] == ["yes", "yes", "no"]


# --- the rules in words ---


def test_a_word_that_goes_on_is_reported_once():
    assert detect(rows((YES, 200, 9)), decision()) == [("yes", 0)]


def test_the_same_word_again_after_it_was_below_the_threshold():
    spoken_twice = rows((YES, 6, 9), (SILENCE, 6, 9), (YES, 6, 9))
    assert [label for label, _ in detect(spoken_twice, decision(refractory=3))] == ["yes", "yes"]
    assert len(detect(spoken_twice, decision(refractory=100))) == 1


def test_a_dip_during_the_refractory_time_counts():
    """yes, then no for a moment while nothing is reported, then yes again: a second yes when the pause is over."""
    scores = rows((YES, 6, 9), (NO, 6, 9), (YES, 20, 9))
    assert detect(scores, decision(window=2, refractory=16)) == [("yes", 0), ("yes", 16)]


def test_doubt_between_two_keywords_is_no_doubt_that_there_is_one():
    """Each has less than half of the posterior, both together nearly all of it; the better one is reported."""
    scores = rows((SILENCE, 1, 9), (YES, 8, 60))
    scores[1:, NO] = 59
    found = KeywordDetector(LABELS, decision(window=1, threshold=0.95), 0.3).process(scores)
    assert [(k.label, k.frame) for k in found] == [("yes", 1)] and found[0].score > 0.99


def test_a_keyword_must_hold():
    """Three outputs of "no" on the way to "yes" are not reported once a keyword has to lead for four."""
    scores = rows((SILENCE, 5, 60), (NO, 3, 60), (YES, 8, 60))
    assert [label for label, _ in detect(scores, decision(window=1, refractory=0))] == ["no", "yes"]
    assert detect(scores, decision(window=1, refractory=0, hold=4)) == [("yes", 11)]


def test_nothing_at_all_is_reported_in_the_refractory_time():
    scores = rows((YES, 6, 9), (NO, 30, 9))
    frames = {refractory: detect(scores, decision(window=1, refractory=refractory)) for refractory in (0, 6, 7, 20)}
    assert frames == {0: [("yes", 0), ("no", 6)], 6: [("yes", 0), ("no", 6)], 7: [("yes", 0), ("no", 7)],
                      20: [("yes", 0), ("no", 20)]}


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_unknown_and_silence_are_never_reported(threshold):
    scores = rows((UNKNOWN, 50, 127), (SILENCE, 50, 127))
    assert detect(scores, decision(threshold=threshold)) == []


def test_the_threshold_is_reached_or_not():
    """Two labels with scores 1 apart: the posterior is 1 / (1 + exp(-1)) for ever."""
    labels, scores = ("yes", "silence"), np.array([[1, 0]] * 9, np.int8)
    p = round(1 / (1 + math.exp(-1)), 6)
    assert detect(scores, decision(window=1, threshold=p), labels=labels) == [("yes", 0)]
    assert detect(scores, decision(window=1, threshold=p + 1e-6), labels=labels) == []


def test_another_threshold_replaces_that_of_the_bundle():
    scores = rows((YES, 9, 1))
    assert KeywordDetector(LABELS, decision(threshold=0.9), 1.0).process(scores) == []
    found = KeywordDetector(LABELS, decision(threshold=0.9), 1.0, threshold=0.4).process(scores)
    assert [k.label for k in found] == ["yes"] and 0.4 <= found[0].score < 0.9
    assert KeywordDetector(LABELS, decision(threshold=0.9), 1.0, threshold=0.0).process(scores)[0].frame == 0


# --- sums and posteriors ---


@hypothesis.given(st.integers(1, 12), st.integers(0, 40), st.integers(0, 2**32))
def test_window_sums(window, n, seed):
    scores = np.random.default_rng(seed).integers(-128, 128, (n, 3)).astype(np.int8)
    expected = [scores[max(0, t + 1 - window) : t + 1].sum(axis=0) for t in range(n)]
    sums = window_sums(scores, window)
    assert sums.dtype == np.int32 and sums.shape == (n, 3)
    assert np.array_equal(sums, np.reshape(expected, (-1, 3)))


def test_window_sums_are_exact_where_the_running_total_wraps():
    scores = np.full((10, 1), 2**30, np.int32)
    assert window_sums(scores, 1).ravel().tolist() == [2**30] * 10


def test_posteriors_are_probabilities_and_know_no_zero_point():
    scores = np.random.default_rng(2).integers(-120, 120, (50, 10)).astype(np.int8)
    p = posteriors(mean_logits(scores, 0.33, 5))
    assert p.shape == scores.shape and np.abs(p.sum(axis=1) - 1).max() < 1e-5 and p.min() >= 0
    assert np.array_equal(p.argmax(axis=1), window_sums(scores, 5).argmax(axis=1))
    assert np.allclose(posteriors(mean_logits(scores + 7, 0.33, 5)), p, rtol=0, atol=2e-6)
    assert np.array_equal(np.round(p, 6), p)
    assert posteriors(scores[0] * 1e6).tolist() == (np.arange(10) == scores[0].argmax()).tolist()  # no overflow


def test_near_the_start_the_mean_is_of_what_was_heard():
    """One score of 9 is as good as a window of them: silence before the start would halve it at least."""
    assert np.array_equal(mean_logits(rows((YES, 9, 9)), 0.5, 4), rows((YES, 9, 9)) * 0.5)
    found = KeywordDetector(LABELS, decision(window=100, threshold=0.9), 0.5).process(rows((YES, 2, 9)))
    assert [k.frame for k in found] == [0] and found[0].score > 0.97


# --- clips ---

IS_KEYWORD = np.array([label not in NOT_KEYWORDS for label in LABELS])


def clip_reference(scores: np.ndarray, rule: Decision, scale: float) -> np.ndarray:
    candidates = []
    for end in range(1, len(scores) + 1):
        if end >= min(rule.window_frames + rule.flush_frames, len(scores)):
            heard = scores[max(0, end - rule.window_frames) : end]
            candidates.append(posteriors(heard.sum(axis=0, dtype=int) * (scale / len(heard))))
    return max(candidates, key=lambda p: p[IS_KEYWORD].max())


@hypothesis.given(SCORES, RULES, st.sampled_from([0.01, 0.05, 0.3]))
def test_clip_rule(scores, rule, scale):
    assert np.array_equal(clip_posteriors(scores, scale, rule, IS_KEYWORD), clip_reference(scores, rule, scale))


def test_a_short_clip_is_decided_by_the_last_window_and_a_long_one_by_its_best():
    rule = decision(window=5, flush=3)
    word_then_silence = [(YES, 4, 9), (SILENCE, 4, 9)]
    assert clip_posteriors(rows(*word_then_silence), 1.0, rule, IS_KEYWORD).argmax() == SILENCE  # 8 = window + flush
    longer = clip_posteriors(rows((SILENCE, 6, 9), *word_then_silence, (SILENCE, 9, 9)), 1.0, rule, IS_KEYWORD)
    assert longer.argmax() == YES
    assert clip_posteriors(rows((UNKNOWN, 3, 9)), 1.0, rule, IS_KEYWORD).argmax() == UNKNOWN  # shorter than a window
    assert clip_posteriors(rows((SILENCE, 30, 9)), 1.0, rule, IS_KEYWORD).argmax() == SILENCE
