"""Synthetic int16 test signals, the same in every run.

Noise, impulses and squares are integers from the start. Tones and speech are rounded from float64, where another math
library may move a sample by one: what must be equal between machines keeps its samples in a file (golden/).
"""

from __future__ import annotations

import numpy as np

RATE_HZ = 16000


def noise(n: int, peak: int = 32767, seed: int = 1) -> np.ndarray:
    """White noise, uniform in -peak .. peak."""
    return np.random.Generator(np.random.PCG64(seed)).integers(-peak, peak + 1, n).astype(np.int16)


def tone(n: int, hz: float, peak: float = 32767, rate_hz: int = RATE_HZ) -> np.ndarray:
    """A sine, phase 0 at the first sample."""
    return np.round(peak * np.sin(2 * np.pi * hz / rate_hz * np.arange(n))).astype(np.int16)


def impulses(n: int, every: int = 1000, value: int = -32768) -> np.ndarray:
    """Single samples of `value` in silence, the first one at 3."""
    x = np.zeros(n, np.int16)
    x[3::every] = value
    return x


def square(n: int, period: int, high: int = 32767, low: int = -32768) -> np.ndarray:
    """The loudest signal there is of this period: `high` for its first half, `low` for the second."""
    return np.where(np.arange(n) % period < (period + 1) // 2, high, low).astype(np.int16)


def speech(n: int, peak: int = 12000, seed: int = 1) -> np.ndarray:
    """Speech-like: voiced syllables (glottal pulses of a gliding pitch through three formants), fricatives, pauses.

    peak: the largest sample. The samples are those of a two-pole resonator bank in float64.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    total, position = np.zeros(n), 0
    while position < n:
        length = min(n - position, int(rng.integers(1200, 3600)))
        kind = rng.integers(0, 5)
        if kind == 0:
            syllable = 0.001 * rng.standard_normal(length)  # a pause in a quiet room
        elif kind == 1:
            syllable = 0.15 * np.diff(rng.standard_normal(length + 1))  # s, f
        else:
            pitch_hz = np.linspace(*rng.uniform(90, 250, 2), length)
            pulses = np.diff(np.floor(np.cumsum(pitch_hz / RATE_HZ)), prepend=0.0)
            formants = rng.uniform((250, 800, 2000), (900, 2300, 3200))
            syllable = np.sum([_resonator(pulses, hz, 80.0) for hz in formants], axis=0)
        total[position : position + length] += syllable * np.sin(np.pi * (np.arange(length) + 0.5) / length)
        position += length
    return np.round(total * (peak / max(np.abs(total).max(), 1e-9))).astype(np.int16)


def _resonator(x: np.ndarray, hz: float, bandwidth_hz: float) -> np.ndarray:
    """x through the impulse response of a two-pole resonator, cut off after 50 ms."""
    t = np.arange(800) / RATE_HZ
    return np.convolve(x, np.exp(-np.pi * bandwidth_hz * t) * np.sin(2 * np.pi * hz * t))[: len(x)]


def at_level(x: np.ndarray, db: float) -> np.ndarray:
    """x scaled so that its largest sample lies `db` decibels below full scale (db <= 0), rounded."""
    gain = 10 ** (db / 20) * 32767 / max(1.0, np.abs(x.astype(np.float64)).max())
    return np.clip(np.round(x * gain), -32768, 32767).astype(np.int16)


def battery(n: int) -> dict[str, np.ndarray]:
    """By name, n samples each: what a microphone, a broken microphone and an adversary can produce."""
    mixed = noise(n, 30000, seed=5)
    mixed[n // 5 : 2 * n // 5] = 0
    mixed[2 * n // 5 : 3 * n // 5] = -32768
    mixed[3 * n // 5 : 4 * n // 5] = noise(4 * n // 5 - 3 * n // 5, 1, seed=6)
    return {
        "speech": speech(n),
        "quiet speech": speech(n, 40, seed=2),
        "loud noise": noise(n),
        "quiet noise": noise(n, 20),
        "one bit": noise(n, 1),
        "silence": np.zeros(n, np.int16),
        "constant -32768": np.full(n, -32768, np.int16),
        "constant 32767": np.full(n, 32767, np.int16),
        "constant -1": np.full(n, -1, np.int16),
        "impulses": impulses(n, 61),
        "one count": impulses(n, 97, 1),
        "tone": tone(n, 1000.0),
        "tone between bins": tone(n, 3217.3),
        "quiet tone": tone(n, 440.0, 3.0),
        "nyquist": square(n, 2),
        "square": square(n, 16),
        "slow square": square(n, 700),
        "mixed": mixed,
    }
