"""Audio files and standard input as int16 mono samples at one rate, whole or in blocks.

    file or `-`  ->  frames int16 [n, channels]  ->  one channel [n]  ->  resampler  ->  blocks int16 [block_samples]

16-bit PCM WAV goes through bit for bit and needs only numpy (wav.py). Everything else (24-bit, float, FLAC, Ogg, MP3)
is decoded by soundfile, and other sample rates go through soxr; both are imported only when a file needs them. Reading
whole and reading in blocks give the same samples.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from toolkit.errors import AudioFileError, MissingPartError, UsageError
from toolkit.wav import WavHeader, read_wav_header, write_wav

__all__ = ["AudioFile", "Resampler", "int16_from_float", "list_audio", "pick_channel", "read_audio", "write_wav"]

AUDIO_SUFFIXES = (".flac", ".mp3", ".ogg", ".opus", ".wav")
SOURCE_RATES_HZ = (1_000, 768_000)  # a header outside is damaged, and at 1 Hz a small file would become gigabytes
WHOLE_FILE_BLOCK_SAMPLES = 1 << 20  # read_audio's block: one clip, or a minute of a long file
ROUNDED_SUBTYPES = ("PCM_24", "PCM_32", "FLOAT", "DOUBLE")  # libsndfile's names for more than 16 bits
CONVERT = "convert it, for instance with `ffmpeg -i IN -ac 1 -ar 16000 -sample_fmt s16 OUT.wav`"


def read_audio(
    path: str | os.PathLike[str], sample_rate_hz: int = 16000, channel: int | str | None = None
) -> tuple[np.ndarray, list[str]]:
    """A whole file: samples int16 [n] at sample_rate_hz, and the notices (what was converted) to print on stderr.

    Arguments and errors are AudioFile's.
    """
    with AudioFile(path, sample_rate_hz, channel) as audio:
        blocks = list(audio.blocks(WHOLE_FILE_BLOCK_SAMPLES))
    return (blocks[0] if len(blocks) == 1 else np.concatenate(blocks)), audio.notices


class AudioFile:
    """A file, or ``-`` for raw 16-bit little-endian mono samples on standard input, read once from start to end.

    ``channel`` is the 0-based channel of a file with several, or ``"mix"`` for their mean; without it such a file is
    refused. The file is opened and its header checked here, so that a wrong file fails before the first sample.

    Attributes: ``notices``, sentences about what was converted, complete when the last block has been read;
    ``source_rate_hz``; ``source_channels``; ``duration_s``, None for standard input.

    Raises AudioFileError (missing, directory, unreadable, empty, truncated, not audio, several channels, NaN), and
    MissingPartError where soundfile or soxr is needed and not installed. Ogg states no length: one cut short reads as
    a shorter file.
    """

    def __init__(
        self, path: str | os.PathLike[str], sample_rate_hz: int = 16000, channel: int | str | None = None
    ) -> None:
        self.path = os.fspath(path)
        self.sample_rate_hz = sample_rate_hz
        self.channel = channel
        self.notices: list[str] = []
        with contextlib.ExitStack() as opened:
            self._source = _StdinSource(sample_rate_hz) if self.path == "-" else _open_source(self.path, opened)
            self.source_rate_hz = self._source.rate_hz
            self.source_channels = self._source.channels
            self._check()
            self.duration_s = None if self._source.frames is None else self._source.frames / self.source_rate_hz
            self._opened = opened.pop_all()
        self._unread = True

    def blocks(self, block_samples: int = 320) -> Iterator[np.ndarray]:
        """Blocks int16 [block_samples] in order, once; only the last may be shorter. Memory is bounded by the block."""
        if not self._unread:
            raise UsageError(f"{self.path} has been read; open it again")
        self._unread = False
        samples = (pick_channel(frames, self.channel) for frames in self._source.read(block_samples, self.notices))
        if self.source_rate_hz != self.sample_rate_hz:
            samples = _resampled(samples, Resampler(self.source_rate_hz, self.sample_rate_hz))
        with self:
            empty = True
            for block in _reblocked(samples, block_samples):
                empty = False
                yield block
            if empty:
                raise AudioFileError(f"{self._source.name} holds no samples; record or export it again")

    def close(self) -> None:
        """Close the file; nothing more can be read."""
        self._unread = False
        self._opened.close()

    def __enter__(self) -> AudioFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self) -> None:
        name, rate_hz, channels = self._source.name, self.source_rate_hz, self.source_channels
        if not SOURCE_RATES_HZ[0] <= rate_hz <= SOURCE_RATES_HZ[1]:
            low, high = SOURCE_RATES_HZ
            raise AudioFileError(f"{name}: its sample rate, {rate_hz} Hz, is not within {low} to {high} Hz; {CONVERT}")
        check_channel(name, channels, self.channel)
        if channels > 1:
            what = "the mean" if self.channel == "mix" else f"channel {self.channel}"
            self.notices.append(f"{name}: {what} of {channels} channels is used")
        if rate_hz != self.sample_rate_hz:
            _import_soxr(f"{name} has {rate_hz} Hz and {self.sample_rate_hz} Hz are needed")
            self.notices.append(f"{name}: {rate_hz} Hz resampled to {self.sample_rate_hz} Hz")


def list_audio(path: str | os.PathLike[str]) -> list[Path]:
    """The audio files under a directory, recursively and sorted, by suffix; a file is returned alone, whatever it is.

    Hidden files and folders are skipped (macOS leaves ``._x.wav`` beside ``x.wav``), links to folders not followed.
    Raises AudioFileError where the path does not exist, a folder cannot be read, or there is nothing.
    """
    root = Path(path)
    if not root.is_dir():
        if not root.exists():
            raise AudioFileError(f"{root} does not exist; check the path")
        return [root]

    def refuse(error: OSError) -> None:
        raise AudioFileError(f"{error.filename} cannot be listed ({error.strerror}); change its permissions") from None

    found = []
    for folder, folders, files in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names = (name for name in files if name.lower().endswith(AUDIO_SUFFIXES) and not name.startswith("."))
        found += [Path(folder, name) for name in names]
    if not found:
        raise AudioFileError(f"{root} holds no audio files; those ending in {' '.join(AUDIO_SUFFIXES)} are taken")
    return sorted(found)


# Sources: each has name, rate_hz, channels, frames (None: known only at the end), and read(block_frames, notices),
# which yields frames int16 [n, channels] from start to end.


def _open_source(path: str, opened: contextlib.ExitStack) -> _Pcm16Source | _DecodedSource:
    """The source for a path: own parser for 16-bit PCM WAV, soundfile for everything else."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise AudioFileError(f"{path} is a directory and one audio file is needed; name a file in it")
        if not stat.S_ISREG(status.st_mode):
            raise AudioFileError(f"{path} is not a regular file; pipe raw 16-bit mono samples to `-` instead")
        file = opened.enter_context(open(path, "rb"))  # noqa: SIM115 - the stack closes it
        header = read_wav_header(file, status.st_size, path)
    except FileNotFoundError:
        raise AudioFileError(f"{path} does not exist; check the path") from None
    except PermissionError:
        raise AudioFileError(f"{path} may not be read by this user; change its permissions") from None
    except OSError as error:
        raise AudioFileError(f"{path} cannot be read ({error.strerror}); check the disk and the path") from None
    except ValueError:  # a NUL character
        raise AudioFileError(f"{path!r} cannot be a path; check it") from None
    if status.st_size == 0:
        raise AudioFileError(f"{path} is empty (0 bytes); record or export it again")
    source = _Pcm16Source(path, file, header) if header and header.is_pcm16 else _DecodedSource(path, opened)
    if source.frames == 0:
        raise AudioFileError(f"{path} holds no samples, only a header; record or export it again")
    return source


class _Pcm16Source:
    """16-bit PCM WAV, as it is."""

    def __init__(self, path: str, file: BinaryIO, header: WavHeader) -> None:
        self.name, self.rate_hz, self.channels = path, header.rate_hz, header.channels
        self.frames = header.data_bytes // header.frame_bytes
        self._file = file

    def read(self, block_frames: int, notices: list[str]) -> Iterator[np.ndarray]:
        for start in range(0, self.frames, block_frames):
            frames = np.empty((min(block_frames, self.frames - start), self.channels), "<i2")
            try:
                got = self._file.readinto(frames)
            except OSError as error:
                raise AudioFileError(f"{self.name} cannot be read ({error.strerror}); check the disk") from None
            if got < frames.nbytes:
                raise AudioFileError(f"{self.name} became shorter while it was read; wait until it is written")
            yield frames


class _DecodedSource:
    """Anything that libsndfile decodes; as float64, which holds every format's samples exactly, then rounded."""

    def __init__(self, path: str, opened: contextlib.ExitStack) -> None:
        soundfile = _import_soundfile(path)
        try:
            self._decoder = opened.enter_context(soundfile.SoundFile(path))
        except (RuntimeError, TypeError) as error:  # TypeError: a headerless format, guessed from the suffix
            raise AudioFileError(f"{path} is not audio that can be decoded ({_reason(error)}); {CONVERT}") from None
        self.name, self.rate_hz, self.channels = path, self._decoder.samplerate, self._decoder.channels
        self.frames = self._decoder.frames

    def read(self, block_frames: int, notices: list[str]) -> Iterator[np.ndarray]:
        name, subtype = self.name, self._decoder.subtype
        if subtype in ROUNDED_SUBTYPES:
            notices.append(f"{name}: {subtype} samples rounded to 16 bits")
        done = beyond = 0
        while True:
            try:
                frames = self._decoder.read(block_frames, dtype="float64", always_2d=True)
            except RuntimeError as error:
                when_s = done / self.rate_hz
                raise AudioFileError(
                    f"{name} is damaged or truncated after {when_s:.3f} s ({_reason(error)}); copy it again"
                ) from None
            if len(frames) == 0:
                break
            finite = np.isfinite(frames).all(axis=1)
            if not finite.all():
                when_s = (done + int(np.argmin(finite))) / self.rate_hz
                raise AudioFileError(f"{name} holds NaN or infinity at {when_s:.3f} s; export it again")
            done += len(frames)
            beyond += int(np.count_nonzero(np.abs(frames) > 1.0))
            yield int16_from_float(frames)
        if done < self.frames:
            raise AudioFileError(f"{name} is truncated: {self.frames} samples announced, {done} there; copy it again")
        if beyond:
            notices.append(f"{name}: {beyond} of {done * self.channels} samples lay beyond full scale and were clipped")


class _StdinSource:
    """Raw 16-bit little-endian mono samples on standard input, already at the wanted rate."""

    name, channels, frames = "standard input", 1, None

    def __init__(self, rate_hz: int) -> None:
        self.rate_hz = rate_hz
        self._raw = f"pipe raw 16-bit little-endian mono at {rate_hz} Hz: `ffmpeg -i IN -f s16le -ac 1 -ar {rate_hz} -`"
        if sys.stdin is None or sys.stdin.isatty():
            raise AudioFileError(f"standard input is no pipe and `-` reads samples from it; {self._raw}")

    def read(self, block_frames: int, notices: list[str]) -> Iterator[np.ndarray]:
        first = True
        while True:
            frames = np.zeros((block_frames, 1), "<i2")
            got = sys.stdin.buffer.readinto(frames)  # waits for a whole block or the end
            if first and frames[:2].tobytes() == b"RIFF":
                raise AudioFileError(f"standard input holds a WAV file and `-` reads raw samples; {self._raw}")
            if got % 2:
                raise AudioFileError(f"standard input ended in the middle of a sample; {self._raw}")
            if got:
                yield frames[: got // 2]
            if got < frames.nbytes:
                return
            first = False


# Stages between a source and the blocks; the microphone uses them too.


def check_channel(name: str, channels: int, channel: int | str | None) -> None:
    """Raise AudioFileError unless ``channel`` (an index, "mix" or None) says which of ``channels`` to use."""
    if channels == 1 and channel in (None, 0, "mix"):
        return
    count = f"{name} has {channels} channel" + ("s" if channels > 1 else "")
    choice = "0" if channels == 1 else f"0 to {channels - 1}, or `--channel mix` for their mean"
    if channel is None:
        raise AudioFileError(f"{count} and one is needed; choose it with --channel {choice}")
    if channel != "mix" and not (isinstance(channel, int) and 0 <= channel < channels):
        raise AudioFileError(f"{count} and no channel {channel}; choose --channel {choice}")


def pick_channel(frames: np.ndarray, channel: int | str | None) -> np.ndarray:
    """One channel of frames int16 [n, channels] as int16 [n]; "mix" is the mean, rounded half up."""
    if channel == "mix":
        count = frames.shape[1]
        return ((2 * frames.sum(axis=1, dtype=np.int64) + count) // (2 * count)).astype(np.int16)
    return np.ascontiguousarray(frames[:, channel or 0], dtype=np.int16)


def int16_from_float(samples: np.ndarray) -> np.ndarray:
    """Float samples in [-1, 1) as int16 (Q0.15): floor(x * 32768 + 0.5), saturated. NaN is the caller's to refuse."""
    return _round_to_int16(samples * np.float64(32768.0))


def _round_to_int16(scaled: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(scaled + 0.5), -32768, 32767).astype(np.int16)


class Resampler:
    """A stream of int16 mono samples at one rate, continued at another (soxr, HQ, no dither).

    The output does not depend on how the input is cut: n samples become n * out / in, rounded, all of them after the
    call with ``last=True``. Raises MissingPartError where soxr is not installed.
    """

    def __init__(self, source_rate_hz: int, sample_rate_hz: int) -> None:
        soxr = _import_soxr(f"{source_rate_hz} Hz must become {sample_rate_hz} Hz")
        self._stream = soxr.ResampleStream(source_rate_hz, sample_rate_hz, 1, dtype=np.float32, quality="HQ")

    def process(self, samples: np.ndarray, last: bool = False) -> np.ndarray:
        """The samples int16 [m] that int16 [n] completes; m varies from call to call and may be 0."""
        return _round_to_int16(self._stream.resample_chunk(samples.astype(np.float32), last=last))


def _resampled(blocks: Iterable[np.ndarray], resampler: Resampler) -> Iterator[np.ndarray]:
    for block in blocks:
        yield resampler.process(block)
    yield resampler.process(np.empty(0, np.int16), last=True)


def _reblocked(blocks: Iterable[np.ndarray], block_samples: int) -> Iterator[np.ndarray]:
    """The same samples in blocks of block_samples, the last one shorter."""
    held = np.empty(0, np.int16)
    for block in blocks:
        held = np.concatenate((held, block)) if len(held) else block
        whole = len(held) - len(held) % block_samples
        for start in range(0, whole, block_samples):
            yield held[start : start + block_samples]
        held = held[whole:]
    if len(held):
        yield held


def _reason(error: Exception) -> str:
    """libsndfile's own words, without the path that soundfile puts before them."""
    return str(getattr(error, "error_string", "no header")).removeprefix("Error : ").rstrip(".")


def _import_soundfile(path: str):
    try:
        import soundfile
    except ImportError:
        raise MissingPartError(
            f"{path} is not a 16-bit PCM WAV file and soundfile, which reads other formats, is not installed; "
            f"`pip install soundfile`"
        ) from None
    except OSError:  # its wheel for some machines comes without the library
        raise MissingPartError(f"{path} needs the library libsndfile; `sudo apt install libsndfile1`") from None
    return soundfile


def _import_soxr(need: str):
    try:
        import soxr
    except ImportError:
        raise MissingPartError(f"{need}, and soxr, which resamples, is not installed; `pip install soxr`") from None
    return soxr
