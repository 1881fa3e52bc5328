"""Spoken corpora made by text-to-speech: words to train with, and running speech in which no keyword is heard.

    python -m models speak words DEST   ->  DEST/WORD/VOICE_TAKE.wav, one second each, for the layout "folders"
    python -m models speak text DEST    ->  DEST/VOICE_NNN.flac, DEST/transcripts.jsonl

Both are clean: no noise and no room, which training and evaluation add. Both write DEST/about.json, from which the same
command sees that DEST is its own, and goes on where it was stopped. The same arguments, voices and versions of the
engines give the same audio.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile

from models.augment import active_level, to_int16
from models.noise import db
from models.texts import (
    WORD,
    KeywordFilter,
    check_words,
    pronounce_alike,
    read_sentences,
    read_words,
    sha256_of,
    split_of,
)
from models.voices import RATE_HZ, VOICES, speak, trim, voices_of
from toolkit.errors import DataError, UsageError
from toolkit.wav import write_wav

SPEED = (0.8, 1.25)  # of each word or sentence, relative to the voice's own
WARP = (0.88, 1.14)  # factor of formants and pitch, of each word or recording: a larger or a smaller speaker
LEVEL_DB = (-29.0, -23.0)  # active speech relative to full scale, of each word or recording
ENDINGS = ("", "", "?", "!")  # of a word: they change its melody
OFF_CENTRE_S = 0.1
LONGEST_WORD_S = 0.95  # a longer one is said faster, up to
FASTEST = 2.5
PAUSE_S = (0.2, 1.5)
LISTED_EVERY = 500  # clips between lines of progress


def make_words(
    folder: Path, words: Sequence[str], takes: int, others: Path | None, other_takes: int, voices: Sequence[str],
    seed: int, spellings: Sequence[str] = (),
) -> dict:  # fmt: skip
    """Speak each of ``words`` ``takes`` times and each word of the list ``others`` ``other_takes`` times.

    A word of the list that sounds like one of ``words`` is left out (write, where "right" is a word). ``spellings`` of
    the only word are read in its place, one a take: "com pewter" is how people say computer who say it with care.
    Returns what about.json holds. Raises UsageError, DataError and MissingPartError.
    """
    words = check_words(words, "--words")
    if spellings and len(words) > 1:
        raise UsageError(f"--spellings are of one word, and --words names {len(words)}: run it once for each")
    if not all(WORD.search(spelling) for spelling in spellings):
        raise UsageError("--spellings holds a text without a letter: give what is to be read aloud")
    _above_zero("--takes", takes)
    _above_zero("--other-takes", other_takes)
    listed = [word for word in read_words(others) if word not in words] if others else []
    alike = pronounce_alike(listed, words)
    jobs = dict.fromkeys(words, takes) | {word: other_takes for word in listed if word not in alike}
    request = {"words": jobs, "voices": list(voices), "seed": seed}
    request |= {"spellings": list(spellings)} if spellings else {}
    _open(folder, request)
    if alike:
        _say(f"left out, because they sound like one of the words: {', '.join(alike)}")
    total, count = sum(jobs.values()), 0
    for word, number in jobs.items():
        (folder / word).mkdir(exist_ok=True)
        for voice, take in plan_word(word, number, voices, seed):
            path = folder / word / f"{voice}_{take}.wav"
            if not path.exists():
                write_wav(path, make_word(word, voice, take, seed, spellings if word in words else ()), RATE_HZ)
            count += 1
            if count % LISTED_EVERY == 0 or count == total:
                _say(f"{count} of {total} clips")
    return _close(folder, request, {"clips": total, "left_out": alike})


def plan_word(word: str, takes: int, voices: Sequence[str], seed: int) -> Iterator[tuple[str, int]]:
    """(voice, number of its take) of each clip of a word."""
    said = Counter()
    turns = take_turns(voices, np.random.default_rng([seed, zlib.crc32(word.encode())]))
    for _ in range(takes):
        voice = next(turns)
        yield voice, said[voice]
        said[voice] += 1


def make_word(word: str, voice: str, take: int, seed: int, spellings: Sequence[str] = ()) -> np.ndarray:
    """One second with the word, or one of its spellings, near its middle, int16[16000]. All that is random follows from
    the arguments."""
    rng = np.random.default_rng([seed, take, zlib.crc32(f"{word}/{voice}".encode())])
    speed, warp = round(rng.uniform(*SPEED), 3), round(rng.uniform(*WARP), 3)
    ending = str(rng.choice(ENDINGS))
    text = (str(rng.choice(spellings)) if spellings else word) + ending
    sound = trim(speak(text, voice, speed, warp))
    while len(sound) > LONGEST_WORD_S * RATE_HZ:
        if speed > FASTEST:
            raise DataError(f"the voice {voice} cannot say {word!r} within a second: leave the word out")
        speed *= 1.1
        sound = trim(speak(text, voice, speed, warp))
    sound *= db(rng.uniform(*LEVEL_DB)) / active_level(sound, RATE_HZ)
    spare = RATE_HZ - len(sound)
    start = int(np.clip(spare / 2 + rng.uniform(-1, 1) * OFF_CENTRE_S * RATE_HZ, 0, spare))
    return to_int16(np.pad(sound, (start, spare - start)))


def make_text(
    folder: Path, texts: Sequence[Path], keywords: Sequence[str], split: str, voices: Sequence[str], hours: float,
    minutes: float, credits: Sequence[str], seed: int,
) -> dict:  # fmt: skip
    """Read sentences of ``texts`` aloud, in recordings of ``minutes``, until there are ``hours`` of them.

    Only sentences of ``split`` in which no keyword is heard (KeywordFilter) are used, in random order and each once.
    Returns what about.json holds. Raises UsageError, DataError, MissingPartError.
    """
    keywords = check_words(keywords, "--without")
    _above_zero("--hours", hours)
    _above_zero("--minutes", minutes)
    request = {
        "texts": {path.name: sha256_of(path) for path in texts}, "credits": list(credits),
        "without": list(keywords), "split": split, "voices": list(voices), "hours": hours, "minutes": minutes,
        "seed": seed,
    }  # fmt: skip
    _open(folder, request)
    sentences, counts = choose_sentences(texts, keywords, split, seed)
    _say(f"{counts['usable']} sentences of {split}; {counts['dropped']} hold a keyword")
    done = _read_transcripts(folder)
    queue = iter(sentences[sum(map(len, done.values())) :])
    turns, said, rest = take_turns(voices, np.random.default_rng(seed)), Counter(), hours * 3600
    for number in range(sys.maxsize):
        if rest <= 0:
            break
        voice = next(turns)
        name = f"{voice}_{said[voice]:03d}.flac"
        said[voice] += 1
        if name not in done:
            recording, lines = make_recording(queue, voice, min(minutes * 60, rest), [seed, number])
            if not lines:
                raise DataError(
                    f"the texts are used up after {hours - rest / 3600:.1f} of {hours:g} hours: add texts, or ask for "
                    "fewer hours"
                )
            _write_recording(folder, name, recording, lines)
        rest -= soundfile.info(folder / name).duration
        _say(f"{hours - rest / 3600:.2f} of {hours:g} hours, the last {name}")
    return _close(folder, request, counts | {"hours": round(hours - rest / 3600, 3), "recordings": sum(said.values())})


def choose_sentences(
    texts: Sequence[Path], keywords: Sequence[str], split: str, seed: int
) -> tuple[list[str], dict[str, int]]:
    """The sentences of a split that hold no keyword, in random order, and how many there were. Raises DataError."""
    found = dict.fromkeys(sentence for path in texts for sentence in read_sentences(path))
    mine = [sentence for sentence in found if split_of(sentence) == split]
    keyword_filter = KeywordFilter(keywords)
    keyword_filter.learn(word for sentence in mine for word in WORD.findall(sentence))
    usable = [sentence for sentence in mine if not keyword_filter.holds(sentence)]
    if not usable:
        raise DataError(
            f"the texts hold no sentence of the split {split} without a keyword ({len(found)} sentences in all): name "
            "longer texts"
        )
    np.random.default_rng(seed).shuffle(usable)
    return usable, {"sentences": len(found), "usable": len(usable), "dropped": len(mine) - len(usable)}


def make_recording(
    sentences: Iterator[str], voice: str, length_s: float, seed: Sequence[int]
) -> tuple[np.ndarray, list[dict]]:
    """About ``length_s`` of sentences in one voice, int16[n], and a line of transcripts.jsonl for each sentence."""
    rng = np.random.default_rng(seed)
    warp, level_db = round(rng.uniform(*WARP), 3), round(rng.uniform(*LEVEL_DB), 1)
    parts, lines, length = [], [], 0
    while length < length_s * RATE_HZ and (text := next(sentences, None)):
        speed = round(rng.uniform(*SPEED), 3)
        sound = trim(speak(text, voice, speed, warp))
        sound *= db(level_db) / active_level(sound, RATE_HZ)
        pause = round(rng.uniform(*PAUSE_S) * RATE_HZ)
        onset, length = length + pause, length + pause + len(sound)
        parts += [np.zeros(pause, np.int16), to_int16(sound)]
        when = {"onset": round(onset / RATE_HZ, 3), "offset": round(length / RATE_HZ, 3)}
        lines.append({"voice": voice, "speed": speed, "warp": warp, "level_db": level_db, **when, "text": text})
    return np.concatenate([*parts, np.zeros(round(PAUSE_S[0] * RATE_HZ), np.int16)]), lines


def take_turns(voices: Sequence[str], rng: np.random.Generator) -> Iterator[str]:
    """Voices without end, each as often as its share, evenly spread, in a random phase."""
    shares = np.array([VOICES[voice].share for voice in voices])
    due = rng.random(len(voices)) / shares
    while True:
        turn = int(np.argmin(due))
        due[turn] += 1 / shares[turn]
        yield voices[turn]


def choose_voices(split: str, named: Sequence[str] = ()) -> tuple[str, ...]:
    """The voices of a split, or those ``named``. Raises UsageError where one is unknown or of another split."""
    for name in named:
        if name not in VOICES:
            raise UsageError(f"there is no voice {name!r}; {split} has {', '.join(voices_of(split))}")
        if VOICES[name].split != split:
            raise UsageError(
                f"the voice {name} belongs to the split {VOICES[name].split}, not to {split}, which has "
                f"{', '.join(voices_of(split))}"
            )
    return tuple(named) or voices_of(split)


def _above_zero(name: str, value: float) -> None:
    if not value > 0:
        raise UsageError(f"{name} is {value:g}: expected more than 0")


def _open(folder: Path, request: dict) -> None:
    """Make ``folder``, or check that an earlier run of this request made it. Raises UsageError."""
    about = folder / "about.json"
    if about.exists() and json.loads(about.read_text("utf-8"))["request"] == request:
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} holds something else than this request; remove it, or name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    _close(folder, request, {})


def _close(folder: Path, request: dict, result: dict) -> dict:
    about = {"made_by": "python -m models speak", "request": request, "result": result}
    (folder / "about.json").write_text(json.dumps(about, indent=1) + "\n", "utf-8")
    return about


def _read_transcripts(folder: Path) -> dict[str, list[dict]]:
    """The lines of each recording that is complete; a recording counts when its lines are written."""
    path = folder / "transcripts.jsonl"
    done: dict[str, list[dict]] = {}
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        entry = json.loads(line)
        done.setdefault(entry["file"], []).append(entry)
    return done


def _write_recording(folder: Path, name: str, recording: np.ndarray, lines: Iterable[dict]) -> None:
    soundfile.write(folder / name, recording, RATE_HZ, "PCM_16", format="FLAC")
    with (folder / "transcripts.jsonl").open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps({"file": name, **line}) + "\n" for line in lines))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
