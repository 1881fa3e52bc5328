"""The integers of the front end today are those of the golden vectors: numpy, C, tables, ids, codes."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import golden
import numpy as np
import pytest

from toolkit.features import FeatureConfig, FrontEnd, Requantization, front_end_id, make_tables, parse_tables

sys.path.insert(0, str(golden.FOLDER.parent / "arm"))
import check_arm  # noqa: E402

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


def test_the_program_for_arm_runs_here(compiler, tmp_path):
    """`make check-arm` compiles the same program for four Arm targets."""
    program = check_arm.build(tmp_path, compiler, [], [])
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = check_arm.parse_report(done.stdout)
    frames = sum(case["frames"] for case in INDEX["cases"].values())
    assert report["frames"] == report["equal"] == frames and set(report["cases"]) == set(INDEX["cases"])


def test_the_program_for_arm_sees_a_difference(compiler, tmp_path, monkeypatch):
    right = check_arm.golden_header()
    first = right.index("default_features[] = {") + len("default_features[] = {\n")
    wrong = right[:first] + "12345" + right[right.index(",", first) :]
    monkeypatch.setattr(check_arm, "golden_header", lambda: wrong)
    done = subprocess.run([str(check_arm.build(tmp_path, compiler, [], []))], capture_output=True, text=True)
    report = check_arm.parse_report(done.stdout)
    assert done.returncode == 1 and report["cases"]["default"]["equal"] == 0
    assert report["cases"]["mfcc"]["equal"] == report["cases"]["mfcc"]["frames"]
