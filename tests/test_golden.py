"""The integers of the front end today are those of the golden vectors: numpy, C, tables, ids, codes."""

from __future__ import annotations

import hashlib

import golden
import numpy as np
import pytest

from toolkit.features import FeatureConfig, FrontEnd, Requantization, front_end_id, make_tables, parse_tables

INDEX = golden.read_index()
SIGNAL = golden.read_array("signal.s16", "<i2")


def test_files_are_the_indexed_ones():
    files = {name: (golden.FOLDER / name).read_bytes() for name in INDEX["sha256"]}
    assert {name: hashlib.sha256(data).hexdigest() for name, data in files.items()} == INDEX["sha256"]
    assert sum(map(len, files.values())) < 200_000
    assert len(SIGNAL) == INDEX["samples"] and {SIGNAL.min(), SIGNAL.max()} == {-32768, 32767}


def test_numpy_computes_every_file_again():
    files, index = golden.vectors(SIGNAL)
    assert [name for name, data in files.items() if (golden.FOLDER / name).read_bytes() != data] == []
    assert golden.index_text(index) == (golden.FOLDER / "front_end.json").read_text(encoding="ascii")


@pytest.mark.parametrize("name", golden.CASES)
@pytest.mark.parametrize("block", [None, 320, 1])
def test_both_front_ends_compute_the_features(name, block, backend):
    if backend == "numpy" and block == 1:
        block = 37  # one sample at a time would take minutes
    case = INDEX["cases"][name]
    expected = golden.read_array(f"{name}.s16", "<i2").reshape(case["frames"], case["width"])
    front_end = FrontEnd(parse_tables((golden.FOLDER / f"{name}.tables").read_bytes()), backend)
    blocks = np.split(SIGNAL, range(block, len(SIGNAL), block)) if block else [SIGNAL]
    got = np.concatenate([front_end.process(samples) for samples in blocks])
    assert got.shape == expected.shape and np.array_equal(got, expected)


@pytest.mark.parametrize("name", golden.CASES)
def test_codes(name, backend):
    requantization = Requantization(**INDEX["cases"][name]["requantization"])
    features = golden.read_array(f"{name}.s16", "<i2")
    codes = requantization.apply(features) if backend == "native" else requantization.apply_numpy(features)
    expected = golden.read_array(f"{name}.s8", "i1")
    assert np.array_equal(codes, expected) and len(np.unique(expected)) > 40, "the codes use the range"


def test_front_end_id_of_the_released_models():
    """Bundles in the field carry this id; a change of it is a new ALGORITHM or a new default."""
    config = FeatureConfig()
    assert front_end_id(config, make_tables(config)) == INDEX["cases"]["default"]["front_end_id"]
    blob = (golden.FOLDER / "default.tables").read_bytes()
    assert hashlib.sha256(make_tables(config).blob).hexdigest() == hashlib.sha256(blob).hexdigest()
