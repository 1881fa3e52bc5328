"""The signal flow of a device: one stream of samples through all bundles.

    samples -> front end (one per front-end id) -> requantize (one per bundle) -> step model -> detector -> detections

`run`, `listen`, `classify`, the self-test and the Python API all go through this.

Models take several frames at once, FRAMES_PER_STEP in a stream, because a call costs as much as a frame or two. Scores,
detections and their times are the same for every number (tests/test_stream.py); a longer step only tells them later, by
up to the step less the model's stride: 4 frames of 10 ms with a stride of 2 add 20 ms at most and 10 on average.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from .bundle import Bundle
from .errors import ConfigError, UnsupportedError, UsageError
from .features import FeatureConfig, FrontEnd, Requantization, Tables, front_end_id, parse_tables
from .interpreter import OPS, StepModel, open_model
from .kws import NOT_KEYWORDS, KeywordDetector, clip_posteriors

FRAMES_PER_STEP = 4
INT16 = np.dtype(np.int16)
_time = attrgetter("time")


@dataclass(frozen=True)
class Detection:
    """Something heard: `time` in seconds of the last sample that the decision used, from the start of the stream. At
    the end of a recording that may be one of the silence that follows."""

    bundle: str
    version: str
    task: str
    label: str
    score: float
    time: float

    def to_dict(self) -> dict:
        """For JSON: score with 4, time with 3 decimals."""
        return {**self.__dict__, "score": round(self.score, 4), "time": round(self.time, 3)}


class BundleStage:
    """One bundle behind its front end: int16 features -> codes -> scores -> detections.

    frames_per_step: what the model takes at once, at most; less than it can take: as few as that
    Raises UnsupportedError for a bundle of a task, operation, front end or model that this version does not run.
    """

    def __init__(self, bundle: Bundle, threshold: float | None = None, frames_per_step: int = 1):
        manifest = bundle.manifest
        if manifest.task != "kws":
            raise UnsupportedError(f"{bundle.path} is for the task {manifest.task!r}; this version runs kws.")
        if manifest.tap != "raw":
            raise UnsupportedError(f"{bundle.path} listens to the tap {manifest.tap!r}; this version has only 'raw'.")
        unknown = sorted(set(manifest.model.ops) - OPS)
        if unknown:
            raise UnsupportedError(f"{bundle.path} needs the operation {unknown[0]}, which this version does not run.")
        self.manifest = manifest
        self.tables = front_end_tables(bundle)
        self.requantize = Requantization(**manifest.model.requantize.__dict__)
        self.model = open_model(bundle.members["model"], frames_per_step)
        _check_model(bundle, self.model, self.tables)
        self.stride = self.model.stride
        self.flush_frames = (manifest.decision.flush_frames + manifest.decision.hold_frames) * self.stride  # at an end
        self.detector = KeywordDetector(manifest.labels, manifest.decision, self.model.output.scale, threshold)

    def reset(self) -> None:
        self.model.reset()
        self.detector.reset()

    def scores(self, features: np.ndarray, last: bool = False) -> np.ndarray:
        """int16 features [m, n] -> int8 scores [k, labels] of the steps that they complete; with `last`, of all frames
        of the stream, after which the model is as after reset."""
        scores = self.model.process(self.requantize.apply(features))
        return np.concatenate([scores, self.model.finish()]) if last else scores

    def detect(self, scores: np.ndarray) -> list[Detection]:
        """int8 scores [k, labels], the next ones of the stream -> what they complete."""
        manifest = self.manifest
        return [
            Detection(manifest.name, manifest.version, manifest.task, k.label, k.score, self._end_of(k.frame))
            for k in self.detector.process(scores)
        ]

    def process(self, features: np.ndarray, last: bool = False) -> list[Detection]:
        """int16 features [m, n], the next (and last) ones of the stream -> what they complete."""
        return self.detect(self.scores(features, last))

    def _end_of(self, frame: int) -> float:
        """Seconds at the last sample that model output `frame` has seen."""
        last_feature = (frame + 1) * self.stride - 1
        return (last_feature * self.tables.hop_length + self.tables.win_length) / self.tables.sample_rate_hz


class Branch:
    """One front end and the bundles behind it. Samples wait here until they complete a step of the models."""

    def __init__(self, front_end: FrontEnd, stages: list[BundleStage]):
        self.front_end, self.stages = front_end, stages
        tables = front_end.tables
        self._step = max(stage.model.frames_per_step for stage in stages) * tables.hop_length
        self._first_step = self._step - tables.hop_length + tables.win_length
        self.reset()

    def reset(self) -> None:
        self.front_end.reset()
        for stage in self.stages:
            stage.reset()
        self._waiting, self._missing = b"", self._first_step  # samples

    def process(self, samples: np.ndarray) -> list[Detection]:
        """int16 samples [n], the next ones of the stream -> what they complete, bundle by bundle."""
        self._missing -= len(samples)
        self._waiting += samples.tobytes()
        if self._missing > 0:
            return []
        self._missing = (self._missing - 1) % self._step + 1
        return self._work()

    def finish(self) -> list[Detection]:
        """What the samples that still wait complete, and the silence after them; then as after reset."""
        detections = self._work()
        longest = max(stage.flush_frames for stage in self.stages)
        silence = self.front_end.process(np.zeros(longest * self.front_end.tables.hop_length, np.int16))
        missing = longest - len(silence)  # frames, where the samples did not fill the first window
        for stage in self.stages:  # each as if it were alone
            detections += stage.process(silence[: max(0, stage.flush_frames - missing)], last=True)
        self.reset()
        return detections

    def _work(self) -> list[Detection]:
        features = self.front_end.process(np.frombuffer(self._waiting, np.int16))
        self._waiting = b""
        return [detection for stage in self.stages for detection in stage.process(features)]


class Pipeline:
    """All bundles over one stream of int16 samples; bundles of equal front-end id share its computation.

    bundles:         from load_bundle
    backend:         of the front end, see FrontEnd
    threshold:       replaces that of the bundles
    frames_per_step: what the models take at once; fewer cost more, more tell a detection later
    """

    def __init__(self, bundles: Iterable[Bundle], backend: str | None = None, threshold: float | None = None,
                 frames_per_step: int = FRAMES_PER_STEP):
        if frames_per_step < 1:
            raise UsageError(f"frames_per_step is {frames_per_step}, expected 1 or more.")
        self.stages = [BundleStage(bundle, threshold, frames_per_step) for bundle in bundles]
        sharing: dict[str, list[BundleStage]] = {}
        for stage in self.stages:
            sharing.setdefault(stage.manifest.front_end.id, []).append(stage)
        self._branches = [Branch(FrontEnd(stages[0].tables, backend), stages) for stages in sharing.values()]
        rates = sorted({stage.tables.sample_rate_hz for stage in self.stages})
        if not rates:
            raise UsageError("a pipeline has no bundle; give it at least one.")
        if len(rates) > 1:
            raise UsageError(f"the bundles need different sample rates, {rates} Hz; run them apart.")
        self.sample_rate_hz = rates[0]

    @property
    def backend(self) -> str:
        """"native" or "numpy": what computes the front end."""
        return self._branches[0].front_end.backend

    def reset(self) -> None:
        """As before the first sample."""
        for branch in self._branches:
            branch.reset()

    def process(self, samples: np.ndarray) -> list[Detection]:
        """int16 samples [n], a block of any size -> the detections that they complete, by time."""
        _check_samples(samples)
        detections = []
        for branch in self._branches:
            detections += branch.process(samples)
        return sorted(detections, key=_time)

    def finish(self) -> list[Detection]:
        """The end of the stream: the detections in the frames that waited for the end of their step, and in the silence
        that is heard after them. It lasts until the last word has passed the model (flush_frames) and led for as long
        as it has to (hold_frames): a recording that is cut close behind its word tells that word too. Then as before
        the first sample."""
        detections = []
        for branch in self._branches:
            detections += branch.finish()
        return sorted(detections, key=_time)

    def classify(self, samples: np.ndarray) -> list[dict[str, float]]:
        """One clip, int16 [n], from the reset state -> per bundle the posterior of each label, best first."""
        _check_samples(samples)
        self.reset()
        results = {}
        for branch in self._branches:
            hop, win = branch.front_end.tables.hop_length, branch.front_end.tables.win_length
            flushes = [stage.manifest.decision.flush_frames * stage.stride * hop for stage in branch.stages]
            features = branch.front_end.process(np.concatenate([samples, np.zeros(max(flushes), np.int16)]))
            for stage, flush in zip(branch.stages, flushes):  # each as if it were alone
                n_frames = max(0, (len(samples) + flush - win) // hop + 1)
                results[id(stage)] = _decide(stage, stage.scores(features[:n_frames], last=True))
        self.reset()
        return [results[id(stage)] for stage in self.stages]


def _check_samples(samples: np.ndarray) -> None:
    """Floats would become silence without a word."""
    if samples.dtype != INT16 or samples.ndim != 1:
        raise UsageError(f"samples are {samples.dtype} {list(samples.shape)}, expected int16 [n] of one channel; "
                         "toolkit.audio reads files so.")


def _decide(stage: BundleStage, scores: np.ndarray) -> dict[str, float]:
    labels, decision = stage.manifest.labels, stage.manifest.decision
    if len(scores) == 0:
        scores = np.zeros((1, len(labels)), np.int8)
    is_keyword = np.array([label not in NOT_KEYWORDS for label in labels])
    p = clip_posteriors(scores, stage.model.output.scale, decision, is_keyword)
    return {labels[i]: float(p[i]) for i in np.argsort(-p, kind="stable")}


def front_end_tables(bundle: Bundle) -> Tables:
    """The tables that a bundle carries. UnsupportedError if they are not those of its front-end id."""
    tables = parse_tables(bundle.members["tables"])
    described = bundle.manifest.front_end
    try:
        found = front_end_id(FeatureConfig(**described.config), tables)
    except (TypeError, ConfigError) as error:
        raise UnsupportedError(f"{bundle.path} needs a front end that this version does not know ({error}).") from None
    if found != described.id:
        raise UnsupportedError(f"{bundle.path} names front end {described.id[:12]}, its tables are of {found[:12]}; "
                               "it was made by another version of the toolkit.")
    return tables


def make_front_end(bundle: Bundle, backend: str | None = None) -> FrontEnd:
    """The front end of a bundle, from the tables that it carries."""
    return FrontEnd(front_end_tables(bundle), backend)


def _check_model(bundle: Bundle, model: StepModel, tables: Tables) -> None:
    """The flatbuffer must be what the manifest says of it, and take what the front end gives."""
    described = bundle.manifest.model
    states = {(s.input, s.output, s.shape, s.zero_point) for s in described.states}
    found = {(a.name, b.name, a.shape, a.zero_point) for a, b in model.states}
    for what, expected, actual in [
        ("input shape", described.input.shape, model.input.shape),
        ("input zero point", described.input.zero_point, model.input.zero_point),
        ("output shape", described.output.shape, model.output.shape),
        ("output scale", np.float32(described.output.scale), np.float32(model.output.scale)),
        ("states", sorted(states - found), sorted(found - states)),
    ]:
        if expected != actual:
            raise UnsupportedError(f"{bundle.path}: the model's {what} is {actual}, the manifest says {expected}.")
    if model.input.shape[2] != tables.width:
        raise UnsupportedError(f"{bundle.path}: the front end gives {tables.width} values per frame, the model takes "
                               f"{model.input.shape[2]}.")
