"""Spoken corpora: who speaks in which split, what counts as hearing a keyword, and what `models speak` writes.

A fake engine says each text as a tone, so that the corpora need none; py-nanotts, where it is installed, shows that a
real one fits. The rule of syllables is tested on phonemes, and where espeak-ng is installed on words.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy", reason="scipy, which models/speak.py needs, is not installed")
pytest.importorskip("soundfile", reason="soundfile, which writes the recordings, is not installed")
pytest.importorskip("soxr", reason="soxr, which models/voices.py resamples with, is not installed")

from models import __main__ as command_line
from models import speak, texts, voices
from models.augment import active_level
from models.data import speaker_of
from models.noise import db
from toolkit.audio import read_audio
from toolkit.errors import DataError, MissingPartError, UsageError

RATE = 16000
KEYWORDS = ("yes", "no", "up", "down", "left", "right", "stop", "go")
WORDS_FILE = Path(texts.__file__).with_name("words.txt")
SPOKEN = {  # phonemes of espeak-ng; enough for the tests that do without it
    "no": "n oU", "stop": "s t 0 p", "the": "D I", "cat": "k a t", "sat": "s a t", "on": "0 n", "a": "a",
    "mat": "m a t", "we": "w i", "know": "n oU", "it": "I t", "note": "n oU t", "and": "a n d", "sing": "s I N",
    "all": "O l", "day": "d eI", "long": "l 0 N", "dogs": "d 0 g z", "run": "r V n", "fast": "f a s t",
}  # fmt: skip
needs_espeak = pytest.mark.skipif(not shutil.which("espeak-ng"), reason="espeak-ng is not installed")
needs_pico = pytest.mark.skipif(
    importlib.util.find_spec("py_nanotts") is None, reason="py-nanotts, the voice pico, is not installed"
)


@pytest.fixture
def fake(monkeypatch) -> list[tuple]:
    """An engine and a pronouncing dictionary of our own; returns what is asked of the engine."""
    asked = []

    def synthesize(engine: str, voice: str, text: str, speed: float) -> tuple[np.ndarray, int]:
        asked.append((engine, voice, text, speed))
        rng = np.random.default_rng(zlib.crc32(f"{voice}{text}".encode()))
        length = round((0.2 + 0.05 * len(text)) / speed * 22050)
        tone = np.sin(2 * np.pi * rng.uniform(200, 800) * np.arange(length) / 22050)
        return np.concatenate([np.zeros(2000), tone, np.zeros(3000)]), 22050

    def pronounce(words, accent):
        return (tuple(SPOKEN[word.lower()].split()) for word in words)

    monkeypatch.setattr(voices, "synthesize", synthesize)
    monkeypatch.setattr(texts, "pronounce", pronounce)
    return asked


@pytest.fixture
def story(tmp_path) -> Path:
    subjects, ends = ("The cat", "A cat", "Dogs", "We", "The dogs"), ("sat on the mat", "sing all day", "run fast")
    lines = [f"{a} {b} and {c}." for a in subjects for b in ends for c in ends]
    lines += ["We know the cat sat on it.", "A note sat on the mat.", "It cost 5 dollars and more.", "Run."]
    path = tmp_path / "story.txt"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def run(*arguments) -> int:
    return command_line.main(["speak", *map(str, arguments)])


def test_no_voice_is_in_two_splits_and_no_evaluation_voice_trains():
    names = {split: voices.voices_of(split) for split in ("train", "tune", "report")}
    named = {name for name, voice in voices.VOICES.items() if voice.if_named}
    assert sum(map(len, names.values())) + len(named) == len(voices.VOICES)
    assert named.isdisjoint(sum(names.values(), ())) and speak.choose_voices("train", ["alpha"]) == ("alpha",)
    assert {"heart", "joe", "pico", "rms"} <= set(names["report"])
    assert {"slt", "awb", "kal", "picogb"} <= set(names["train"]) and len(names["train"]) > 40
    assert all(names.values()) and all(voice.share > 0 for voice in voices.VOICES.values())
    assert {voice.engine for voice in voices.VOICES.values()} == set(voices.ENGINES)


def test_no_engine_voice_and_no_vocal_tract_is_in_two_splits():
    where = {}
    for voice in voices.VOICES.values():
        tract = voice.name.rpartition("+")[2] if voice.engine == "espeak" else voice.name
        assert where.setdefault((voice.engine, tract), voice.split) == voice.split, voice


def test_the_name_of_a_voice_is_the_speaker_that_the_loader_sees():
    for name in voices.VOICES:
        assert name.isalnum() and speaker_of(f"{name}_12.wav", "folders") == name


def test_voices_take_turns_by_their_shares():
    names = voices.voices_of("train")
    turns = speak.take_turns(names, np.random.default_rng(3))
    said = Counter(next(turns) for _ in range(4000))
    total = sum(voices.VOICES[name].share for name in names)
    for name in names:
        assert abs(said[name] - 4000 * voices.VOICES[name].share / total) <= 2, name


@pytest.mark.parametrize(
    ("word", "keyword", "held"),
    [
        ("n oU", "n oU", True),  # know
        ("n oU z", "n oU", True),  # knows
        ("n oU b 0 d i", "n oU", True),  # nobody
        ("n oU t I s", "n oU", True),  # notice: no-tice or note-ice
        ("n oU t", "n oU", False),  # note
        ("n oU t b U k", "n oU", False),  # notebook
        ("s n oU", "n oU", False),  # snow
        ("p i a n oU", "n oU", True),  # piano
        ("V g oU", "g oU", True),  # ago
        ("g oU s t", "g oU", False),  # ghost
        ("V p 0 n", "V p", True),  # upon
        ("k V p", "V p", False),  # cup
        ("O l r aI t", "r aI t", True),  # alright
        ("b r aI t", "r aI t", False),  # bright
        ("aU t r aI t", "r aI t", True),  # outright
        ("s t 0 p I N", "s t 0 p", True),  # stopping
        ("t 0 p", "s t 0 p", False),  # top
        ("k l E f t", "l E f t", False),  # cleft
    ],
)
def test_a_keyword_is_heard_where_it_fills_whole_syllables(word, keyword, held):
    assert texts.holds(word.split(), keyword.split()) is held


@needs_espeak
def test_words_that_sound_like_keywords_by_their_spelling():
    hearing = texts.KeywordFilter(KEYWORDS)
    held = "know ago upon nobody alright writer knows yesterday downstairs leftover goes stopped Noah".split()
    free = "note cup bright snow town lift light goat top dawn yet dress us open nothing good window then".split()
    hearing.learn([*held, *free])
    assert [word for word in held if not hearing.holds(f"Then {word}, then.")] == []
    assert [word for word in free if hearing.holds(f"Then {word}, then.")] == []
    assert not texts.KeywordFilter([]).holds("Go.")


@needs_espeak
def test_the_list_of_other_words_holds_no_keyword():
    words = texts.read_words(WORDS_FILE)
    hearing = texts.KeywordFilter((*KEYWORDS, "computer"))
    hearing.learn(words)
    assert len(words) > 600 and not [word for word in words if hearing.holds(word)]
    assert texts.pronounce_alike(["write", "light", "wright"], ["right"]) == ["write", "wright"]


def test_sentences_are_unwrapped_and_what_engines_read_differently_is_left_out(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(
        'It was a long,\nlong way home. "Was it not so?" he said. In 1999 it was so.\nThe USA is far away.\n\n'
        "Too short.\n\nIt was a long, long way home. And so, at last, we sing!",
        "utf-8",
    )
    assert list(texts.read_sentences(path)) == ["It was a long, long way home.", "And so, at last, we sing!"]


def test_a_sentence_belongs_to_one_split_however_it_is_written():
    many = [f"The {a} cat sat on the {b} mat." for a in "abcdefghijklmnopqrst" for b in "abcdefghijklmnopqrst"]
    assert texts.split_of("The cat sat, at last!") == texts.split_of("the cat sat at last.")
    shares = Counter(map(texts.split_of, many))
    for split, percent in texts.SPLIT_PERCENT.items():
        assert abs(shares[split] / len(many) - percent / 100) < 0.07
    assert sum(texts.SPLIT_PERCENT.values()) == 100


def test_words_become_one_second_clips_with_the_word_in_the_middle(fake, tmp_path, capsys):
    (tmp_path / "list.txt").write_text("cat\nnote\nknow\nstop\n", "utf-8")
    dest = tmp_path / "spoken"
    arguments = ("words", dest, "--words", "no", "stop", "--takes", 40, "--others", tmp_path / "list.txt")
    assert run(*arguments, "--other-takes", 3, "--split", "train", "--seed", 5) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["left_out"] == ["know"] and "know" in output.err
    assert {path.name: len(list(path.iterdir())) for path in dest.iterdir() if path.is_dir()} == {
        "no": 40, "stop": 40, "cat": 3, "note": 3,
    }  # fmt: skip
    starts, levels = [], []
    for path in dest.rglob("*.wav"):
        clip, notices = read_audio(path)
        assert not notices and clip.dtype == np.int16 and len(clip) == RATE
        assert voices.VOICES[speaker_of(path.name, "folders")].split == "train"
        spoken = np.flatnonzero(clip)
        starts.append((spoken[0] + spoken[-1]) / 2 / RATE)
        levels.append(active_level(clip / 32768, RATE))
    assert 0.35 < min(starts) < 0.5 < max(starts) < 0.65
    assert db(-29.5) < min(levels) < db(-26) < max(levels) < db(-22.5)
    assert len({path.read_bytes() for path in dest.rglob("*.wav")}) == 86


def test_other_spellings_are_read_in_place_of_the_word(fake, tmp_path, capsys):
    (tmp_path / "list.txt").write_text("cat\n", "utf-8")
    dest, spellings = tmp_path / "spoken", ("noe", "know-oh")
    arguments = ("words", dest, "--words", "no", "--takes", 30, "--others", tmp_path / "list.txt", "--split", "train")
    assert run(*arguments, "--spellings", *spellings) == 0
    assert {call[2].rstrip("?!") for call in fake} == {*spellings, "cat"}
    assert len(list((dest / "no").iterdir())) == 30
    assert json.loads((dest / "about.json").read_text("utf-8"))["request"]["spellings"] == list(spellings)
    assert run(*arguments) == 2  # another request
    assert run("words", tmp_path / "b", "--words", "no", "stop", "--split", "train", "--spellings", "noe") == 2
    assert "run it once for each" in capsys.readouterr().err
    assert run("words", tmp_path / "b", "--words", "no", "--split", "train", "--spellings", "?") == 2
    assert "without a letter" in capsys.readouterr().err and not (tmp_path / "b").exists()


def test_a_long_word_is_said_faster_until_it_fits(fake):
    clip = speak.make_word("antidisestablishmentarianism", "slt", 0, 1)
    assert len(clip) == RATE and clip.any() and not clip[0] and not clip[-1]
    assert len(fake) > 1 and [call[3] for call in fake] == sorted(call[3] for call in fake)
    with pytest.raises(DataError, match="cannot say 'hahaha.*' within a second"):
        speak.make_word("ha" * 60, "slt", 0, 1)


def test_the_same_request_goes_on_and_another_is_refused(fake, tmp_path, capsys):
    dest = tmp_path / "spoken"
    arguments = ("words", dest, "--words", "no", "--takes", 6, "--split", "train")
    assert run(*arguments) == 0
    before = {path: path.read_bytes() for path in dest.rglob("*.wav")}
    lost = sorted(before)[2]
    lost.unlink()
    fake.clear()
    assert run(*arguments) == 0
    assert {path: path.read_bytes() for path in dest.rglob("*.wav")} == before
    assert len(fake) == 1
    assert run(*arguments, "--seed", 9) == 2
    assert "remove it, or name a new folder" in capsys.readouterr().err


def make_story(dest: Path, story: Path, *more) -> int:
    return run("text", dest, "--text", story, "--without", "no", "stop", "--split", "report", "--minutes", 0.15,
               "--hours", 0.008, "--seed", 2, *more)  # fmt: skip


def test_text_becomes_recordings_with_transcripts_and_without_keywords(fake, story, tmp_path, capsys):
    dest = tmp_path / "spoken"
    assert make_story(dest, story, "--credit", "story.txt: own") == 0
    summary = json.loads(capsys.readouterr().out)
    lines = [json.loads(line) for line in (dest / "transcripts.jsonl").read_text("utf-8").splitlines()]
    recordings = sorted(path.name for path in dest.glob("*.flac"))
    assert len(recordings) == summary["recordings"] >= 3 and sorted({line["file"] for line in lines}) == recordings
    assert len({line["text"] for line in lines}) == len(lines)
    assert all(texts.split_of(line["text"]) == "report" and "know" not in line["text"] for line in lines)
    assert len({line["voice"] for line in lines}) >= 3 and len({line["speed"] for line in lines}) > 5
    for name in recordings:
        sound, notices = read_audio(dest / name)
        assert not notices and name.split("_")[0] in voices.voices_of("report")
        silent = np.ones(len(sound), bool)
        end = 0.0
        for line in (line for line in lines if line["file"] == name):
            assert 0.2 - 1e-3 <= line["onset"] - end <= 1.5 + 1e-3
            start, end = round(line["onset"] * RATE), line["offset"]
            span = slice(start, round(end * RATE))
            assert abs(20 * np.log10(active_level(sound[span] / 32768, RATE)) - line["level_db"]) < 0.2
            silent[span] = False
        assert not sound[np.flatnonzero(silent)].any() or np.abs(sound[silent]).max() < 100
    about = json.loads((dest / "about.json").read_text("utf-8"))
    assert about["request"]["credits"] == ["story.txt: own"] and about["request"]["without"] == ["no", "stop"]


def test_what_is_dropped_is_counted(fake, story):
    kept, dropped = 0, 0
    for split in texts.SPLIT_PERCENT:
        usable, counts = speak.choose_sentences([story, story], ["no"], split, 0)
        kept, dropped = kept + len(usable), dropped + counts["dropped"]
        assert counts["sentences"] == 47
    assert (kept, dropped) == (46, 1)  # "We know the cat sat on it."


def test_a_stopped_text_goes_on_to_the_same_bytes(fake, story, tmp_path, monkeypatch):
    assert make_story(tmp_path / "whole", story) == 0
    write, written = speak._write_recording, []

    def stop_after_two(*arguments):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(arguments[1])
        write(*arguments)

    monkeypatch.setattr(speak, "_write_recording", stop_after_two)
    assert make_story(tmp_path / "parts", story) == 130
    monkeypatch.setattr(speak, "_write_recording", write)
    assert make_story(tmp_path / "parts", story) == 0
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "parts" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--text", "empty.txt"), "empty.txt is empty"),
        (("--text", "missing.txt"), "missing.txt cannot be read"),
        (("--text", "bytes.txt"), "bytes.txt is not UTF-8"),
        (("--text", "short.txt"), "no sentence of the split report"),
        (("--text", "story.txt", "--voices", "slt"), "the voice slt belongs to the split train"),
        (("--text", "story.txt", "--voices", "elvis"), "there is no voice 'elvis'"),
        (("--text", "story.txt", "--hours", "9"), "the texts are used up after 0.0 of 9 hours"),
        (("--text", "story.txt", "--hours", "0"), "--hours is 0: expected more than 0"),
        (("--text", "story.txt", "--without", "../up"), "word 1 of --without is '../up'"),
    ],
)
def test_bad_input_is_one_sentence(fake, story, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n")
    Path("bytes.txt").write_bytes(b"caf\xe9 and more")
    Path("short.txt").write_text("Run. Sing.")
    assert run("text", "out", "--split", "report", *arguments) in (1, 2)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("models: ") and message in error and "Traceback" not in error


def test_a_text_that_has_changed_is_another_request(fake, story, tmp_path, capsys):
    assert make_story(tmp_path / "spoken", story) == 0
    story.write_text(story.read_text("utf-8") + "We sing on the mat.\n", "utf-8")
    assert make_story(tmp_path / "spoken", story) == 2
    assert "remove it, or name a new folder" in capsys.readouterr().err


def test_a_folder_of_something_else_is_left_alone(fake, story, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("keep me")
    assert make_story(tmp_path / "mine", story) == 2
    assert "holds something else" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_british_phonemes_are_in_the_letters_of_kokoro(monkeypatch):
    said = {"computer": "kəmpjˈuːtə\n", "George, go home. Ray?": "dʒˈɔːdʒ\n ɡˌəʊ hˈəʊm\n ɹˈeɪ\n"}
    monkeypatch.setattr(voices, "output_of", lambda command: said[command[-1]].encode())
    assert voices.british_phonemes_of("computer") == "kəmpjˈuːtə."  # no flap, and no r at its end
    assert voices.british_phonemes_of("George, go home. Ray?") == "ʤˈɔːʤ, ɡˌQ hˈQm, ɹˈA?"


@pytest.mark.parametrize("voice, phonemes", [("alpha", "american"), ("alphagb", "british")])
def test_a_voice_of_kokoro_speaks_its_accent(monkeypatch, voice, phonemes):
    monkeypatch.setattr(voices, "phonemes_of", lambda text: "american")
    monkeypatch.setattr(voices, "british_phonemes_of", lambda text: "british")
    monkeypatch.setattr(voices, "_kokoro_says", lambda *said: said)
    engine, name = voices.VOICES[voice].engine, voices.VOICES[voice].name
    assert voices.synthesize(engine, name, "computer", 1.5) == ((phonemes, "jf_alpha", 1.5), 24000)


def test_a_missing_engine_and_a_silent_one_are_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingPartError, match="the voice slt needs flite.*install the Debian package flite"):
        voices.speak("yes", "slt", 1.0, 1.0)
    with pytest.raises(MissingPartError, match="pronunciations need espeak-ng"):
        texts.KeywordFilter(["yes"])
    monkeypatch.setattr(voices, "synthesize", lambda *_: (np.zeros(0), RATE))
    with pytest.raises(DataError, match="the voice slt said nothing for 'yes'"):
        voices.speak("yes", "slt", 1.0, 1.0)


def test_a_word_list_holds_words(tmp_path):
    (tmp_path / "list.txt").write_text("cat\n\ncat\nice cream\n")
    with pytest.raises(DataError, match="word 3 of .*list.txt is 'ice cream'"):
        texts.read_words(tmp_path / "list.txt")
    with pytest.raises(UsageError):
        speak.choose_voices("tune", ["pico"])


@needs_pico
def test_pico_says_the_same_twice_and_faster_is_shorter():
    word = voices.trim(voices.speak("yes", "pico", 1.0, 1.0))
    assert 0.25 * RATE < len(word) < 0.9 * RATE and np.array_equal(word, voices.trim(voices.speak("yes", "pico", 1, 1)))
    assert len(voices.trim(voices.speak("yes", "pico", 1.4, 1.0))) < len(word)
    clip = speak.make_word("yes", "pico", 0, 1)
    assert clip.dtype == np.int16 and active_level(clip / 32768, RATE) == pytest.approx(db(-26), rel=0.5)
