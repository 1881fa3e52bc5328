"""The definition of a front end (FeatureConfig) and the integer tables made from it.

Set-up only: floats and transcendental functions live here and never reach a device, because the tables travel in
the bundle. C twin of the layout: core/ea_tables.h.

In real numbers the front end is that of TensorFlow (tf.signal.stft, linear_to_mel_weight_matrix,
mfccs_from_log_mel_spectrograms) and CMSIS-DSP: HTK mel scale, triangles linear in mel, natural logarithm, DCT-II
with sqrt(2 / n_mels), no centring, no padding of the signal.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import get_type_hints

import numpy as np

from .digest import sha256
from .errors import ConfigError, UnsupportedError

ALGORITHM = 1  # raised by any change that changes an output integer; EA_ALGORITHM in core/ea_tables.h
MAGIC = 0x54464145  # "EAFT"
HEADER_WORDS = 16
MAX_BLOB_BYTES = 1 << 20
LOG_SEGMENTS = 128
WINDOWS = ("hann", "hamming")
SPECTRA = ("magnitude", "power")  # index = code in the blob
_KINDS = {int: "an integer", float: "a number", str: "a text"}


@dataclass(frozen=True)
class FeatureConfig:
    """What defines the features. Defaults: the front end that all released models share (log-mel, 25.5 nat range)."""

    sample_rate_hz: int = 16000
    win_length: int = 480  # samples
    hop_length: int = 160  # samples, at most win_length
    n_fft: int = 512  # a power of two, 16 .. 4096, at least win_length
    window: str = "hann"  # periodic; hann or hamming
    pre_emphasis: float = 0.0  # y[n] = x[n] - pre_emphasis * x[n-1], 0 .. 0.9999
    n_mels: int = 40
    fmin_hz: float = 60.0
    fmax_hz: float = 7600.0
    spectrum: str = "power"  # magnitude or power goes into the mel filters
    log_floor: float = 1e-6  # ln(max(mel, log_floor)); full scale is 1.0 in the time domain
    n_mfcc: int = 0  # 0: log-mel
    output_fraction_bits: int = 11  # of the int16 output: Q4.11 holds +-16 nat; MFCC wants Q7.8

    def __post_init__(self):
        for name, kind in get_type_hints(FeatureConfig).items():  # 60 and 60.0 Hz are one front end, with one id
            value = getattr(self, name)
            fits = isinstance(value, str if kind is str else Integral if kind is int else Real)
            if not fits or isinstance(value, bool):
                raise ConfigError(f"features.{name} is {value!r}; expected {_KINDS[kind]}.")
            object.__setattr__(self, name, kind(value))
        expect = [
            ("sample_rate_hz", 1 <= self.sample_rate_hz <= 384000, "1 to 384000"),
            ("n_fft", 16 <= self.n_fft <= 4096 and self.n_fft & (self.n_fft - 1) == 0, "a power of two, 16 to 4096"),
            ("win_length", 1 <= self.win_length <= self.n_fft, f"1 to n_fft = {self.n_fft}"),
            ("hop_length", 1 <= self.hop_length <= self.win_length, f"1 to win_length = {self.win_length}"),
            ("window", self.window in WINDOWS, " or ".join(WINDOWS)),
            ("pre_emphasis", 0.0 <= self.pre_emphasis <= 0.9999, "0 to 0.9999"),
            ("n_mels", 1 <= self.n_mels <= 256, "1 to 256"),
            ("fmin_hz", 0.0 <= self.fmin_hz < self.fmax_hz, f"0 to below fmax_hz = {self.fmax_hz}"),
            ("fmax_hz", self.fmax_hz <= self.sample_rate_hz / 2, f"at most {self.sample_rate_hz / 2} (half the rate)"),
            ("spectrum", self.spectrum in SPECTRA, " or ".join(SPECTRA)),
            ("log_floor", 1e-15 <= self.log_floor <= 1e3, "1e-15 to 1e3"),
            ("n_mfcc", 0 <= self.n_mfcc <= self.n_mels, f"0 to n_mels = {self.n_mels}"),
            ("n_mels", self.n_mels > 1 or self.n_mfcc == 0, "2 or more with n_mfcc"),  # sqrt(2) is no Q0.15
            ("output_fraction_bits", 0 <= self.output_fraction_bits <= 15, "0 to 15"),
        ]
        for name, holds, expected in expect:
            if not holds:
                raise ConfigError(f"features.{name} is {getattr(self, name)!r}; expected {expected}.")

    @property
    def width(self) -> int:
        """Values per frame."""
        return self.n_mfcc or self.n_mels


@dataclass(frozen=True)
class Tables:
    """Views of a blob, read-only numpy arrays; field by field `ea_tables` of core/ea_tables.h."""

    blob: bytes
    sample_rate_hz: int
    win_length: int
    hop_length: int
    n_fft: int
    n_mels: int
    n_mfcc: int
    spectrum: int
    spectrum_bits: int
    pre_emphasis_q15: int
    log_floor_q24: int
    output_fraction_bits: int
    window_q15: np.ndarray  # int16 [win_length]
    fft_twiddle_q30: np.ndarray  # int32, per radix-4 stage of m > 1: re [3, m], im [3, m]
    split_twiddle_q30: np.ndarray  # int32 [2, n_fft/4 + 1]
    mel_segment_start: np.ndarray  # uint16 [n_mels + 2]
    mel_rise_q15: np.ndarray  # int16 [n_fft/2 + 1]
    log_q24: np.ndarray  # int32 [LOG_SEGMENTS + 1]
    dct_q15: np.ndarray  # int16 [n_mfcc, n_mels]

    @property
    def width(self) -> int:
        """Values per frame."""
        return self.n_mfcc or self.n_mels


def _fixed(x, fraction_bits: int, dtype) -> np.ndarray:
    limits = np.iinfo(dtype)
    return np.clip(np.floor(np.asarray(x) * 2.0**fraction_bits + 0.5), limits.min, limits.max).astype(dtype)


def _window(config: FeatureConfig) -> np.ndarray:
    phase = 2 * np.pi * np.arange(config.win_length) / config.win_length
    return 0.5 - 0.5 * np.cos(phase) if config.window == "hann" else 0.54 - 0.46 * np.cos(phase)


def _fft_twiddles(n: int) -> np.ndarray:
    """exp(-2 pi i p r / (4 m)) for r = 1, 2, 3, p = 0 .. m-1 of each radix-4 stage with m > 1; floats, flat."""
    stages, m = [], n // 4
    while m > 1:
        angle = -2 * np.pi * np.outer([1, 2, 3], np.arange(m)) / (4 * m)
        stages += [np.cos(angle).ravel(), np.sin(angle).ravel()]
        m //= 4
    return np.concatenate(stages) if stages else np.zeros(0)


def hz_to_mel(hz):
    """HTK mel scale, 1127 ln(1 + f/700)."""
    return 1127.0 * np.log1p(np.asarray(hz, np.float64) / 700.0)


def _mel(config: FeatureConfig) -> tuple[np.ndarray, np.ndarray]:
    """(first bin of each of the n_mels + 1 segments between mel edges, and the end; rising weight of each bin)."""
    bins_mel = hz_to_mel(np.arange(config.n_fft // 2 + 1) * config.sample_rate_hz / config.n_fft)
    edges = np.linspace(hz_to_mel(config.fmin_hz), hz_to_mel(config.fmax_hz), config.n_mels + 2)
    start = np.searchsorted(bins_mel[1:], edges) + 1  # DC belongs to no filter
    segment = np.clip(np.searchsorted(edges, bins_mel, side="right") - 1, 0, config.n_mels)
    return start, (bins_mel - edges[segment]) / (edges[1] - edges[0])


def make_tables(config: FeatureConfig) -> Tables:
    """All integer tables of a front end."""
    start, rise = _mel(config)
    widest = max(int(start[min(i + 2, config.n_mels + 1)] - start[i]) for i in range(config.n_mels + 1))
    spectrum_bits = 62 - 15 - max(widest - 1, 0).bit_length()
    k, i = np.arange(config.n_mfcc)[:, None], np.arange(config.n_mels)[None, :]
    split_angle = -2 * np.pi * np.arange(config.n_fft // 4 + 1) / config.n_fft
    arrays = [
        _fixed(_window(config), 15, np.int16),
        _fixed(_fft_twiddles(config.n_fft // 2), 30, np.int32),
        _fixed([np.cos(split_angle), np.sin(split_angle)], 30, np.int32),
        start.astype(np.uint16),
        _fixed(np.clip(rise, 0, 1), 15, np.int16),
        _fixed(np.log1p(np.arange(LOG_SEGMENTS + 1) / LOG_SEGMENTS), 24, np.int32),
        _fixed(np.sqrt(2 / config.n_mels) * np.cos(np.pi * k * (i + 0.5) / config.n_mels), 15, np.int16),
    ]
    body = b"".join(_little(a) + b"\0" * (-a.nbytes % 4) for a in arrays)
    header = [
        MAGIC,
        ALGORITHM,
        4 * HEADER_WORDS + len(body),
        config.sample_rate_hz,
        config.win_length,
        config.hop_length,
        config.n_fft,
        config.n_mels,
        config.n_mfcc,
        SPECTRA.index(config.spectrum),
        spectrum_bits,
        int(_fixed(config.pre_emphasis, 15, np.int16)),
        int(_fixed(np.log(config.log_floor), 24, np.int32)),
        config.output_fraction_bits,
        0,
        0,
    ]
    return parse_tables(np.array(header, "<i4").tobytes() + body)


def _little(array: np.ndarray) -> bytes:
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def parse_tables(blob: bytes) -> Tables:
    """Tables from the bytes that a bundle carries; UnsupportedError if this version cannot run them."""
    foreign = UnsupportedError(f"the front-end tables ({len(blob)} bytes) are not in this toolkit's format.")
    if not 4 * HEADER_WORDS <= len(blob) <= MAX_BLOB_BYTES:
        raise foreign
    header = np.frombuffer(blob[: 4 * HEADER_WORDS], "<i4")
    if header[0] != MAGIC or header[2] != len(blob):
        raise foreign
    if header[1] != ALGORITHM:
        raise UnsupportedError(
            f"the front-end tables are for algorithm {header[1]}, this toolkit computes algorithm {ALGORITHM}; "
            "install the toolkit version named in the bundle."
        )
    fields = [int(v) for v in header[3:14]]
    win_length, n_fft, n_mels, n_mfcc = fields[1], fields[3], fields[4], fields[5]
    shapes = [
        ("<i2", (win_length,)),
        ("<i4", (_twiddle_words(n_fft // 2),)),
        ("<i4", (2, n_fft // 4 + 1)),
        ("<u2", (n_mels + 2,)),
        ("<i2", (n_fft // 2 + 1,)),
        ("<i4", (LOG_SEGMENTS + 1,)),
        ("<i2", (n_mfcc, n_mels)),
    ]
    arrays, offset = [], 4 * HEADER_WORDS
    for dtype, shape in shapes:
        count = int(np.prod(shape))
        size = count * np.dtype(dtype).itemsize
        if min(shape) < 0 or offset + size > len(blob):
            raise UnsupportedError(f"the front-end tables end early ({len(blob)} bytes).")
        arrays.append(np.frombuffer(blob, dtype, count, offset).reshape(shape))
        offset += size + -size % 4
    if offset != len(blob):
        raise UnsupportedError(f"the front-end tables have {len(blob) - offset} bytes too many.")
    tables = Tables(blob, *fields, *arrays)
    if not (_fields_are_sound(tables) and _segments_are_sound(tables)):
        raise UnsupportedError("the front-end tables hold a field out of range.")
    return tables


def _fields_are_sound(t: Tables) -> bool:
    """C twin: fields_are_sound in core/ea_tables.c."""
    return (
        1 <= t.sample_rate_hz <= 384000
        and 16 <= t.n_fft <= 4096
        and t.n_fft & (t.n_fft - 1) == 0
        and 1 <= t.hop_length <= t.win_length <= t.n_fft
        and 1 <= t.n_mels <= 256
        and 0 <= t.n_mfcc <= t.n_mels
        and 0 <= t.spectrum < len(SPECTRA)
        and 16 <= t.spectrum_bits <= 47
        and 0 <= t.pre_emphasis_q15 <= 32767
        and 0 <= t.output_fraction_bits <= 15
    )


def _segments_are_sound(t: Tables) -> bool:
    """In order, inside the spectrum, no filter so wide that its sum could leave 62 bits. C twin: segments_are_sound."""
    start = t.mel_segment_start.astype(np.int64)
    widest = max((start[2:] - start[:-2]).max(), start[-1] - start[-2])
    return bool(np.all(np.diff(start) >= 0) and widest <= 1 << (62 - 15 - t.spectrum_bits)
                and start[-1] <= t.n_fft // 2 + 1)


def _twiddle_words(n: int) -> int:
    words, m = 0, n // 4
    while m > 1:
        words += 6 * m
        m //= 4
    return words


def front_end_id(config: FeatureConfig, tables: Tables) -> str:
    """sha256 over algorithm version, configuration and tables: equal ids compute equal integers."""
    canonical = json.dumps({"algorithm": ALGORITHM, "config": asdict(config)}, sort_keys=True, separators=(",", ":"))
    return sha256(canonical.encode("ascii") + b"\n" + tables.blob).hexdigest()
