"""Clips grouped by their sound: the takes of a voice stay together, and what is said does not decide."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy", reason="scipy, which groups the clips, is not installed")

import scipy.signal

from models import sound_groups
from models.sound_groups import groups_of, voice_of
from toolkit.errors import DataError
from toolkit.wav import write_wav

RATE = 16000
TAKES = 5


def take(voice: int, number: int, word: str = "up") -> np.ndarray:
    """Half a second of a word between two silences: a buzz through five resonances of the voice and one of the word,
    the pitch of each take another, int16."""
    rng = np.random.default_rng([voice, number, zlib.crc32(word.encode())])
    pitch_hz = np.random.default_rng(voice).uniform(90, 250) * rng.uniform(0.9, 1.1)
    sound = rng.normal(0, 0.02, RATE // 2)
    sound[(np.arange(0, 0.5, 1 / pitch_hz) * RATE).astype(int)] += 1
    resonances_hz = [*np.random.default_rng([voice, 1]).uniform(300, 7000, 5), {"up": 700, "bed": 1900}[word]]
    for centre_hz in resonances_hz:
        sound = sound + 2 * scipy.signal.lfilter(*scipy.signal.iirpeak(centre_hz, 4, fs=RATE), sound)
    sound *= np.hanning(len(sound)) * rng.uniform(0.05, 0.5) / np.abs(sound).max()
    silence = np.zeros(int(rng.uniform(0, 0.5) * RATE))
    return (32767 * np.concatenate([silence, sound, silence])).astype(np.int16)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Path]:
    """Twelve voices with five takes of "up" each, voice by voice."""
    folder = tmp_path_factory.mktemp("up")
    paths = [folder / f"{voice:02d}_{number}.wav" for voice in range(12) for number in range(TAKES)]
    for path in paths:
        write_wav(path, take(*map(int, path.stem.split("_"))), RATE)
    return paths


def pairs_together(groups: np.ndarray, voices: np.ndarray) -> tuple[float, float]:
    """The shares of pairs in one group, among pairs of one voice and among pairs of two."""
    together = (groups[:, None] == groups)[np.triu_indices(len(groups), 1)]
    same = (voices[:, None] == voices)[np.triu_indices(len(groups), 1)]
    return float(together[same].mean()), float(together[~same].mean())


def test_the_takes_of_a_voice_share_a_group(clips):
    groups = sound_groups.sound_groups(clips, ["up"] * len(clips))
    of_one_voice, of_two = pairs_together(groups, np.repeat(np.arange(12), TAKES))
    assert of_one_voice > 0.8
    assert of_two < 0.2
    assert (groups[groups] == groups).all() and (groups <= np.arange(len(clips))).all()


def test_words_do_not_decide_the_group(clips, tmp_path):
    paths, words = clips[:30], ["up"] * 30
    for voice in range(6):
        for number in range(TAKES):
            paths = [*paths, tmp_path / f"{voice:02d}_{number}.wav"]
            words.append("bed")
            write_wav(paths[-1], take(voice, number, "bed"), RATE)
    groups = sound_groups.sound_groups(paths, words)
    voices = np.tile(np.repeat(np.arange(6), TAKES), 2)
    across = (groups[:30, None] == groups[None, 30:])[voices[:30, None] == voices[None, 30:]]
    assert across.mean() > 0.6
    assert pairs_together(groups, voices)[1] < 0.3


def test_silence_around_a_word_does_not_count_and_its_level_is_in_the_first_coefficient(tmp_path):
    quiet, loud = tmp_path / "quiet.wav", tmp_path / "loud.wav"
    sound = take(3, 1)
    write_wav(quiet, sound // 4, RATE)
    write_wav(loud, np.pad(sound, (RATE, RATE // 2)), RATE)
    difference = np.abs(voice_of(quiet) - voice_of(loud))
    assert abs(difference[0] / np.sqrt(80) - np.log(16)) < 0.1  # a quarter of the amplitude, in nats of power
    for voice in range(3):
        other = tmp_path / f"{voice}.wav"
        write_wav(other, take(voice, 0), RATE)
        assert difference[1:].mean() < 0.3 * np.abs(voice_of(loud) - voice_of(other))[1:].mean()


def test_few_clips_and_clips_without_sound(tmp_path):
    silent, short = tmp_path / "silent.wav", tmp_path / "short.wav"
    write_wav(silent, np.zeros(RATE, np.int16), RATE)
    write_wav(short, np.full(10, 1000, np.int16), RATE)
    assert sound_groups.sound_groups([], []).tolist() == []
    assert sound_groups.sound_groups([short], ["up"]).tolist() == [0]
    assert np.isfinite(voice_of(short)).all()
    assert sound_groups.sound_groups([silent, silent, short], ["up"] * 3).tolist() in ([0, 0, 2], [0, 1, 2])


def test_a_clip_like_the_mean_of_its_word_is_alone():
    rng = np.random.default_rng(1)
    voices = np.concatenate([np.zeros((2, 6)), rng.normal(0, 1, (1, 6)).repeat(3, 0)])
    assert groups_of(voices).tolist() == [0, 1, 2, 2, 2]


def test_more_clips_than_can_be_compared(monkeypatch):
    monkeypatch.setattr(sound_groups, "MOST_CLIPS", 3)
    with pytest.raises(DataError, match=r"4 clips are too many .* limit is 3: name the files SPEAKER_TAKE.wav"):
        sound_groups.sound_groups([Path("x.wav")] * 4, ["up"] * 4)
