"""FeatureConfig refuses what cannot run; the tables hold what their formats say; the blob is read strictly."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import twins

from toolkit.errors import ConfigError, UnsupportedError
from toolkit.features import FeatureConfig, front_end_id, make_tables, parse_tables
from toolkit.tables import HEADER_WORDS, LOG_SEGMENTS, hz_to_mel

CONFIGS = pytest.mark.parametrize("config", twins.CONFIGS.values(), ids=twins.CONFIGS.keys())


@pytest.mark.parametrize("field, value", [
    ("sample_rate_hz", 0), ("sample_rate_hz", 384001), ("win_length", 0), ("win_length", 513), ("hop_length", 0),
    ("hop_length", 481), ("n_fft", 500), ("n_fft", 8), ("n_fft", 8192), ("n_fft", -512), ("window", "blackman"),
    ("pre_emphasis", -0.1), ("pre_emphasis", 1.0), ("pre_emphasis", math.nan), ("n_mels", 0), ("n_mels", 257),
    ("fmin_hz", -1.0), ("fmin_hz", 7600.0), ("fmin_hz", math.nan), ("fmax_hz", 8001.0), ("spectrum", "energy"),
    ("log_floor", 0.0), ("log_floor", math.inf), ("n_mfcc", -1), ("n_mfcc", 41), ("output_fraction_bits", -1),
    ("output_fraction_bits", 16), ("n_fft", "512"), ("win_length", 480.5), ("fmin_hz", None), ("window", 3)])
def test_config_out_of_range_is_one_sentence(field, value):
    with pytest.raises(ConfigError) as error:
        FeatureConfig(**{field: value})
    message = str(error.value)
    assert message.startswith("features.") and "; expected " in message and message.endswith(".")
    assert "\n" not in message and (field in message)


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FeatureConfig().n_mels = 64


@CONFIGS
def test_header_is_the_config(config):
    tables = make_tables(config)
    for name in ("sample_rate_hz", "win_length", "hop_length", "n_fft", "n_mels", "n_mfcc", "output_fraction_bits"):
        assert getattr(tables, name) == getattr(config, name)
    assert tables.width == config.width == (config.n_mfcc or config.n_mels)
    assert tables.pre_emphasis_q15 == pytest.approx(config.pre_emphasis * 32768, abs=0.5)
    assert tables.log_floor_q24 == pytest.approx(math.log(config.log_floor) * 2**24, abs=0.5)
    assert len(tables.blob) % 4 == 0


@CONFIGS
def test_window_is_periodic(config):
    window = make_tables(config).window_q15 / 32768
    a = 0.5 if config.window == "hann" else 0.54
    expected = a - (1 - a) * np.cos(2 * np.pi * np.arange(config.win_length) / config.win_length)
    assert np.abs(window - np.minimum(expected, 32767 / 32768)).max() <= 0.5001 / 32768


@CONFIGS
def test_twiddles_are_unit_vectors(config):
    tables = make_tables(config)
    stages, used = [tables.split_twiddle_q30], 0
    m = config.n_fft // 8
    while m > 1:
        stages += list(tables.fft_twiddle_q30[used : used + 6 * m].reshape(2, 3, m).transpose(1, 0, 2))
        used, m = used + 6 * m, m // 4
    assert used == len(tables.fft_twiddle_q30)
    for re, im in stages:
        assert np.abs(np.hypot(re, im) / 2**30 - 1).max() < 2e-9
        assert re[0] == 1 << 30 and im[0] == 0


@CONFIGS
def test_mel_segments_are_between_the_edges(config):
    tables = make_tables(config)
    start = tables.mel_segment_start.astype(int)
    assert start[0] >= 1, "DC belongs to no filter"
    assert np.all(np.diff(start) >= 0) and start[-1] <= config.n_fft // 2 + 1
    edges = np.linspace(hz_to_mel(config.fmin_hz), hz_to_mel(config.fmax_hz), config.n_mels + 2)
    bins = hz_to_mel(np.arange(config.n_fft // 2 + 1) * config.sample_rate_hz / config.n_fft)
    for i in range(config.n_mels + 1):
        inside = bins[start[i] : start[i + 1]]
        assert np.all((inside >= edges[i] - 1e-9) & (inside <= edges[i + 1] + 1e-9))
        rise = (inside - edges[i]) / (edges[i + 1] - edges[i])
        weights = tables.mel_rise_q15[start[i] : start[i + 1]] / 32768
        assert np.abs(weights - rise).max(initial=0) <= 1.001 / 32768


@CONFIGS
def test_no_mel_accumulator_can_overflow(config):
    tables = make_tables(config)
    start = tables.mel_segment_start.astype(int)
    widest = max(start[min(i + 2, config.n_mels + 1)] - start[i] for i in range(config.n_mels + 1))
    largest = int(widest) * ((1 << tables.spectrum_bits) - 1) * 32768
    assert largest < 1 << 62
    assert tables.spectrum_bits == 47 or 2 * largest >= 1 << 61, "precision is given away"


def test_log_table_is_the_logarithm():
    table = make_tables(FeatureConfig()).log_q24
    assert np.abs(table / 2**24 - np.log1p(np.arange(LOG_SEGMENTS + 1) / LOG_SEGMENTS)).max() <= 0.5001 / 2**24


@pytest.mark.parametrize("n_mels, n_mfcc", [(40, 13), (40, 40), (3, 3), (256, 20)])
def test_dct_rows_are_orthogonal(n_mels, n_mfcc):
    dct = make_tables(FeatureConfig(n_mels=n_mels, n_mfcc=n_mfcc)).dct_q15 / 32768
    gram = dct @ dct.T
    gram[0, 0] /= 2  # sqrt(2/M) for all rows makes c0 twice as strong
    assert np.abs(gram - np.eye(n_mfcc)).max() < 1e-3


# --- the blob ---


@CONFIGS
def test_parse_gives_back_what_was_made(config):
    tables = make_tables(config)
    again = parse_tables(bytes(tables.blob))
    for field in dataclasses.fields(tables):
        assert np.array_equal(getattr(again, field.name), getattr(tables, field.name)), field.name


def test_tables_cannot_be_written():
    with pytest.raises(ValueError):
        make_tables(FeatureConfig()).window_q15[0] = 1


def with_word(blob: bytes, index: int, value: int) -> bytes:
    words = np.frombuffer(blob[: 4 * HEADER_WORDS], "<i4").copy()
    words[index] = value
    return words.tobytes() + blob[4 * HEADER_WORDS :]


BLOB = make_tables(FeatureConfig(**twins.MFCC)).blob


@pytest.mark.parametrize("size", [0, 1, 3, 4, 63, 64, 65, 1000, len(BLOB) - 1, len(BLOB) - 4])
def test_truncated_blob_is_refused(size):
    with pytest.raises(UnsupportedError, match="front-end tables"):
        parse_tables(BLOB[:size])
    if size >= 4 * HEADER_WORDS:
        with pytest.raises(UnsupportedError, match="front-end tables"):
            parse_tables(with_word(BLOB[:size], 2, size))


def test_longer_blob_is_refused():
    with pytest.raises(UnsupportedError, match="not in this toolkit's format"):
        parse_tables(BLOB + b"\0\0\0\0")
    with pytest.raises(UnsupportedError, match="4 bytes too many"):
        parse_tables(with_word(BLOB, 2, len(BLOB) + 4) + b"\0\0\0\0")


def test_other_algorithm_is_refused_by_number():
    with pytest.raises(UnsupportedError, match="for algorithm 7, this toolkit computes algorithm 1"):
        parse_tables(with_word(BLOB, 1, 7))


@pytest.mark.parametrize("word, value", [
    (0, 0), (4, -1), (4, 2**31 - 1), (6, -512), (6, 2**31 - 1), (7, -2), (7, 2**31 - 1), (8, -1), (8, 2**31 - 1)])
def test_header_word_that_moves_the_arrays_is_refused(word, value):
    with pytest.raises(UnsupportedError):
        parse_tables(with_word(BLOB, word, value))


@pytest.mark.parametrize("word, value", [
    (3, 0), (5, 0), (5, -1), (5, 481), (9, -1), (9, 2), (10, 15), (10, 48), (11, -1), (11, 32768), (13, -1), (13, 16)])
def test_header_word_out_of_range_is_refused(word, value):
    """As the C core does: the sizes agree, yet no front end computes this (a hop of 0, an unknown spectrum)."""
    with pytest.raises(UnsupportedError):
        parse_tables(with_word(BLOB, word, value))


@pytest.mark.parametrize("index, value", [(0, 300), (20, 3), (41, 258), (41, 65535)])
def test_mel_segments_outside_of_the_spectrum_are_refused(index, value):
    tables = make_tables(FeatureConfig())
    first = tables.blob.index(tables.mel_segment_start.tobytes()) + 2 * index
    with pytest.raises(UnsupportedError):
        parse_tables(tables.blob[:first] + value.to_bytes(2, "little") + tables.blob[first + 2 :])


# --- the id ---


def test_equal_configs_have_one_id():
    """60 and 60.0 Hz are one front end; numpy's integers come out of np.load and JSON readers."""
    usual = FeatureConfig()
    for same in (FeatureConfig(fmin_hz=60, fmax_hz=7600, pre_emphasis=0), FeatureConfig(n_fft=np.int64(512))):
        assert same == usual and front_end_id(same, make_tables(same)) == front_end_id(usual, make_tables(usual))


def test_id_is_that_of_config_and_tables():
    ids = {name: front_end_id(config, make_tables(config)) for name, config in twins.CONFIGS.items()}
    assert len(set(ids.values())) == len(ids)
    assert all(len(value) == 64 and set(value) <= set("0123456789abcdef") for value in ids.values())
    assert ids["default"] == front_end_id(FeatureConfig(), parse_tables(make_tables(FeatureConfig()).blob))


@pytest.mark.parametrize("field, value", [
    ("window", "hamming"), ("pre_emphasis", 0.97), ("fmin_hz", 61.0), ("fmax_hz", 7601.0), ("spectrum", "magnitude"),
    ("log_floor", 2e-6), ("n_mfcc", 13), ("output_fraction_bits", 10), ("hop_length", 159)])
def test_id_changes_with_every_field(field, value):
    other = dataclasses.replace(FeatureConfig(), **{field: value})
    assert front_end_id(other, make_tables(other)) != front_end_id(FeatureConfig(), make_tables(FeatureConfig()))


def test_id_changes_with_one_bit_of_the_tables():
    config, blob = FeatureConfig(), bytearray(make_tables(FeatureConfig()).blob)
    blob[-1] ^= 1
    assert front_end_id(config, parse_tables(bytes(blob))) != front_end_id(config, make_tables(config))
