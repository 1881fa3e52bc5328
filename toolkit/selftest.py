"""Replay of the acceptance test that a bundle carries: the same input must give the same integers here."""

from __future__ import annotations

import numpy as np

from .bundle import Bundle
from .manifest import SCORES_ROLE
from .stream import BundleStage, make_front_end


def selftest(bundle: Bundle, backend: str | None = None) -> dict:
    """{bundle, version, sha256, runtime, backend, features_equal, max_lsb, limit_lsb, passed, reason}.

    Features must be equal bit for bit. Scores must be, where the bundle holds those of this runtime ("exact"), else
    they may differ from those it holds by the bundle's max_lsb.
    """
    manifest = bundle.manifest
    front_end, stage = make_front_end(bundle, backend), BundleStage(bundle)
    samples = np.frombuffer(bundle.members["selftest_input"], "<i2").astype(np.int16)
    features = np.concatenate([front_end.process(samples[i : i + 320]) for i in range(0, len(samples), 320)])
    expected = np.frombuffer(bundle.members["selftest_features"], "<i2").reshape(-1, features.shape[1])
    features_equal = features.shape == expected.shape and bool((features == expected).all())

    runtime = stage.model.runtime
    exact = runtime in manifest.selftest.exact
    held = np.frombuffer(bundle.members[SCORES_ROLE + (runtime if exact else manifest.selftest.exact[0])], np.int8)
    scores = stage.scores(features)
    differences = np.abs(scores.astype(int).ravel() - held.astype(int)) if scores.size == held.size else np.array([255])
    max_lsb, limit = int(differences.max()), 0 if exact else manifest.selftest.max_lsb
    reason = None
    if not features_equal:
        reason = "the front end gives other integers than those the bundle was measured with"
    elif max_lsb > limit:
        reason = f"scores of {runtime} differ by {max_lsb} LSB, allowed are {limit}"
    return {"bundle": manifest.name, "version": manifest.version, "sha256": bundle.sha256, "runtime": runtime,
            "backend": front_end.backend, "features_equal": features_equal, "max_lsb": max_lsb, "limit_lsb": limit,
            "passed": reason is None, "reason": reason}
