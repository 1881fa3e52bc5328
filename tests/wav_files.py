"""WAV files made field by field, apart from the code under test, and what reading any file must give."""

from __future__ import annotations

import importlib.util
import os
import struct

import numpy as np
import pytest

from toolkit.audio import AudioFile, read_audio
from toolkit.errors import AudioFileError

EXTENSIBLE_PCM_TAIL = bytes.fromhex("0100000000001000800000aa00389b71")  # KSDATAFORMAT_SUBTYPE_PCM

needs_soundfile = pytest.mark.skipif(importlib.util.find_spec("soundfile") is None, reason="pip install soundfile")
needs_soxr = pytest.mark.skipif(importlib.util.find_spec("soxr") is None, reason="pip install soxr")


def noise(count: int, seed: int = 0) -> np.ndarray:
    """White int16 noise over the whole range, both ends included."""
    samples = np.random.default_rng(seed).integers(-32768, 32768, count).astype(np.int16)
    samples[: min(count, 2)] = [-32768, 32767][: min(count, 2)]
    return samples


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack("<4sI", name, len(body)) + body + bytes(len(body) % 2)


def wav_bytes(
    data: bytes, *, tag: int = 1, channels: int = 1, rate: int = 16000, bits: int = 16, before: bytes = b""
) -> bytes:
    """A RIFF WAVE file made field by field, apart from the code under test."""
    frame = channels * bits // 8
    fmt = struct.pack("<HHIIHH", tag, channels, rate, rate * frame % 2**32, frame, bits)
    if tag == 0xFFFE:
        fmt += struct.pack("<HHI", 22, bits, 0) + EXTENSIBLE_PCM_TAIL
    body = b"WAVE" + chunk(b"fmt ", fmt) + before + chunk(b"data", data)
    return struct.pack("<4sI", b"RIFF", len(body)) + body


def read_blocks(path: str | os.PathLike[str], block_samples: int = 320, **options) -> list[np.ndarray]:
    with AudioFile(path, **options) as file:
        return list(file.blocks(block_samples))


def refused(path: str | os.PathLike[str], **options) -> str:
    """The sentence with which a file is refused, the same whole and in blocks."""
    with pytest.raises(AudioFileError) as whole:
        read_audio(path, **options)
    with pytest.raises(AudioFileError) as streamed:
        read_blocks(path, **options)
    sentence = str(whole.value)
    assert sentence == str(streamed.value)
    assert str(path) in sentence and "\n" not in sentence and len(sentence) < 300 + len(str(path))
    return sentence
