"""A search tries the same values for the same seed, trains nothing twice, and refuses what no board of it can take."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="optuna is not installed (requirements-host.txt)")

from tone_words import RECIPE, make_tone_words

from models.recipe import load_recipe
from quantize import search as module
from quantize import search_trial
from quantize.search import Search, main
from quantize.search_space import Space, changed, default_space
from quantize.search_trial import name_of
from toolkit.config import load_config
from toolkit.errors import ConfigError

ROOT = Path(__file__).parents[1]
PROFILE = """
schema: 1
name: board
board: of the tests
architecture: aarch64
runtime: native
flash_bytes: 1000000
ram_bytes: 200000
macs_per_second: 2000000
hop_deadline_ms: 5
transport: ssh
audio_device: none
"""
SPACE = {
    "model.parameters.width": {"low": 8, "high": 64, "step": 8},
    "train.learning_rate": {"low": 1e-3, "high": 1e-1, "log": True},
    "model.parameters.blocks": (1, 2),
}


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """A folder with data, recipe.yaml and board.yaml."""
    folder = tmp_path_factory.mktemp("tones")
    make_tone_words(folder / "data", speakers=20)
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "board.yaml").write_text(PROFILE)
    return folder


@pytest.fixture
def quick(monkeypatch):
    """A list of the recipes that were tried: each costs its width, and is the more accurate the wider it is."""
    tried = []

    def run_trial(recipe, data, out, profile, name):
        tried.append(recipe)
        width = recipe.model.parameters["width"]
        result = {"accuracy": width / 100, "low": 0.0, "high": 1.0, "clips": 9, "failed": None, "is_trained": True}
        facts = {"macs_per_second": width * 40_000, "model_bytes": 5000, "ops": ["CONV_2D"]}
        path = out / "trials" / name / "result.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result | {"facts": facts}))
        return result | {"facts": facts}

    monkeypatch.setattr(module, "run_trial", run_trial)
    return tried


def begin(tones, out, seed=1, space=SPACE):
    recipe, profile = load_recipe(tones / "recipe.yaml"), module.load_profile(tones / "board.yaml")
    return Search(recipe, space, profile, tones / "data", out, "macs_per_second", seed)


def test_the_same_space_and_seed_are_the_same_trials(tones, tmp_path, quick):
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        begin(tones, tmp_path / out, seed).run(14)  # beyond the random ones
    first, again, other = quick[:14], quick[14:28], quick[28:]
    assert first == again and first != other
    assert all(recipe.model.parameters["width"] in range(8, 65, 8) for recipe in quick)
    assert {recipe.model.parameters["blocks"] for recipe in quick} == {1, 2}


def test_a_search_goes_on_where_it_was_interrupted(tones, tmp_path, quick, monkeypatch):
    begin(tones, tmp_path / "whole").run(5)
    whole, works = list(quick), module.run_trial
    quick.clear()

    def stops(recipe, *rest):
        if recipe == whole[2]:
            raise KeyboardInterrupt
        return works(recipe, *rest)

    monkeypatch.setattr(module, "run_trial", stops)
    with pytest.raises(KeyboardInterrupt):
        begin(tones, tmp_path / "cut").run(5)
    monkeypatch.setattr(module, "run_trial", works)
    begin(tones, tmp_path / "cut").run(3)
    assert quick == whole[:3]
    begin(tones, tmp_path / "cut").run(3)
    assert len(quick) == 3


def test_two_machines_share_a_search(tones, tmp_path, quick, monkeypatch):
    works, inner = module.run_trial, []

    def meanwhile(*arguments):
        if not inner:
            inner.append(True)
            begin(tones, tmp_path).run(4)  # one of the four is at work here
            assert len(quick) == 3
        return works(*arguments)

    monkeypatch.setattr(module, "run_trial", meanwhile)
    begin(tones, tmp_path).run(4)
    assert len(quick) == 4 and len({r.train.learning_rate for r in quick}) == 4


def test_the_front_fits_the_profile_and_each_row_says_what_binds(tones, tmp_path, quick):
    search = begin(tones, tmp_path, space={"model.parameters.width": (16, 32, 64)})
    search.run(12)
    rows = {row["parameters"]["model.parameters.width"]: row for row in search.found()}
    assert {width: row["is_front"] for width, row in rows.items()} == {16: True, 32: True, 64: False}
    assert rows[32]["binds"]["limit"] == "macs_per_second" and rows[32]["binds"]["share"] == 0.64
    assert not rows[64]["fits"] and rows[64]["binds"]["verdict"] == "FAIL"
    assert "size of the bundle" in rows[16]["not_measured"]


def test_a_trial_is_named_by_all_that_decides_it(tones, tmp_path):
    recipe = load_recipe(tones / "recipe.yaml")
    start = tmp_path / "start.npz"
    start.write_bytes(b"1")
    started = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, start=str(start)))
    names = [name_of(recipe, "a"), name_of(recipe, "b"), name_of(changed(recipe, {"train.epochs": 9}), "a")]
    names.append(name_of(started, "a"))
    start.write_bytes(b"2")
    names.append(name_of(started, "a"))
    assert len(set(names)) == 5 and name_of(changed(recipe, {"train.epochs": 15}), "a") == names[0]


def test_the_default_space_is_that_of_the_net(tones):
    assert default_space(load_recipe(tones / "recipe.yaml")) == {
        "model.parameters.width": {"low": 4, "high": 16, "step": 2},
        "model.parameters.blocks": {"low": 1, "high": 2, "step": 1},
    }


@pytest.mark.parametrize(
    "space, match",
    [
        ("{}", "at least one path"),
        ("{train.epochs: []}", "expected choices"),
        ("{train.epochs: {low: 3}}", "expected choices, or low and high"),
        ("{train.epochs: {low: 3, high: 2}}", "low <= high"),
        ("{train.epochs: {low: 3, high: 4, steps: 1}}", "expected choices"),
        ("{train.epochs: {low: 0, high: 4, log: true}}", "log: true"),
        ("{train.epochs: 3}", "train.epochs is 3"),
    ],
)
def test_a_space_that_makes_no_sense_is_one_sentence(space, match, tmp_path):
    (tmp_path / "space.yaml").write_text(f"space: {space}")
    with pytest.raises(ConfigError, match=match):
        load_config(tmp_path / "space.yaml", Space)


@pytest.mark.parametrize("path, match", [("train.epohcs", "did you mean train.epochs"), ("name.x", "is no section")])
def test_a_path_that_no_recipe_has_is_one_sentence(tones, path, match):
    with pytest.raises(ConfigError, match=match):
        changed(load_recipe(tones / "recipe.yaml"), {path: 3})


def command(tones, out, space, trials=2):
    (tones / f"{out}.yaml").write_text(f"space: {space}")
    given = {"data": "data", "device": "board.yaml", "out": out, "space": f"{out}.yaml"}
    options = [part for name, value in given.items() for part in (f"--{name}", str(tones / value))]
    return [str(tones / "recipe.yaml"), *options, "--epochs", "1", "--trials", str(trials)]


def searched(arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    run = [sys.executable, "-m", "quantize.search", *arguments]
    return subprocess.run(run, env=environment, capture_output=True, text=True)


def test_a_search_trains_converts_measures_and_does_nothing_twice(tones, monkeypatch, capfd):
    """The whole command on tone words, stopped after the training; again to its end; then with one trial more."""

    def stop(*_):
        raise KeyboardInterrupt

    arguments = command(tones, "out", "{model.parameters.width: [8]}", trials=1)
    with monkeypatch.context() as patch:
        patch.setattr(search_trial, "_measure", stop)
        assert main(arguments) == 130
    assert "the same command resumes" in capfd.readouterr().err
    resumed = searched(arguments)
    assert resumed.returncode == 0 and "resuming after epoch 1" in resumed.stderr, resumed.stderr
    (row,) = map(json.loads, resumed.stdout.splitlines())
    assert row["fits"] and row["is_front"] and row["clips"] > 10 and row["low"] <= row["accuracy"] <= row["high"]
    assert row["facts"]["model_bytes"] < row["facts"]["bundle_bytes"] and 0 < row["binds"]["share"] < 1
    out = tones / "out"
    trial = out / "trials" / row["trial"]
    assert load_recipe(trial / "recipe.yaml").train.epochs == 1 and (trial / "weights.npz").exists()
    assert len((trial / "history.jsonl").read_text().splitlines()) == 1
    assert (out / "search.png").read_bytes().startswith(b"\x89PNG") and "| yes | 8 |" in (out / "search.md").read_text()

    written = (trial / "result.json").stat().st_mtime_ns
    again = searched([*arguments, "--trials", "2"])
    assert "known" in again.stderr and again.stdout == resumed.stdout
    assert (trial / "result.json").stat().st_mtime_ns == written


def test_what_breaks_the_profile_by_its_architecture_is_never_trained(tones, capsys):
    assert main(command(tones, "wide", "{model.parameters.width: [256]}")) == 0
    assert not capsys.readouterr().out
    (trial,) = (tones / "wide" / "trials").iterdir()
    result = json.loads((trial / "result.json").read_text())
    assert not result["is_trained"] and result["accuracy"] is None and not list(trial.glob("weights*"))
    assert "**over** cost of a second of audio" in (tones / "wide" / "search.md").read_text()
