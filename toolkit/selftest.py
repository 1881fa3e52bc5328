"""Replay of the acceptance test that a bundle carries: the same input must give the same integers here."""

from __future__ import annotations

import numpy as np

from .bundle import Bundle
from .errors import BundleFormatError
from .interpreter import NATIVE
from .manifest import SCORES_ROLE
from .stream import BundleStage, make_front_end

BLOCK_SAMPLES = 320


def selftest(bundle: Bundle, backend: str | None = None) -> dict:
    """{bundle, version, sha256, runtime, backend, features_equal, max_lsb, limit_lsb, passed, reason}.

    Features must be equal bit for bit. Scores must be, where the bundle holds those of this runtime ("exact") and in
    the native runtime, which computes what TFLite's reference kernels do; else they may differ from those that the
    bundle holds by its max_lsb. max_lsb is null where their numbers differ.
    """
    manifest = bundle.manifest
    front_end, stage = make_front_end(bundle, backend), BundleStage(bundle)
    runtime = stage.model.runtime
    exact = runtime in manifest.selftest.exact
    samples = _integers(bundle, "selftest_input", "<i2").astype(np.int16)
    expected_features = _integers(bundle, "selftest_features", "<i2")
    expected_scores = _integers(bundle, SCORES_ROLE + (runtime if exact else manifest.selftest.exact[0]), "i1")

    blocks = [samples[i : i + BLOCK_SAMPLES] for i in range(0, len(samples), BLOCK_SAMPLES)]
    features = np.concatenate([front_end.process(block) for block in [*blocks, samples[:0]]])
    scores = stage.scores(features).ravel()
    features_equal = np.array_equal(features.ravel(), expected_features)
    max_lsb, limit = None, 0 if exact or runtime == NATIVE else manifest.selftest.max_lsb
    if scores.size == expected_scores.size and scores.size:
        max_lsb = int(np.abs(scores.astype(int) - expected_scores).max())
    reason = None
    if not features_equal:
        reason = "the front end gives other integers than those the bundle was measured with"
    elif max_lsb is None:
        reason = f"{runtime} gives {scores.size} scores, the bundle holds {expected_scores.size}"
    elif max_lsb > limit:
        reason = f"scores of {runtime} differ by {max_lsb} LSB, allowed are {limit}"
    return {"bundle": manifest.name, "version": manifest.version, "sha256": bundle.sha256, "runtime": runtime,
            "backend": front_end.backend, "features_equal": features_equal, "max_lsb": max_lsb, "limit_lsb": limit,
            "passed": reason is None, "reason": reason}


def _integers(bundle: Bundle, role: str, dtype: str) -> np.ndarray:
    data = bundle.members[role]
    if len(data) % np.dtype(dtype).itemsize:
        raise BundleFormatError(f"{bundle.path}: {role} has {len(data)} bytes, an odd number; pack the bundle again")
    return np.frombuffer(data, dtype)
