"""The signal flow: any split of the samples, any step of the models, several bundles, clips, wrong bundles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from released import SAMPLES, changed, cuts, match_keywords, released, scene

from toolkit.audio import read_audio
from toolkit.errors import UnsupportedError, UsageError
from toolkit.features import FeatureConfig, FrontEnd, front_end_id, make_tables
from toolkit.kws import NOT_KEYWORDS
from toolkit.manifest import FrontEnd as FrontEndFields
from toolkit.stream import BundleStage, Detection, Pipeline, make_front_end

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

TEN_SECONDS = 160_000


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline([released()])


@pytest.fixture(scope="module")
def detections(pipeline) -> list[Detection]:
    """What one call with the whole scene gives."""
    pipeline.reset()
    return pipeline.process(scene())


def in_blocks(pipeline: Pipeline, samples: np.ndarray, lengths: list[int]) -> list[Detection]:
    return [detection for part in cuts(lengths, len(samples)) for detection in pipeline.process(samples[part])]


def other_front_end(**options) -> dict:
    """Members and manifest fields for a front end with these options."""
    config = FeatureConfig(**options)
    tables = make_tables(config)
    described = FrontEndFields(front_end_id(config, tables), {**released().manifest.front_end.config, **options})
    return {"members": {"tables": tables.blob}, "front_end": described}


# --- one bundle ---


def test_the_keywords_of_the_scene_are_found(detections):
    missed, extra = match_keywords([(d.label, d.time) for d in detections])
    assert missed == [] and len(extra) <= 1
    times = [d.time for d in detections]
    assert times == sorted(times) and all(released().manifest.decision.threshold <= d.score <= 1 for d in detections)


@hypothesis.settings(max_examples=20)
@hypothesis.given(st.lists(st.one_of(st.integers(0, 700), st.integers(0, 70_000)), min_size=1, max_size=6).filter(any))
def test_any_split_gives_the_same_detections_and_scores(lengths):
    hypothesis.assume(sum(lengths) / len(lengths) > 100)  # for the sake of time; single samples are tested below
    samples, pipeline = scene()[:TEN_SECONDS], Pipeline([released()])
    expected = pipeline.process(samples)
    assert expected
    pipeline.reset()
    assert in_blocks(pipeline, samples, lengths) == expected

    front_end, stage = make_front_end(released()), BundleStage(released())
    scores = stage.scores(front_end.process(samples))
    front_end.reset()
    stage.reset()
    parts = [stage.scores(front_end.process(samples[part])) for part in cuts(lengths, len(samples))]
    assert len(scores) > 400 and np.array_equal(np.concatenate(parts), scores)


def test_time_is_that_of_the_last_sample_used(detections):
    """Sample by sample, in the shortest steps: the detection comes with the sample that ends at its time, and not one
    earlier."""
    first, pipeline = detections[0], Pipeline([released()], frames_per_step=1)
    end = round(first.time * pipeline.sample_rate_hz)
    assert end == pytest.approx(first.time * pipeline.sample_rate_hz, abs=1e-6)
    assert pipeline.process(scene()[: end - 3]) == []
    assert [pipeline.process(scene()[i : i + 1]) for i in range(end - 3, end + 2)] == [[], [], [first], [], []]


# --- steps of several frames ---

STEPS = (1, 2, 3, 4, 6, 8, 16, 50)  # frames; those that are no multiple of the model's own are rounded down


@pytest.mark.parametrize("frames_per_step", STEPS)
def test_every_step_gives_the_same_detections(frames_per_step, detections):
    samples = scene()[:TEN_SECONDS]
    expected = [d for d in detections if d.time <= TEN_SECONDS / 16_000]
    assert len(expected) >= 3
    for lengths in ([320], [len(samples)], [1, 0, 700, 333]):
        pipeline = Pipeline([released()], frames_per_step=frames_per_step)
        assert in_blocks(pipeline, samples, lengths) + pipeline.finish() == expected


@hypothesis.settings(max_examples=20)
@hypothesis.given(st.sampled_from(STEPS), st.lists(st.integers(0, 3000), min_size=1, max_size=6).filter(any),
                  st.integers(0, 40_000))
def test_every_step_gives_the_same_scores(frames_per_step, lengths, n):
    """Up to the last frame: the end of the stream gives what waited, and what silence gives after it."""
    hypothesis.assume(sum(lengths) / len(lengths) > 100)
    samples = scene()[20_000 : 20_000 + n]
    stage = BundleStage(released())
    expected = stage.scores(make_front_end(released()).process(with_silence(samples, stage)), last=True)
    pipeline = Pipeline([released()], frames_per_step=frames_per_step)
    taken = keep_scores(pipeline)
    in_blocks(pipeline, samples, lengths)
    pipeline.finish()
    assert len(expected) == (n + stage.flush_frames * 160 - 480 + 160) // 160 // stage.stride
    assert np.array_equal(np.concatenate([expected[:0], *taken]), expected)


def with_silence(samples: np.ndarray, stage: BundleStage) -> np.ndarray:
    """And what is heard after the end of a stream."""
    return np.concatenate([samples, np.zeros(stage.flush_frames * 160, np.int16)])


def keep_scores(pipeline: Pipeline) -> list[np.ndarray]:
    """The scores that its one detector will be given."""
    taken, detector = [], pipeline.stages[0].detector
    process = detector.process
    detector.process = lambda scores: taken.append(scores) or process(scores)
    return taken


@pytest.mark.parametrize("frames_per_step", STEPS)
def test_a_longer_step_tells_later_by_no_more_than_itself(frames_per_step, detections):
    """In blocks of one hop: from the time of a detection to its report there are at most the step less the stride."""
    pipeline = Pipeline([released()], frames_per_step=frames_per_step)
    stride = pipeline.stages[0].stride
    late = []
    for end in range(160, TEN_SECONDS, 160):
        late += [round(end / 160 - (d.time * 16_000 / 160)) for d in pipeline.process(scene()[end - 160 : end])]
    assert len(late) >= 3 and min(late) >= 0 and max(late) <= max(0, frames_per_step - stride)


def test_samples_are_worked_through_once_per_step(count_front_ends):
    """The first step needs the whole first window; from then on every second block of 20 ms completes one."""
    pipeline = Pipeline([released()], frames_per_step=4)
    in_blocks(pipeline, scene()[: 320 * 7], [320])
    assert count_front_ends == [960, 640, 640]
    pipeline.reset()
    in_blocks(pipeline, scene()[: 320 * 3], [320])
    assert count_front_ends == [960, 640, 640, 960]


def test_the_memory_of_a_block_may_be_used_again(detections):
    pipeline, block, found = Pipeline([released()], frames_per_step=16), np.empty(320, np.int16), []
    for start in range(0, TEN_SECONDS, 320):
        block[:] = scene()[start : start + 320]
        found += pipeline.process(block)
        block.fill(-9999)
    assert found and found == [d for d in detections if d.time <= found[-1].time]


def test_after_its_end_a_stream_starts_anew(detections):
    pipeline = Pipeline([released()])
    assert pipeline.finish() == [] == pipeline.finish()
    pipeline.process(scene()[:77_777])
    pipeline.finish()
    assert pipeline.process(scene()) + pipeline.finish() == detections


def test_a_word_at_the_very_end_is_heard(pipeline):
    """Keyword clips of a second, cut close: without the silence after them most would end before the decision."""
    keywords = set(released().manifest.labels) - set(NOT_KEYWORDS)
    clips = [file for word in keywords for file in (SAMPLES / "evaluation" / word).glob("*.flac")]
    pipeline.reset()
    told = [[d.label for d in [*pipeline.process(read_audio(file)[0]), *pipeline.finish()]] for file in clips]
    assert len(clips) == 96 and sum(labels == [file.parent.name] for labels, file in zip(told, clips)) >= 75


@pytest.mark.parametrize("n", [0, 1, 100, 479, 480, 481, 639, 640, 16_000])
def test_each_bundle_hears_its_own_silence(tmp_path, n):
    """Of two bundles that share a front end each ends as if it were alone, however short the stream."""
    sooner = replace(released().manifest.decision, flush_frames=3, hold_frames=2)
    bundles = [released(), changed(tmp_path / "sooner.eab", name="sooner", decision=sooner)]
    together = Pipeline(bundles)
    for stage, bundle in zip(together.stages, bundles):
        alone = Pipeline([bundle])
        assert heard_by(together, stage, n) == heard_by(alone, alone.stages[0], n) > 0


def heard_by(pipeline: Pipeline, stage: BundleStage, n: int) -> int:
    """Scores that one of the detectors gets of a stream of n samples."""
    lengths, process = [], stage.detector.process
    stage.detector.process = lambda scores: lengths.append(len(scores)) or process(scores)
    pipeline.process(scene()[:n])
    pipeline.finish()
    return sum(lengths)


def test_a_step_has_a_frame():
    with pytest.raises(UsageError, match="frames_per_step is 0, expected 1 or more"):
        Pipeline([released()], frames_per_step=0)


def test_reset_is_a_new_pipeline(pipeline, detections):
    pipeline.process(scene()[:77_777])
    pipeline.reset()
    assert pipeline.process(scene()) == detections


def test_the_numpy_front_end_gives_the_same(detections):
    samples = scene()[:64_000]
    numpy_pipeline = Pipeline([released()], backend="numpy")
    assert numpy_pipeline.backend == "numpy"
    assert numpy_pipeline.process(samples) == [d for d in detections if d.time <= 4.0]


def test_the_threshold_of_the_pipeline():
    """The higher it is, the fewer detections, down to none; each reaches it."""
    found = {value: Pipeline([released()], threshold=value).process(scene()) for value in (0.05, 0.8, 0.99, 1.0)}
    counts = [len(detections) for detections in found.values()]
    assert counts == sorted(counts, reverse=True) and counts[0] > 0 and counts[-1] == 0
    assert all(d.score >= value for value, detections in found.items() for d in detections)
    assert {d.label for d in found[0.05]}.isdisjoint({"unknown", "silence"})


def test_a_detection_as_json():
    detection = Detection("kws", "0.1.0", "kws", "yes", 0.123456, 1.23456)
    assert detection.to_dict() == {"bundle": "kws", "version": "0.1.0", "task": "kws", "label": "yes", "score": 0.1235,
                                   "time": 1.235}
    assert list(detection.to_dict()) == ["bundle", "version", "task", "label", "score", "time"]


@pytest.mark.parametrize("samples", [np.zeros(320), np.zeros(320, np.float32), np.zeros((320, 1), np.int16),
                                     np.zeros(320, np.int32)], ids=lambda x: f"{x.dtype}{x.shape}")
def test_other_samples_are_refused(pipeline, samples):
    for use in (pipeline.process, pipeline.classify):
        with pytest.raises(UsageError, match=r"expected int16 \[n\]"):
            use(samples)


# --- several bundles ---


@pytest.fixture
def count_front_ends(monkeypatch) -> list[int]:
    """The lengths of the blocks that front ends were given."""
    calls, process = [], FrontEnd.process
    monkeypatch.setattr(FrontEnd, "process", lambda self, samples: calls.append(len(samples)) or process(self, samples))
    return calls


def test_equal_front_ends_are_computed_once(tmp_path, detections, count_front_ends):
    eager = replace(released().manifest.decision, threshold=0.3, refractory_frames=10)
    other = changed(tmp_path / "eager.eab", name="eager", decision=eager)
    alone = Pipeline([other]).process(scene())
    count_front_ends.clear()
    both = in_blocks(Pipeline([released(), other]), scene(), [640])
    assert len(count_front_ends) == len(scene()) // 640
    assert [d for d in both if d.bundle == "kws"] == detections
    assert [d for d in both if d.bundle == "eager"] == alone != []
    assert [d.time for d in both] == sorted(d.time for d in both)
    assert Pipeline([released(), other]).process(scene()) == both


def test_other_front_ends_are_computed_apart(tmp_path, detections, count_front_ends):
    coarse = changed(tmp_path / "coarse.eab", name="coarse", **other_front_end(fmax_hz=7000.0))
    alone = Pipeline([coarse]).process(scene())
    count_front_ends.clear()
    both = Pipeline([coarse, released(), coarse]).process(scene())
    assert count_front_ends == [len(scene())] * 2
    assert [d for d in both if d.bundle == "kws"] == detections
    assert [d for d in both if d.bundle == "coarse"][::2] == alone


def test_one_sample_rate_for_all(tmp_path):
    telephone = changed(tmp_path / "8k.eab", **other_front_end(sample_rate_hz=8000, fmax_hz=4000.0))
    assert Pipeline([telephone]).sample_rate_hz == 8000
    with pytest.raises(UsageError, match=r"\[8000, 16000\] Hz"):
        Pipeline([released(), telephone])
    with pytest.raises(UsageError, match="no bundle"):
        Pipeline([])


# --- clips ---


def test_a_clip_is_decided_from_the_reset_state(pipeline):
    clip = scene()[12_000:28_000]
    fresh = Pipeline([released()], frames_per_step=1).classify(clip)
    pipeline.process(scene()[:50_001])
    assert pipeline.classify(clip) == fresh == pipeline.classify(clip)
    (scores,) = fresh
    assert sorted(scores) == sorted(released().manifest.labels) and sum(scores.values()) == pytest.approx(1, abs=1e-5)
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    assert next(iter(scores)) == "yes"


def test_a_long_clip_is_decided_by_its_keyword(pipeline):
    (scores,) = pipeline.classify(scene()[:48_000])  # yes, then a knock and 1.7 s of noise
    assert next(iter(scores)) == "yes"


@pytest.mark.parametrize("n", [0, 1, 479, 480, 1000, 16_000])
def test_clips_of_any_length(pipeline, n):
    (scores,) = pipeline.classify(np.zeros(n, np.int16))
    assert sum(scores.values()) == pytest.approx(1, abs=1e-5)


def test_a_clip_is_decided_as_if_the_bundle_were_alone(tmp_path):
    slow = changed(tmp_path / "slow.eab", name="slow", decision=replace(released().manifest.decision, flush_frames=60))
    clip = scene()[60_000:76_000]
    together = Pipeline([slow, released(), slow]).classify(clip)
    alone = [Pipeline([bundle]).classify(clip)[0] for bundle in (slow, released())]
    assert together == [alone[0], alone[1], alone[0]] and alone[0] != alone[1]


# --- bundles that must not run ---


def wrong_model(**change):
    return {"model": replace(released().manifest.model, **change)}


def wrong_tensor(name: str, **change):
    return wrong_model(**{name: replace(getattr(released().manifest.model, name), **change)})


def wrong_front_end(**change):
    return {"front_end": replace(released().manifest.front_end, **change)}


def wrong_config(**change):
    return wrong_front_end(config={**released().manifest.front_end.config, **change})


def other_algorithm():
    blob = released().members["tables"]
    return {"members": {"tables": blob[:4] + b"\x63" + blob[5:]}}


WRONG = {
    "task": (lambda: {"task": "sed"}, "is for the task 'sed'"),
    "tap": (lambda: {"tap": "clean"}, "listens to the tap 'clean'"),
    "operation": (lambda: wrong_model(ops=("CONV_2D", "WHILE")), "needs the operation WHILE"),
    "states": (lambda: wrong_model(states=released().manifest.model.states[1:]), "the model's states"),
    "input": (lambda: wrong_tensor("input", zero_point=99), "the model's input zero point"),
    "output": (lambda: wrong_tensor("output", scale=0.125), "the model's output scale is"),
    "id": (lambda: wrong_front_end(id="ab" * 32), "names front end abababababab"),
    "tables": (lambda: {"members": other_front_end(fmin_hz=80.0)["members"]}, "its tables are of"),
    "algorithm": (other_algorithm, "algorithm 99"),
    "no tables": (lambda: {"members": {"tables": b""}}, "are not in this toolkit's format"),
    "width": (lambda: other_front_end(n_mfcc=13), "gives 13 values per frame, the model takes 40"),
    "new option": (lambda: wrong_config(pcen=1), "a front end that this version does not know"),
    "option range": (lambda: wrong_config(n_fft=500), "a front end that this version does not know"),
    "option type": (lambda: wrong_config(n_fft="many"), "a front end that this version does not know"),
    "no flatbuffer": (lambda: {"members": {"model": b"no flatbuffer"}}, "cannot load the model"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_bundle_that_this_version_does_not_run(tmp_path, case):
    change, words = WRONG[case]
    bundle = changed(tmp_path / "x.eab", **change())
    with pytest.raises(UnsupportedError) as raised:
        Pipeline([bundle])
    assert words in str(raised.value) and "\n" not in str(raised.value)
