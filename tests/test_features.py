"""Each stage of the numpy front end against the same stage in float64, and the streaming contract of FrontEnd."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import signals
import twins

from toolkit import features, native
from toolkit.errors import ConfigError, EdgeAudioError, MissingPartError
from toolkit.features import FeatureConfig, FrontEnd, Requantization, make_tables
from toolkit.tables import hz_to_mel

CONFIGS = pytest.mark.parametrize("config", twins.CONFIGS.values(), ids=twins.CONFIGS.keys())


def framed(config: FeatureConfig, samples: np.ndarray) -> np.ndarray:
    """int64 [m, 1 + win_length], as process_frames takes them."""
    padded = np.concatenate([[0], samples]).astype(np.int64)
    return np.lib.stride_tricks.sliding_window_view(padded, config.win_length + 1)[:: config.hop_length]


def real_frames(config: FeatureConfig, frames: np.ndarray) -> np.ndarray:
    """The windowed frames in real numbers, float64 [m, win_length]; full scale is 1."""
    a = 0.5 if config.window == "hann" else 0.54
    window = a - (1 - a) * np.cos(2 * np.pi * np.arange(config.win_length) / config.win_length)
    return (frames[:, 1:] - config.pre_emphasis * frames[:, :-1]) / 32768 * window


def real_mel_weights(config: FeatureConfig) -> np.ndarray:
    """Triangles linear in mel, float64 [n_fft/2 + 1, n_mels]; DC is in none."""
    bins = hz_to_mel(np.arange(config.n_fft // 2 + 1) * config.sample_rate_hz / config.n_fft)[:, None]
    edges = np.linspace(hz_to_mel(config.fmin_hz), hz_to_mel(config.fmax_hz), config.n_mels + 2)
    rise, fall = (bins - edges[:-2]) / np.diff(edges)[:-1], (edges[2:] - bins) / np.diff(edges)[1:]
    weights = np.maximum(0, np.minimum(rise, fall))
    weights[0] = 0
    return weights


def real_features(config: FeatureConfig, samples: np.ndarray) -> np.ndarray:
    """The definition in float64: [m, width] in nat."""
    spectrum = np.abs(np.fft.rfft(real_frames(config, framed(config, samples)), config.n_fft))
    mel = (spectrum**2 if config.spectrum == "power" else spectrum) @ real_mel_weights(config)
    log = np.log(np.maximum(mel, config.log_floor))
    if not config.n_mfcc:
        return log
    k, i = np.arange(config.n_mfcc)[:, None], np.arange(config.n_mels)
    return log @ (np.sqrt(2 / config.n_mels) * np.cos(np.pi * k * (i + 0.5) / config.n_mels)).T


# --- stages ---


@CONFIGS
@pytest.mark.parametrize("signal", ["speech", "quiet tone", "constant -32768", "nyquist"])
def test_window_keeps_the_value_and_fills_the_word(config, signal):
    frames = framed(config, signals.battery(twins.length_for(config, 4))[signal])
    z, exponent = features.window_apply(make_tables(config), frames)
    assert z.shape == (len(frames), 2, config.n_fft // 2) and np.abs(z).max() <= 1 << features.FRAME_BITS
    interleaved = z.transpose(0, 2, 1).reshape(len(frames), -1)
    assert not interleaved[:, config.win_length :].any()
    loudest = np.abs(frames).max(axis=1, keepdims=True) / 32768
    error = interleaved[:, : config.win_length] * 2.0 ** exponent[:, None] - real_frames(config, frames)
    assert np.all(np.abs(error) <= 6e-5 * loudest + 1e-12)  # two roundings to 15 bits: window and pre-emphasis


@pytest.mark.parametrize("n_fft", [1 << n for n in range(4, 13)])
def test_fft_is_the_transform(n_fft):
    tables = make_tables(FeatureConfig(win_length=16, hop_length=16, n_fft=n_fft))
    rng = np.random.Generator(np.random.PCG64(n_fft))
    real = rng.integers(-(1 << 28), (1 << 28) + 1, (5, n_fft))
    real[1] = 1 << 28
    real[2] = -(1 << 28)
    real[3] = signals.square(n_fft, 2, 1, -1).astype(np.int64) << 28
    real[4] >>= 20
    z = real.reshape(5, -1, 2).transpose(0, 2, 1)
    n = n_fft // 2
    got = features.fft_complex(tables, z)
    expected = np.fft.fft(z[:, 0] + 1j * z[:, 1]) / n
    assert np.abs(got[:, 0] + 1j * got[:, 1] - expected).max() < 3, "more than rounding"
    power = features.fft_split_power(tables, got)
    amplitude = np.abs(np.fft.rfft(real)) * 2 / n
    assert np.abs(np.sqrt(power) - amplitude).max() < 8
    assert power.min() >= 0 and power.max() < 1 << 62


@CONFIGS
def test_mel_filter_is_the_matrix(config):
    tables, rng = make_tables(config), np.random.Generator(np.random.PCG64(2))
    bits = np.array([1, 8, 16, 40, 61])
    spectrum = rng.integers(0, 1 << 61, (5, config.n_fft // 2 + 1)) >> (61 - bits[:, None])
    mel, exponent = features.mel_filter(tables, spectrum)
    assert mel.min() >= 0
    expected = spectrum @ real_mel_weights(config)
    reach = spectrum @ (real_mel_weights(config) > 0).astype(float)  # each weight is rounded to 15 bits
    assert np.all(np.abs(mel * 2.0 ** exponent[:, None] - expected) <= 0.51 / 32768 * reach)


def test_log_is_within_1e_5_nat():
    tables, rng = make_tables(FeatureConfig(log_floor=1e-15, n_mels=256)), np.random.Generator(np.random.PCG64(3))
    mel = np.maximum(rng.integers(1, 1 << 62, (200, 256)) >> rng.integers(0, 62, (200, 256)), 1)
    mel[0, :63] = 1 << np.arange(63)
    mel[1, :62] = (2 << np.arange(62)) - 1
    exponent = rng.integers(-60, 1, 200)
    got = features.log_natural(tables, mel, exponent) / 2**24
    expected = np.maximum(np.log(mel) + exponent[:, None] * np.log(2), np.log(1e-15))
    assert np.abs(got - expected).max() < 1e-5


def test_log_of_nothing_is_the_floor():
    tables = make_tables(FeatureConfig(log_floor=1e-6))
    got = features.log_natural(tables, np.array([[0, 1, 1 << 61]]), np.array([-100]))
    assert got[0, :2].tolist() == [tables.log_floor_q24] * 2 and got[0, 2] == tables.log_floor_q24


def test_dct_saturates_instead_of_wrapping():
    tables = make_tables(FeatureConfig(n_mfcc=2, output_fraction_bits=15))
    log_q24 = np.stack([np.full(40, 10 << 24), np.full(40, -10 << 24)]).astype(np.int64)
    assert features.dct_apply(tables, log_q24)[:, 0].tolist() == [32767, -32768]


def test_log_mel_saturates_instead_of_wrapping():
    quiet = FrontEnd(make_tables(FeatureConfig(log_floor=1e-15, output_fraction_bits=15)), "numpy")
    assert np.all(quiet.process(np.zeros(480, np.int16)) == -32768)


# --- the whole ---


@CONFIGS
@pytest.mark.parametrize("signal", ["speech", "quiet speech", "loud noise", "quiet noise", "one bit", "impulses",
                                    "tone", "tone between bins", "quiet tone"])
def test_log_mel_is_the_definition(config, signal):
    """Every filter within 60 dB of the loudest of its frame, to 0.02 nat and half an output step. (Below that, filters
    see the rounding of a 15-bit window rather than their signal.)"""
    config = replace(config, n_mfcc=0)
    samples = signals.battery(twins.length_for(config, 10))[signal]
    one = 2.0**-config.output_fraction_bits
    got = FrontEnd(make_tables(config), "numpy").process(samples) * one
    expected = real_features(config, samples)
    heard = expected >= expected.max(axis=1, keepdims=True) - (13.8 if config.spectrum == "power" else 6.9)
    error = np.abs(got - np.clip(expected, -32768 * one, 32767 * one))
    assert got.shape == expected.shape and heard.sum() >= len(heard)
    assert error[heard].max() < 0.02 + one / 2


@pytest.mark.parametrize("name", [name for name, config in twins.CONFIGS.items() if config.n_mfcc])
@pytest.mark.parametrize("signal", ["speech", "loud noise", "quiet noise"])
def test_mfcc_is_the_definition(name, signal):
    config = twins.CONFIGS[name]
    samples = signals.battery(twins.length_for(config, 10))[signal]
    one = 2.0**-config.output_fraction_bits
    got = FrontEnd(make_tables(config), "numpy").process(samples) * one
    error = np.abs(got - np.clip(real_features(config, samples), -32768 * one, 32767 * one))  # Q4.11 is small for c0
    assert error.max() < 0.04 + one


def test_mfcc_of_one_filter_is_right_or_refused():
    """sqrt(2 / 1) does not fit the DCT table's Q0.15."""
    try:
        config = FeatureConfig(n_mels=1, n_mfcc=1)
    except ConfigError:
        return
    samples = signals.noise(480)
    got = FrontEnd(make_tables(config), "numpy").process(samples) / 2.0**config.output_fraction_bits
    assert np.abs(got - real_features(config, samples)).max() < 0.02


def test_silence_is_the_floor():
    got = FrontEnd(make_tables(FeatureConfig()), "numpy").process(np.zeros(1600, np.int16))
    assert np.all(got == round(np.log(1e-6) * 2**11))


def test_dct_is_the_matrix():
    config = FeatureConfig(n_mfcc=40, output_fraction_bits=8)
    log_q24 = np.random.Generator(np.random.PCG64(4)).integers(-14 << 24, 12 << 24, (50, 40))
    k, i = np.arange(40)[:, None], np.arange(40)
    expected = log_q24 / 2**24 @ (np.sqrt(2 / 40) * np.cos(np.pi * k * (i + 0.5) / 40)).T
    assert np.abs(features.dct_apply(make_tables(config), log_q24) / 256 - expected).max() < 0.5 / 256 + 40 * 14 / 65536


def test_twice_as_loud_is_two_ln_2_more():
    x = signals.noise(4800, 8000)
    one, two = (FrontEnd(make_tables(FeatureConfig()), "numpy").process(gain * x) for gain in (1, 2))
    assert np.abs((two.astype(int) - one) / 2**11 - 2 * np.log(2)).max() < 0.01


# --- streaming ---


@pytest.mark.parametrize("n", [0, 1, 479, 480, 639, 640, 641, 16000])
def test_frame_i_covers_its_samples(backend, n):
    tables, x = make_tables(FeatureConfig()), signals.speech(16000)[:n]
    whole = FrontEnd(tables, backend).process(x)
    assert whole.shape == (max(0, (n - 480) // 160 + 1), 40) and whole.dtype == np.int16
    for i in range(len(whole)):
        assert np.array_equal(FrontEnd(tables, backend).process(x[160 * i : 160 * i + 480])[0], whole[i])


def test_blocks_do_not_matter(backend):
    config = FeatureConfig(pre_emphasis=0.97)
    x = signals.speech(4000)
    whole = FrontEnd(make_tables(config), backend).process(x)
    for size in (1, 7, 160, 320, 481, 3999):
        front_end = FrontEnd(make_tables(config), backend)
        assert np.array_equal(twins.in_blocks(front_end, np.split(x, range(size, 4000, size))), whole)


def test_reset_is_new(backend):
    front_end = FrontEnd(make_tables(FeatureConfig(pre_emphasis=0.97)), backend)
    x = signals.speech(2000)
    first = front_end.process(x)
    front_end.process(x[:777])
    front_end.reset()
    assert np.array_equal(front_end.process(x), first)


def test_input_is_left_alone_and_output_belongs_to_the_caller(backend):
    front_end = FrontEnd(make_tables(FeatureConfig()), backend)
    x = signals.speech(2000)
    before = x.copy()
    first = front_end.process(x)
    kept = first.copy()
    x[:] = 0
    front_end.process(signals.noise(2000))
    assert np.array_equal(first, kept) and not np.array_equal(before, x)


def test_strided_and_read_only_samples(backend):
    tables, x = make_tables(FeatureConfig()), signals.noise(4000)
    x.flags.writeable = False
    assert np.array_equal(FrontEnd(tables, backend).process(x[::2]), FrontEnd(tables, backend).process(x[::2].copy()))


@pytest.mark.parametrize("samples", [
    np.full(480, 0.5, np.float32), np.full(480, 40000, np.int32), np.zeros((2, 480), np.int16), np.int16(3)],
    ids=["float", "int32", "two channels", "scalar"])
def test_samples_that_are_not_int16_mono_are_refused(backend, samples):
    """Floats in -1 .. 1 would become silence, wide integers would wrap: never in silence."""
    with pytest.raises(EdgeAudioError):
        FrontEnd(make_tables(FeatureConfig()), backend).process(samples)


def test_numpy_backend_works_without_the_core(monkeypatch):
    monkeypatch.setattr(native, "library", lambda: None)
    front_end = FrontEnd(make_tables(FeatureConfig()))
    assert front_end.backend == "numpy" and len(front_end.process(np.zeros(480, np.int16))) == 1
    assert Requantization.from_step(0.1, 0, 11).apply(np.zeros(3, np.int16)).tolist() == [0, 0, 0]
    with pytest.raises(MissingPartError, match="make core"):
        FrontEnd(make_tables(FeatureConfig()), "native")


# --- requantization ---


@pytest.mark.parametrize("step, zero_point, bits", [(0.1, -3, 11), (1.0, 20, 8), (0.06, 0, 11), (2.5e-4, 127, 15)])
def test_requantization_is_one_rounding(step, zero_point, bits):
    x = np.arange(-32768, 32768).astype(np.int16)
    requantization = Requantization.from_step(step, zero_point, bits)
    exact = x / 2.0**bits / step
    codes = requantization.apply_numpy(x)
    assert codes.dtype == np.int8
    expected = np.clip(np.floor(exact + 0.5) + zero_point, -128, 127)
    tie = np.abs(exact - np.floor(exact) - 0.5) < 1e-3  # the multiplier has 31 bits
    assert np.array_equal(codes[~tie], expected[~tie]) and np.abs(codes - expected).max() <= 1


def test_requantization_rounds_half_up():
    halves = Requantization(1, 1, 0)
    assert halves.apply_numpy(np.array([-3, -2, -1, 0, 1, 2, 3], np.int16)).tolist() == [-1, -1, 0, 0, 1, 1, 2]


def test_requantization_keeps_the_shape():
    assert Requantization.from_step(0.1, 0, 11).apply(np.zeros((2, 3, 4), np.int16)).shape == (2, 3, 4)
