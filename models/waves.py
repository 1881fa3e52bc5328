"""The audio of clips in memory: int16, one rate, one length."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from toolkit.audio import read_audio

if TYPE_CHECKING:
    from models.data import Clip, Dataset

LOUDEST_GRID = 160  # samples between the stretches that are compared in a clip that is too long
AS_LOUD = 0.999  # of the energy of the loudest: stretches that all hold the word, at one place or another


@dataclass(frozen=True)
class TrainingAudio:
    """Everything that training examples are made from, in memory."""

    waves: np.ndarray  # int16[n, clip_samples]
    labels: np.ndarray  # int32[n], index into label_names
    words: np.ndarray  # int32[n], one number per folder: tells the words apart that are all "unknown"
    label_names: tuple[str, ...]
    backgrounds: tuple[np.ndarray, ...]  # int16[...] each
    negatives: tuple[np.ndarray, ...]  # int16[...] each
    hard_negatives: tuple[np.ndarray, ...]  # int16[...] each, some seconds
    extra_waves: np.ndarray  # int16[m, clip_samples], more clips, m may be 0
    extra_labels: np.ndarray  # int32[m]
    extra_fraction: float
    unknown_fraction: float
    silence_fraction: float
    sample_rate_hz: int


def load_waves(clips: Sequence[Clip], clip_s: float = 1.0, sample_rate_hz: int = 16000, threads: int = 4) -> np.ndarray:
    """The audio of ``clips``, int16[n, clip_s * sample_rate_hz].

    A shorter clip ends in zeros, as in TensorFlow's decode_wav; of a longer one the loudest stretch is used, with what
    is loud in its middle; a file of another rate is resampled, of several channels the first is read, and one line on
    stderr says so. Raises AudioFileError.
    """
    length = round(clip_s * sample_rate_hz)
    waves, notices = np.zeros((len(clips), length), np.int16), []
    recordings = {
        path: read_wave(path, sample_rate_hz) for path in {clip.path for clip in clips if clip.start is not None}
    }

    def read(i: int) -> None:
        clip = clips[i]
        if clip.start is None:
            _fit(read_wave(clip.path, sample_rate_hz, notices), waves[i])
        elif clip.gain_db > -math.inf:
            piece = recordings[clip.path][clip.start : clip.start + length]
            waves[i, : len(piece)] = np.rint(piece * 10.0 ** (clip.gain_db / 20))

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(read, range(len(clips)), chunksize=64):
            pass
    if notices:
        print(f"{len(notices)} notices about {len(clips)} clips, the first: {min(notices)}", file=sys.stderr)
    return waves


def read_wave(path: Path, sample_rate_hz: int = 16000, notices: list[str] | None = None) -> np.ndarray:
    """One recording, int16[n], first channel, at ``sample_rate_hz``; what was converted is added to ``notices``.

    Raises AudioFileError.
    """
    wave, converted = read_audio(path, sample_rate_hz, channel=0)
    if notices is not None:
        notices.extend(converted)
    return wave


def load_training_audio(dataset: Dataset, sample_rate_hz: int = 16000) -> TrainingAudio:
    """Read the training split of ``dataset`` into memory. Raises AudioFileError."""
    clips = dataset.clips("train")
    numbers = {word: i for i, word in enumerate(sorted({clip.word for clip in clips}))}
    return TrainingAudio(
        waves=load_waves(clips, dataset.settings.clip_s, sample_rate_hz),
        labels=dataset.classes(clips),
        words=np.array([numbers[clip.word] for clip in clips], np.int32),
        label_names=dataset.labels,
        backgrounds=tuple(read_wave(path, sample_rate_hz) for path in dataset.backgrounds("train")),
        negatives=tuple(read_wave(path, sample_rate_hz) for path in dataset.negatives),
        hard_negatives=tuple(read_wave(path, sample_rate_hz) for path in dataset.hard_negatives),
        extra_waves=load_waves(dataset.extra, dataset.settings.clip_s, sample_rate_hz),
        extra_labels=dataset.classes(dataset.extra),
        extra_fraction=dataset.settings.extra_fraction,
        unknown_fraction=dataset.settings.unknown_fraction,
        silence_fraction=dataset.settings.silence_fraction,
        sample_rate_hz=sample_rate_hz,
    )


def _fit(wave: np.ndarray, out: np.ndarray) -> None:
    """Write ``wave`` into ``out``: followed by zeros, or its loudest stretch.

    Of the stretches that are as loud it is the middle one: the very loudest begins with a word, because the room sounds
    on after it, and cuts off a soft consonant at its start.
    """
    if len(wave) <= len(out):
        out[: len(wave)] = wave
        return
    energy = np.concatenate([[0], np.cumsum(wave.astype(np.int64) ** 2)])
    starts = np.arange(0, len(wave) - len(out) + 1, LOUDEST_GRID)
    held = energy[starts + len(out)] - energy[starts]
    loudest = int(np.argmax(held))
    softer = np.flatnonzero(held < AS_LOUD * held[loudest])
    first = max(softer[softer < loudest], default=-1) + 1
    last = min(softer[softer > loudest], default=len(held)) - 1
    start = starts[(first + last) // 2]
    out[:] = wave[start : start + len(out)]
