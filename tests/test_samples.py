"""The committed sample audio: unchanged, in the stated format, balanced, voice-disjoint, and described truthfully."""

from __future__ import annotations

import csv
import hashlib
import json
import wave
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("soundfile", reason="soundfile, which reads the FLAC clips, is not installed")

import soundfile

from toolkit.audio import read_audio
from toolkit.errors import DataError, UsageError

ROOT = Path(__file__).resolve().parents[1] / "models" / "samples"
RATE = 16000
WORDS = ("yes", "no", "up", "down", "left", "right", "stop", "go")
LABELS = (*WORDS, "unknown", "silence")
PER_LABEL = {"evaluation": 12, "calibration": 8}
FULL_SCALE = 32768.0


@pytest.fixture(scope="module")
def samples():
    pytest.importorskip("scipy", reason="scipy, which models/samples.py computes noise with, is not installed")
    pytest.importorskip("soxr", reason="soxr, which models/samples.py resamples with, is not installed")
    from models import samples

    return samples


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with (ROOT / "clips.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def clips() -> dict[str, np.ndarray]:
    return {path.relative_to(ROOT).as_posix(): read_audio(path)[0] for path in sorted(ROOT.rglob("*.flac"))}


@pytest.fixture(scope="module")
def scene() -> dict:
    return json.loads((ROOT / "scene.json").read_text("utf-8"))


def set_and_label(path: str) -> tuple[str, str]:
    return tuple(path.split("/")[:2])


def level_db(sound: np.ndarray) -> float:
    """Root mean square relative to full scale; -200 for digital silence."""
    return 10 * np.log10(np.mean((sound / FULL_SCALE) ** 2) + 1e-20)


def frame_levels_db(sound: np.ndarray, length: int = RATE // 50) -> np.ndarray:
    return np.array([level_db(frame) for frame in sound[: len(sound) // length * length].reshape(-1, length)])


def test_every_file_has_its_sum_and_there_is_no_other():
    listed = dict(reversed(line.split("  ")) for line in (ROOT / "SHA256SUMS").read_text("utf-8").splitlines())
    found = {path.relative_to(ROOT).as_posix(): path for path in ROOT.rglob("*") if path.is_file()}
    assert sorted(listed) == sorted(found.keys() - {"SHA256SUMS", "README.md"})
    for name, expected in listed.items():
        assert hashlib.sha256(found[name].read_bytes()).hexdigest() == expected, name


def test_it_stays_small():
    assert sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file()) < 4_500_000


def test_clips_are_one_second_of_16_khz_mono_16_bit_flac(clips):
    for name in clips:
        info = soundfile.info(ROOT / name)
        assert (info.format, info.subtype, info.samplerate, info.channels) == ("FLAC", "PCM_16", RATE, 1), name
        assert info.frames == len(clips[name]) == RATE, name


def test_every_label_has_as_many_clips(clips):
    expected = {(name, label): count for name, count in PER_LABEL.items() for label in LABELS}
    expected |= {(name, "computer"): count for name, count in PER_LABEL.items()}
    assert Counter(map(set_and_label, clips)) == expected
    assert len({clip.tobytes() for clip in clips.values()}) > len(clips) - 3  # digital silence may repeat, nothing else


def test_rows_describe_the_clips(rows, clips):
    assert sorted(row["path"] for row in rows) == sorted(clips)
    for row in rows:
        name, label = set_and_label(row["path"])
        assert Path(row["path"]).stem.rpartition("_")[0] == row["voice"]
        if label == "silence":
            assert not row["text"]
        elif label == "unknown":
            assert row["text"] and not set(row["text"].lower().split()) & set(WORDS)
        else:
            assert row["text"] == label
        if label != "silence" and name == "evaluation":
            assert 0.85 <= float(row["speed"]) <= 1.2


def test_no_voice_speaks_in_both_sets(rows, scene):
    voices = {
        name: {row["voice"] for row in rows if row["text"] and row["path"].startswith(name)} for name in PER_LABEL
    }
    assert len(voices["evaluation"]) == 4 and len(voices["calibration"]) == 6
    heard = voices["evaluation"] | {utterance["voice"] for utterance in scene["utterances"]}
    assert not heard & voices["calibration"]
    assert not {row["text"] for row in rows if "evaluation/unknown" in row["path"]} & {
        row["text"] for row in rows if "calibration/unknown" in row["path"]
    }


def test_every_evaluation_voice_says_every_word(rows):
    said = Counter((row["text"], row["voice"]) for row in rows if set_and_label(row["path"])[0] == "evaluation")
    assert {said[word, voice] for word in WORDS for voice in ("heart", "joe", "pico", "rms")} == {3}


def test_levels_are_as_stated(rows, clips):
    for row in rows:
        stated, clip = float(row["level_db"]), clips[row["path"]]
        if row["text"] and stated < -12:  # the loudest 20 ms of a word lie above its active level, but not far
            assert stated - 1 < frame_levels_db(clip).max() < stated + 12, row["path"]
        elif not row["text"] and stated > -80:  # below, rounding to 16 bits is louder than the noise
            assert abs(level_db(clip) - stated) < 0.5, row["path"]


def test_words_stand_out_of_their_noise(rows, clips):
    for row in rows:
        if row["text"]:
            levels = frame_levels_db(clips[row["path"]])
            assert levels.max() - np.percentile(levels, 10) > float(row["snr_db"]) - 3, row["path"]


def test_words_begin_all_over_the_second(clips):
    starts = []
    for name, clip in clips.items():
        if name.startswith("evaluation") and "silence" not in name:
            levels = frame_levels_db(clip)
            starts.append(np.flatnonzero(levels > levels.max() - 10)[0] / 50)
    assert min(starts) < 0.1 and max(starts) > 0.5 and np.std(starts) > 0.1


def test_calibration_spans_digital_silence_to_clipping(clips):
    calibration = {name: clip for name, clip in clips.items() if name.startswith("calibration")}
    assert any(not clip.any() for clip in calibration.values())
    clipped = [name for name, clip in calibration.items() if np.sum((clip == 32767) | (clip == -32768)) >= 10]
    assert len(clipped) >= 5
    spoken = [frame_levels_db(clip).max() for name, clip in calibration.items() if "silence" not in name]
    assert min(spoken) < -30 and max(spoken) > -3


def test_evaluation_silence_is_never_loud_and_sometimes_nearly_nothing(clips):
    levels = [level_db(clip) for name, clip in clips.items() if name.startswith("evaluation/silence")]
    assert max(levels) < -28 and min(levels) < -78


def test_scene_is_about_30_s_of_16_khz_mono_16_bit_wav(scene):
    with wave.open(str(ROOT / "scene.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2)
        assert 25 < file.getnframes() / RATE < 35
        assert abs(file.getnframes() / RATE - scene["duration_s"]) < 1e-3


def test_scene_says_each_word_and_other_words(scene):
    said = Counter(utterance["label"] for utterance in scene["utterances"])
    assert all(1 <= said[word] <= 2 for word in WORDS) and said["unknown"] >= 3 and set(said) == {*WORDS, "unknown"}
    for utterance in scene["utterances"]:
        if utterance["label"] == "unknown":
            assert not set(utterance["text"].lower().strip(".").split()) & set(WORDS)
        else:
            assert utterance["text"] == utterance["label"]
    assert any(len(utterance["text"].split()) > 4 for utterance in scene["utterances"])
    assert {sound["sound"] for sound in scene["sounds"]} == {"knock", "click", "beep"}


def test_scene_times_are_in_order_and_apart(scene):
    events = sorted(scene["utterances"] + scene["sounds"], key=lambda event: event["onset"])
    for event in events:
        assert 0 < event["onset"] < event["offset"] < scene["duration_s"]
    for before, after in pairwise(events):
        assert after["onset"] - before["onset"] >= 1.5 - 1e-3
        assert after["onset"] - before["offset"] >= 0.5


def test_scene_sounds_where_it_says_and_is_quiet_between(scene):
    sound, notices = read_audio(ROOT / "scene.wav")
    assert not notices
    spans = [(round(e["onset"] * RATE), round(e["offset"] * RATE)) for e in scene["utterances"] + scene["sounds"]]
    quiet = np.ones(len(sound), bool)
    for start, stop in spans:
        quiet[start:stop] = False
        before, within, after = sound[start - 3200 : start], sound[start:stop], sound[stop : stop + 3200]
        assert frame_levels_db(within).max() > level_db(before) + 15
        early = frame_levels_db(within[: RATE // 4])  # the onset: a quarter of a second, of which the margin is 30 ms
        assert early.max() > level_db(before) + 10
        assert abs(level_db(before) - level_db(after)) < 4
    background = frame_levels_db(sound[quiet], RATE // 10)
    assert -50 < np.median(background) < -40 and background.max() < -35


def test_the_script_plans_exactly_these_clips(samples, rows):
    planned = [
        (f"{name}/{label}/{voice}_{take}.flac", text)
        for name, clip_set in samples.SETS.items()
        for label, text, voice, take in samples.plan_set(clip_set)
    ]
    assert planned == [(row["path"], row["text"]) for row in rows]
    assert samples.LABELS == LABELS


def test_the_script_still_makes_these_noises(samples, rows, clips):
    for row in rows:
        if not row["text"]:
            clip_set = samples.SETS[set_and_label(row["path"])[0]]
            clip, described = samples.make_clip(row["path"], "", row["voice"], clip_set, clipped=False)
            assert np.abs(clip.astype(int) - clips[row["path"]]).max() <= 1, row["path"]
            assert {key: str(value) for key, value in described.items()} == row


def test_trim_cuts_silence_and_place_keeps_the_word(samples):
    tone = np.sin(2 * np.pi * 440 * np.arange(RATE // 4) / RATE)
    word = samples.trim(np.concatenate([np.zeros(5000), tone, np.zeros(9000)]))
    assert RATE // 4 <= len(word) <= RATE // 4 + 2 * RATE * 0.04
    for seed in range(20):
        clip = samples.place(word, RATE, np.random.default_rng(seed))
        assert len(clip) == RATE and np.sum(clip**2) == pytest.approx(np.sum(word**2), rel=0.01)
    with pytest.raises(DataError, match=r"too long for 0\.1 s"):
        samples.place(word, RATE // 10, np.random.default_rng(0))


def test_the_script_refuses_to_mix_with_an_earlier_run(samples, tmp_path, capsys):
    (tmp_path / "calibration").mkdir()
    with pytest.raises(UsageError, match="calibration exists"):
        samples.make_samples(tmp_path)
    assert samples.main([str(tmp_path)]) == 2
    assert "remove it first" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["calibration"]
