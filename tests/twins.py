"""The comparison of the two front ends: `python tests/twins.py` runs all of it and prints the frames that were equal.

The tests call its parts; sanitizer and overflow-checking builds of the core run it as a program, with EDGE_AUDIO_CORE
naming the build (a build that finds something ends the process).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import signals

from toolkit import native
from toolkit.features import FeatureConfig, FrontEnd, Requantization, make_tables

MFCC = {"n_mfcc": 13, "output_fraction_bits": 8}
CONFIGS = {
    "default": FeatureConfig(),
    "mfcc": FeatureConfig(**MFCC),
    "magnitude": FeatureConfig(spectrum="magnitude", log_floor=1e-3),
    "pre-emphasis": FeatureConfig(pre_emphasis=0.97, window="hamming"),
    "all options": FeatureConfig(pre_emphasis=0.9999, window="hamming", spectrum="magnitude", **MFCC),
    "odd window": FeatureConfig(win_length=401, hop_length=161, n_fft=512, pre_emphasis=0.5),
    "odd window, plain": FeatureConfig(win_length=255, hop_length=255, n_fft=256),
    "smallest": FeatureConfig(win_length=1, hop_length=1, n_fft=16, n_mels=2, n_mfcc=1, fmin_hz=0.0, fmax_hz=8000.0),
    "16": FeatureConfig(win_length=16, hop_length=16, n_fft=16, n_mels=5, fmin_hz=0.0, fmax_hz=8000.0),
    "32": FeatureConfig(win_length=31, hop_length=7, n_fft=32, n_mels=8, n_mfcc=8, pre_emphasis=0.9,
                        spectrum="magnitude"),
    "64": FeatureConfig(win_length=64, hop_length=1, n_fft=64, n_mels=16, fmin_hz=0.0),
    "128": FeatureConfig(win_length=100, hop_length=50, n_fft=128, n_mels=256, n_mfcc=256),
    "1024": FeatureConfig(win_length=1000, hop_length=500, n_fft=1024, n_mels=128, fmax_hz=8000.0, log_floor=1e3),
    "2048": FeatureConfig(win_length=2047, hop_length=600, n_fft=2048, spectrum="magnitude", output_fraction_bits=15),
    "4096": FeatureConfig(win_length=4096, hop_length=4096, n_fft=4096, n_mels=80, fmin_hz=0.0, output_fraction_bits=0),
    "one wide filter": FeatureConfig(win_length=4095, hop_length=2048, n_fft=4096, n_mels=1, fmin_hz=0.0,
                                     fmax_hz=8000.0, pre_emphasis=0.9999, log_floor=1e-15),
    "48 kHz": FeatureConfig(sample_rate_hz=48000, win_length=1200, hop_length=480, n_fft=2048, n_mels=64, fmax_hz=2e4),
    "8 kHz": FeatureConfig(sample_rate_hz=8000, win_length=200, hop_length=80, n_fft=256, n_mels=23, fmax_hz=4000.0),
}


def random_config(rng: np.random.Generator) -> FeatureConfig:
    """Any front end that FeatureConfig allows."""
    n_fft = 1 << int(rng.integers(4, 13))
    win_length, n_mels = int(rng.integers(1, n_fft + 1)), int(rng.integers(1, 257))
    rate = int(rng.choice([8000, 16000, 22050, 44100, 48000]))
    low, high = np.sort(rng.uniform(0, rate / 2, 2))
    return FeatureConfig(
        rate, win_length, int(rng.integers(max(1, win_length // 8), win_length + 1)), n_fft,
        window=str(rng.choice(["hann", "hamming"])), pre_emphasis=float(rng.choice([0.0, 0.5, 0.97, 0.9999])),
        n_mels=n_mels, fmin_hz=float(low), fmax_hz=float(high) + 1e-3 * (high - low == 0),
        spectrum=str(rng.choice(["magnitude", "power"])), log_floor=float(10 ** rng.uniform(-15, 3)),
        n_mfcc=int(rng.integers(0, n_mels + 1)), output_fraction_bits=int(rng.integers(0, 16)))


def random_blocks(samples: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """The samples, cut anywhere: empty blocks, single samples, whole stretches."""
    cuts = np.sort(rng.integers(0, len(samples) + 1, int(rng.integers(0, 9))))
    return np.split(samples, cuts)


def in_blocks(front_end: FrontEnd, blocks: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([front_end.process(block) for block in blocks])


def frames_of(config: FeatureConfig, n_samples: int) -> int:
    """How many frames n_samples hold, by the definition."""
    return max(0, (n_samples - config.win_length) // config.hop_length + 1)


def compare(config: FeatureConfig, samples: np.ndarray, rng: np.random.Generator) -> int:
    """The number of frames, all equal: numpy in one block, C in one block, in random ones, and again after reset."""
    tables = make_tables(config)
    expected = FrontEnd(tables, "numpy").process(samples)
    front_end = FrontEnd(tables, "native")
    for name, blocks in (("whole", [samples]), ("in blocks", random_blocks(samples, rng))):
        got = in_blocks(front_end, blocks)
        assert got.shape == (frames_of(config, len(samples)), config.width) and got.dtype == np.int16, (config, name)
        if not np.array_equal(got, expected):
            frame, value = np.argwhere(got != expected)[0]
            raise AssertionError(
                f"{config}, {name}: frame {frame}, value {value} is {got[frame, value]} in C and "
                f"{expected[frame, value]} in numpy ({np.sum(got != expected)} of {got.size} differ)")
        front_end.reset()
    return len(expected)


def length_for(config: FeatureConfig, n_frames: int) -> int:
    """Samples for n_frames frames and a part of the next."""
    return config.win_length + config.hop_length * n_frames - 1


def compare_requantization(rng: np.random.Generator, n: int = 200) -> int:
    """The number of codes, all equal between numpy and C, for n random requantizations of all int16 values."""
    features = np.arange(-32768, 32768).astype(np.int16)
    for _ in range(n):
        step = Requantization(int(rng.integers(1, 1 << 31)), int(rng.integers(1, 47)), int(rng.integers(-128, 128)))
        native_codes = native.requantize(features, step.multiplier, step.shift, step.zero_point)
        assert np.array_equal(native_codes, step.apply_numpy(features)), step
    return n * len(features)


def main() -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    frames = 0
    for config in CONFIGS.values():
        for samples in signals.battery(length_for(config, 6)).values():
            frames += compare(config, samples, rng)
    for _ in range(60):
        config = random_config(rng)
        for samples in signals.battery(length_for(config, 2)).values():
            frames += compare(config, samples, rng)
    codes = compare_requantization(rng, 20)
    print(json.dumps({"core": str(native.library()._name), "frames_equal": frames, "codes_equal": codes}))


if __name__ == "__main__":
    main()
