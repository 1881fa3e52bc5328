"""Detection-error trade-off: the replay is the detector, counts are as defined, and there is no rate without hours."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("scipy", reason="scipy is not installed (requirements-host.txt)")

from released import released, scene, spoken_keywords

from models.charts import draw_det
from models.det import (
    THRESHOLDS,
    FalseAccepts,
    Point,
    Words,
    choose_decision,
    count_words,
    curves,
    false_accepts,
    hours_needed,
    operating_threshold,
    poisson_interval,
    poisson_upper,
    table,
)
from models.mlperf import Score, score
from models.replay import Report, Rule, detections, find_peaks, rule_of
from models.streams import Event, Scored, Scorer
from toolkit.errors import UsageError
from toolkit.kws import KeywordDetector
from toolkit.manifest import Decision

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

LABELS = ("yes", "unknown", "no", "silence")
YES, UNKNOWN, NO, SILENCE = range(4)


def rule_with(window=4, hold=1, refractory=5, threshold=0.6, scale=1.0, labels=LABELS) -> Rule:
    return Rule(labels, Decision(window, 3, threshold, refractory, "peak", hold), scale, first_s=0.04, step_s=0.02)


def rows(*segments: tuple[int, int, int]) -> np.ndarray:
    """int8 [T, 4]: (label, frames, score) after each other; the other labels have 0."""
    parts = []
    for label, frames, value in segments:
        part = np.zeros((frames, len(LABELS)), np.int8)
        part[:, label] = value
        parts.append(part)
    return np.concatenate(parts)


def by_detector(scores: np.ndarray, rule: Rule, threshold: float) -> list[tuple[str, float, int]]:
    found = KeywordDetector(rule.labels, rule.decision, rule.scale, threshold).process(scores)
    return [(keyword.label, keyword.score, keyword.frame) for keyword in found]


def by_replay(scores: np.ndarray, rule: Rule, threshold: float, floor: float) -> list[tuple[str, float, int]]:
    found = detections(find_peaks(scores, rule, floor), rule, threshold)
    return [(report.label, report.score, report.frame) for report in found]


# --- the replay ---

SEGMENTS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(-128, 127)), min_size=1, max_size=14)
SCORES = st.one_of(
    SEGMENTS.map(lambda segments: rows(*segments)),
    st.integers(0, 2**32).map(lambda seed: np.random.default_rng(seed).integers(-128, 128, (60, 4)).astype(np.int8)),
)
RULES = st.builds(rule_with, st.integers(1, 7), st.integers(1, 5), st.integers(0, 12),
                  scale=st.sampled_from([0.01, 0.05, 0.3]), labels=st.permutations(LABELS).map(tuple))


@hypothesis.settings(max_examples=200)
@hypothesis.given(SCORES, RULES, st.sampled_from([0.0, 0.1, 0.3]))
def test_the_replay_reports_what_the_detector_reports(scores, rule, floor):
    for threshold in (0.3, 0.35, 0.5, 0.61, 0.97, 1.0):
        assert by_replay(scores, rule, threshold, floor) == by_detector(scores, rule, threshold)


@pytest.mark.parametrize("seed", range(5))
def test_a_bundle_of_one_word(seed):
    rule = rule_with(3, 2, 4, scale=0.05, labels=("computer", "unknown", "silence"))
    scores = np.random.default_rng(seed).integers(-128, 128, (400, 3)).astype(np.int8)
    for threshold in (0.4, 0.6, 0.8):
        found = by_detector(scores, rule, threshold)
        assert by_replay(scores, rule, threshold, 0.4) == found != []


def test_the_replay_of_real_scores():
    """The sample scene, and then its beginning again, far too loud."""
    scorer = Scorer(released())
    rule = rule_of(scorer.stage)
    loud = np.clip(scene().astype(np.int32) * 30, -32768, 32767).astype(np.int16)
    scores, seconds = scorer.scores([scene(), loud[:200_000]])
    assert seconds == (len(scene()) + 200_000) / 16000
    compared = 0
    for window, hold, refractory in [(50, 5, 25), (8, 1, 0), (20, 3, 90)]:
        decision = replace(rule.decision, stream_window_frames=window, hold_frames=hold, refractory_frames=refractory)
        tried = replace(rule, decision=decision)
        peaks = find_peaks(scores, tried, THRESHOLDS[0])
        for threshold in THRESHOLDS[::4]:
            found = [(r.label, r.score, r.frame) for r in detections(peaks, tried, threshold)]
            assert found == by_detector(scores, tried, threshold)
            compared += len(found)
    assert compared > 50


def test_times_are_those_of_the_pipeline():
    from toolkit.stream import Pipeline

    scorer, pipeline = Scorer(released()), Pipeline([released()])
    rule = rule_of(scorer.stage)
    scores, _ = scorer.scores([scene()])
    found = detections(find_peaks(scores, rule, rule.decision.threshold), rule, rule.decision.threshold)
    expected = pipeline.process(scene()) + pipeline.finish()
    assert [r.label for r in found] == [d.label for d in expected] != []
    assert [r.time for r in found] == pytest.approx([d.time for d in expected], abs=1e-9)


def test_a_threshold_below_the_floor_is_refused():
    peaks = find_peaks(rows((YES, 9, 9)), rule_with(), 0.5)
    with pytest.raises(UsageError, match="0.4 is below the floor of the peaks, 0.5"):
        detections(peaks, rule_with(), 0.4)


def test_scores_of_nothing():
    peaks = find_peaks(np.zeros((0, 4), np.int8), rule_with(), 0.5)
    assert detections(peaks, rule_with(), 0.5) == []


# --- counts ---


def reports(*heard: tuple[str, float]) -> list[Report]:
    return [Report(label, 0.9, 0, time) for label, time in heard]


EVENTS = (Event("yes", 1.0, 2.0), Event("no", 4.0, 5.0))


@pytest.mark.parametrize(
    "heard, found, confused, extra",
    [
        ([], 0, 0, 0),
        ([("yes", 1.0), ("no", 5.7)], 2, 0, 0),  # both ends of the time belong to it
        ([("yes", 0.99), ("no", 5.71)], 0, 0, 2),  # too early, too late
        ([("no", 1.5), ("no", 4.5)], 1, 1, 0),
        ([("no", 1.4), ("yes", 1.9)], 1, 0, 1),  # corrected: found, and one report too many
        ([("yes", 1.4), ("yes", 1.9)], 1, 0, 1),  # twice
        ([("no", 1.4), ("no", 1.9)], 0, 1, 1),
        ([("yes", 3.0)], 0, 0, 1),
    ],
)
def test_the_fate_of_keywords(heard, found, confused, extra):
    fate = count_words(reports(*heard), EVENTS)
    assert (fate.found, fate.confused, fate.extra) == (found, confused, extra)
    assert fate.false_rejects == 2 - found
    assert fate.to_dict()["false_reject_rate_low"] <= 1 - found / 2 <= fate.to_dict()["false_reject_rate_high"]


def poisson_cdf(events: int, mean: float) -> float:
    return sum(math.exp(-mean) * mean**k / math.factorial(k) for k in range(events + 1))


@pytest.mark.parametrize("events", [0, 1, 2, 5, 17, 60])
def test_poisson_intervals_are_exact(events):
    """By definition: at either end of the interval, a count as extreme as this has the probability of the tail."""
    low, high = poisson_interval(events)
    assert poisson_cdf(events, high) == pytest.approx(0.025, abs=1e-9)
    assert poisson_cdf(events, poisson_upper(events)) == pytest.approx(0.05, abs=1e-9)
    assert (1 - poisson_cdf(events - 1, low) == pytest.approx(0.025, abs=1e-9)) if events else low == 0


def test_garwoods_table():
    assert poisson_interval(0) == pytest.approx((0, 3.689), abs=5e-4)
    assert poisson_interval(10) == pytest.approx((4.795, 18.390), abs=5e-4)
    assert poisson_upper(0) == pytest.approx(2.996, abs=5e-4)


def test_six_hours_without_an_event_show_half_an_event_per_hour():
    quiet = FalseAccepts(0, 6.0)
    assert quiet.upper == pytest.approx(0.499, abs=5e-4) and hours_needed(0.5) == 6.0
    assert quiet.to_dict(0.5) == {
        "false_accepts": 0, "hours": 6.0, "false_accepts_per_hour": 0.0, "false_accepts_per_hour_low": 0.0,
        "false_accepts_per_hour_high": 0.6148, "false_accepts_per_hour_upper": 0.4993,
    }  # fmt: skip


@pytest.mark.parametrize("events", [0, 40])
def test_a_rate_that_the_hours_cannot_carry_is_not_stated(events):
    stated = FalseAccepts(events, 5.99).to_dict(0.5)
    assert (stated.pop("false_accepts"), stated.pop("hours")) == (events, 5.99)
    assert len(stated) == 4 and set(stated.values()) == {None}
    assert FalseAccepts(events, 5.99).to_dict(1.0)["false_accepts_per_hour"] == round(events / 5.99, 4)


# --- curves and choices ---


def points(*events: int, hours: float = 6.0) -> list[Point]:
    """False accepts at the thresholds 0.1, 0.2, ..."""
    return [Point(0.1 * (i + 1), Words(100, 100 - i, 0, 0), FalseAccepts(n, hours)) for i, n in enumerate(events)]


def test_the_operating_threshold_is_the_smallest_within_the_target():
    assert operating_threshold(points(9, 4, 0, 0), 0.5) == pytest.approx(0.3)
    assert operating_threshold(points(9, 4, 1, 0, hours=10), 0.5) == pytest.approx(0.3)  # at most 0.474
    assert operating_threshold(points(9, 0, 1, 0), 0.5) == pytest.approx(0.4)  # what comes after must keep it too
    assert operating_threshold(points(9, 4, 3, 1), 0.5) is None
    assert operating_threshold(points(0, 0, 0, hours=5.9), 0.5) is None
    assert operating_threshold(list(reversed(points(9, 4, 0, 0))), 0.5) == pytest.approx(0.3)


def synthetic() -> tuple[list[Scored], list[Scored]]:
    """Words that last 12 frames in the scene, and in 20 h without words bursts of 5 that are twice as strong."""
    words = rows(*[(YES, 12, 12), (SILENCE, 88, 60)] * 10, (NO, 12, 12), (SILENCE, 88, 60))
    events = tuple(Event("yes" if i < 10 else "no", 2.0 * i, 2.0 * i + 1) for i in range(11))
    bursts = rows(*[(SILENCE, 95, 60), (YES, 5, 24)] * 10)
    return [Scored("scene", words, 22.0, events)], [Scored("speech", bursts, 36000.0), Scored("more", bursts, 36000.0)]


def test_a_curve_counts_each_threshold():
    scenes, negatives = synthetic()
    rule = rule_with(window=1, scale=0.25)
    (curve,) = curves(rule, scenes, negatives)
    assert [point.threshold for point in curve] == list(THRESHOLDS)
    for point in curve:
        expected = len(by_detector(negatives[0].scores, rule, point.threshold))
        assert point.accepts == FalseAccepts(2 * expected, 20.0)
        assert point.words.found == len(by_detector(scenes[0].scores, rule, point.threshold))
    assert curve[0].accepts.events == 20 and curve[0].words.found == 11
    assert curve[-1].words.found == 0
    found = list(false_accepts(rule, negatives, THRESHOLDS[0]))
    assert [(s.name, r.label) for s, r in found] == [("speech", "yes")] * 10 + [("more", "yes")] * 10
    assert found[0][1].time == pytest.approx(0.04 + 95 * 0.02)


def test_the_decision_that_misses_fewest():
    """A hold of 6 outlasts the bursts, one of 2 has to stay above their score, and one of 13 misses the words."""
    scenes, negatives = synthetic()
    rule = rule_with(window=1, scale=0.25)
    decision, chosen = choose_decision(rule, scenes, negatives, [(1, 2), (1, 13), (1, 6), (1, 7)], 0.5)
    assert (decision.stream_window, decision.hold_frames, decision.threshold) == (1, 6, THRESHOLDS[0])
    assert chosen[0].words.found == 11 and chosen[0].accepts == FalseAccepts(0, 20.0)
    assert replace(decision, hold_frames=1, threshold=0.6, stream_window_frames=None) == rule.decision
    held_less, point = choose_decision(rule, scenes, negatives, [(1, 2)], 0.5)
    assert point[0].words.found == 0 and held_less.threshold > 0.99
    assert choose_decision(rule, scenes, negatives[:1], [(1, 6)], 0.05) is None  # 10 h cannot show it


def test_the_choice_counts_the_misses_of_all_scenes():
    scenes, negatives = synthetic()
    short = Scored("short", rows((YES, 8, 12), (SILENCE, 92, 60)), 2.0, (Event("yes", 0.0, 1.0),))
    rule = rule_with(window=1, scale=0.25)
    decision, chosen = choose_decision(rule, [*scenes, short], negatives, [(1, 9), (1, 8)], 0.5)
    assert decision.hold_frames == 8 and [point.words.found for point in chosen] == [11, 1]


def test_the_table_and_the_picture(tmp_path):
    scenes, negatives = synthetic()
    (curve,) = curves(rule_with(window=1, scale=0.25), scenes, negatives)
    marked = curve[30].threshold
    text = table(curve, 0.5, marked)
    (line,) = [line for line in text.splitlines() if line.startswith("*")]
    assert float(line[1:].split()[0]) == marked and f"< {poisson_upper(curve[30].accepts.events) / 20:.3f}" in line
    assert len(text.splitlines()) < 25
    assert table(curve, 0.1, marked).splitlines()[-1].endswith("-")  # 20 h cannot show 0.1
    for target in (0.5, 0.1):
        draw_det({"clean": curve, "10 dB SNR": curve}, marked, target, tmp_path / "det.png")
        assert (tmp_path / "det.png").read_bytes().startswith(b"\x89PNG")
    json.dumps([point.to_dict(0.5) for point in curve])


# --- MLPerf Tiny's count ---


@pytest.mark.parametrize(
    "times, expected",
    [
        ([], Score(0, 2, 0)),
        ([1.0, 6.0], Score(2, 0, 0)),  # from the start to one second after the end
        ([0.9, 6.1], Score(0, 2, 2)),
        ([1.2, 1.9, 2.8, 4.1], Score(2, 0, 0)),  # all that belong to a word are that word
        ([10.0, 10.6, 11.0, 11.1, 12.2], Score(0, 2, 3)),  # 11.1 is more than a second after the one that counts
    ],
)
def test_what_mlperf_counts(times, expected):
    assert score(times, EVENTS) == expected


def test_mlperf_passes_with_eight_of_each():
    assert Score(42, 8, 8).passes and not Score(41, 9, 0).passes and not Score(50, 0, 9).passes


def test_the_scene_is_heard_as_it_was_spoken():
    """On real speech the released bundle finds most words, and each at its own time."""
    scorer = Scorer(released())
    rule = rule_of(scorer.stage)
    events = tuple(Event(word["label"], word["onset"], word["offset"]) for word in spoken_keywords())
    scores, seconds = scorer.scores([scene()])
    (curve,) = curves(rule, [Scored("scene", scores, seconds, events)], [], [0.4, 0.9999])
    assert curve[0].words.found >= 6 and curve[0].accepts == FalseAccepts(0, 0.0)
    assert curve[1].words.found < curve[0].words.found
