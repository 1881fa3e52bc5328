"""A recipe's decision rule over scores, as the device applies it (toolkit/kws.py)."""

from __future__ import annotations

import numpy as np

from models.recipe import Recipe
from toolkit.kws import NOT_KEYWORDS, clip_posteriors
from toolkit.manifest import Decision

FLOAT_STEPS = 1024  # float logits are rounded to 1/1024 and then decided in integers like int8 ones


def decision_of(recipe: Recipe, stride: int) -> Decision:
    """The recipe's decision (in front-end frames) in model output frames, as bundles hold it."""
    d = recipe.decision
    return Decision(
        d.window_frames // stride,
        -(-d.flush_frames // stride),
        d.threshold,
        d.refractory_frames // stride,
        "peak",
        max(1, d.hold_frames // stride),
    )


def predictions(scores: np.ndarray, recipe: Recipe, stride: int) -> np.ndarray:
    """Class index [n] of each clip from float logits [n, T, labels], from the reset state and with the flush."""
    decision = decision_of(recipe, stride)
    is_keyword = np.array([label not in NOT_KEYWORDS for label in recipe.labels])
    integers = np.round(scores * FLOAT_STEPS).astype(np.int32)
    return np.array([clip_posteriors(s, 1 / FLOAT_STEPS, decision, is_keyword).argmax() for s in integers])
