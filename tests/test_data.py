"""Data sets: the official split, disjoint speakers and recordings, balanced evaluation splits, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("soundfile", reason="soundfile, which writes the clips, is not installed")

import soundfile

from models.data import SPLITS, Clip, load_dataset
from models.recipe import SILENCE, UNKNOWN, DataSettings
from models.split import speaker_of, which_set
from models.waves import load_training_audio, load_waves
from toolkit.errors import AudioFileError, DataError

RATE = 16000
SETTINGS = DataSettings(words=("up", "down"))


def write(path: Path, samples: np.ndarray, rate: int = RATE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, "PCM_16")


def tone(seconds: float = 0.1, level: int = 1000) -> np.ndarray:
    return (level * np.sin(np.arange(round(seconds * RATE)))).astype(np.int16)


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> Path:
    """60 speakers, two takes of up, down, bed and cat each and some of tree; six background recordings."""
    root = tmp_path_factory.mktemp("speech")
    for i in range(60):
        for word, takes in (("up", 2), ("down", 2), ("bed", 2), ("cat", 2), ("tree", int(i % 10 == 0))):
            for take in range(takes):
                write(root / word / f"{i * 2654435761 % 2**32:08x}_nohash_{take}.wav", tone())
    for name in ("dishes", "cat", "bike", "pink", "tap", "white"):
        write(root / "_background_noise_" / f"{name}.wav", tone(2.0, 8000))
    (root / "LICENSE").write_text("of the set")
    return root


@pytest.mark.parametrize(
    "speaker, split",
    [  # speakers of the first lines of the official validation_list.txt and testing_list.txt, and of neither
        ("060cd039", "validation"),
        ("099d52ad", "validation"),
        ("0c40e715", "testing"),
        ("0ea0e2f4", "testing"),
        ("42beb5eb", "testing"),
        ("00f0204f", "training"),
        ("012c8314", "training"),
    ],
)
def test_which_set_is_the_official_rule(speaker, split):
    assert which_set(speaker) == split


def test_which_set_has_the_fractions_that_it_is_asked_for():
    sets = [which_set(f"{i:08x}", 0.2, 0.05) for i in range(4000)]
    assert abs(sets.count("validation") / 4000 - 0.2) < 0.02
    assert abs(sets.count("testing") / 4000 - 0.05) < 0.01


@pytest.mark.parametrize(
    "name, layout, speaker",
    [
        ("0a7c2a8d_nohash_3.wav", "speech_commands", "0a7c2a8d"),
        ("a_b_nohash_3.wav", "speech_commands", "a_b"),
        ("anna_03.wav", "speech_commands", "anna_03.wav"),
        ("anna_03.wav", "folders", "anna"),
        ("84-121123-0000.flac", "folders", "84"),
        ("a_b_nohash_3.wav", "folders", "a_b"),
        ("take.wav", "folders", "take"),
    ],
)
def test_speaker_of_a_file(name, layout, speaker):
    assert speaker_of(name, layout) == speaker


def test_splits_share_no_speaker_and_hold_every_clip_of_the_words(speech):
    dataset = load_dataset(speech, SETTINGS)
    speakers = {split: {clip.speaker for clip in dataset.clips(split) if clip.label != SILENCE} for split in SPLITS}
    for one in SPLITS:
        assert speakers[one], f"the fixture leaves {one} empty"
        for other in SPLITS:
            assert one == other or not speakers[one] & speakers[other]
    words = [clip.path for split in SPLITS for clip in dataset.clips(split) if clip.label in SETTINGS.words]
    assert len(words) == len(set(words)) == 240


def test_evaluation_splits_hold_all_labels_in_about_equal_numbers(speech):
    dataset = load_dataset(speech, SETTINGS)
    assert dataset.labels == ("up", "down", UNKNOWN, SILENCE)
    for split in ("tune", "report", "test"):
        counts = dataset.counts()[split]
        mean = (counts["up"] + counts["down"]) / 2
        assert counts[SILENCE] == round(mean)
        assert counts[UNKNOWN] == round(1.2 * mean)
        words = [clip.word for clip in dataset.clips(split) if clip.label == UNKNOWN]
        assert abs(words.count("bed") - words.count("cat")) <= 1
    assert dataset.counts()["train"][SILENCE] == 0


def test_background_recordings_are_split_by_file(speech):
    dataset = load_dataset(speech, SETTINGS)
    names = {split: [path.stem for path in dataset.backgrounds(split)] for split in SPLITS}
    assert names == {"train": ["bike", "cat", "pink", "white"], "tune": ["dishes"], "report": ["tap"], "test": ["tap"]}
    for split in ("tune", "report"):
        cuts = [clip for clip in dataset.clips(split) if clip.label == SILENCE]
        assert {clip.path.stem for clip in cuts} == set(names[split])
        assert cuts[0].gain_db == -math.inf
        assert all(-40 <= clip.gain_db <= 0 for clip in cuts[1:10])
        assert all(0 <= clip.start <= RATE for clip in cuts)


def test_the_same_seed_gives_the_same_set_and_another_seed_other_cuts(speech):
    first, again = load_dataset(speech, SETTINGS), load_dataset(speech, SETTINGS)
    assert first.splits == again.splits and first.fingerprint == again.fingerprint
    other = load_dataset(speech, DataSettings(words=("up", "down"), seed=2))
    assert other.fingerprint != first.fingerprint
    assert other.clips("train") == first.clips("train")


def test_the_fingerprint_notices_a_changed_report_clip_and_a_longer_training_clip(tmp_path):
    make_folders(tmp_path)
    settings = DataSettings(words=("up",), layout="folders", test_fraction=0)
    dataset = load_dataset(tmp_path, settings)
    before = dataset.fingerprint
    report = dataset.clips("report")[0].path
    content = report.read_bytes()
    report.write_bytes(content[:-2] + bytes([content[-2] ^ 1, content[-1]]))
    changed = load_dataset(tmp_path, settings).fingerprint
    write(dataset.clips("train")[0].path, tone(0.2))
    assert len({before, changed, load_dataset(tmp_path, settings).fingerprint}) == 3


def test_lists_decide_before_the_hash(tmp_path):
    make_folders(tmp_path)
    speakers = [f"{i:02d}" for i in range(40)]
    (tmp_path / "validation_list.txt").write_text(
        "".join(f"{w}/{s}_1.wav\n" for s in speakers[:10] for w in ("up", "bed"))
    )
    dataset = load_dataset(tmp_path, DataSettings(words=("up",), layout="folders", test_fraction=0))
    validation = {clip.speaker for split in ("tune", "report") for clip in dataset.clips(split) if clip.label == "up"}
    assert validation == set(speakers[:10])
    assert {clip.speaker for clip in dataset.clips("train")} == set(speakers[10:])


def test_a_list_that_tears_a_speaker_apart_is_refused(tmp_path):
    make_folders(tmp_path)
    (tmp_path / "validation_list.txt").write_text("up/00_1.wav\n")  # bed/00_1.wav stays in train
    with pytest.raises(DataError, match="the speaker '00' is in the splits train and"):
        load_dataset(tmp_path, DataSettings(words=("up",), layout="folders", test_fraction=0))


def make_folders(root: Path, speakers: int = 40, backgrounds: int = 3) -> None:
    for i in range(speakers):
        for word in ("up", "bed"):
            write(root / word / f"{i:02d}_1.wav", tone())
    for i in range(backgrounds):
        write(root / "_background_noise_" / f"{i}.wav", tone(1.5))


@pytest.mark.parametrize("count, expected", [(1, ([], "0", "0")), (2, (["0"], "1", "1")), (3, (["0"], "1", "2"))])
def test_few_background_recordings(tmp_path, count, expected):
    make_folders(tmp_path, backgrounds=count)
    dataset = load_dataset(tmp_path, DataSettings(words=("up",), layout="folders"))
    names = [[path.stem for path in dataset.backgrounds(split)] for split in ("train", "tune", "report")]
    assert names == [expected[0], [expected[1]], [expected[2]]]
    assert bool(dataset.notices) == (count < 3)


def test_extra_folders_are_for_training_only(tmp_path):
    make_folders(tmp_path / "speech")
    write(tmp_path / "noise" / "kitchen" / "fan.wav", tone(3.0))
    write(tmp_path / "talk" / "84-1.flac", tone(3.0))
    (tmp_path / "talk" / "._84-1.flac").write_bytes(b"not audio")
    settings = DataSettings(words=("up",), layout="folders", noise=("../noise",), negatives=(str(tmp_path / "talk"),))
    dataset = load_dataset(tmp_path / "speech", settings)
    assert "fan.wav" in [path.name for path in dataset.backgrounds("train")]
    assert all("fan.wav" not in [path.name for path in dataset.backgrounds(split)] for split in SPLITS[1:])
    assert [path.name for path in dataset.negatives] == ["84-1.flac"]


WAKE = DataSettings(words=("up",), layout="folders", others=("../speech",), validation_fraction=0.4, test_fraction=0)


@pytest.fixture(scope="module")
def wake(tmp_path_factory) -> Path:
    """A folder of one word, "up", by 40 speakers; beside it `speech`, which holds up, bed and background."""
    root = tmp_path_factory.mktemp("wake")
    make_folders(root / "speech")
    for i in range(40):
        write(root / "wake" / "up" / f"{i:02d}_1.wav", tone())
    (root / "speech" / "validation_list.txt").write_text("".join(f"bed/{i:02d}_1.wav\n" for i in range(12)))
    return root / "wake"


def test_other_sets_give_the_other_words_and_the_background(wake):
    dataset = load_dataset(wake, WAKE)
    for split in SPLITS[:3]:
        assert {(clip.path.parts[-3], clip.word, clip.label) for clip in dataset.clips(split)} - {
            (clip.path.parts[-3], SILENCE, SILENCE) for clip in dataset.clips(split)
        } == {("wake", "up", "up"), ("speech", "bed", UNKNOWN)}
        assert all(path.parts[-3] == "speech" for path in dataset.backgrounds(split))
    assert sum(clip.label == "up" for split in SPLITS for clip in dataset.clips(split)) == 40
    assert f"{wake}/../speech holds up as well, which data.others leaves out" in dataset.notices


def test_other_sets_keep_their_own_lists_and_speakers(wake):
    dataset = load_dataset(wake, WAKE)
    others = {split: {c.speaker for c in dataset.clips(split) if c.label == UNKNOWN} for split in SPLITS}
    words = {split: {c.speaker for c in dataset.clips(split) if c.label == "up"} for split in SPLITS}
    assert others["train"] == {f"{i:02d}" for i in range(12, 40)}
    assert others["tune"] | others["report"] <= {f"{i:02d}" for i in range(12)}
    speakers = [f"{i:02d}" for i in range(40)]
    assert words["train"] == {speaker for speaker in speakers if which_set(speaker, 0.4, 0) == "training"}
    assert others["train"] & words["report"]  # speaker 20 of one set is not speaker 20 of the other


def test_a_background_of_its_own_comes_first(wake, tmp_path):
    make_folders(tmp_path / "own")
    dataset = load_dataset(tmp_path / "own", replace(WAKE, others=(str(wake.parent / "speech"),)))
    assert all(path.parts[-3] == "own" for split in SPLITS for path in dataset.backgrounds(split))


def test_test_speakers_of_other_sets_are_left_out_where_the_word_has_none(wake, tmp_path):
    make_folders(tmp_path)
    (tmp_path / "validation_list.txt").write_text("".join(f"bed/{i:02d}_1.wav\n" for i in range(12)))
    (tmp_path / "testing_list.txt").write_text("".join(f"bed/{i:02d}_1.wav\n" for i in range(12, 20)))
    dataset = load_dataset(wake, replace(WAKE, others=(str(tmp_path),)))
    assert dataset.clips("test") == ()
    assert {c.speaker for c in dataset.clips("train") if c.label == UNKNOWN} == {f"{i:02d}" for i in range(20, 40)}


def test_speakers_by_sound_stay_in_one_split_whatever_the_files_are_called(tmp_path):
    make_folders(tmp_path / "speech")
    voice_of = {}
    for voice in range(16):
        centre_hz = np.random.default_rng(voice).uniform(300, 6000, 4)
        for number in range(4):
            path = tmp_path / "wake" / "up" / f"{(voice * 4 + number) * 2654435761 % 2**32:08x}-{number}.wav"
            voice_of[path.name] = voice
            time = np.arange(8000) / RATE
            sound = sum(np.sin(2 * np.pi * hz * time + 10 * np.sin(40 * time + number)) for hz in centre_hz)
            write(path, (3000 * np.hanning(8000) * sound).astype(np.int16))
    settings = replace(WAKE, speakers="sound", validation_fraction=0.5)
    dataset = load_dataset(tmp_path / "wake", settings)
    torn = [
        voice for voice in range(16)
        if len({s for s in SPLITS for c in dataset.clips(s) if voice_of.get(c.path.name) == voice}) > 1
    ]  # fmt: skip
    assert not torn
    groups = {c.speaker for split in SPLITS for c in dataset.clips(split) if c.label == "up"}
    assert 4 <= len(groups) <= 16 and all(name.startswith("up/") for name in groups)
    assert f"fall into {len(groups)} groups of similar sound" in dataset.notices[0]
    assert load_dataset(tmp_path / "wake", settings).splits == dataset.splits


def test_words_that_are_trained_from_extra_clips_alone(wake, tmp_path):
    for word, name in (("up", "a_0"), ("up", "a_1"), ("bed", "a_0")):
        write(tmp_path / "spoken" / word / f"{name}.wav", tone())
    settings = replace(WAKE, extra=(str(tmp_path / "spoken"),))
    recorded, dataset = load_dataset(wake, settings), load_dataset(wake, replace(settings, train_words="extra"))
    for split in ("tune", "report"):
        assert dataset.clips(split) == recorded.clips(split)
    words = [clip for clip in dataset.clips("train") if clip.label == "up"]
    assert [clip.path for clip in words] == sorted((tmp_path / "spoken" / "up").iterdir())
    others = [[clip for clip in d.clips("train") if clip.label == UNKNOWN] for d in (recorded, dataset)]
    assert others[0] == others[1]
    assert [clip.word for clip in recorded.extra] == ["bed", "up", "up"]
    assert [clip.word for clip in dataset.extra] == ["bed"]
    assert not {clip.path for clip in recorded.clips("train") if clip.label == "up"} & dataset.trained


def test_recorded_words_that_are_also_the_extra_clips_of_training_are_refused(wake):
    with pytest.raises(DataError, match="is also in data.noise, data.negatives or data.extra"):
        load_dataset(wake, replace(WAKE, extra=("up",), train_words="extra"))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(others=("../nothing",)), "which data.others names, is not a folder: name a set"),
        (dict(others=()), "at least 3 background recordings"),
        (dict(extra=("../speech/bed",), train_words="extra"), "(../speech/bed) holds clips of 'up', which are all"),
    ],
)
def test_wake_words_that_cannot_be_used(wake, change, message):
    with pytest.raises(DataError) as error:
        load_dataset(wake, replace(WAKE, **change))
    assert message in str(error.value)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(words=("upp",)), "holds no folder 'upp', which data.words names; did you mean 'up'?"),
        (dict(words=("zzz",)), "it holds bed, empty, up"),
        (dict(words=("empty",)), "holds no audio file: expected clips of the word 'empty'"),
        (dict(noise=("../nothing",)), "which data.noise names, is not a folder"),
        (dict(negatives=("empty",)), "which data.negatives names, holds no audio file"),
        (dict(noise=("_background_noise_",)), "is also in data.noise, data.negatives or data.extra"),
        (dict(words=("up", "bed")), "holds no clip of 'unknown' (folders that are not keywords)"),
        (dict(layout="speech_commands", validation_fraction=0.02), "holds no clip of"),
    ],
)
def test_sets_that_cannot_be_used(tmp_path, change, message):
    make_folders(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as error:
        load_dataset(tmp_path, DataSettings(**{"words": ("up",), "layout": "folders", **change}))
    assert message in str(error.value)


def test_roots_that_cannot_be_used(tmp_path):
    with pytest.raises(DataError, match="does not exist: fetch it with"):
        load_dataset(tmp_path / "none", SETTINGS)
    with pytest.raises(DataError, match="holds no folder: expected one folder of clips per word"):
        load_dataset(tmp_path, SETTINGS)
    make_folders(tmp_path, backgrounds=0)
    with pytest.raises(DataError, match="at least 3 background recordings"):
        load_dataset(tmp_path, DataSettings(words=("up",), layout="folders"))


def test_waves_are_padded_at_the_end_and_cropped_to_their_loudest_stretch(tmp_path, capsys):
    short, long, stereo = tmp_path / "short.wav", tmp_path / "long.wav", tmp_path / "stereo.wav"
    write(short, np.arange(1, 101, dtype=np.int16))
    loud = np.zeros(4 * RATE, np.int16)
    loud[2 * RATE : 3 * RATE] = 1000
    write(long, loud)
    write(stereo, np.stack([np.full(RATE, 7, np.int16), np.full(RATE, 9, np.int16)], axis=1))
    waves = load_waves([Clip(path, "up", "a", "up") for path in (short, long)])
    assert waves.shape == (2, RATE) and waves.dtype == np.int16
    assert waves[0, :100].tolist() == list(range(1, 101)) and not waves[0, 100:].any()
    assert (waves[1] == 1000).all()
    assert capsys.readouterr().err == ""
    waves = load_waves([Clip(stereo, "up", "a", "up")])
    assert (waves == 7).all()


def test_the_word_lies_in_the_middle_of_a_cropped_clip_with_its_soft_start(tmp_path):
    """The room sounds on after a word, so that the very loudest stretch would begin in the middle of its consonant."""
    path = tmp_path / "long.wav"
    wave = np.zeros(3 * RATE)
    wave[16000:17600] = 20 * (-1) ** np.arange(1600)  # 0.1 s of a soft consonant
    wave[17600:25600] = 3000 * (-1) ** np.arange(8000)
    wave[25600:] = 60 * (-1) ** np.arange(3 * RATE - 25600) * np.exp(-np.arange(3 * RATE - 25600) / 3000)
    write(path, wave.astype(np.int16))
    (crop,) = load_waves([Clip(path, "up", "a", "up")])
    loud = np.flatnonzero(np.abs(crop.astype(int)) == 3000)
    assert len(loud) == 8000 and abs(loud.mean() - RATE / 2) < 200
    assert np.count_nonzero(np.abs(crop[: loud[0]].astype(int)) == 20) == 1600


def test_waves_of_another_rate_are_resampled_and_said(tmp_path, capsys):
    path = tmp_path / "slow.wav"
    write(path, (8000 * np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)).astype(np.int16), 8000)
    wave = load_waves([Clip(path, "up", "a", "up")])[0].astype(float)
    assert np.argmax(np.abs(np.fft.rfft(wave))) == 440
    assert "1 notices about 1 clips" in capsys.readouterr().err


def test_silence_cuts_have_their_level(tmp_path):
    path = tmp_path / "noise.wav"
    write(path, np.arange(2 * RATE, dtype=np.int16))
    cuts = [
        Clip(path, SILENCE, "noise", SILENCE, start, gain) for start, gain in ((5, 0.0), (0, -20.0), (0, -math.inf))
    ]
    waves = load_waves([*cuts, Clip(path, SILENCE, "noise", SILENCE, 2 * RATE - 10, 0.0)])
    assert (waves[0] == np.arange(5, 5 + RATE)).all()
    assert (waves[1] == np.rint(np.arange(RATE) * 0.1)).all()
    assert not waves[2].any()
    assert waves[3, 9] == 2 * RATE - 1 and not waves[3, 10:].any()


def test_a_file_that_is_not_audio_is_named(tmp_path):
    path = tmp_path / "text.wav"
    path.write_text("not audio")
    with pytest.raises(AudioFileError, match="text.wav"):
        load_waves([Clip(path, "up", "a", "up")])


def test_training_audio_follows_the_clips(speech):
    dataset = load_dataset(speech, SETTINGS)
    audio = load_training_audio(dataset)
    clips = dataset.clips("train")
    assert audio.waves.shape == (len(clips), RATE)
    assert [audio.label_names[label] for label in audio.labels] == [clip.label for clip in clips]
    for word in ("bed", "cat"):
        assert len({int(number) for number, clip in zip(audio.words, clips, strict=True) if clip.word == word}) == 1
    assert len(audio.backgrounds) == 4 and all(len(recording) == 2 * RATE for recording in audio.backgrounds)
