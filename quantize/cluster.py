"""Weights that share values: few distinct int8 codes per kernel, which a compressor stores in fewer bytes.

Han et al. 2016 (arXiv:1510.00149), for int8 with a scale per channel: it is the weight divided by the greatest of its
channel that takes one of N levels, the same for all channels of the kernel, because these quotients are what int8
stores. Had the weights themselves N values (as with tensorflow-model-optimization), every channel would make other
codes of them. 0, 1 and -1 are always levels: zeros stay zero, and each channel keeps its scale.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from toolkit.errors import VerificationError

from .prune import is_pruned

FIXED = np.array([-1.0, 0.0, 1.0])
ROUNDS = 30  # of Lloyd's algorithm: the levels of 1-D k-means hardly move any more
LEAST = 1e-9


class Clusters:
    """The levels of the kernels of all convolutions but the depthwise ones, found at the first look at them by k-means.
    Which weight has which level stays; the levels and the scales of the channels are trained."""

    def __init__(self, model, count: int):
        self._kernels = [(i, v) for i, v in enumerate(model.weights) if is_pruned(v.name)]
        self._members = {i: members(v.numpy(), count) for i, v in self._kernels}
        self.after_step()

    def after_step(self) -> None:
        for i, variable in self._kernels:
            variable.assign(shared(variable.numpy(), self._members[i]))

    def of_average(self, values: list[np.ndarray]) -> list[np.ndarray]:
        return [shared(value, self._members[i]) if i in self._members else value for i, value in enumerate(values)]


def share_weights(weights: Path, out: Path, count: int) -> None:
    """Writes the weights with `count` levels per kernel; trains nothing. Raises VerificationError for a kernel whose
    int8 has one scale for all channels, as those of an LSTM: it would have more codes than levels."""
    with np.load(weights, allow_pickle=False) as data:
        values = dict(data)
    strange = next((name for name, value in values.items() if is_pruned(name) and value.ndim != 4), None)
    if strange:
        raise VerificationError(
            f"the weights of {strange} cannot share {count} values: only those of a convolution have a scale per "
            "channel."
        )
    np.savez(out, **{n: shared(v, members(v, count)) if is_pruned(n) else v for n, v in values.items()})


def members(kernel: np.ndarray, count: int) -> np.ndarray:
    """Which of `count` levels each weight of a kernel [..., outputs] has: int [..., outputs]; the first three are
    FIXED."""
    quotients = (kernel / np.maximum(np.abs(kernel).reshape(-1, kernel.shape[-1]).max(axis=0), LEAST)).astype(float)
    free = np.quantile(quotients[quotients != 0], (np.arange(count - 3) + 0.5) / (count - 3)) if kernel.any() else FIXED
    for _ in range(ROUNDS):
        levels = np.concatenate([FIXED, free])
        nearest = _nearest(quotients, levels)
        sizes = np.bincount(nearest.ravel(), minlength=len(levels))[3:]
        sums = np.bincount(nearest.ravel(), quotients.ravel(), len(levels))[3:]
        free = np.where(sizes > 0, sums / np.maximum(sizes, 1), free)
    return _nearest(quotients, np.concatenate([FIXED, free]))


def shared(kernel: np.ndarray, members: np.ndarray) -> np.ndarray:
    """float32, as the kernel [..., outputs]: each weight as its level says, the levels and scales those nearest to the
    kernel. A channel's scale is the mean of what is at 1 and -1."""
    flat, member = kernel.reshape(-1, kernel.shape[-1]).astype(float), members.reshape(-1, kernel.shape[-1])
    at_ends = (member == 2).astype(float) - (member == 0)
    scales = np.maximum((flat * at_ends).sum(axis=0) / np.maximum(np.abs(at_ends).sum(axis=0), 1), LEAST)
    weight = np.broadcast_to(scales**2, flat.shape)  # least squares: flat - scales * level
    n = max(member.max() + 1, 3)
    sums = np.bincount(member.ravel(), (flat * scales).ravel(), n)
    levels = sums / np.maximum(np.bincount(member.ravel(), weight.ravel(), n), LEAST**2)
    levels = np.clip(levels, -1, 1)
    levels[:3] = FIXED
    return (scales * levels[member]).astype(np.float32).reshape(kernel.shape)


def _nearest(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    order = np.argsort(levels, kind="stable")
    middles = (levels[order][1:] + levels[order][:-1]) / 2
    return order[np.searchsorted(middles, values)]
