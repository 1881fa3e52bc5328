"""Long audio with known times: words over a background that never stops, and recordings without keywords.

    words of a split ─┐
    background ───────┴─> scene: int16 samples, and when which word was said ─┐
    recordings without keywords, one by one ──────────────────────────────────┴─> int8 scores (Scorer) -> models/det.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import numpy as np

from models.augment import active_level, place, to_int16
from models.data import Dataset, real_paths
from models.noise import FULL_SCALE, db, to_float
from models.recipe import UNKNOWN
from models.waves import load_waves, read_wave
from toolkit.audio import AudioFile, list_audio
from toolkit.bundle import Bundle
from toolkit.errors import DataError
from toolkit.kws import NOT_KEYWORDS
from toolkit.stream import BundleStage, make_front_end

GAP_S = (1.0, 3.0)  # between two words
TAIL_S = 1.0  # after the last one
FLOOR_DB = -50.0  # of full scale: the background of a clean scene
PIECE_S = 30.0  # longest stretch of one background recording
FADE_S = 0.1  # from one into the next
BLOCK_S = 60.0  # of a recording, read at once
FRAMES_PER_STEP = 64  # that the model takes at once: the same scores a sixth faster than frame by frame
TRANSCRIPTS = "transcripts.jsonl"


@dataclass(frozen=True)
class Event:
    """A word in a scene; from `onset` to `offset`, in seconds, lasts its clip."""

    label: str
    onset: float
    offset: float


@dataclass(frozen=True)
class Scene:
    """Audio int16[n] and the words in it, in order."""

    name: str
    samples: np.ndarray
    events: tuple[Event, ...]


@dataclass(frozen=True)
class Scored:
    """The scores int8[T, labels] of a scene or recording of `seconds`, heard from the reset state to its end, and of
    the silence that follows (toolkit.stream.Pipeline.finish)."""

    name: str
    scores: np.ndarray
    seconds: float
    events: tuple[Event, ...] = ()


class Scorer:
    """A bundle's front end and step model, as on the device: audio -> int8 scores."""

    def __init__(self, bundle: Bundle):
        self.stage = BundleStage(bundle, frames_per_step=FRAMES_PER_STEP)
        self.sample_rate_hz = self.stage.tables.sample_rate_hz
        self._front_end = make_front_end(bundle)

    def scores(self, blocks: Iterable[np.ndarray]) -> tuple[np.ndarray, float]:
        """Blocks int16[...] of one recording -> (int8[T, labels], seconds heard)."""
        self.stage.reset()
        self._front_end.reset()
        scores, samples = [], 0
        for block in blocks:
            scores.append(self.stage.scores(self._front_end.process(block)))
            samples += len(block)
        silence = np.zeros(self.stage.flush_frames * self.stage.tables.hop_length, np.int16)
        scores.append(self.stage.scores(self._front_end.process(silence), last=True))
        return np.concatenate(scores), samples / self.sample_rate_hz

    def scene(self, scene: Scene) -> Scored:
        """The scores of a scene."""
        block = round(BLOCK_S * self.sample_rate_hz)
        blocks = (scene.samples[i : i + block] for i in range(0, len(scene.samples), block))
        return Scored(scene.name, *self.scores(blocks), scene.events)

    def recordings(self, paths: Sequence[Path], say: Callable[[str], None] = lambda text: None) -> tuple[Scored, ...]:
        """The scores of files, each from the reset state; `say` gets a line of progress every 10 s.

        Of several channels the first is heard. Raises AudioFileError.
        """
        total = heard = 0.0
        for path in paths:
            with AudioFile(path, self.sample_rate_hz, channel=0) as file:
                total += file.duration_s
        scored, began, said = [], monotonic(), monotonic()
        for path in paths:
            blocks = AudioFile(path, self.sample_rate_hz, channel=0).blocks(round(BLOCK_S * self.sample_rate_hz))
            scored.append(Scored(str(path), *self.scores(blocks)))
            heard += scored[-1].seconds
            if monotonic() - said > 10:
                said = monotonic()
                left = (said - began) * (total - heard) / heard
                say(f"{heard / 3600:.2f} of {total / 3600:.2f} h heard, {left:.0f} s left")
        return tuple(scored)


def word_scene(
    dataset: Dataset,
    split: str,
    rate: int,
    keywords: bool = True,
    snr_db: float | None = None,
    noise: Sequence[Path] = (),
    seed: int = 1,
) -> Scene:
    """Every keyword of a split, or every other word of it, at known times over a background that never stops.

    The order is drawn, and gaps of GAP_S between the clips. The background is of the split's own recordings and of
    `noise`, neither heard in training: at FLOOR_DB of full scale, or `snr_db` below the active level of each clip
    (models.augment.active_level over the root mean square of the recording), moving in the gaps. Raises DataError.
    """
    clips = [clip for clip in dataset.clips(split) if (clip.label not in NOT_KEYWORDS) == keywords]
    clips = [clip for clip in clips if keywords or clip.label == UNKNOWN]
    if not clips:
        raise DataError(f"the split {split} of {dataset.root} holds no clip for a stream; choose tune or report")
    rng = np.random.default_rng([seed, int(keywords)])
    clips = [clips[i] for i in rng.permutation(len(clips))]
    waves = load_waves(clips, dataset.settings.clip_s, rate)
    gaps = np.round(rng.uniform(*GAP_S, len(clips)) * rate).astype(int)
    onsets = np.cumsum(gaps) + np.arange(len(clips)) * waves.shape[1]
    length = int(onsets[-1]) + waves.shape[1] + round(TAIL_S * rate)
    recordings = [read_wave(path, rate) for path in (*dataset.backgrounds(split), *noise)]
    sound = continuous(recordings, length, rate, rng)
    if snr_db is None:
        sound *= db(FLOOR_DB)
    else:
        levels = [max(active_level(to_float(wave), rate), 1 / FULL_SCALE) / db(snr_db) for wave in waves]
        _follow(sound, onsets, waves.shape[1], np.array(levels))
    for onset, wave in zip(onsets, waves):
        place(sound, to_float(wave), int(onset))
    name = f"{'keywords' if keywords else 'other words'} of {split}, {condition(snr_db)}"
    events = tuple(Event(c.word, o / rate, (o + waves.shape[1]) / rate) for c, o in zip(clips, onsets))
    return Scene(name, to_int16(sound), events)


def condition(snr_db: float | None) -> str:
    """How loud the background of a scene is, in words."""
    return "clean" if snr_db is None else f"{snr_db:g} dB SNR"


def continuous(recordings: Sequence[np.ndarray], length: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Random pieces of int16 recordings, in turn, each faded into the next: float32[length].

    Every recording is brought to a mean square of 1 over its whole length. Raises DataError where all are silent.
    """
    fade, longest = round(FADE_S * rate), round(PIECE_S * rate)
    heard = [(r, float(np.sqrt(np.mean(to_float(r) ** 2)))) for r in recordings]
    heard = [(np.resize(r, max(len(r), 4 * fade)), rms) for r, rms in heard if rms > 0]
    if not heard:
        raise DataError(f"{len(recordings)} background recordings hold nothing but zeros; name others")
    rise = np.sin(np.linspace(0, np.pi / 2, fade, dtype=np.float32))  # equal power: the recordings are unrelated
    sound, start = np.zeros(length, np.float32), -fade
    while start < length - fade:
        for i in rng.permutation(len(heard)):
            recording, rms = heard[i]
            first = int(rng.integers(max(1, len(recording) - longest + 1)))
            piece = to_float(recording[first : first + longest]) / np.float32(rms)
            piece[:fade] *= rise
            piece[-fade:] *= rise[::-1]
            place(sound, piece, start)
            start += len(piece) - fade
    return sound


def unheard(folders: Sequence[Path], dataset: Dataset) -> list[Path]:
    """The recordings under the folders, sorted. DataError for one that the recipe trains on: it would flatter."""
    paths = [path for folder in folders for path in list_audio(folder)]
    for path, real in zip(paths, real_paths(paths), strict=True):
        if real in dataset.trained:
            raise DataError(
                f"{path} is heard in training: it is in data.noise, data.negatives or data.extra of the recipe; "
                "name a folder that is not"
            )
    return paths


def check_transcripts(folders: Sequence[Path], words: Sequence[str]) -> int:
    """How many transcripts (lines {"text": ...} of a file transcripts.jsonl) lie under the folders.

    Raises DataError for one that holds a keyword: hearing it would be counted as a false accept.
    """
    keyword, count = re.compile(rf"\b({'|'.join(map(re.escape, words))})\b", re.IGNORECASE), 0
    for path in (path for folder in folders for path in sorted(Path(folder).rglob(TRANSCRIPTS))):
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            try:
                said = keyword.search(json.loads(line)["text"])
            except (ValueError, TypeError, KeyError):
                raise DataError(f'{path}, line {number}, is not {{"text": ...}}; make it so, or remove it') from None
            if said:
                raise DataError(f"{path}, line {number}, says {said[0]!r}, a keyword; remove it and its recording")
            count += 1
    return count


def _follow(sound: np.ndarray, onsets: np.ndarray, length: int, levels: np.ndarray) -> None:
    """Multiply by levels[i] during word i, and by what lies between, linear in dB, from one word to the next."""
    sound[: onsets[0]] *= np.float32(levels[0])
    for i, onset in enumerate(onsets):
        sound[onset : onset + length] *= np.float32(levels[i])
        gap = sound[onset + length : onsets[i + 1] if i + 1 < len(onsets) else None]
        gap *= np.geomspace(levels[i], levels[min(i + 1, len(levels) - 1)], len(gap), dtype=np.float32)
