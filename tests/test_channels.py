"""Whole channels are cut: the smaller network computes what the large one does with those channels at zero."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="tensorflow is not installed (requirements-host.txt)")

from models.epochs import MODEL_SCALE
from models.layers import build_whole
from models.recipe import Recipe, load_recipe
from models.train import load_architecture, load_weights, make_model, save_weights
from quantize.channels import ChannelGraph, choose
from quantize.convert import convert
from quantize.importance import scale
from quantize.prune import cut
from quantize.verify import lsb_histogram, run_everywhere
from toolkit.config import parse_config
from toolkit.errors import ConfigError

MINE = """
STRIDE = 2

def build(net, x, n_labels, units=6):
    x = net.conv(net.bands(x), 4, (6, 5), "stem", stride=(STRIDE, 4), bias=True)
    x = net.add(x, net.conv(x, 4, (3, 3), "again"), "sum")
    x = net.conv(x, 8, (1, 10), "mix", same=False)
    x = net.lstm(net.lstm(x, units, "first"), units, "second")
    return net.conv(x, n_labels, 1, "label", bias=True)
"""
SMALL = {  # parameters, groups of channels that are cut together
    "bc_resnet": ({"scale": 0.5}, 6),
    "crnn": ({"filters": 8, "width": 12, "units": 16}, 3),
    "ds_cnn": ({"width": 16, "blocks": 2}, 3),
    "ds_tc_resnet": ({"width": 12, "blocks": 2, "kernel": 5, "growth": 0}, 4),
    "mine": ({}, 4),
}


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    path = tmp_path_factory.mktemp("mine") / "mine.py"
    path.write_text(MINE)
    return str(path)


def recipe_of(name, mine, **parameters) -> Recipe:
    model = {"architecture": mine if name == "mine" else name, "parameters": {**SMALL[name][0], **parameters}}
    return parse_config({"schema": 1, "name": "small", "data": {"words": ["a", "b"]}, "model": model}, Recipe, "test")


def with_channels(recipe, channels):
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, channels=channels))


def made(recipe, seed=0):
    """A whole model none of whose weights, means and variances is 0 or 1, and its channels."""
    model, _, _ = make_model(recipe)
    rng = np.random.default_rng(seed)
    disturbed = [w + 0.3 * rng.standard_normal(w.shape).astype(np.float32) for w in model.get_weights()]
    model.set_weights([abs(w) if v.name.endswith("variance:0") else w for v, w in zip(model.weights, disturbed)])
    return model, ChannelGraph(model, 50.0)


def silence(model, graph, kept):
    """The channels that are not kept are 0 wherever they leave a layer that scales them; no weight disappears."""
    values = dict(zip([v.name for v in model.weights], model.get_weights()))
    for names in graph.gates:
        for name in names:
            values[name][..., ~kept[graph.rows[name][-1][1]]] = 0
    model.set_weights(list(values.values()))


def some(graph, seed=1):
    """About half of the channels of every group."""
    kept, rng = graph.everything, np.random.default_rng(seed)
    for group in graph.groups:
        kept[rng.permutation(group.channels)[: len(group.channels) // 2]] = False
    return kept


@pytest.mark.parametrize("name", SMALL)
def test_without_a_channel_it_computes_what_it_did_with_zeros_there(name, mine):
    recipe = recipe_of(name, mine)
    model, graph = made(recipe)
    assert len(graph.groups) == SMALL[name][1]
    kept, frames = some(graph), np.random.default_rng(2).standard_normal((2, 60, 40)).astype(np.float32)
    smaller, _, _ = make_model(with_channels(recipe, graph.sizes(kept)))
    smaller.set_weights(graph.weights(kept))
    before = model(frames).numpy()
    silence(model, graph, kept)
    expected, got = model(frames).numpy(), smaller(frames).numpy()
    largest = np.abs(expected).max()
    np.testing.assert_allclose(got, expected, atol=1e-5 * largest)
    assert np.abs(before - expected).max() > 0.05 * largest
    assert ChannelGraph(smaller, 50.0).macs_per_second(ChannelGraph(smaller, 50.0).everything) == (
        graph.macs_per_second(kept)
    )


@pytest.mark.parametrize("name", SMALL)
def test_with_all_channels_it_is_the_same(name, mine):
    recipe = recipe_of(name, mine)
    model, graph = made(recipe)
    again, _, _ = make_model(with_channels(recipe, graph.sizes(graph.everything)))
    for variable, a, b in zip(again.weights, model.get_weights(), graph.weights(graph.everything), strict=True):
        assert variable.shape == b.shape and (a == b).all()


def test_what_is_added_up_goes_together(mine):
    _, graph = made(recipe_of("ds_tc_resnet", mine))
    assert [group.layers for group in graph.groups] == [
        ("front0",),
        ("front1",),
        ("front2",),
        ("stem", "block0_mix", "block1_mix"),
    ]
    _, graph = made(recipe_of("mine", mine))
    assert [group.layers for group in graph.groups] == [("stem", "again"), ("mix",), ("first",), ("second",)]


def test_what_it_does_not_know_is_never_cut(tmp_path):
    """A layer of another kind, and channels that become an axis to slide over."""
    (tmp_path / "other.py").write_text(
        """
STRIDE = 1

def build(net, x, n_labels):
    from models.layers import keras
    x = net.conv(net.bands(net.conv(x, 9, 1, "axis")), 5, (3, 3), "free")
    x = net.layer("sigmoid", keras.layers.Activation, "sigmoid")(net.conv(x, 6, 1, "known"))
    return net.conv(net.average(x, "mean"), n_labels, 1, "label")
"""
    )
    model, _ = build_whole(load_architecture(str(tmp_path / "other.py")).build, 40, 3, {})
    assert [group.layers for group in ChannelGraph(model, 50.0).groups] == [("free",)]


@pytest.mark.parametrize("least, multiple, share", [(1, 1, 0.5), (4, 4, 0.6), (2, 3, 0.3)])
@pytest.mark.parametrize("name", ["bc_resnet", "crnn", "ds_tc_resnet"])
def test_the_share_is_reached_and_no_more_than_needed(name, mine, least, multiple, share):
    model, graph = made(recipe_of(name, mine))
    kept = choose(graph, scale(graph, model), share, least, multiple)
    limit = share * graph.macs_per_second(graph.everything)
    assert graph.macs_per_second(kept) <= limit
    too_many = []
    for group in graph.groups:
        n, left = len(group.channels), int(kept[group.channels].sum())
        assert left == n or (left >= least and (left % multiple == 0 or left == least))
        restored, lost = kept.copy(), group.channels[~kept[group.channels]]
        restored[lost[:multiple]] = True
        too_many.append(graph.macs_per_second(restored) > limit)
    assert any(too_many)


def test_a_share_out_of_reach_is_one_sentence(mine):
    model, graph = made(recipe_of("ds_tc_resnet", mine))
    with pytest.raises(ConfigError, match="a share of 0.01 of the MACs cannot be reached: 0.[0-9]+ are left with 8"):
        choose(graph, scale(graph, model), 0.01, 8, 4)


def test_the_least_scale_goes_first(mine):
    recipe = recipe_of("ds_tc_resnet", mine)
    model, graph = made(recipe)
    trunk = graph.groups[-1].channels
    for names in graph.gates:
        for variable in model.trainable_weights:
            channels = graph.rows.get(variable.name, [(0, ())])[-1][1]
            if variable.name in names and "gamma" in variable.name and np.isin(trunk[:3], channels).all():
                variable.assign(np.where(np.isin(channels, trunk[:3]), 1e-3, 1.0))
    kept = choose(graph, scale(graph, model), 0.75, 4, 1)
    assert not kept[trunk[:3]].any()


@pytest.mark.parametrize(
    "channels, match",
    [
        ({"blok0_mix": 8}, "model.channels names 'blok0_mix', .* did you mean block0_mix?"),
        ({"block0_time": 8}, "model.channels names 'block0_time'"),  # a depthwise convolution has as many as it gets
        ({"block0_mix": 8}, "block0_add adds 12 channels to 8"),
        ({"label": 3}, "model.channels gives 3 scores to 4 labels"),
    ],
)
def test_channels_that_do_not_fit_are_refused(mine, channels, match):
    with pytest.raises(ConfigError, match=match):
        make_model(with_channels(recipe_of("ds_tc_resnet", mine), channels))


def test_the_smaller_network_converts_and_steps_exactly(mine, tmp_path):
    recipe = recipe_of("crnn", mine)
    model, _ = made(recipe)
    codes = np.clip(np.random.default_rng(3).normal(0, 40, (4, 80, 40)), -128, 127).astype(np.int8)
    for _ in range(60):
        model(codes * np.float32(MODEL_SCALE), training=True)  # means and variances of the batch normalizations
    save_weights(tmp_path / "weights.npz", model)
    result = cut(recipe, tmp_path / "weights.npz", 0.6, tmp_path / "half", least=2, multiple=2)
    smaller = load_recipe(tmp_path / "half" / "recipe.yaml")
    assert (smaller.name, smaller.train.start) == (recipe.name, str(tmp_path / "half" / "weights.npz"))
    converted = convert(smaller, Path(smaller.train.start), codes)
    whole, left = result["macs_per_second"]
    assert left == converted.macs_per_second <= 0.6 * whole
    results = run_everywhere(converted.model, codes)  # step = resized whole in every runtime
    assert lsb_histogram(*results[:2]).keys() == {0}


def test_nothing_to_cut_is_the_same_recipe_and_the_same_weights(mine, tmp_path):
    recipe = recipe_of("crnn", mine)
    model, _ = made(recipe)
    save_weights(tmp_path / "weights.npz", model)
    result = cut(recipe, tmp_path / "weights.npz", 1.0, tmp_path / "all")
    assert load_recipe(tmp_path / "all" / "recipe.yaml").model == recipe.model
    assert (tmp_path / "all" / "weights.npz").read_bytes() == (tmp_path / "weights.npz").read_bytes()
    assert result["parameters"][0] == result["parameters"][1]


def test_what_is_cut_can_be_cut_again(mine, tmp_path):
    recipe = recipe_of("ds_cnn", mine)
    model, _ = made(recipe)
    save_weights(tmp_path / "weights.npz", model)
    cut(recipe, tmp_path / "weights.npz", 0.7, tmp_path / "once", least=4)
    once = load_recipe(tmp_path / "once" / "recipe.yaml")
    result = cut(once, tmp_path / "once" / "weights.npz", 0.7, tmp_path / "twice", least=4)
    twice = load_recipe(tmp_path / "twice" / "recipe.yaml")
    model, _, _ = make_model(twice)
    load_weights(tmp_path / "twice" / "weights.npz", model)
    assert result["macs_per_second"][1] < result["macs_per_second"][0] and twice.model.channels != once.model.channels
