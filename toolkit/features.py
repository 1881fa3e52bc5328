"""The one front end: int16 samples -> int16 log-mel or MFCC frames -> a model's int8 codes.

    samples -> window -> FFT -> power | magnitude -> mel -> log -> (DCT) -> round -> requantize

Training, calibration, evaluation, runtime and microcontroller call this and nothing else. Two implementations with
the same function names give the same bits: the numpy reference below (int64, vectorized over frames) and the C99
core (core/ea_frontend.h, loaded by native.py). tf.signal in float64 is the oracle of both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from . import native
from .errors import MissingPartError, UsageError
from .fixedpoint import bit_length, rotate_quarter, round_shift, saturate, scale, sqrt
from .tables import LOG_SEGMENTS, SPECTRA, FeatureConfig, Tables, front_end_id, make_tables, parse_tables

__all__ = ["FeatureConfig", "FrontEnd", "Requantization", "Tables", "front_end_id", "make_tables", "parse_tables"]

FRAME_BITS = 28  # components below 2**28 enter the FFT; four of them then sum within int32
LN2_Q24 = 11629080


@dataclass(frozen=True)
class Requantization:
    """code = saturate8(round(feature * multiplier * 2**-shift) + zero_point): int16 features to a model's int8."""

    multiplier: int  # 1 .. 2**31 - 1
    shift: int  # 1 .. 46
    zero_point: int

    @classmethod
    def from_step(cls, step: float, zero_point: int, output_fraction_bits: int) -> Requantization:
        """One code per `step` of the feature's unit (nat for log-mel), with a 31-bit multiplier."""
        ratio = 2.0**-output_fraction_bits / step
        mantissa, exponent = math.frexp(ratio)  # 0.5 <= mantissa < 1
        return cls(min(round(mantissa * 2.0**31), 2**31 - 1), 31 - exponent, zero_point)

    def apply(self, features: np.ndarray) -> np.ndarray:
        """int8 codes of int16 features, any shape. C twin: ea_requantize."""
        if native.library() is not None:
            return native.requantize(features, self.multiplier, self.shift, self.zero_point)
        return self.apply_numpy(features)

    def apply_numpy(self, features: np.ndarray) -> np.ndarray:
        """The numpy reference of `apply`."""
        product = round_shift(features.astype(np.int64) * self.multiplier, self.shift)
        return saturate(product + self.zero_point, 8).astype(np.int8)


class FrontEnd:
    """A streaming front end: feed blocks of any size, get the frames that they complete.

    Frame i covers samples [i * hop_length, i * hop_length + win_length): the first one is complete after win_length
    samples, and frames do not depend on how the samples are split into blocks.

    tables:  from make_tables(FeatureConfig()) or parse_tables(bundle member)
    backend: "native" (C core), "numpy" (reference, same integers, about 100 times slower in 20 ms blocks), or None:
             native where it is built. MissingPartError if "native" is asked for and not there.
    """

    def __init__(self, tables: Tables, backend: str | None = None):
        self.tables = tables
        if backend is None:
            backend = "native" if native.library() is not None else "numpy"
        if backend == "native" and native.library() is None:
            raise MissingPartError(native.HOW_TO_BUILD)
        self.backend = backend
        self._engine = native.NativeFrontEnd(tables) if backend == "native" else NumpyFrontEnd(tables)

    def process(self, samples: np.ndarray) -> np.ndarray:
        """int16 samples [n] (Q0.15) -> int16 frames [m, width], m >= 0. UsageError for anything else: floats in -1 .. 1
        would become silence."""
        if getattr(samples, "dtype", None) != np.int16 or samples.ndim != 1:
            kind = f"{getattr(samples, 'dtype', type(samples).__name__)} {list(np.shape(samples))}"
            raise UsageError(f"the front end takes int16 samples [n], not {kind}; scale and mix down first.")
        return self._engine.process(samples)

    def reset(self) -> None:
        """Forget all samples."""
        self._engine.reset()


class NumpyFrontEnd:
    """The numpy reference behind FrontEnd."""

    def __init__(self, tables: Tables):
        self.tables = tables
        self.reset()

    def reset(self) -> None:
        self._history = np.zeros(1, np.int16)  # the sample before the frame, then the frame so far

    def process(self, samples: np.ndarray) -> np.ndarray:
        t = self.tables
        history = np.concatenate([self._history, np.ascontiguousarray(samples, np.int16)])
        n_frames = max(0, (len(history) - 1 - t.win_length) // t.hop_length + 1)
        self._history = history[n_frames * t.hop_length :]
        if n_frames == 0:
            return np.zeros((0, t.width), np.int16)
        frames = np.lib.stride_tricks.sliding_window_view(history, t.win_length + 1)[:: t.hop_length][:n_frames]
        out = [process_frames(t, frames[i : i + 256].astype(np.int64)) for i in range(0, n_frames, 256)]
        return np.concatenate(out)


def process_frames(tables: Tables, samples: np.ndarray) -> np.ndarray:
    """int64 samples [m, 1 + win_length] (the first column precedes each frame) -> int16 [m, width]."""
    z, exponent = window_apply(tables, samples)
    z = fft_complex(tables, z)
    exponent = exponent + int(bit_length(tables.n_fft // 2)) - 2  # the FFT divided by n, the split doubled
    spectrum = fft_split_power(tables, z)
    if SPECTRA[tables.spectrum] == "magnitude":
        spectrum = sqrt(spectrum)
    else:
        exponent = 2 * exponent
    mel, mel_exponent = mel_filter(tables, spectrum)
    log_q24 = log_natural(tables, mel, exponent + mel_exponent)
    if tables.n_mfcc > 0:
        return dct_apply(tables, log_q24)
    return saturate(round_shift(log_q24, 24 - tables.output_fraction_bits), 16).astype(np.int16)


def window_apply(tables: Tables, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pre-emphasis, window, block normalization. Returns z int64 [m, 2, n_fft/2] (even and odd samples) and the
    exponent e [m]: the real value of a component v is v * 2**e. C twin: ea_window_apply."""
    y, fraction_bits = samples[:, 1:], 15
    if tables.pre_emphasis_q15:
        y = y * 32768 - samples[:, :-1] * tables.pre_emphasis_q15
        fraction_bits = 30
    shift = FRAME_BITS - 15 - bit_length(np.bitwise_or.reduce(y ^ (y >> 63), axis=1))
    frame = np.zeros((len(y), tables.n_fft), np.int64)
    frame[:, : tables.win_length] = scale(y * tables.window_q15, shift[:, None])
    return frame.reshape(len(y), -1, 2).transpose(0, 2, 1), -(fraction_bits + 15 + shift)


def fft_complex(tables: Tables, z: np.ndarray) -> np.ndarray:
    """Complex FFT of z [m, 2 (re, im), n], divided by n: Stockham radix 4, one radix-2 stage where log2 n is odd.
    C twin: ea_fft_complex."""
    n, length, s, used = z.shape[2], z.shape[2], 1, 0
    while length > 1:
        if length == 2:
            a, b = z[:, :, :s], z[:, :, s:]
            z = round_shift(np.concatenate([a + b, a - b], axis=2), 1)
        else:
            m = length // 4
            a, b, c, d = np.moveaxis(z.reshape(-1, 2, 4, m, s), 2, 0)  # each [frames, 2, m, s]
            j_bmd = np.stack([d[:, 1] - b[:, 1], b[:, 0] - d[:, 0]], axis=1)
            u = [a + c + b + d, a - c - j_bmd, a + c - b - d, a - c + j_bmd]
            y = np.empty((len(z), 2, m, 4, s), np.int64)
            y[:, :, :, 0] = round_shift(u[0], 2)
            if m > 1:
                w = tables.fft_twiddle_q30[used : used + 6 * m].reshape(2, 3, m, 1).astype(np.int64)
                used += 6 * m
            for r in (1, 2, 3):
                if m > 1:
                    y[:, 0, :, r] = rotate_quarter(u[r][:, 0], w[0, r - 1], u[r][:, 1], w[1, r - 1])
                    y[:, 1, :, r] = rotate_quarter(u[r][:, 1], w[0, r - 1], u[r][:, 0], -w[1, r - 1])
                else:
                    y[:, :, :, r] = round_shift(u[r], 2)
            z = y.reshape(-1, 2, n)
        length //= 4
        s *= 4
    return z


def fft_split_power(tables: Tables, z: np.ndarray) -> np.ndarray:
    """|X[k]|**2 int64 [m, n_fft/2 + 1] of the real signal from the complex FFT of its even/odd samples, scaled by
    (2/n)**2, below 2**62. C twin: ea_fft_split_power."""
    n = z.shape[2]
    re, im = z[:, 0], z[:, 1]
    power = np.empty((len(z), n + 1), np.int64)
    power[:, 0] = (2 * (re[:, 0] + im[:, 0])) ** 2
    power[:, n] = (2 * (re[:, 0] - im[:, 0])) ** 2
    k = np.arange(1, n // 2 + 1)
    w_re, w_im = tables.split_twiddle_q30[:, k].astype(np.int64)
    e_re, e_im = re[:, k] + re[:, n - k], im[:, k] - im[:, n - k]
    o_re, o_im = im[:, k] + im[:, n - k], re[:, n - k] - re[:, k]
    t_re, t_im = round_shift(o_re * w_re - o_im * w_im, 30), round_shift(o_re * w_im + o_im * w_re, 30)
    power[:, k] = (e_re + t_re) ** 2 + (e_im + t_im) ** 2
    power[:, n - k] = (e_re - t_re) ** 2 + (e_im - t_im) ** 2
    return power


def mel_filter(tables: Tables, spectrum: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mel outputs int64 [m, n_mels] and their exponent [m]. C twin: ea_mel_filter."""
    excess = bit_length(np.bitwise_or.reduce(spectrum, axis=1)) - tables.spectrum_bits
    shift = np.maximum(excess, 0)
    value = spectrum >> shift[:, None]
    rising = value * tables.mel_rise_q15
    start = tables.mel_segment_start
    sums = np.stack([value[:, a:b].sum(axis=1) for a, b in zip(start[:-1], start[1:])], axis=1)
    rises = np.stack([rising[:, a:b].sum(axis=1) for a, b in zip(start[:-1], start[1:])], axis=1)
    return rises[:, :-1] + 32768 * sums[:, 1:] - rises[:, 1:], shift - 15


def log_natural(tables: Tables, mel: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    """max(ln(mel * 2**exponent), floor) in nat, Q7.24, int64 [m, n_mels]. C twin: ea_log_natural."""
    top = bit_length(mel) - 1
    mantissa = np.left_shift(np.maximum(mel, 1), 62 - np.maximum(top, 0))  # 1.f in Q1.62
    segment = (mantissa >> 55) & (LOG_SEGMENTS - 1)
    within_q16 = (mantissa >> 39) & 0xFFFF
    table = tables.log_q24.astype(np.int64)
    fraction = table[segment] + round_shift((table[segment + 1] - table[segment]) * within_q16, 16)
    value = (top + exponent[:, None]) * LN2_Q24 + fraction
    return np.maximum(np.where(mel > 0, value, tables.log_floor_q24), tables.log_floor_q24)


def dct_apply(tables: Tables, log_q24: np.ndarray) -> np.ndarray:
    """MFCC int16 [m, n_mfcc]. C twin: ea_dct_apply."""
    total = log_q24 @ tables.dct_q15.astype(np.int64).T
    return saturate(round_shift(total, 24 + 15 - tables.output_fraction_bits), 16).astype(np.int16)
