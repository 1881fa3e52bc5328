"""The signal flow of a device: one stream of samples through all bundles.

    samples -> front end (one per front-end id) -> requantize (one per bundle) -> step model -> detector -> detections

`run`, `listen`, `classify`, the self-test and the Python API all go through this.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .bundle import Bundle
from .errors import UnsupportedError, UsageError
from .features import FeatureConfig, FrontEnd, Requantization, front_end_id, parse_tables
from .interpreter import OPS, StepModel
from .kws import NOT_KEYWORDS, KeywordDetector, clip_posteriors


@dataclass(frozen=True)
class Detection:
    """Something heard: `time` in seconds of the last sample that the decision used, from the start of the stream."""

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
    """One bundle behind its front end: int16 features -> codes -> scores -> detections."""

    def __init__(self, bundle: Bundle, threshold: float | None = None):
        manifest = bundle.manifest
        if manifest.task != "kws":
            raise UnsupportedError(f"{bundle.path} is for the task {manifest.task!r}; this version runs kws.")
        unknown = sorted(set(manifest.model.ops) - OPS)
        if unknown:
            raise UnsupportedError(f"{bundle.path} needs the operation {unknown[0]}, which this version does not run.")
        self.manifest = manifest
        self.requantize = Requantization(**manifest.model.requantize.__dict__)
        self.model = StepModel(bundle.members["model"])
        _check_model(bundle, self.model)
        self.stride = self.model.frames_per_step // self.model.output.shape[1]
        self.detector = KeywordDetector(manifest.labels, manifest.decision, self.model.output.scale, threshold)
        config = manifest.front_end.config
        self._seconds_per_frame = config["hop_length"] / config["sample_rate_hz"]
        self._window_s = config["win_length"] / config["sample_rate_hz"]

    def reset(self) -> None:
        self.model.reset()
        self.detector.reset()

    def scores(self, features: np.ndarray) -> np.ndarray:
        """int16 features [m, n] -> int8 scores [k, labels]."""
        return self.model.process(self.requantize.apply(features))

    def process(self, features: np.ndarray) -> list[Detection]:
        """int16 features [m, n] -> what they complete."""
        if len(features) == 0:
            return []
        manifest = self.manifest
        return [
            Detection(manifest.name, manifest.version, manifest.task, k.label, k.score, self._end_of(k.frame))
            for k in self.detector.process(self.scores(features))
        ]

    def _end_of(self, frame: int) -> float:
        """Seconds at the last sample that model output `frame` has seen."""
        return ((frame + 1) * self.stride - 1) * self._seconds_per_frame + self._window_s


class Pipeline:
    """All bundles over one stream of int16 samples; bundles of equal front-end id share its computation.

    bundles:   from load_bundle
    backend:   of the front end, see FrontEnd
    threshold: replaces that of the bundles
    """

    def __init__(self, bundles: Iterable[Bundle], backend: str | None = None, threshold: float | None = None):
        self.stages: list[BundleStage] = []
        self._groups: dict[str, tuple[FrontEnd, list[BundleStage]]] = {}
        for bundle in bundles:
            stage = BundleStage(bundle, threshold)
            identity = bundle.manifest.front_end.id
            if identity not in self._groups:
                self._groups[identity] = (make_front_end(bundle, backend), [])
            self._groups[identity][1].append(stage)
            self.stages.append(stage)
        rates = {front_end.tables.sample_rate_hz for front_end, _ in self._groups.values()}
        if len(rates) != 1:
            raise UsageError(f"the bundles need different sample rates, {sorted(rates)} Hz; run them apart.")
        self.sample_rate_hz = rates.pop()

    @property
    def backend(self) -> str:
        """"native" or "numpy": what computes the front end."""
        return next(iter(self._groups.values()))[0].backend

    def reset(self) -> None:
        """As before the first sample."""
        for front_end, stages in self._groups.values():
            front_end.reset()
            for stage in stages:
                stage.reset()

    def process(self, samples: np.ndarray) -> list[Detection]:
        """int16 samples [n], a block of any size -> the detections that they complete."""
        detections = []
        for front_end, stages in self._groups.values():
            features = front_end.process(samples)
            for stage in stages:
                detections += stage.process(features)
        return detections

    def classify(self, samples: np.ndarray) -> list[dict[str, float]]:
        """One clip, int16 [n], from the reset state -> per bundle the posterior of each label, best first."""
        self.reset()
        results = {}
        for front_end, stages in self._groups.values():
            flush = max(s.manifest.decision.flush_frames * s.stride for s in stages) * front_end.tables.hop_length
            features = front_end.process(np.concatenate([samples, np.zeros(flush, np.int16)]))
            for stage in stages:
                results[id(stage)] = _decide(stage, stage.scores(features))
        return [results[id(stage)] for stage in self.stages]


def _decide(stage: BundleStage, scores: np.ndarray) -> dict[str, float]:
    labels, decision = stage.manifest.labels, stage.manifest.decision
    if len(scores) == 0:
        scores = np.zeros((1, len(labels)), np.int8)
    is_keyword = np.array([label not in NOT_KEYWORDS for label in labels])
    p = clip_posteriors(scores, stage.model.output.scale, decision, is_keyword)
    return {labels[i]: float(p[i]) for i in np.argsort(-p, kind="stable")}


def make_front_end(bundle: Bundle, backend: str | None = None) -> FrontEnd:
    """The front end of a bundle, from the tables that it carries. UnsupportedError if they are not those of its id."""
    tables = parse_tables(bundle.members["tables"])
    described = bundle.manifest.front_end
    try:
        config = FeatureConfig(**described.config)
    except TypeError as error:
        raise UnsupportedError(f"{bundle.path} describes a front end that this version does not know: {error}.") from None
    if front_end_id(config, tables) != described.id:
        raise UnsupportedError(
            f"{bundle.path} names front end {described.id[:12]}, but its tables are of {front_end_id(config, tables)[:12]}; "
            "it was made by another version of the toolkit."
        )
    return FrontEnd(tables, backend)


def _check_model(bundle: Bundle, model: StepModel) -> None:
    """The flatbuffer must be what the manifest says of it."""
    described = bundle.manifest.model
    states = {(s.input, s.output, s.shape, s.zero_point) for s in described.states}
    found = {(a.name, b.name, a.shape, a.zero_point) for a, b in model.states}
    for what, expected, actual in [
        ("input shape", described.input.shape, model.input.shape),
        ("input zero point", described.input.zero_point, model.input.zero_point),
        ("output shape", described.output.shape, model.output.shape),
        ("output scale", np.float32(described.output.scale), np.float32(model.output.scale)),
        ("states", states, found),
    ]:
        if expected != actual:
            raise UnsupportedError(f"{bundle.path}: the model's {what} is {actual}, the manifest says {expected}.")
