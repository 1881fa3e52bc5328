"""Weights become zero by a schedule and stay zero; training begins from given weights; what is cut is trained on."""

import dataclasses
import json
import zlib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow_model_optimization", reason="tfmot is not installed (requirements-host.txt)")

from tone_words import RECIPE, make_tone_words

from models.layers import tf
from models.recipe import Recipe, load_recipe
from models.train import load_weights, make_model, save_weights, train
from quantize import importance
from quantize.channels import ChannelGraph
from quantize.prune import Masks, is_pruned, main, masks
from quantize.slim import pack_tree, tflite_schema
from toolkit.config import dump_config, parse_config
from toolkit.errors import ConfigError

GOLDEN = Path(__file__).parent / "golden"
SMALL = {"architecture": "crnn", "parameters": {"filters": 8, "width": 12, "units": 10}}
PATTERNS = {"unstructured": 0.75, "2:4": 0.5, "block": 0.5}
STEPS = 40


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """(folder, data, recipe, weights after two epochs)."""
    folder = tmp_path_factory.mktemp("tones")
    (folder / "recipe.yaml").write_text(RECIPE.replace("width: 16", "width: 24"))
    data, recipe = make_tone_words(folder / "data", speakers=30), load_recipe(folder / "recipe.yaml")
    recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, epochs=4))
    train(recipe, data, folder / "run", folder / "epochs", lambda _: None)
    return folder, data, recipe, folder / "run" / "weights.npz"


def changed(recipe, section, **values):
    return dataclasses.replace(recipe, **{section: dataclasses.replace(getattr(recipe, section), **values)})


def accuracy(run) -> float:
    return json.loads((run / "history.jsonl").read_text().splitlines()[-1])["tune_accuracy"]


def kernels(path):
    """{name: values} of the weights that pruning is about."""
    with np.load(path) as values:
        return {name: values[name] for name in values.files if is_pruned(name)}


def small(**settings):
    prune = {"sparsity": PATTERNS[settings["pattern"]], "begin": 0.1, "end": 0.6, "every": 4, **settings}
    document = {"schema": 1, "name": "small", "data": {"words": ["a", "b"]}, "model": SMALL, "prune": prune}
    return parse_config(document, Recipe, "test")


def groups_of_four(values):
    """Consecutive inputs of one output, as TFLite stores them: [n, 4], the last padded with zeros."""
    rows = np.moveaxis(values, -1, 0).reshape(-1, values.shape[-2])
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4))).reshape(-1, 4)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_kernels_reach_their_sparsity_by_the_schedule_and_nothing_else_changes(pattern):
    recipe = small(pattern=pattern)
    model, _, _ = make_model(recipe)
    pruned, rng = Masks(recipe.prune, model, STEPS), np.random.default_rng(0)
    untouched = {v.name: v.numpy() for v in model.weights if not is_pruned(v.name)}
    shares = []
    for step in range(1, STEPS + 1):
        for variable in model.weights:
            if is_pruned(variable.name):  # as an optimizer does, to zeros too
                variable.assign_add(0.01 * rng.standard_normal(variable.shape).astype(np.float32))
        pruned.after_step(step)
        values = [v.numpy() for v in model.weights if is_pruned(v.name)]
        shares.append(sum((v == 0).sum() for v in values) / sum(v.size for v in values))
        assert pruned.is_done(step) == (step >= 24)
    assert not any(shares[:3]) and shares == sorted(shares) and len(set(shares)) == (2 if pattern == "2:4" else 6)
    assert shares[23] == shares[-1]
    for variable in model.weights:
        if not is_pruned(variable.name):
            assert (variable.numpy() == untouched[variable.name]).all()
            continue
        values, inputs = variable.numpy(), variable.shape[-2]
        four = groups_of_four(values)
        if pattern == "unstructured":
            assert (values == 0).mean() == pytest.approx(PATTERNS[pattern], abs=0.01)
        elif pattern == "2:4":
            assert ((four != 0).sum(axis=1) <= 2).all()
            assert inputs % 4 or ((four != 0).sum(axis=1) == 2).all()
        elif inputs % 4 == 0:
            assert set((four != 0).sum(axis=1)) == {0, 4}
            assert (values == 0).mean() == pytest.approx(PATTERNS[pattern], abs=0.01)
    average = pruned.of_average([np.ones(v.shape, np.float32) for v in model.weights])
    for variable, mean in zip(model.weights, average):
        assert ((mean == 0) == (is_pruned(variable.name) & (variable.numpy() == 0))).all()


def test_what_is_zero_stays_zero_where_a_training_resumes_after_the_schedule():
    recipe = small(pattern="unstructured")
    model, _, _ = make_model(recipe)
    Masks(recipe.prune, model, STEPS).after_step(24)
    before = [v.numpy() == 0 for v in model.weights if is_pruned(v.name)]
    again = Masks(recipe.prune, model, STEPS)
    for variable in model.weights:
        variable.assign_add(tf.ones_like(variable))
    again.after_step(25)
    assert all(zeros.any() for zeros in before)
    after = [v.numpy() == 0 for v in model.weights if is_pruned(v.name)]
    assert all((a == b).all() for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize(
    "settings, match",
    [({"pattern": "2:4", "sparsity": 0.7}, "expected 0.5 for the pattern 2:4"), ({"begin": 0.7}, "begin before end")],
)
def test_a_schedule_that_cannot_be_is_refused(settings, match):
    with pytest.raises(ConfigError, match=f"prune: .*{match}"):
        small(**{"pattern": "unstructured", **settings})


def test_zeros_survive_the_running_average_and_an_interruption(tones, tmp_path, capsys):
    folder, data, recipe, weights = tones
    recipe = changed(recipe, "prune", sparsity=0.7, begin=0.0, end=0.5, every=2)
    recipe = changed(recipe, "train", start=str(weights))
    lines = []

    def log(text):
        lines.append(text)
        if "epoch 3/" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, data, tmp_path / "run", folder / "epochs", log, masks(recipe))
    (tmp_path / "recipe.yaml").write_text(dump_config(recipe))
    command = ["train", str(tmp_path / "recipe.yaml"), "--data", str(data), "--cache", str(folder / "epochs")]
    assert main([*command, "--run", str(tmp_path / "run")]) == 0
    resumed = capsys.readouterr()
    assert json.loads(resumed.out)["epoch"] == 4 and "resuming after epoch 2" in resumed.err
    assert sum("starting from" in line for line in [*lines, resumed.err]) == 1
    for name, values in kernels(tmp_path / "run" / "weights.npz").items():
        assert (values == 0).mean() == pytest.approx(0.7, abs=0.02), name
    history = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert history[0]["best"] == 0 < history[-1]["best"]  # before the schedule's end nothing is kept
    assert not any((values == 0).any() for values in kernels(weights).values())


def test_a_recipe_with_zeros_to_make_is_not_trained_without(tones, tmp_path):
    _, data, recipe, _ = tones
    with pytest.raises(ConfigError, match="prune.sparsity is 0.5: .* python -m quantize.prune train"):
        train(changed(recipe, "prune", sparsity=0.5), data, tmp_path)


def test_training_begins_from_given_weights_and_so_does_the_average(tones, tmp_path):
    folder, data, recipe, weights = tones
    recipe = changed(recipe, "train", start=str(weights), epochs=1, learning_rate=1e-8, ema_decay=0.99999)
    train(recipe, data, tmp_path / "run", folder / "epochs", lambda _: None)
    before, after = kernels(weights), kernels(tmp_path / "run" / "weights.npz")
    assert all(np.allclose(before[name], after[name], atol=1e-5) for name in before)


@pytest.mark.parametrize("damage, match", [("missing", "cannot be read|can be read"), ("other", "does not fit")])
def test_a_start_that_does_not_fit_is_one_sentence(tones, tmp_path, damage, match):
    folder, data, recipe, _ = tones
    if damage == "other":
        other = changed(recipe, "model", parameters={**recipe.model.parameters, "width": 20})
        save_weights(tmp_path / "start.npz", make_model(other)[0])
    with pytest.raises(ConfigError, match=f"start.npz.*({match})"):
        start = changed(recipe, "train", start=str(tmp_path / "start.npz"))
        train(start, data, tmp_path / "run", folder / "epochs", lambda _: None)


@pytest.mark.parametrize("measure", ["scale", "taylor"])
def test_a_cut_network_is_fine_tuned_by_its_own_recipe(tones, tmp_path, measure, capsys):
    folder, data, recipe, weights = tones
    given = ["--data", str(data)] if measure == "taylor" else []
    command = ["cut", str(folder / "recipe.yaml"), "--weights", str(weights), "--macs", "0.6", "--out", str(tmp_path)]
    assert main([*command, "--importance", measure, *given]) == 0
    result = json.loads(capsys.readouterr().out)
    before, after = result["macs_per_second"]
    assert after <= 0.6 * before and result["parameters"][1] < result["parameters"][0]
    assert [group["layers"][0] for group in result["groups"]] == ["front0", "front1", "front2", "stem"]
    smaller = changed(load_recipe(tmp_path / "recipe.yaml"), "train", epochs=3)
    assert smaller.model.channels["block1_mix"] == result["groups"][-1]["channels"][1]
    load_weights(tmp_path / "weights.npz", make_model(smaller)[0])
    if measure == "scale":
        train(smaller, data, tmp_path / "run", folder / "epochs", lambda _: None)
        assert accuracy(tmp_path / "run") >= 0.5  # chance is about 0.25


@pytest.mark.parametrize("wrong", [["--importance", "taylor"], ["--data", "."], ["--macs", "0"], ["--multiple", "0"]])
def test_a_command_that_makes_no_sense_is_one_sentence(tones, tmp_path, wrong, capsys):
    folder, _, _, weights = tones
    command = ["cut", str(folder / "recipe.yaml"), "--weights", str(weights), "--macs", "0.5", "--out", str(tmp_path)]
    assert main([*command, *wrong]) == 2
    assert capsys.readouterr().err.startswith("prune: --")


def test_taylor_is_the_slope_of_the_loss(tones, monkeypatch):
    """A channel that scales by 1 - e changes the loss by e times its importance; one that nothing hears has none."""
    _, data, recipe, weights = tones
    monkeypatch.setattr(importance, "BATCHES", 1)
    model, _, module = make_model(recipe)
    load_weights(weights, model)
    graph = ChannelGraph(model, 50.0)
    values = {v.name: v for v in model.weights}
    front = graph.rows["front0/kernel:0"][-1][1]
    deaf = values["front1/kernel:0"].numpy()
    deaf[:, :, 0] = 0
    values["front1/kernel:0"].assign(deaf)
    monkeypatch.setattr(importance, "BATCH", 64)
    found = importance.taylor(graph, model, recipe, module.STRIDE, data)
    assert found[front[0]] == 0 and (found[front[1:]] > 0).all()

    codes, labels = importance._examples(recipe, data)
    assert len(codes) <= 64

    def loss():
        scores = model(codes.astype(np.float32) / 32, training=False).numpy()
        window = scores[:, -(recipe.decision.window_frames // module.STRIDE) :].mean(axis=1, dtype=float)
        log_p = window - np.log(np.exp(window).sum(axis=1, keepdims=True))
        return -log_p[np.arange(len(labels)), labels].mean()

    before, channel = loss(), 1 + np.argmax(found[front[1:]])
    for name in ("front0_norm/gamma:0", "front0_norm/beta:0"):
        value = values[name].numpy()
        value[channel] *= 0.99
        values[name].assign(value)
    assert abs(loss() - before) == pytest.approx(0.01 * found[front[channel]], rel=0.1)


@pytest.mark.parametrize("name", ["ds_tc_resnet", "lstm"])
def test_the_report_says_what_zeros_are_worth(name, tmp_path, capsys):
    """The same bytes, fewer of them compressed, and the time measured beside that of the dense model."""
    dense, schema = (GOLDEN / f"{name}.tflite").read_bytes(), tflite_schema()
    tree, rng = schema.ModelT.InitFromObj(schema.Model.GetRootAs(dense, 0)), np.random.default_rng(0)
    dense = pack_tree(tree)
    for tensor in tree.subgraphs[0].tensors:
        buffer = tree.buffers[tensor.buffer]
        if tensor.type == schema.TensorType.INT8 and buffer.data is not None:
            buffer.data = np.where(rng.random(len(buffer.data)) < 0.75, 0, buffer.data).astype(np.uint8)
    paths = [tmp_path / "dense.tflite", tmp_path / "pruned.tflite"]
    paths[0].write_bytes(dense)
    paths[1].write_bytes(pack_tree(tree))
    assert main(["report", *map(str, paths)]) == 0
    out, err = capsys.readouterr()
    before, after = map(json.loads, out.splitlines())
    assert before["non_zero"] > 0.9 and after["non_zero"] == pytest.approx(0.25, abs=0.08)
    assert all(layer["non_zero"] < 0.5 for layer in after["layers"] if np.prod(layer["shapes"][0]) > 100)
    assert after["model_bytes"] == before["model_bytes"] and after["compressed_bytes"] < before["compressed_bytes"]
    assert after["compressed_bytes"] == len(zlib.compress(paths[1].read_bytes(), 9))
    assert (before["step_us"] is None) == (name == "lstm") and "not time" in err
