"""What is trained with the rounding of int8 is what int8 computes; zeros and shared values outlive the training."""

import dataclasses
import json
import zlib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="tensorflow is not installed (requirements-host.txt)")

from tone_words import RECIPE, make_tone_words

from models.layers import tf
from models.recipe import Recipe, load_recipe
from models.train import load_weights, make_model, save_weights, scores_of, train
from quantize.calibrate import representative_codes
from quantize.cluster import members, shared
from quantize.convert import _calibrated, _step_form, convert
from quantize.prune import is_pruned
from quantize.qat import FineTuning, fine_tune, main, round_in_place
from quantize.ranges import FILE, MOVES, ranges_of, read_ranges, with_ranges, write_ranges
from quantize.verify import run_everywhere
from toolkit.config import dump_config, parse_config
from toolkit.errors import ConfigError, VerificationError
from toolkit.flatbuffer import read_model

CLUSTERS = 8


def changed(recipe, section, **values):
    return dataclasses.replace(recipe, **{section: dataclasses.replace(getattr(recipe, section), **values)})


def quietly(text):
    """No log."""


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """(folder, data, recipe that fine-tunes with rounding, weights after some epochs of which 60 % are zero)."""
    folder = tmp_path_factory.mktemp("tones")
    (folder / "recipe.yaml").write_text(RECIPE)
    data, recipe = make_tone_words(folder / "data", speakers=30), load_recipe(folder / "recipe.yaml")
    recipe = changed(recipe, "train", epochs=4)
    train(recipe, data, folder / "run", folder / "epochs", quietly)
    model, _, _ = make_model(recipe)
    load_weights(folder / "run" / "weights.npz", model)
    for variable in model.weights:
        if is_pruned(variable.name):
            values = variable.numpy()
            variable.assign(np.where(np.abs(values) < np.quantile(np.abs(values), 0.6), 0, values))
    save_weights(folder / "pruned.npz", model)
    recipe = changed(recipe, "train", start=str(folder / "pruned.npz"), epochs=2, learning_rate=1e-3)
    return folder, data, changed(recipe, "quantize", method="aware"), folder / "pruned.npz"


@pytest.fixture(scope="module")
def tuned(tones):
    """(weights, codes, the int8 model) after fine-tuning."""
    folder, data, recipe, _ = tones
    fine_tune(recipe, data, folder / "aware", folder / "epochs", quietly)
    codes, weights = representative_codes(recipe, data, is_dataset=True), folder / "aware" / "weights.npz"
    return weights, codes, convert(recipe, weights, codes).model


@pytest.fixture
def known(tuned, monkeypatch):
    """The ranges of the weights to begin with are known: calibrating them again takes seconds."""
    ranges = read_ranges(tuned[0])
    monkeypatch.setattr("quantize.convert.calibrated_ranges", lambda *_: ranges)


def kernels(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as values:
        return {name: values[name] for name in values.files if is_pruned(name)}


def zeros(path: Path) -> float:
    values = np.concatenate([v.ravel() for v in kernels(path).values()])
    return float((values == 0).mean())


def convolutions(model: bytes) -> list:
    """(scales of the activation that leaves, codes of the weights [outputs, ...]) of each, in order."""
    graph = read_model(model)
    ops = [op for op in graph.operators if op.name == "CONV_2D"]
    return [(graph.tensors[op.outputs[0]], graph.tensors[op.inputs[1]].data) for op in ops]


def test_int8_computes_what_was_trained(tones, tuned):
    """Scores of the rounded float model and of int8 beside those of the float model, in steps of int8's scores."""
    _, _, recipe, _ = tones
    weights, codes, model = tuned
    int8 = run_everywhere(model, codes)[0].scores
    graph = read_model(model)
    scores = graph.tensors[graph.outputs["scores"]]
    trained, _, _ = make_model(recipe)
    load_weights(weights, trained)
    in_float = scores_of(trained, codes)
    round_in_place(trained, read_ranges(weights))
    as_trained = scores_of(trained, codes)

    def distance(values):
        return np.sqrt(np.mean((values / scores.scales[0] + scores.zero_points[0] - int8) ** 2))

    assert np.ptp(int8.astype(int)) > 100
    assert distance(as_trained) < 0.3 * distance(in_float)  # 0.96 of 6.3 steps
    off = np.abs(as_trained / scores.scales[0] + scores.zero_points[0] - int8).round()
    assert (off <= 1).mean() > 0.8


def test_int8_has_the_trained_ranges_and_the_trained_kernels(tones, tuned):
    _, _, recipe, _ = tones
    weights, _, model = tuned
    ranges, graph = read_ranges(weights), read_model(model)
    computed = [op for op in graph.operators if op.name not in MOVES]
    assert len(computed) == len(ranges)
    for op, (low, high) in zip(computed, ranges.values()):
        assert graph.tensors[op.outputs[0]].scales[0] == pytest.approx((high - low) / 255, rel=1e-5)
    with np.load(weights) as values:
        kernel, gamma = values["front1/kernel"], values["front1_norm/gamma"]
    rounded = np.round(kernel / np.abs(kernel).max(axis=(0, 1, 2)) * 127) * np.sign(gamma)
    _, codes = convolutions(model)[1]
    assert np.abs(np.moveaxis(rounded, -1, 0) - codes).max() <= 1  # where a half is rounded
    assert (np.moveaxis(rounded, -1, 0) == codes).mean() > 0.999


def test_zeros_stay_and_without_care_they_do_not(tones, tuned, tmp_path):
    folder, data, recipe, pruned = tones
    weights, _, model = tuned
    assert zeros(pruned) == pytest.approx(0.6, abs=0.02)
    assert zeros(weights) == zeros(pruned)
    assert any((kernels(weights)[name] != values).any() for name, values in kernels(pruned).items())
    stored = np.concatenate([codes.ravel() for _, codes in convolutions(model)])
    assert (stored == 0).mean() >= zeros(pruned)
    plain = changed(changed(recipe, "train", epochs=1), "quantize", method="post_training")
    train(plain, data, tmp_path / "run", folder / "epochs", quietly)
    assert zeros(tmp_path / "run" / "weights.npz") < 0.1


def test_clusters_are_as_many_codes_per_kernel_and_fewer_bytes(tones, tuned, known):
    folder, data, recipe, pruned = tones
    recipe = changed(recipe, "quantize", clusters=CLUSTERS)
    fine_tune(recipe, data, folder / "clusters", folder / "epochs", quietly)
    weights = folder / "clusters" / "weights.npz"
    _, codes, unshared = tuned
    model = convert(recipe, weights, codes).model
    for _, stored in convolutions(model):
        assert len(np.unique(np.abs(stored))) <= CLUSTERS
    assert any(len(np.unique(np.abs(stored))) > 2 * CLUSTERS for _, stored in convolutions(unshared))
    assert len(zlib.compress(model, 9)) < 0.95 * len(zlib.compress(unshared, 9))
    assert zeros(weights) >= zeros(pruned)


def test_shared_values_are_the_nearest_of_that_form():
    kernel = np.random.default_rng(0).normal(size=(3, 1, 8, 6)).astype(np.float32)
    kernel[np.abs(kernel) < 0.3] = 0
    member = members(kernel, 12)
    found = shared(kernel, member)
    assert len(np.unique(member)) == 12 and ((found == 0) == (member == 1)).all() and (found[kernel == 0] == 0).all()
    codes = found / np.abs(found).max(axis=(0, 1, 2))
    assert len(np.unique(codes.round(4))) <= 12
    assert np.abs(found - kernel).std() < 0.1 and np.allclose(shared(found, member), found, atol=1e-6)
    assert not shared(np.zeros((1, 1, 4, 2), np.float32), members(np.zeros((1, 1, 4, 2)), 5)).any()


def test_gradients_pass_the_rounding_but_not_the_end_of_a_range(tones):
    _, _, recipe, _ = tones
    model, _, _ = make_model(recipe)
    layer = model.get_layer("label")
    x = tf.Variable(np.array([0.1, 2.0, -3.0], np.float32).reshape(1, 3, 1, 1) * np.ones((1, 1, 1, 16), np.float32))
    layer.set_weights([np.tile(np.linspace(0.01, 1, 16)[None, None, :, None], (1, 1, 1, 4)), np.zeros(4)])
    before = layer(x).numpy()
    round_in_place(model, {"label": (-1.0, float(before.max()) / 2)})
    with tf.GradientTape() as tape:
        y = layer(x)
    by_x, by_kernel = tape.gradient(y, [x, layer.kernel])
    half = float(before.max()) / 2
    step = (half + 1) / 255
    assert np.abs(y[0, 0] - before[0, 0]).max() < step and len(np.unique(y)) == 3
    assert abs(float(y[0, 1, 0, 0]) - half) < step and abs(float(y[0, 2, 0, 0]) + 1) < step
    assert np.asarray(by_x)[0, 0].all() and not np.asarray(by_x)[0, 1:].any()
    assert np.allclose(by_kernel, 0.1, atol=1e-6)


def test_a_fine_tuning_that_resumes_keeps_its_ranges(tones, known, tmp_path, capsys):
    folder, data, recipe, _ = tones

    def stop(text):
        if "epoch 1/" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # in the first epoch: nothing was kept
        fine_tune(recipe, data, tmp_path / "run", folder / "epochs", stop)
    (tmp_path / "recipe.yaml").write_text(dump_config(recipe))
    command = [str(tmp_path / "recipe.yaml"), "--data", str(data), "--run", str(tmp_path / "run")]
    assert main([*command, "--cache", str(folder / "epochs")]) == 0
    done = capsys.readouterr()
    assert json.loads(done.out)["epoch"] == 2 and "calibrating" in done.err
    path = tmp_path / "run" / FILE
    trained = {layer: (low, high + 1) for layer, (low, high) in json.loads(path.read_text()).items()}
    write_ranges(path, trained)
    assert main([*command, "--cache", str(folder / "epochs")]) == 0
    assert "calibrating" not in capsys.readouterr().err and read_ranges(tmp_path / "run" / "weights.npz") == trained


def test_ranges_are_those_of_the_weights(tones, tuned, tmp_path):
    _, _, recipe, pruned = tones
    trained, codes, _ = tuned
    with pytest.raises(VerificationError, match="ranges.json is missing: .* python -m quantize.qat writes both"):
        convert(recipe, pruned, codes)
    step, representative_dataset, _ = _step_form(recipe, pruned, codes)
    calibrated, ranges = _calibrated(step, representative_dataset), read_ranges(trained)
    doubled = {layer: (2 * low, 2 * high) for layer, (low, high) in ranges.items()}
    assert ranges_of(calibrated) == ranges and ranges_of(with_ranges(calibrated, doubled)) == doubled
    for wrong, match in (
        ({**ranges, "other": (-1.0, 1.0)}, "a range of other, which is no layer"),
        ({k: v for k, v in ranges.items() if k != "stem_relu"}, "no range of the layer stem_relu"),
    ):
        with pytest.raises(VerificationError, match=match):
            with_ranges(calibrated, wrong)
    weights = tmp_path / "weights.npz"
    for text in ('{"a": [1, 2]}', '{"a": [0, 0]}', '{"a": [-1, NaN]}', '{"a": 1}', "[]", "{"):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(VerificationError, match="ranges.json (gives a|holds no ranges)"):
            read_ranges(weights)


def test_an_lstm_is_refused_in_one_sentence():
    document = {"schema": 1, "name": "small", "data": {"words": ["a"]}, "model": {"architecture": "crnn"}}
    model, _, _ = make_model(parse_config(document, Recipe, "test"))
    with pytest.raises(ConfigError, match="lstm is a RNN: only convolutions"):
        FineTuning(model, {}, 0)


@pytest.mark.parametrize(
    "section, values, match",
    [
        ("quantize", {"method": "post_training"}, "has neither quantize.method: aware nor quantize.clusters"),
        ("train", {"start": None}, "has no train.start: give the float weights, --weights FILE"),
    ],
)
def test_a_command_that_makes_no_sense_is_one_sentence(tones, tmp_path, section, values, match, capsys):
    _, data, recipe, _ = tones
    (tmp_path / "recipe.yaml").write_text(dump_config(changed(recipe, section, **values)))
    assert main([str(tmp_path / "recipe.yaml"), "--data", str(data), "--run", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("qat: ") and match in error and error.count("\n") == 1


def test_too_few_clusters_are_refused():
    document = {"schema": 1, "name": "small", "data": {"words": ["a"]}, "quantize": {"clusters": 2}}
    with pytest.raises(ConfigError, match="quantize: clusters is 2: expected 4 or more"):
        parse_config(document, Recipe, "test")
