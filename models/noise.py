"""Background noise for training: recorded or synthesized, and varied so that no recording is learnt by heart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft

FULL_SCALE = 32768.0  # int16 as Q0.15
COLOURED = 0.3  # of all noise: synthesized instead of recorded
COLOUR_DB = 8.0  # of the filter that varies a noise


@dataclass(frozen=True)
class NoiseSource:
    """What noise is drawn from."""

    recordings: tuple[np.ndarray, ...]  # int16 each; may be empty
    synthesized: tuple[np.ndarray, ...]  # float32 each, mean square 1, longer than a stretch
    sample_rate_hz: int


def background(source: NoiseSource, length: int, rng: np.random.Generator, varied: float) -> np.ndarray:
    """A stretch of noise, float32[length], root mean square 1 (0 where it is digital silence).

    Recorded or synthesized; with probability ``varied`` each: mixed with a second one, coloured, swelling. A handful of
    recordings would otherwise be learnt by heart, and a new fan taken for a word.
    """
    noise = _stretch(source, length, rng)
    if rng.random() < varied:
        noise = noise + _stretch(source, length, rng) * db(rng.uniform(-15, 0))
    if rng.random() < varied:
        noise = coloured(noise, COLOUR_DB, rng)
    if rng.random() < varied:
        noise = noise * swell(length, source.sample_rate_hz, rng)
    power = float(noise @ noise) / length
    return noise * np.float32(1 / np.sqrt(power)) if power > 1e-10 else np.zeros_like(noise)


def _stretch(source: NoiseSource, length: int, rng: np.random.Generator) -> np.ndarray:
    if not source.recordings or rng.random() < COLOURED:
        noise = source.synthesized[rng.integers(len(source.synthesized))]
        start = int(rng.integers(len(noise) - length))
        return noise[start : start + length].copy()
    recording = source.recordings[rng.integers(len(source.recordings))]
    start = int(rng.integers(max(1, len(recording) - length + 1)))
    noise = to_float(recording[start : start + length])
    if len(noise) < length:
        noise = np.resize(noise, length)
    power = float(noise @ noise) / length
    return noise * np.float32(1 / np.sqrt(power)) if power > 1e-10 else np.zeros(length, np.float32)


def coloured(sound: np.ndarray, spread_db: float, rng: np.random.Generator, tilt_db: float = 0.0) -> np.ndarray:
    """``sound`` through a random smooth filter: gains of ``spread_db`` standard deviation at eight frequencies, on a
    slope that rises by ``tilt_db`` over the upper three octaves and as steeply below them, down to a 160th of all."""
    spectrum = scipy.fft.rfft(sound)
    frequency = np.linspace(0, 1, len(spectrum))
    gains = np.interp(frequency**0.5, np.linspace(0, 1, 8), rng.normal(0, spread_db, 8))
    gains += tilt_db / 3 * np.log2(np.maximum(frequency, 1 / 160))
    return scipy.fft.irfft(spectrum * (10.0 ** (gains / 20)).astype(np.float32), len(sound))


def swell(length: int, sample_rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """An amplitude that comes and goes 0.5 to 8 times a second, float32[length] in 0..1: machines, steps, breath."""
    time = np.arange(length, dtype=np.float32) / np.float32(sample_rate_hz)
    wave = 0.5 + 0.5 * np.sin(2 * np.pi * (np.float32(rng.uniform(0.5, 8)) * time + np.float32(rng.random())))
    depth = np.float32(rng.uniform(0.5, 1))
    return 1 - depth + depth * wave ** np.float32(rng.uniform(0.5, 6))


def coloured_noise(rng: np.random.Generator, length: int, exponent: float) -> np.ndarray:
    """Gaussian noise with power 1 / f ** exponent, float32[length], mean square 1."""
    spectrum = scipy.fft.rfft(rng.standard_normal(length))
    frequency = np.arange(len(spectrum), dtype=float)
    frequency[: max(1, length // 800)] = max(1, length // 800)  # flat below 20 Hz at 16 kHz
    noise = scipy.fft.irfft(spectrum * frequency ** (-exponent / 2), length)
    return (noise / np.sqrt(np.mean(noise**2))).astype(np.float32)


def mains_hum(rng: np.random.Generator, length: int, sample_rate_hz: int, hum_hz: float) -> np.ndarray:
    """Mains hum with harmonics that fall by 6 dB per doubling and a little hiss, float32[length], mean square 1."""
    time = np.arange(length) / sample_rate_hz
    hum = sum(np.sin(2 * np.pi * (k * hum_hz * time + rng.random())) / k for k in range(1, 16))
    hum = hum + 0.02 * rng.standard_normal(length)
    return (hum / np.sqrt(np.mean(hum**2))).astype(np.float32)


def db(value: float) -> np.float32:
    """Decibels as a factor of amplitude."""
    return np.float32(10.0 ** (value / 20))


def to_float(wave: np.ndarray) -> np.ndarray:
    """int16 -> float32, full scale 1."""
    return wave.astype(np.float32) * np.float32(1 / FULL_SCALE)
