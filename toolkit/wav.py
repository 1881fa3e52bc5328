"""WAV files without a library: the header of any WAV file read strictly, 16-bit mono files written whole or not at all.

16-bit PCM WAV is the format of nearly every data set and the only one that a device needs, so it works with numpy
alone. The standard library's ``wave`` is not used: before Python 3.12 it refuses WAVE_FORMAT_EXTENSIBLE, and it reads a
truncated file as a shorter one without a word.

Format: "Multimedia Programming Interface and Data Specifications 1.0" (IBM and Microsoft, 1991), "Multiple Channel
Audio Data and WAVE Files" (Microsoft, 2001) for WAVE_FORMAT_EXTENSIBLE.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterable
from typing import BinaryIO, NamedTuple

import numpy as np

from toolkit.errors import AudioFileError, UsageError

WAVE_FORMAT_PCM = 0x0001
WAVE_FORMAT_EXTENSIBLE = 0xFFFE
KSDATAFORMAT_TAIL = bytes.fromhex("000000001000800000aa00389b71")  # GUID of a sub-format after its 16-bit tag
UNKNOWN_BYTES = 0xFFFFFFFF  # the data size in a file whose writer, a pipe's end, could not go back to fill it in
MAX_DATA_BYTES = 0xFFFFFFFF - 36


class WavHeader(NamedTuple):
    """What a WAV file says about its samples; ``format_tag`` is the sub-format's where the file is extensible."""

    format_tag: int
    channels: int
    rate_hz: int
    bits: int
    frame_bytes: int  # one sample of every channel
    data_bytes: int

    @property
    def is_pcm16(self) -> bool:
        return self.format_tag == WAVE_FORMAT_PCM and self.bits == 16


def read_wav_header(file: BinaryIO, file_bytes: int, path: str) -> WavHeader | None:
    """The header of a RIFF WAVE file, the file left at its first sample; None for any other kind of file.

    Raises AudioFileError where chunks are missing, contradict each other, or announce more than is there.
    """
    riff = file.read(12)
    if riff[:4] != b"RIFF" or riff[8:] != b"WAVE":
        return None
    fmt = b""
    while len(chunk := file.read(8)) == 8:
        name, size = struct.unpack("<4sI", chunk)
        if name == b"data":
            break
        body = file.read(min(size, 40)) if name == b"fmt " else b""
        fmt = fmt or body
        file.seek(size + size % 2 - len(body), os.SEEK_CUR)  # chunks are padded to even length
    else:
        raise AudioFileError(f"{path} is truncated: the WAV file ends before its samples; copy or export it again")
    present = file_bytes - file.tell()
    if size == UNKNOWN_BYTES:
        size = present
    if size > present:
        raise AudioFileError(
            f"{path} is truncated: its header announces {size} bytes of samples and {present} are there; copy it "
            f"again, or keep what is there with `sox --ignore-length IN OUT.wav`"
        )
    if len(fmt) < 16:
        raise AudioFileError(f"{path} is damaged: the WAV file does not say its sample format; export it again")
    tag, channels, rate_hz, _, frame_bytes, bits = struct.unpack_from("<HHIIHH", fmt)
    if tag == WAVE_FORMAT_EXTENSIBLE and fmt[26:] == KSDATAFORMAT_TAIL:
        (tag,) = struct.unpack_from("<H", fmt, 24)
    header = WavHeader(tag, channels, rate_hz, bits, frame_bytes, size)
    if channels == 0 or header.is_pcm16 and frame_bytes != 2 * channels:
        raise AudioFileError(
            f"{path} is damaged: its header says {channels} channels of {bits} bits in {frame_bytes} bytes; export "
            f"it again"
        )
    if header.is_pcm16 and size % frame_bytes:
        raise AudioFileError(f"{path} is truncated: it ends {size % frame_bytes} bytes into a sample; copy it again")
    return header


def write_wav(
    path: str | os.PathLike[str], samples: np.ndarray | Iterable[np.ndarray], sample_rate_hz: int = 16000
) -> int:
    """Write int16 [n], or an iterable of such blocks, as a 16-bit mono WAV file; returns n.

    The file appears under its name only when it is complete: it is written beside it and renamed. A failure, also one
    of the iterable, leaves what was there before. Raises AudioFileError where it cannot be written.
    """
    path = os.path.realpath(path)  # a link stays a link
    if os.path.exists(path) and not os.path.isfile(path):  # as root, a rename would replace even /dev/null
        raise AudioFileError(f"{path} is not a regular file and cannot become a WAV file; choose another name")
    part = f"{path}.{os.getpid()}.part"
    try:
        with open(part, "wb") as file:
            file.write(bytes(44))
            data_bytes = 0
            for block in [samples] if isinstance(samples, np.ndarray) else samples:
                if block.dtype != np.int16 or block.ndim != 1:
                    raise UsageError(f"a WAV file is written from int16 [n], not from {block.dtype} {block.shape}")
                data_bytes += file.write(block.astype("<i2", copy=False).tobytes())
                if data_bytes > MAX_DATA_BYTES:
                    raise AudioFileError(f"{path} would be longer than a WAV file's 4 GiB; write it in parts")
            file.seek(0)
            file.write(_header(data_bytes, sample_rate_hz))
        os.replace(part, path)
    except OSError as error:
        raise AudioFileError(f"{path} cannot be written ({error.strerror}); check the folder and the space") from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(part)
    return data_bytes // 2


def _header(data_bytes: int, rate_hz: int) -> bytes:
    """The 44 bytes before the samples of a 16-bit mono file."""
    fmt = struct.pack("<HHIIHH", WAVE_FORMAT_PCM, 1, rate_hz, 2 * rate_hz, 2, 16)
    riff = struct.pack("<4sI4s", b"RIFF", 36 + data_bytes, b"WAVE")
    return riff + struct.pack("<4sI", b"fmt ", 16) + fmt + struct.pack("<4sI", b"data", data_bytes)
