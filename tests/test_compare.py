"""The comparison's statistics against the textbook, its costs against themselves, its rows against what they are of."""

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

if importlib.util.find_spec("tensorflow") is None:
    pytest.skip("tensorflow is not installed (requirements-host.txt)", allow_module_level=True)

from spoken_words import make_spoken_words

from models.__main__ import main
from models.compare import Entry, block_costs, compare, markdown, paired_bootstrap, parameters_of, read_entry
from models.data import load_dataset
from models.evaluate import evaluate_bundle
from models.recipe import load_recipe
from models.waves import load_waves
from tests.released import released
from toolkit.config import dump_config
from toolkit.errors import DataError, UsageError, VerificationError

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "models" / "recipes" / "kws.yaml"
WEIGHTS = ROOT / "models" / "zoo" / "kws" / "weights.npz"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_spoken_words(tmp_path_factory.mktemp("spoken") / "words")


@pytest.fixture(scope="module")
def recipe():
    recipe = load_recipe(RECIPE)
    alone = dataclasses.replace(recipe.data, negatives=(), hard_negatives=(), noise=(), extra=())
    return dataclasses.replace(recipe, data=alone)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, recipe):
    """Two run folders that differ in the seed they claim, each with the released weights; one has the bundle."""
    folders = []
    for seed in (1, 2):
        run = tmp_path_factory.mktemp(f"run{seed}")
        train = dataclasses.replace(recipe.train, seed=seed)
        (run / "recipe.yaml").write_text(dump_config(dataclasses.replace(recipe, train=train)))
        shutil.copyfile(WEIGHTS, run / "weights.npz")
        folders.append(run)
    shutil.copyfile(released().path, folders[0] / "kws.eab")
    return folders


def test_no_difference_is_exactly_none():
    correct = np.random.default_rng(1).random((3, 500)) < 0.9
    assert paired_bootstrap(correct, correct) == (0.0, 0.0, 0.0)


def test_the_interval_is_that_of_the_normal_distribution():
    """int8 loses 40 of 1000 clips: loss 0.04, half width 1.96 * sqrt(0.04 * 0.96 / 1000) = 0.0121."""
    float_correct = np.ones((1, 1000), bool)
    int8_correct = np.arange(1000)[None] >= 40
    loss, low, high = paired_bootstrap(float_correct, int8_correct)
    assert loss == pytest.approx(0.04)
    assert low == pytest.approx(0.04 - 0.0121, abs=0.0015) and high == pytest.approx(0.04 + 0.0121, abs=0.0015)


def test_only_the_clips_that_differ_widen_the_interval():
    """Both fail on the same 300 of 1000 clips and int8 on 5 more: unpaired, the interval would be 0.08 wide."""
    float_correct = np.arange(1000)[None] >= 300
    int8_correct = np.arange(1000)[None] >= 305
    loss, low, high = paired_bootstrap(float_correct, int8_correct)
    assert loss == pytest.approx(0.005) and high - low < 0.01


def test_seeds_are_pooled_by_clip():
    """The same clip failing in every training is one finding, not three."""
    float_correct, int8_correct = np.ones((1, 400), bool), np.arange(400)[None] >= 20
    once = paired_bootstrap(float_correct, int8_correct)
    assert paired_bootstrap(float_correct.repeat(3, 0), int8_correct.repeat(3, 0)) == pytest.approx(once)


def test_other_clips_cannot_be_paired():
    with pytest.raises(DataError, match=r"float is \[1, 5\] and int8 \[1, 6\]"):
        paired_bootstrap(np.ones((1, 5)), np.ones((1, 6)))


def test_a_model_costs_what_it_costs():
    one, other = block_costs([released(), released()], seconds=4)
    assert one > 1  # microseconds
    assert 0.6 < one / other < 1.6


def test_rows_of_trainings_with_and_without_a_bundle(runs, recipe, data):
    """Float against int8 on the same clips; runs that differ in the seed alone are one row."""
    both, float_alone = compare([str(runs[0])], data=data), compare([str(run) for run in runs], data=data)
    assert len(both) == len(float_alone) == 1
    row = both[0]
    dataset = load_dataset(data, recipe.data)
    clips = dataset.clips("report")
    expected = evaluate_bundle(released(), load_waves(clips), dataset.classes(clips))
    assert row["int8"]["value"] == pytest.approx(expected.accuracy, abs=1e-4)
    assert row["clips"] == len(clips) and row["seeds"] == [1]
    assert row["loss"]["value"] == pytest.approx(row["float"]["value"] - row["int8"]["value"], abs=2e-4)
    assert row["loss"]["low"] <= row["loss"]["value"] <= row["loss"]["high"]
    assert row["float"]["low"] <= row["float"]["value"] <= row["float"]["high"]
    assert row["relative_cost"] == 1.0 and row["model_bytes"] == len(released().members["model"])

    assert float_alone[0]["seeds"] == [1, 2] and float_alone[0]["loss"] is None  # the second has no int8 to pair
    assert float_alone[0]["float"]["value"] == row["float"]["value"]  # the same weights

    table = markdown([*both, *float_alone])
    assert table.count("\n") == 4 and len({line.count("|") for line in table.splitlines()}) == 1
    assert f"{row['parameters']:,}" in table and " - |" in table


def test_parameters_are_those_that_are_trained(tmp_path):
    arrays = {"a/kernel": np.zeros((3, 4)), "a_norm/gamma": np.zeros(4), "a_norm/moving_mean": np.zeros(4)}
    np.savez(tmp_path / "weights.npz", **arrays)
    assert parameters_of(tmp_path / "weights.npz") == 16


def test_trainings_are_alike_but_for_the_seed(recipe):
    def entry(**changes):
        return Entry(dataclasses.replace(recipe, **changes), WEIGHTS, None)

    other_seed = dataclasses.replace(recipe.train, seed=recipe.train.seed + 1)
    longer = dataclasses.replace(recipe.train, epochs=recipe.train.epochs + 1)
    assert entry().alike == entry(train=other_seed).alike != entry(train=longer).alike


def test_what_cannot_be_compared_is_one_sentence(tmp_path, runs, recipe):
    with pytest.raises(UsageError, match="holds no recipe.yaml"):
        read_entry(str(tmp_path))
    with pytest.raises(UsageError, match="--recipe"):
        read_entry("kws")
    words = ("yes", "no")
    with pytest.raises(UsageError, match="the recipe has"):
        read_entry("kws", dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, words=words)))
    shutil.copytree(runs[0], tmp_path / "run")
    np.savez(tmp_path / "run" / "weights.npz", other=np.zeros(3))
    with pytest.raises(VerificationError, match="other weights"):
        read_entry(str(tmp_path / "run"))


def test_the_command(capsys, tmp_path):
    """Bundles alone, without data: sizes and costs as JSON lines, the table in a file."""
    assert main(["compare", "kws", "--recipe", str(RECIPE), "--out", str(tmp_path / "table.md")]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["model"].startswith("kws ") and row["float"] is None and row["block_us"] > 0
    assert (tmp_path / "table.md").read_text().splitlines()[2].startswith("| kws ")
    assert main(["compare", "kws"]) == 2
    assert "--recipe" in capsys.readouterr().err
