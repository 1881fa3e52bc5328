"""The released model frame by frame and in whole clips, over an hour of anything: the same integers."""

from __future__ import annotations

import numpy as np
from released import released, scene
from signals import noise, speech

from toolkit.interpreter import StepModel
from toolkit.stream import BundleStage, make_front_end


def compare_with_whole(codes: np.ndarray, frames: int) -> tuple[int, int]:
    """(scores compared, integers of scores and states in which single steps and steps of `frames` differ)."""
    step, whole = StepModel(released().members["model"]), StepModel(released().members["model"], frames=frames)
    compared = differing = 0
    for start in range(0, len(codes), frames):
        part = codes[start : start + frames]
        a, b = step.process(part), whole.process(part)
        compared, differing = compared + len(a), differing + int((a != b).sum())
        differing += sum(int((x != y).sum()) for x, y in zip(step.state(), whole.state(), strict=True))
    return compared, differing


def test_step_is_whole_on_clips():
    for start in range(0, 400_000, 50_000):
        features = make_front_end(released()).process(scene()[start : start + 16_000])
        codes = BundleStage(released()).requantize.apply(features)
        n = len(codes) // released().manifest.model.frames_per_step * released().manifest.model.frames_per_step
        compared, differing = compare_with_whole(codes[:n], n)
        assert compared > 40 and differing == 0


def test_step_is_whole_over_one_hour():
    """360,000 frames of speech, noise, clipping and digital silence at all levels; 0 LSB in scores and states."""
    rng = np.random.default_rng(5)
    front_end, requantize = make_front_end(released()), BundleStage(released()).requantize
    pieces = [scene(), speech(80_000), noise(80_000), noise(80_000, peak=30), np.zeros(16_000, np.int16)]
    codes = np.concatenate([requantize.apply(front_end.process(piece)) for piece in pieces])
    starts = rng.integers(0, len(codes) - 3000, 120)
    levels = rng.integers(-40, 40, 120)
    hour = np.concatenate([codes[s : s + 3000] + np.int16(level) for s, level in zip(starts, levels)]).clip(-128, 127)
    hour[100_000:103_000] = rng.integers(-128, 128, (3000, codes.shape[1]))
    assert hour.shape == (360_000, codes.shape[1])
    compared, differing = compare_with_whole(hour.astype(np.int8), 6000)
    assert compared == 360_000 // BundleStage(released()).stride and differing == 0
