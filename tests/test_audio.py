"""Audio files and standard input: real bytes of every kind that is taken or refused."""

from __future__ import annotations

import io
import os
import pty
import shutil
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from wav_files import needs_soundfile, needs_soxr, noise, read_blocks, refused, wav_bytes

from toolkit.audio import AudioFile, Resampler, int16_from_float, list_audio, read_audio, write_wav
from toolkit.errors import AudioFileError, MissingPartError, UsageError

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # each example overwrites its file

REPOSITORY = Path(__file__).resolve().parent.parent

# Streams


def test_pcm16_needs_no_library_but_numpy(tmp_path):
    write_wav(tmp_path / "a.wav", noise(100))
    code = (
        "import sys\nfrom toolkit.audio import read_audio\n"
        f"assert len(read_audio({str(tmp_path / 'a.wav')!r})[0]) == 100\n"
        "print({'soundfile', 'soxr', 'sounddevice', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_a_stream_holds_a_block_and_not_the_file(tmp_path):
    write_wav(tmp_path / "long.wav", noise(4_000_000))  # 8 MB
    tracemalloc.start()
    try:
        with AudioFile(tmp_path / "long.wav") as file:
            assert file.duration_s == 250.0
            assert sum(len(block) for block in file.blocks()) == 4_000_000
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def test_a_file_is_read_once(tmp_path):
    write_wav(tmp_path / "a.wav", noise(100))
    with AudioFile(tmp_path / "a.wav") as file:
        list(file.blocks())
        with pytest.raises(UsageError, match="open it again"):
            list(file.blocks())


# Other sample formats: rounded half up, saturated


def test_int16_from_float_rounds_half_up_and_saturates():
    lsb = 1 / 32768
    floats = np.array([0.0, 0.4999 * lsb, 0.5 * lsb, -0.5 * lsb, -0.5001 * lsb, 1.0, -1.0, 7.0, -7.0, 1 - lsb])
    assert int16_from_float(floats).tolist() == [0, 0, 1, 0, -1, 32767, -32768, 32767, -32768, 32767]
    assert int16_from_float(floats.astype(np.float32)).dtype == np.int16


@needs_soundfile
def test_24_bits_are_rounded_half_up(tmp_path):
    wide = [0, 0x7F, 0x80, -0x80, -0x81, 0x7FFFFF, -0x800000, 0x123456]
    data = b"".join(value.to_bytes(3, "little", signed=True) for value in wide)
    (tmp_path / "a.wav").write_bytes(wav_bytes(data, bits=24))
    samples, notices = read_audio(tmp_path / "a.wav")
    assert samples.tolist() == [0, 0, 1, 0, -1, 32767, -32768, 0x1234]
    assert notices == [f"{tmp_path / 'a.wav'}: PCM_24 samples rounded to 16 bits"]


@needs_soundfile
def test_every_lossless_format_holds_the_same_samples(tmp_path):
    import soundfile

    samples = noise(5000)
    kinds = [("flac", "PCM_16"), ("flac", "PCM_24"), ("wav", "PCM_32"), ("wav", "FLOAT"), ("wav", "DOUBLE")]
    for suffix, subtype in [*kinds, ("aiff", "PCM_16"), ("w64", "PCM_16"), ("rf64", "PCM_16")]:
        path = tmp_path / f"{subtype}.{suffix}"
        soundfile.write(path, samples.astype(np.float64) / 32768, 16000, subtype=subtype)
        read, notices = read_audio(path)
        assert np.array_equal(read, samples), path.name
        assert np.array_equal(np.concatenate(read_blocks(path)), samples), path.name
        assert len(notices) == (subtype != "PCM_16"), notices


@needs_soundfile
def test_float_samples_beyond_full_scale_are_clipped_and_counted(tmp_path):
    data = np.array([1.5, -2.0, 0.25, -1.0], "<f4").tobytes()
    (tmp_path / "a.wav").write_bytes(wav_bytes(data, tag=3, bits=32))
    samples, notices = read_audio(tmp_path / "a.wav")
    assert samples.tolist() == [32767, -32768, 8192, -32768]
    assert notices[-1].endswith("2 of 4 samples lay beyond full scale and were clipped")


@needs_soundfile
@pytest.mark.parametrize(("suffix", "subtype"), [("ogg", "VORBIS"), ("opus", "OPUS"), ("mp3", "MPEG_LAYER_III")])
def test_lossy_formats_are_decoded(tmp_path, suffix, subtype):
    import soundfile

    tone = 0.25 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    container = {"opus": "OGG"}.get(suffix, suffix.upper())
    soundfile.write(tmp_path / f"a.{suffix}", tone, 16000, format=container, subtype=subtype)
    samples, notices = read_audio(tmp_path / f"a.{suffix}")
    assert len(samples) == 16000 and notices == []
    assert np.corrcoef(samples, tone)[0, 1] > 0.99


# Other rates


@needs_soxr
@pytest.mark.parametrize("rate", [8000, 11025, 44100, 48000])
def test_other_rates_are_resampled_and_said(tmp_path, rate):
    seconds = np.arange(rate + 7) / rate
    tone = int16_from_float(0.5 * np.sin(2 * np.pi * 1000 * seconds))
    (tmp_path / "a.wav").write_bytes(wav_bytes(tone.tobytes(), rate=rate))
    samples, notices = read_audio(tmp_path / "a.wav")
    assert len(samples) == round(len(tone) * 16000 / rate)
    assert notices == [f"{tmp_path / 'a.wav'}: {rate} Hz resampled to 16000 Hz"]
    wanted = 16384 * np.sin(2 * np.pi * 1000 * np.arange(len(samples)) / 16000)
    assert np.abs(samples - wanted)[400:-400].max() < 2  # in place, in phase, at full level
    assert np.array_equal(read_audio(tmp_path / "a.wav", sample_rate_hz=rate)[0], tone)


@needs_soxr
@one_folder
@given(rate=st.sampled_from([8000, 22050, 44100, 48000]), block=st.integers(1, 5000), count=st.integers(50, 9000))
def test_streamed_equals_whole_at_every_rate_and_block(tmp_path, rate, block, count):
    (tmp_path / "a.wav").write_bytes(wav_bytes(noise(count, seed=block).tobytes(), rate=rate))
    whole, _ = read_audio(tmp_path / "a.wav")
    blocks = read_blocks(tmp_path / "a.wav", block)
    assert {len(each) for each in blocks[:-1]} <= {block} and 1 <= len(blocks[-1]) <= block
    assert np.array_equal(np.concatenate(blocks), whole)


@needs_soxr
@given(cuts=st.lists(st.integers(0, 3000), max_size=20), rate=st.sampled_from([8000, 44100]))
def test_the_resampler_does_not_hear_how_its_input_is_cut(cuts, rate):
    samples = noise(3000)
    whole = Resampler(rate, 16000).process(samples, last=True)
    stream = Resampler(rate, 16000)
    pieces = [stream.process(piece) for piece in np.split(samples, sorted(cuts))]
    assert np.array_equal(np.concatenate([*pieces, stream.process(samples[:0], last=True)]), whole)


@needs_soxr
def test_resampling_saturates_instead_of_wrapping():
    square = np.where(np.arange(4410) % 44 < 22, 32767, -32768).astype(np.int16)  # overshoots at its edges
    resampled = Resampler(44100, 16000).process(square, last=True)
    assert resampled.max() == 32767 and resampled.min() == -32768


# Channels


def test_several_channels_need_a_choice(tmp_path):
    left, right = noise(500, 1), noise(500, 2)
    path = tmp_path / "stereo.wav"
    path.write_bytes(wav_bytes(np.stack([left, right], axis=1).tobytes(), channels=2))
    assert refused(path) == (
        f"{path} has 2 channels and one is needed; choose it with --channel 0 to 1, or `--channel mix` for their mean"
    )
    assert "no channel 2; choose --channel 0 to 1" in refused(path, channel=2)
    assert "no channel -1" in refused(path, channel=-1)
    for channel, wanted in ((0, left), (1, right), ("mix", (left.astype(int) + right + 1) // 2)):
        samples, notices = read_audio(path, channel=channel)
        assert np.array_equal(samples, wanted)
        assert np.array_equal(np.concatenate(read_blocks(path, channel=channel)), wanted)
        assert len(notices) == 1 and "of 2 channels is used" in notices[0]


def test_a_mono_file_has_channel_0_only(tmp_path):
    write_wav(tmp_path / "a.wav", noise(10))
    for channel in (None, 0, "mix"):
        assert read_audio(tmp_path / "a.wav", channel=channel)[1] == []
    assert "has 1 channel and no channel 1; choose --channel 0" in refused(tmp_path / "a.wav", channel=1)


# Refused, each with one sentence


@needs_soundfile
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.wav", b"RIFF", "is not audio that can be decoded"),
        ("a.txt", b"not a sound at all\n" * 100, "is not audio that can be decoded"),
        ("a.raw", noise(100).tobytes(), "is not audio that can be decoded (no header)"),
        ("a.wav", wav_bytes(bytes(100), tag=0x7777), "is not audio that can be decoded"),
        ("a.wav", wav_bytes(bytes(3000), bits=24)[:-30], "announces 3000 bytes of samples and 2970 are there"),
        ("a.wav", wav_bytes(np.array([0, 0, np.nan], "<f4").tobytes(), tag=3, bits=32), "NaN or infinity at 0.000 s"),
        ("a.wav", wav_bytes(np.array([0] * 800 + [-np.inf], "<f8").tobytes(), tag=3, bits=64), "at 0.050 s"),
    ],
)
def test_what_cannot_be_decoded_is_refused(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    assert words in refused(tmp_path / name)


@needs_soundfile
@pytest.mark.parametrize("suffix", ["flac", "mp3"])
def test_truncated_compressed_files_are_refused(tmp_path, suffix):
    import soundfile

    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, noise(48000).astype(np.float64) / 40000, 16000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioFileError, match="truncated|can be decoded"):
        read_audio(path)
    with pytest.raises(AudioFileError, match="truncated|can be decoded"):
        read_blocks(path)


def test_what_is_no_file_is_refused(tmp_path):
    assert "does not exist" in refused(tmp_path / "a.wav")
    assert "is a directory" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file; pipe raw" in refused(tmp_path / "pipe")
    with pytest.raises(AudioFileError, match="cannot be a path"):
        read_audio("a\0.wav")


def test_an_unreadable_file_is_refused(tmp_path):
    write_wav(tmp_path / "a.wav", noise(10))
    (tmp_path / "a.wav").chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)  # root may read everything
    try:
        assert "may not be read by this user" in refused(tmp_path / "a.wav")
    finally:
        if root:
            os.seteuid(0)


@needs_soxr
def test_a_file_too_short_for_one_sample_at_the_new_rate_is_refused(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav_bytes(noise(1).tobytes(), rate=96000))
    assert "holds no samples" in refused(tmp_path / "a.wav")


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path):
    write_wav(tmp_path / "a.wav", noise(100_000))
    with AudioFile(tmp_path / "a.wav") as file:
        blocks = file.blocks()
        next(blocks)
        os.truncate(tmp_path / "a.wav", 50_000)
        with pytest.raises(AudioFileError, match="became shorter while it was read"):
            list(blocks)


@pytest.mark.parametrize(
    ("module", "content", "words"),
    [
        ("soundfile", wav_bytes(bytes(300), bits=24), "`pip install soundfile`"),
        ("soxr", wav_bytes(bytes(300), rate=8000), "`pip install soxr`"),
    ],
)
def test_a_missing_library_is_named_with_its_command(tmp_path, monkeypatch, module, content, words):
    (tmp_path / "a.wav").write_bytes(content)
    monkeypatch.setitem(sys.modules, module, None)  # what Python leaves behind for a module that is not there
    with pytest.raises(MissingPartError) as error:
        read_audio(tmp_path / "a.wav")
    assert words in str(error.value) and str(tmp_path / "a.wav") in str(error.value)


# Standard input


def piped(monkeypatch, content: bytes) -> list[np.ndarray]:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(content))))
    return read_blocks("-")


def test_standard_input_is_raw_mono(monkeypatch):
    blocks = piped(monkeypatch, noise(1000).tobytes())
    assert [len(block) for block in blocks] == [320, 320, 320, 40]
    assert np.array_equal(np.concatenate(blocks), noise(1000))
    riff = np.frombuffer(bytes(640) + b"RIFF", np.int16)  # such samples mean a WAV file only at the very start
    assert np.array_equal(np.concatenate(piped(monkeypatch, riff.tobytes())), riff)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "standard input holds no samples"),
        (noise(400).tobytes() + b"\0", "ended in the middle of a sample; pipe raw 16-bit little-endian mono at 16000"),
        (wav_bytes(noise(1000).tobytes()), "holds a WAV file"),
    ],
)
def test_wrong_standard_input_is_refused(monkeypatch, content, words):
    with pytest.raises(AudioFileError, match=words):
        piped(monkeypatch, content)


def test_a_terminal_is_no_audio(monkeypatch):
    terminal, other_end = pty.openpty()
    with open(other_end, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(AudioFileError, match="standard input is no pipe"):
            AudioFile("-")
    os.close(terminal)


def test_a_live_pipe_gives_each_block_as_soon_as_it_is_full():
    code = (
        "import sys\nfrom toolkit.audio import AudioFile\n"
        "for block in AudioFile('-').blocks():\n    sys.stdout.buffer.write(block.tobytes())\n    sys.stdout.flush()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        watchdog = threading.Timer(20, child.kill)
        watchdog.start()
        for seed in range(3):
            block = noise(320, seed).tobytes()
            for piece in (block[:101], block[101:]):
                child.stdin.write(piece)
                child.stdin.flush()
            assert child.stdout.read(640) == block  # comes back before the next is sent
        child.stdin.close()
        watchdog.cancel()
    assert child.returncode == 0


# Listing


def test_list_audio_is_recursive_sorted_and_by_suffix(tmp_path):
    for name in ("b/2.FLAC", "b/1.wav", "a.ogg", "a.opus", "c.mp3", "notes.txt", "._a.wav", ".git/x.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in list_audio(tmp_path)]
    assert found == ["a.ogg", "a.opus", "b/1.wav", "b/2.FLAC", "c.mp3"]
    assert list_audio(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]
    shutil.rmtree(tmp_path / "b")
    for name in ("a.ogg", "a.opus", "c.mp3"):
        (tmp_path / name).unlink()
    with pytest.raises(AudioFileError, match=r"holds no audio files; those ending in \.flac \.mp3 \.ogg"):
        list_audio(tmp_path)
    with pytest.raises(AudioFileError, match="does not exist"):
        list_audio(tmp_path / "nowhere")
