"""A search tries the same values for the same seed, trains nothing twice, and refuses what no board of it can take."""

import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("optuna", reason="optuna is not installed (requirements-host.txt)")

from tone_words import RECIPE, make_tone_words

from models.recipe import load_recipe
from quantize import search as module
from quantize import search_trial
from quantize.cluster import share_weights
from quantize.search import Search, main
from quantize.search_chart import markdown
from quantize.search_space import Space, changed, default_space, recipe_and_bits
from quantize.search_trial import name_of, run_trial
from toolkit.bundle import load_bundle
from toolkit.config import load_config
from toolkit.errors import ConfigError, VerificationError
from toolkit.flatbuffer import read_model
from toolkit.profile import load_profile

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
    """A list of the recipes that were tried: each costs its width; the wider and the more bits, the more accurate."""
    tried = []

    def run_trial(recipe, data, out, profile, name, bits=8):
        tried.append(recipe)
        width = recipe.model.parameters["width"]
        accuracy = (width + bits) / 100
        result = {"accuracy": accuracy, "low": 0.0, "high": 1.0, "clips": 9, "failed": None, "is_trained": True}
        facts = {"macs_per_second": width * 40_000, "model_bytes": 5000, "ops": ["CONV_2D"]}
        facts["compressed_bytes"] = width * bits
        path = out / "trials" / name / "result.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result | {"facts": facts}))
        return result | {"facts": facts}

    monkeypatch.setattr(module, "run_trial", run_trial)
    return tried


def begin(tones, out, seed=1, space=SPACE, cost="macs_per_second"):
    recipe, profile = load_recipe(tones / "recipe.yaml"), module.load_profile(tones / "board.yaml")
    return Search(recipe, space, profile, tones / "data", out, cost, seed)


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


def test_bits_are_weighed_by_compressed_bytes_and_sixteen_cannot_be_shipped(tones, tmp_path, quick):
    space = {"model.parameters.width": (16,), "bits": (8, 4, 16)}
    search = begin(tones, tmp_path, space=space, cost="compressed_bytes")
    search.run(12)
    found = search.found()
    rows = {row["parameters"]["bits"]: row for row in found}
    assert {bits: row["is_front"] for bits, row in rows.items()} == {4: True, 8: True, 16: False}
    assert rows[16]["accuracy"] > rows[8]["accuracy"] and not rows[16]["fits"] and not rows[16]["ships"]
    assert {row["binds"]["limit"] for row in found} == {"macs_per_second"}  # it says how near: 32 %, with any bits
    assert len({row["trial"][:16] for row in found}) == 1 and rows[4]["trial"].endswith("-4")
    said = markdown("head", list(space), "compressed_bytes", found)
    assert "| yes | 16 | 4 | 64 | 20.00 %" in said and "cannot be shipped: its integers are not the same" in said
    assert "| **cannot be shipped**; cost of a second of audio: 32 % of 2,000,000 MAC/s" in said
    both = markdown("head", list(space), "macs_per_second", [{**row, "cost": 640_000} for row in found])
    assert "| MAC/s | compressed bytes |" in both and "| 640,000 | 64 |" in both
    plain = markdown("head", list(space)[:1], "macs_per_second", [rows[8]])
    assert "compressed" not in plain and "shipped" not in plain


def test_trials_of_a_search_without_bits_are_those_of_eight(tones, tmp_path, quick):
    names = []
    for space in ({"model.parameters.width": (16,)}, {"model.parameters.width": (16,), "bits": (8,)}):
        search = begin(tones, tmp_path, space=space)
        search.run(1)
        names += [row["trial"] for row in search.found()]
    assert len(names) == 2 and len(set(names)) == 1


def test_shared_values_of_a_recipe_are_not_trained_by_a_search(tones):
    recipe = load_recipe(tones / "recipe.yaml")
    assert recipe_and_bits(recipe, {"bits": 4, "train.epochs": 3}) == (changed(recipe, {"train.epochs": 3}), 4)
    assert recipe_and_bits(recipe, {"train.epochs": 3})[1] == 8
    with pytest.raises(ConfigError, match=r"quantize.clusters is 16, .* name bits: \[8, 4\] there\.$"):
        recipe_and_bits(recipe, {"quantize.clusters": 16})


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
        ("{bits: [8, 3]}", r"space.bits is \(8, 3\): expected choices of 8 \(int8\), 4 .* and 16"),
        ("{bits: {low: 4, high: 8}}", "space.bits is {'low': 4, 'high': 8}: expected choices"),
        ("{bits: [8.0]}", "expected choices of 8"),
        ("{bits: []}", "expected choices of 8"),
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


@pytest.fixture(scope="module")
def resumed(tones):
    """(folder, arguments, finished process) of a whole search of one trial on tone words: stopped after the training,
    then to its end."""

    def stop(*_):
        raise KeyboardInterrupt

    arguments = command(tones, "out", "{model.parameters.width: [8]}", trials=1)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as said:
        patch.setitem(search_trial.MEASURES, 8, stop)
        assert main(arguments) == 130
    assert "the same command resumes" in said.getvalue()
    done = searched(arguments)
    assert done.returncode == 0, done.stderr
    return tones / "out", arguments, done


def test_a_search_trains_converts_measures_and_does_nothing_twice(resumed):
    """The search again, with one trial more."""
    out, arguments, done = resumed
    assert "resuming after epoch 1" in done.stderr
    (row,) = map(json.loads, done.stdout.splitlines())
    assert row["fits"] and row["is_front"] and row["clips"] > 10 and row["low"] <= row["accuracy"] <= row["high"]
    assert row["facts"]["model_bytes"] < row["facts"]["bundle_bytes"] and 0 < row["binds"]["share"] < 1
    trial = out / "trials" / row["trial"]
    assert load_recipe(trial / "recipe.yaml").train.epochs == 1 and (trial / "weights.npz").exists()
    assert len((trial / "history.jsonl").read_text().splitlines()) == 1
    assert (out / "search.png").read_bytes().startswith(b"\x89PNG") and "| yes | 8 |" in (out / "search.md").read_text()

    written = (trial / "result.json").stat().st_mtime_ns
    again = searched([*arguments, "--trials", "2"])
    assert "known" in again.stderr and again.stdout == done.stdout
    assert (trial / "result.json").stat().st_mtime_ns == written


def test_one_training_is_measured_with_each_number_of_bits(resumed, tones):
    """Into the folder of a search without bits, whose training is theirs."""
    out, _, before = resumed
    name = json.loads(before.stdout)["trial"]
    eight, four, sixteen = folders = [out / "trials" / f"{name}{bits}" for bits in ("", "-4", "-16")]
    trained = [(eight / file).stat().st_mtime_ns for file in ("weights.npz", "result.json")]
    data, profile, recipe = tones / "data", load_profile(tones / "board.yaml"), load_recipe(eight / "recipe.yaml")
    found = [run_trial(recipe, data, out, profile, folder.name, bits) for folder, bits in zip(folders, (8, 4, 16))]
    assert found == [json.loads((folder / "result.json").read_text()) for folder in folders]
    assert trained == [(eight / file).stat().st_mtime_ns for file in ("weights.npz", "result.json")]
    assert all(row["clips"] == found[0]["clips"] and row["low"] <= row["accuracy"] <= row["high"] for row in found)

    int8, shared, wide = (row["facts"] for row in found)
    assert all(int8[key] == shared[key] for key in ("macs_per_second", "arena_bytes", "ops"))
    assert shared["model_bytes"] == pytest.approx(int8["model_bytes"], rel=0.01)  # equal constants are stored once
    assert shared["compressed_bytes"] < 0.9 * int8["compressed_bytes"]
    assert most_codes(eight) > 16 >= most_codes(four)
    assert load_recipe(four / "recipe.yaml").quantize.clusters == 16  # for quantize.qat
    assert wide["macs_per_second"] == int8["macs_per_second"] and wide["memory_bytes"] > int8["memory_bytes"]
    assert "bundle_bytes" not in wide and not (sixteen / "model.eab").exists()


def most_codes(folder: Path) -> int:
    """The most values that the int8 weights of one convolution take."""
    graph = read_model(load_bundle(folder / "model.eab").members["model"])
    return max(len(np.unique(graph.tensors[op.inputs[1]].data)) for op in graph.operators if op.name == "CONV_2D")


@pytest.mark.parametrize("weights", ["kernel", "recurrent_kernel"])
def test_an_lstm_cannot_have_four_bits(tmp_path, weights):
    """Its int8 has one scale for all channels: 16 levels of a channel's own scale would be many more codes."""
    np.savez(tmp_path / "weights.npz", **{f"lstm/{weights}": np.ones((8, 16), np.float32)})
    with pytest.raises(VerificationError, match=f"the weights of lstm/{weights} cannot share 16 values: only those of"):
        share_weights(tmp_path / "weights.npz", tmp_path / "shared.npz", 16)
    assert not (tmp_path / "shared.npz").exists()


def test_what_breaks_the_profile_by_its_architecture_is_never_trained(tones, capsys):
    assert main(command(tones, "wide", "{model.parameters.width: [256]}")) == 0
    assert not capsys.readouterr().out
    (trial,) = (tones / "wide" / "trials").iterdir()
    result = json.loads((trial / "result.json").read_text())
    assert not result["is_trained"] and result["accuracy"] is None and not list(trial.glob("weights*"))
    assert "**over** cost of a second of audio" in (tones / "wide" / "search.md").read_text()
