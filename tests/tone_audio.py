"""Training audio of pure tones, in memory, for the tests of plans and of augmentation."""

from __future__ import annotations

import numpy as np

from models.waves import TrainingAudio

RATE = 16000


def tone_audio() -> TrainingAudio:
    """30 clips: words a and b with 8 each, 12 of the frequent word c and 2 of the rare word d, as short tones; extra
    are one clip of a and three of c."""
    rng = np.random.default_rng(7)
    words = np.repeat([0, 1, 2, 3], [8, 8, 12, 2]).astype(np.int32)
    time = np.arange(RATE) / RATE
    envelope = np.exp(-(((time - 0.5) / 0.15) ** 2))
    waves = [8000 * envelope * np.sin(2 * np.pi * (300 + 200 * word + rng.uniform(0, 50)) * time) for word in words]
    noise = tuple((3000 * rng.standard_normal(3 * RATE)).astype(np.int16) for _ in range(2))
    speech = tuple(np.tile(np.array(waves[word], np.int16), 3) for word in (16, 20))
    return TrainingAudio(
        np.array(waves, np.int16),
        np.minimum(words, 2),
        words,
        ("a", "b", "unknown", "silence"),
        noise,
        speech,
        (speech[0][: 2 * RATE], speech[1][: 2 * RATE]),
        np.array(waves, np.int16)[[0, 16, 17, 18]],
        np.array([0, 2, 2, 2], np.int32),
        0.25,
        2.0,
        1.0,
        RATE,
    )
