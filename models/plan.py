"""Which examples an epoch of training has: sources, labels and order, before any sound is made."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from models.recipe import SILENCE, UNKNOWN
from models.waves import TrainingAudio


class Source(IntEnum):
    """Where the sound of an example comes from."""

    WORD = 0  # a clip of a keyword
    OTHER = 1  # a clip of another word
    PIECE = 2  # a piece of a long negative recording
    REVERSED = 3  # any clip, played backwards
    SPLICE = 4  # the first half of one clip and the second half of one of another word
    SILENCE = 5  # background only
    EXTRA = 6  # a clip of data.extra, of a keyword or of another word
    HARD = 7  # a piece of a hard negative


# Shares of the unknown class by source; the share of a source that a data set lacks goes to the other words, that of
# hard negatives to the running speech.
UNKNOWN_SHARES = {
    Source.OTHER: 0.34,
    Source.PIECE: 0.25,
    Source.HARD: 0.15,
    Source.EXTRA: 0.16,
    Source.REVERSED: 0.05,
    Source.SPLICE: 0.05,
}


@dataclass(frozen=True)
class Plan:
    """The examples of one epoch, shuffled; all arrays are [n]."""

    source: np.ndarray  # int8, Source
    first: np.ndarray  # int32, a clip, a negative recording, a hard negative, or an extra clip
    second: np.ndarray  # int32, the other clip of a splice
    label: np.ndarray  # int32


def plan_epoch(audio: TrainingAudio, rng: np.random.Generator) -> Plan:
    """Which sources an epoch uses: all words once, extra, unknown and silence by their fractions, shuffled."""
    unknown, silence = audio.label_names.index(UNKNOWN), audio.label_names.index(SILENCE)
    word_clips, other_clips = np.flatnonzero(audio.labels < unknown), np.flatnonzero(audio.labels == unknown)
    mean = len(word_clips) / unknown  # labels before "unknown" are the words
    extra_words = np.flatnonzero(audio.extra_labels < unknown)
    extra_others = np.flatnonzero(audio.extra_labels == unknown)
    present = {
        Source.OTHER: len(other_clips),
        Source.PIECE: len(audio.negatives),
        Source.HARD: len(audio.hard_negatives),
        Source.EXTRA: len(extra_others),
    }
    sources = _unknown_sources(round(audio.unknown_fraction * mean), present)
    parts = [(Source.WORD, word_clips)]
    if len(extra_words):
        parts.append((Source.EXTRA, rng.choice(extra_words, round(audio.extra_fraction * len(word_clips)))))
    if Source.EXTRA in sources:
        parts.append((Source.EXTRA, rng.choice(extra_others, sources[Source.EXTRA])))
    if Source.OTHER in sources:
        parts.append((Source.OTHER, _rare_more_often(other_clips, audio.words, sources[Source.OTHER], rng)))
    if Source.PIECE in sources:
        seconds = np.array([len(recording) for recording in audio.negatives], float)
        parts.append((Source.PIECE, rng.choice(len(seconds), sources[Source.PIECE], p=seconds / seconds.sum())))
    if Source.HARD in sources:
        parts.append((Source.HARD, rng.integers(len(audio.hard_negatives), size=sources[Source.HARD])))
    for source in (Source.REVERSED, Source.SPLICE):
        parts.append((source, rng.integers(len(audio.waves), size=sources[source])))
    parts.append((Source.SILENCE, np.zeros(round(audio.silence_fraction * mean), int)))

    source = np.concatenate([np.full(len(clips), source, np.int8) for source, clips in parts])
    first = np.concatenate([clips for _, clips in parts]).astype(np.int32)
    label = np.full(len(source), unknown, np.int32)
    label[source == Source.SILENCE] = silence
    label[source == Source.WORD] = audio.labels[first[source == Source.WORD]]
    label[source == Source.EXTRA] = audio.extra_labels[first[source == Source.EXTRA]]
    order = rng.permutation(len(source))
    return Plan(
        source[order], first[order], rng.integers(len(audio.waves), size=len(source), dtype=np.int32), label[order]
    )


def _unknown_sources(count: int, present: dict[Source, int]) -> dict[Source, int]:
    """Examples of the unknown class per source; they add up to ``count``. present: clips or recordings of a source."""
    shares = dict(UNKNOWN_SHARES)
    instead = {
        Source.HARD: Source.PIECE,
        Source.PIECE: Source.OTHER,
        Source.EXTRA: Source.OTHER,
        Source.OTHER: Source.REVERSED,
    }
    for source, other in instead.items():
        if not present[source]:
            shares[other] += shares.pop(source)
    counts = {source: int(share * count) for source, share in shares.items()}
    counts[next(iter(counts))] += count - sum(counts.values())
    return counts


def _rare_more_often(clips: np.ndarray, words: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` of ``clips``, weighted by one over the root of their word's number; repeated only if they run out."""
    sizes = np.bincount(words[clips])
    weight = 1 / np.sqrt(sizes[words[clips]])
    drawn = [rng.choice(clips, min(count, len(clips)), replace=False, p=weight / weight.sum())]
    if count > len(clips):
        drawn.append(rng.choice(clips, count - len(clips), p=weight / weight.sum()))
    return np.concatenate(drawn)
