"""Where a model begins to fail: its accuracy by loudness and by noise, and its recall per label there.

Of a split's clips those that hold speech are used. Levels are of active speech (models/augment.py, active_level), in
dB of full scale; noise is added at a ratio of active speech to noise. The noise is what training has not heard: the
split's own background recordings, and others that are given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from models.augment import active_level, to_int16
from models.data import Dataset
from models.evaluate import predict, result_of
from models.noise import db, to_float
from models.recipe import SILENCE
from models.streams import unheard
from models.waves import load_waves, read_wave
from toolkit.bundle import Bundle
from toolkit.errors import DataError

LEVELS_DB = (0.0, -10.0, -20.0, -30.0, -40.0)
SNRS_DB = (20.0, 15.0, 10.0, 5.0, 0.0)
AUDIBLE = 1e-4  # root mean square of a stretch that counts as noise, full scale 1: -80 dB


def measure_conditions(
    bundle: Bundle,
    dataset: Dataset,
    split: str = "report",
    noise: Sequence[Path] = (),
    say: Callable[[str], None] = lambda text: None,
) -> dict:
    """{"split", "clips", "unchanged", "by_level", "by_snr", "noise"}: the results on the clips as they are, at
    LEVELS_DB and at SNRS_DB, each what Result.to_dict gives with "level_db" and "clipped", or "snr_db".

    noise: folders of recordings that training has not heard, beside the split's own background. Raises DataError.
    """
    rate = int(bundle.manifest.front_end.config["sample_rate_hz"])
    clips = [clip for clip in dataset.clips(split) if clip.label != SILENCE]
    waves, truth = load_waves(clips, dataset.settings.clip_s, rate), dataset.classes(tuple(clips))
    backgrounds = [*dataset.backgrounds(split), *unheard(noise, dataset)]
    recordings = [read_wave(path, rate) for path in backgrounds]

    def accuracy_of(changed: np.ndarray) -> dict:
        return result_of(bundle.manifest.labels, truth, predict(bundle, changed)).to_dict()

    by_level, by_snr = [], []
    for level_db in LEVELS_DB:
        say(f"at {level_db:.0f} dB of full scale")
        changed = np.stack([at_level(wave, level_db, rate) for wave in waves])
        clipped = float(np.mean(np.abs(changed.astype(np.int32)) >= 32767))
        by_level.append({"level_db": level_db, "clipped": round(clipped, 4), **accuracy_of(changed)})
    for snr_db in SNRS_DB:
        say(f"at {snr_db:.0f} dB over noise")
        rng = np.random.default_rng(1)  # the same stretches of noise at every ratio
        changed = np.stack([in_noise(wave, recordings, snr_db, rate, rng) for wave in waves])
        by_snr.append({"snr_db": snr_db, **accuracy_of(changed)})
    return {
        "split": split,
        "clips": len(clips),
        "unchanged": accuracy_of(waves),
        "by_level": by_level,
        "by_snr": by_snr,
        "noise": [path.name for path in backgrounds],
    }


def condition_table(measured: dict) -> tuple[list[str], list[list[str]]]:
    """(head, rows) of what measure_conditions gave: a row per condition, with the recall per label."""
    labels = list(measured["unchanged"]["recall"])
    conditions = [("as recorded", measured["unchanged"])]
    conditions += [(f"active speech at {r['level_db']:.0f} dBFS", r) for r in measured["by_level"]]
    conditions += [(f"speech {r['snr_db']:.0f} dB over noise", r) for r in measured["by_snr"]]
    rows = [
        [
            name,
            f"{r['accuracy']:.1%} ({r['low']:.1%} to {r['high']:.1%})",
            *(f"{r['recall'][label]:.0%}" for label in labels),
        ]
        for name, r in conditions
    ]
    return ["clips", "accuracy", *labels], rows


def at_level(wave: np.ndarray, level_db: float, sample_rate_hz: int) -> np.ndarray:
    """The clip int16[n] at an active level of level_db of full scale, saturated; digital silence stays."""
    sound = to_float(wave)
    level = active_level(sound, sample_rate_hz)
    return to_int16(sound * (db(level_db) / np.float32(level))) if level > 0 else wave


def in_noise(
    wave: np.ndarray, recordings: Sequence[np.ndarray], snr_db: float, sample_rate_hz: int, rng: np.random.Generator
) -> np.ndarray:
    """The clip int16[n] with a random stretch of one of the recordings snr_db below its active level; the whole is
    made softer where it would not fit into int16."""
    sound = to_float(wave)
    noise = _stretch(recordings, len(wave), rng)
    mixed = sound + noise * np.float32(active_level(sound, sample_rate_hz) * db(-snr_db))
    return to_int16(mixed / max(1.0, float(np.abs(mixed).max()) * 32768 / 32767))


def _stretch(recordings: Sequence[np.ndarray], length: int, rng: np.random.Generator) -> np.ndarray:
    """float32[length] with root mean square 1, repeated where the recording is shorter; not a silent stretch."""
    for _ in range(100):
        recording = recordings[rng.integers(len(recordings))]
        start = int(rng.integers(max(1, len(recording) - length + 1)))
        noise = to_float(np.resize(recording[start : start + length], length))
        level = float(np.sqrt(np.mean(noise**2)))
        if level > AUDIBLE:
            return noise / np.float32(level)
    raise DataError(f"the {len(recordings)} noise recordings are silent; give some that can be heard.")
