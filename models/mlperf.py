"""A 20 minute stream laid out and scored as in MLPerf Tiny's streaming wake-word benchmark, of one's own audio.

From mlcommons/tiny, v1.3: benchmark/training/streaming_wakeword (build_long_wav_spec.py and long_wav_spec.json: what is
when how loud) and benchmark/runner/streaming_ww_utils.py (calc_detection_stats: what counts). Quality target of the
closed division: at most 8 false positives and at most 8 false negatives.

    0 .. 570 s      50 times the word, trimmed, root mean square 0.5 .. 0.75, at least 3 s apart before stretching
    0 .. 100 s      nothing else, digital zero
    100 .. 300 s    eight voices at once, 0.05 each
    300 .. 600 s    music at 0.5, two pieces: here noise
    600 .. 900 s    one voice at 0.5, from 750 s on with music at 0.5: here noise
    900 .. 1200 s   seven voices at once, 0.1 each

What differs: the audio. Theirs is "marvin" from the test list of Speech Commands, speech and music of MUSAN, one fixed
file; here the word is any, with the speakers of one split, voices come from the folders of negatives and noise from the
split's background and the folders of noise. Theirs is heard through a microphone input or I2S by a board, ours as a
file; their model knows one word, and of a bundle that knows more the reports of the others are left out, though they
start its refractory time. So a figure from here is no MLPerf result, and is not to be published as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from models.augment import place, to_int16
from models.data import Dataset
from models.noise import to_float
from models.replay import detections, find_peaks, rule_of
from models.streams import Event, Scene, Scorer, continuous, unheard
from models.waves import load_waves, read_wave
from toolkit.bundle import Bundle
from toolkit.errors import DataError

LENGTH_S, LAST_WORD_S, WORDS = 1200.0, 570.0, 50
INTERVAL_S, LEAST_INTERVAL_S = 7.0, 3.0  # exponential with this mean, and none below
WORD_LEVEL = (0.5, 0.75)  # root mean square
TRIM = 0.05  # of the peak: quieter ends of a word are cut off
VOICES = ((100.0, 300.0, 8, 0.05), (600.0, 900.0, 1, 0.5), (900.0, 1200.0, 7, 0.1))  # start, end, how many, level each
NOISES = ((300.0, 450.0, 0.5), (450.0, 600.0, 0.5), (750.0, 900.0, 0.5))  # start, end, level
SUPPRESSED_S = 1.0  # after the end of a word its detection still counts
DEBOUNCE_S = 1.0  # false positives this close after one are the same
MOST_FALSE = 8  # positives, and negatives


@dataclass(frozen=True)
class Score:
    """What the benchmark counts."""

    true_positives: int
    false_negatives: int
    false_positives: int

    @property
    def passes(self) -> bool:
        """Within the quality target."""
        return self.false_negatives <= MOST_FALSE and self.false_positives <= MOST_FALSE


def evaluate_mlperf(
    bundle: Bundle,
    dataset: Dataset,
    split: str,
    word: str,
    negatives: Sequence[Path],
    noise: Sequence[Path] = (),
    threshold: float | None = None,
    seed: int = 1,
) -> dict:
    """Build the stream, run the bundle over it, score it. Folders and errors as in evaluate.score_streams."""
    scorer = Scorer(bundle)
    rule = rule_of(scorer.stage)
    threshold = rule.decision.threshold if threshold is None else threshold
    speech, backgrounds = unheard(negatives, dataset), (*dataset.backgrounds(split), *unheard(noise, dataset))
    scene = benchmark_scene(dataset, split, word, scorer.sample_rate_hz, speech, backgrounds, seed)
    scored = scorer.scene(scene)
    reports = detections(find_peaks(scored.scores, rule, threshold), rule, threshold)
    result = score([report.time for report in reports if report.label == word], scene.events)
    return {
        "word": word,
        "split": split,
        "words": len(scene.events),
        **asdict(result),
        "limit": MOST_FALSE,
        "passes": result.passes,
        "minutes": round(scored.seconds / 60, 2),
        "threshold": threshold,
    }


def benchmark_scene(
    dataset: Dataset, split: str, word: str, rate: int, speech: Sequence[Path], noise: Sequence[Path], seed: int = 1
) -> Scene:
    """The stream of the docstring above; of a word with fewer than WORDS clips all of them. Raises DataError."""
    clips = [clip for clip in dataset.clips(split) if clip.label == word]
    if not clips or not speech:
        missing = f"no clip of {word!r}, which is none of its keywords" if not clips else "no folder of speech for it"
        raise DataError(f"the MLPerf stream of the split {split} has {missing}; name a keyword, and --negatives")
    rng = np.random.default_rng(seed)
    clips = [clips[i] for i in rng.permutation(len(clips))[:WORDS]]
    sound = np.zeros(round(LENGTH_S * rate), np.float32)
    for start, end, voices, level in VOICES:
        for _ in range(voices):
            place(sound, _stretch(speech, end - start, rate, rng) * np.float32(level), round(start * rate))
    for start, end, level in NOISES:
        place(sound, _stretch(noise, end - start, rate, rng) * np.float32(level), round(start * rate))
    events = []
    for clip, wave, onset in zip(clips, load_waves(clips, dataset.settings.clip_s, rate), _onsets(len(clips), rng)):
        said = trim(to_float(wave))
        place(sound, said * np.float32(rng.uniform(*WORD_LEVEL) / said.std()), round(onset * rate))
        events.append(Event(clip.label, onset, onset + len(said) / rate))
    return Scene(f"MLPerf Tiny stream of {word!r}", to_int16(sound / np.abs(sound).max()), tuple(events))


def score(times: Sequence[float], events: Sequence[Event]) -> Score:
    """Detections, in seconds and in order, against the times of the word, as calc_detection_stats counts them.

    Every detection from the start of a word to SUPPRESSED_S after its end belongs to it, and one makes it a true
    positive. Of those that belong to no word, one is a false positive, and others up to DEBOUNCE_S after it are not.
    """
    left, found = list(times), 0
    for event in events:
        own = [time for time in left if event.onset <= time <= event.offset + SUPPRESSED_S]
        left = [time for time in left if time not in own]
        found += bool(own)
    false: list[float] = []
    for time in left:
        if not false or time > false[-1] + DEBOUNCE_S:
            false.append(time)
    return Score(found, len(events) - found, len(false))


def trim(wave: np.ndarray) -> np.ndarray:
    """A word float32[n] from its first to its last sample above TRIM of its peak."""
    loud = np.flatnonzero(np.abs(wave) > TRIM * np.abs(wave).max())
    if len(loud) < 2:
        raise DataError("a clip of the word holds nothing but zeros; remove it")
    return wave[loud[0] : loud[-1] + 1]


def _onsets(count: int, rng: np.random.Generator) -> np.ndarray:
    """When the words begin, in seconds: intervals of at least LEAST_INTERVAL_S, stretched to end at LAST_WORD_S."""
    intervals = LEAST_INTERVAL_S + rng.exponential(INTERVAL_S, count)  # an exponential beyond a bound is one again
    onsets = np.cumsum(intervals)
    return onsets * (LAST_WORD_S / onsets[-1])


def _stretch(paths: Sequence[Path], seconds: float, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Random recordings one after another, float32[...] of mean square 1."""
    length, recordings = round(seconds * rate), []
    for i in rng.permutation(len(paths)):
        recordings.append(read_wave(paths[i], rate))
        if sum(map(len, recordings)) >= length:
            break
    stretch = continuous(recordings, length, rate, rng)
    return stretch / stretch.std()
