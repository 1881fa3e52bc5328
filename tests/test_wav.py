"""WAV files without a library: every legal wrapping read, every damage refused, writing whole or not at all."""

from __future__ import annotations

import os
import struct
import sys
import wave

import numpy as np
import pytest
from wav_files import chunk, needs_soundfile, needs_soxr, noise, read_blocks, refused, wav_bytes

from toolkit.audio import read_audio
from toolkit.errors import AudioFileError, UsageError
from toolkit.wav import write_wav

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # each example overwrites its file

# 16-bit PCM, bit for bit


def test_pcm16_written_by_the_standard_library_comes_back_bit_for_bit(tmp_path):
    samples = noise(16001)
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(16000)
        file.writeframes(samples.tobytes())
    read, notices = read_audio(tmp_path / "a.wav")
    assert read.dtype == np.int16 and np.array_equal(read, samples) and notices == []
    blocks = read_blocks(tmp_path / "a.wav")
    assert [len(block) for block in blocks] == [320] * 50 + [1]
    assert all(block.dtype == np.int16 for block in blocks)
    assert np.array_equal(np.concatenate(blocks), samples)


@pytest.mark.parametrize(
    "content",
    [
        wav_bytes(noise(999).tobytes(), before=chunk(b"LIST", b"INFO" + chunk(b"ISFT", b"odd"))),
        wav_bytes(noise(999).tobytes(), before=chunk(b"junk", bytes(13))),
        wav_bytes(noise(999).tobytes(), tag=0xFFFE),
        wav_bytes(noise(999).tobytes()) + chunk(b"LIST", b"INFO after the samples"),
        wav_bytes(noise(999).tobytes()).replace(struct.pack("<4sI", b"data", 1998), b"data\xff\xff\xff\xff"),
    ],
    ids=["LIST before", "odd chunk", "extensible", "LIST after", "length unknown to a pipe"],
)
def test_pcm16_in_every_legal_wrapping(tmp_path, monkeypatch, content):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    (tmp_path / "a.wav").write_bytes(content)
    assert np.array_equal(read_audio(tmp_path / "a.wav")[0], noise(999))


# Refused, each with one sentence


GOOD = wav_bytes(noise(1000).tobytes())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty (0 bytes)"),
        (wav_bytes(b""), "holds no samples, only a header"),
        (GOOD[:-500], "announces 2000 bytes of samples and 1500 are there"),
        (GOOD[:44], "announces 2000 bytes of samples and 0 are there"),
        (GOOD[:40], "ends before its samples"),
        (GOOD[:20], "ends before its samples"),
        (wav_bytes(b"\1\2\3"), "1 bytes into a sample"),
        (GOOD[:12] + GOOD[36:], "does not say its sample format"),
        (wav_bytes(noise(1000).tobytes(), channels=0), "says 0 channels"),
        (GOOD.replace(struct.pack("<HH", 2, 16), struct.pack("<HH", 4, 16), 1), "1 channels of 16 bits in 4 bytes"),
        (wav_bytes(noise(1000).tobytes(), rate=0), "0 Hz, is not within 1000 to 768000 Hz"),
        (wav_bytes(noise(1000).tobytes(), rate=2**32 - 1), "4294967295 Hz, is not within"),
    ],
)
def test_damaged_wav_files_are_refused(tmp_path, content, words):
    (tmp_path / "a.wav").write_bytes(content)
    assert words in refused(tmp_path / "a.wav")


@needs_soundfile
@needs_soxr
@settings(one_folder, max_examples=300)
@given(
    at=st.integers(0, 59), value=st.binary(min_size=1, max_size=4), end=st.integers(0, 300), extensible=st.booleans()
)
def test_any_damage_to_a_header_gives_samples_or_one_sentence(tmp_path, at, value, end, extensible):
    content = wav_bytes(noise(120).tobytes(), tag=0xFFFE if extensible else 1)
    (tmp_path / "a.wav").write_bytes((content[:at] + value + content[at + len(value) :])[: len(content) - end])
    try:
        samples, _ = read_audio(tmp_path / "a.wav", channel=0)
    except AudioFileError as error:
        assert "a.wav" in str(error) and "\n" not in str(error)
    else:
        assert samples.dtype == np.int16 and len(samples) > 0


# Writing


def test_write_wav_is_what_the_standard_library_reads(tmp_path):
    assert write_wav(tmp_path / "a.wav", noise(777), 48000) == 777
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate(), file.getnframes()) == (1, 2, 48000, 777)
        assert file.readframes(777) == noise(777).tobytes()
    assert (tmp_path / "a.wav").read_bytes() == wav_bytes(noise(777).tobytes(), rate=48000)
    write_wav(tmp_path / "b.wav", (noise(777)[start : start + 100] for start in range(0, 777, 100)), 48000)
    assert (tmp_path / "b.wav").read_bytes() == (tmp_path / "a.wav").read_bytes()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_wav(tmp_path / "a.wav", noise(10))
    old = (tmp_path / "a.wav").read_bytes()

    def blocks():
        yield noise(1000)
        assert (tmp_path / "a.wav").read_bytes() == old
        raise AudioFileError("the input ended early")

    with pytest.raises(AudioFileError, match="ended early"):
        write_wav(tmp_path / "a.wav", blocks())
    with pytest.raises(UsageError, match=r"int16 \[n\], not from float64 \(3,\)"):
        write_wav(tmp_path / "a.wav", np.zeros(3))
    assert (tmp_path / "a.wav").read_bytes() == old
    assert os.listdir(tmp_path) == ["a.wav"]


def test_write_wav_keeps_links_and_devices(tmp_path):
    write_wav(tmp_path / "a.wav", noise(10))
    (tmp_path / "link.wav").symlink_to(tmp_path / "a.wav")
    write_wav(tmp_path / "link.wav", noise(20))
    assert (tmp_path / "link.wav").is_symlink() and len(read_audio(tmp_path / "a.wav")[0]) == 20
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(AudioFileError, match="not a regular file"):
            write_wav(path, noise(1))
    with pytest.raises(AudioFileError, match="cannot be written"):
        write_wav(tmp_path / "no such folder" / "a.wav", noise(1))


def test_a_written_file_may_be_read_by_whom_the_umask_allows(tmp_path):
    before = os.umask(0o027)
    try:
        write_wav(tmp_path / "a.wav", noise(1))
    finally:
        os.umask(before)
    assert (tmp_path / "a.wav").stat().st_mode & 0o777 == 0o640
