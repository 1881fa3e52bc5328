"""Which clips may be of one speaker, told by their sound: for sets whose file names do not say who speaks.

The mean of 30 cepstral coefficients over the loud frames of a clip describes voice, microphone and room. Each is
standardized over the clips of one word, so that what is left is what tells the clips of a word apart. Clips are then
joined into groups by average linkage (UPGMA) of the cosine distance, up to a mean distance of CUT: a group is what one
split may hold.

The cut is set on speakers whose names are known, in Speech Commands: of each of six words (down left up go five zero)
the clips of up to 100 speakers with 3 to 5 takes. 87 % of the pairs of clips that share a speaker share a group (4 % in
random groups of the same sizes), there is one group for two speakers, and the largest holds 8 % of the clips. Of clips
that are held out of training by group, 40 % of all, 15 % have a speaker who is trained on; held out one by one, 91 %.
In the 411 clips of "computer", whose speakers nobody named, 9 of the 23 groups hold exactly 10 or 20 clips: the takes
of one or two speakers.

Groups are a guard against hearing a training speaker in the report, no identification. Clips of several words in one
set are harder: 59 % of the pairs that share a speaker but not the word share a group. Groups follow from all clips
together, so that adding clips may move others to another group and split.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist

from models.waves import read_wave
from toolkit.errors import DataError
from toolkit.features import FeatureConfig, FrontEnd, Tables, make_tables

FEATURES = FeatureConfig(n_mfcc=30, output_fraction_bits=8)  # Q7.8 holds c0
LOUD_NAT = 3.0  # frames that are at most so much below the 95th percentile: 13 dB
CUT = 0.7  # greatest mean cosine distance within a group; 1 is unrelated
MOST_CLIPS = 20000  # whose distances take 1.6 GB


def sound_groups(paths: Sequence[Path], words: Sequence[str]) -> np.ndarray:
    """The group of each clip, int[n]: the index of the first clip of its group. ``words``: what each clip says.

    The same clips in the same order give the same groups. Raises AudioFileError, and DataError for too many clips.
    """
    if len(paths) > MOST_CLIPS:
        raise DataError(
            f"{len(paths)} clips are too many to be grouped by their sound, the limit is {MOST_CLIPS}: name the files "
            "SPEAKER_TAKE.wav and leave data.speakers at names"
        )
    if len(paths) < 2:
        return np.arange(len(paths))
    voices = np.stack([voice_of(path) for path in paths])
    for word in set(words):
        of_word = np.array([other == word for other in words])
        voices[of_word] = _standardized(voices[of_word])
    return groups_of(voices)


def voice_of(path: Path) -> np.ndarray:
    """Mean cepstrum of the loud frames of a recording, float64[30]. Raises AudioFileError."""
    wave = read_wave(path, FEATURES.sample_rate_hz)
    wave = np.pad(wave, (0, max(0, FEATURES.win_length - len(wave))))  # one frame at least
    cepstra = FrontEnd(_tables()).process(wave) / 2**FEATURES.output_fraction_bits
    level = cepstra[:, 0] / np.sqrt(2 * FEATURES.n_mels)  # the mean log power of the mel bands
    return cepstra[level >= np.percentile(level, 95) - LOUD_NAT].mean(axis=0)


def groups_of(voices: np.ndarray) -> np.ndarray:
    """Standardized descriptions float[n, d] -> the index of the first clip of each one's group, int[n]."""
    distances = np.nan_to_num(pdist(voices, "cosine"), nan=1.0)  # a clip that is the mean of its word is like no other
    number = fcluster(linkage(distances, "average"), CUT, "distance")
    _, first, inverse = np.unique(number, return_index=True, return_inverse=True)
    return first[inverse]


@cache
def _tables() -> Tables:
    return make_tables(FEATURES)


def _standardized(values: np.ndarray) -> np.ndarray:
    spread = values.std(axis=0)
    return (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1)
