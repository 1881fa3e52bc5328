"""The representative data set: the int8 codes of clips as the device's front end computes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.data import load_dataset
from models.epochs import codes_of
from models.recipe import Recipe
from models.waves import load_waves, read_wave
from toolkit.audio import list_audio
from toolkit.errors import DataError

ENOUGH = 64  # clips that set ranges: with 24, one wake word lost 2 points
MIN_CODE_SPREAD = 8.0  # standard deviation of codes, 0.8 nat; speech and noise have 20 and more


def representative_codes(recipe: Recipe, source: Path, is_dataset: bool) -> np.ndarray:
    """int8 codes [n, T, width] of `representative_clips` clips, each with its flush.

    source: a data set (drawn evenly over the labels of `train`), or a folder of clips of any kind; of one with a folder
    for every label those alone, if that are ENOUGH. Raises DataError for a set that cannot set ranges, such as silence.
    """
    rate, clip_s = recipe.features.sample_rate_hz, recipe.data.clip_s
    count = recipe.quantize.representative_clips
    if is_dataset:
        dataset = load_dataset(source, recipe.data, rate)
        rng = np.random.default_rng(recipe.quantize.seed)
        by_label: dict[str, list] = {}
        for clip in dataset.clips("train"):
            by_label.setdefault(clip.label, []).append(clip)
        per_label = -(-count // len(by_label))
        chosen = [c for clips in by_label.values() for c in rng.permutation(np.array(clips, object))[:per_label]]
        waves = load_waves(chosen[:count], clip_s, rate)
    else:
        length = round(clip_s * rate)
        paths = list_audio(source)
        of_labels = [path for path in paths if path.parent.name in recipe.labels]
        if len({path.parent.name for path in of_labels}) == len(recipe.labels) and len(of_labels) >= ENOUGH:
            paths = of_labels
        pieces = [np.resize(w, length) if len(w) < length else w[:length] for w in map(read_wave, paths)]
        waves = np.stack(pieces[:count])
    codes = codes_of(waves, recipe.features, recipe.decision.flush_frames * recipe.features.hop_length)
    speech = codes[:, : waves.shape[1] // recipe.features.hop_length]
    if speech.std() < MIN_CODE_SPREAD:
        raise DataError(
            f"the {len(codes)} calibration clips of {source} are silent or constant (their features vary by "
            f"{speech.std() / 10:.2f} nat, at least {MIN_CODE_SPREAD / 10:.1f} is needed); give clips of speech."
        )
    return codes
