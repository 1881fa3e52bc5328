"""Structured pruning: which channels of a network must go together, what they cost, and the network without them.

A channel is made by a filter of a convolution or a unit of an LSTM, and passes through whatever treats each channel by
itself: batch normalization, depthwise convolution, activation, the mean over the bands. add() makes one of two: what a
residual block adds to its input can only be cut together with it. A walk over the Keras graph of any architecture made
through models/layers.py finds them (union-find), and which rows and columns of every weight belong to which channel.
What a layer of another kind gets or gives is never cut, nor are features and scores.

Without a channel the network computes what it computed with the channel's outputs at zero. (Li et al. 2017,
arXiv:1608.08710; layers that depend on each other: Fang et al. 2023, arXiv:2301.12900.)

This file holds TensorFlow in the process.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.layers import Average, Cell, keras
from toolkit.errors import ConfigError


@dataclass(frozen=True)
class Group:
    """Channels of which any may be cut, each from all of the layers."""

    layers: tuple[str, ...]  # that make them: each has one filter or unit for every channel
    channels: np.ndarray  # int [n], their numbers in the graph


@dataclass(frozen=True)
class _Flow:
    """What the walk knows of a tensor [B, T, ..., C]."""

    layer: str  # that it leaves
    shape: tuple[int | None, ...]
    channels: np.ndarray  # int [C]
    rate: float  # of T, per second

    @property
    def bands(self) -> int:
        return int(np.prod(self.shape[2:-1]))


class ChannelGraph:
    """The channels of a whole model (models/layers.py: build_whole) as numbers; several that are added up are one.

    groups: what may be cut
    rows:   {weight: [(axis, channels)]}: whose its indices along an axis are
    gates:  the names of the weights that scale channels, by layer: of a normalization, or of a convolution or LSTM
            that has none behind it
    """

    def __init__(self, model: keras.Model, frames_per_second: float):
        self._model, self._parents = model, []
        self._made: dict[str, np.ndarray] = {}
        self._fixed: list[np.ndarray] = []
        self._costs: list[tuple[float, tuple[np.ndarray, ...]]] = []  # MAC/s of each combination of these channels
        self.rows: dict[str, list[tuple[int, np.ndarray]]] = {}
        self._gates: dict[str, list[str]] = {}
        self._walk(frames_per_second)
        of = np.array([self._find(i) for i in range(len(self._parents))])
        self.rows = {name: [(axis, of[channels]) for axis, channels in rows] for name, rows in self.rows.items()}
        self._costs = [(cost, tuple(of[channels] for channels in several)) for cost, several in self._costs]
        self._made = {name: of[channels] for name, channels in self._made.items()}
        self.groups = self._find_groups(set(of[np.concatenate(self._fixed)].tolist()))
        self.gates = tuple(self._gates.values())

    @property
    def everything(self) -> np.ndarray:
        """bool [channels]: all of them kept."""
        return np.ones(len(self._parents), bool)

    def macs_per_second(self, kept: np.ndarray) -> int:
        """As quantize/convert.py counts them, with the channels of bool [channels]; layers of other kinds than RULES
        are not among them."""
        return round(sum(cost * np.prod([kept[c].sum() for c in them], dtype=float) for cost, them in self._costs))

    def sizes(self, kept: np.ndarray) -> dict[str, int]:
        """For model.channels: how many filters or units are left of every layer from which some may be cut."""
        return {name: int(kept[self._made[name]].sum()) for group in self.groups for name in group.layers}

    def weights(self, kept: np.ndarray) -> list[np.ndarray]:
        """All weights without the channels that are not kept, in the order of model.weights."""
        values = []
        for variable in self._model.weights:
            value = variable.numpy()
            for axis, channels in self.rows.get(variable.name, ()):
                value = np.compress(kept[channels], value, axis)
            values.append(value)
        return values

    def _walk(self, frames_per_second: float) -> None:
        flows: dict[str, _Flow] = {}
        for _, nodes in sorted(self._model._nodes_by_depth.items(), reverse=True):  # from the input on
            for node in nodes:
                layer, entering = node.layer, [flows[i] for i in node.flat_input_ids]
                shape = keras.backend.int_shape(node.outputs[0] if isinstance(node.outputs, list) else node.outputs)
                if entering:
                    rule = RULES.get(type(layer), ChannelGraph._other)
                    channels, rate = rule(self, layer, entering, shape)
                else:
                    channels, rate = self._fix(self._new(shape)), frames_per_second
                flows |= {i: _Flow(layer.name, shape, channels, rate) for i in node.flat_output_ids}
        for tensor in self._model.outputs:
            self._fix(flows[str(id(tensor))].channels)

    def _conv(self, layer, entering: Sequence[_Flow], shape):
        (x,) = entering
        if layer.groups != 1:
            return self._other(layer, entering, shape)
        y, rate = self._make(layer, shape), x.rate / layer.strides[0]
        self._owns(layer.kernel, (2, x.channels), (3, y))
        self._owns(layer.bias, (0, y))
        self._costs.append((rate * shape[2] * np.prod(layer.kernel_size), (x.channels, y)))
        return y, rate

    def _depthwise(self, layer, entering: Sequence[_Flow], shape):
        (x,) = entering
        if layer.depth_multiplier != 1:
            return self._other(layer, entering, shape)
        rate = x.rate / layer.strides[0]
        self._owns(layer.depthwise_kernel, (2, x.channels))
        self._owns(layer.bias, (0, x.channels))
        self._costs.append((rate * shape[2] * np.prod(layer.kernel_size), (x.channels,)))
        return x.channels, rate

    def _lstm(self, layer, entering: Sequence[_Flow], shape):
        (x,) = entering
        if type(layer.cell) is not Cell:
            return self._other(layer, entering, shape)
        y = self._make(layer, shape)
        gates = np.tile(y, 4)  # input, forget, cell, output
        self._owns(layer.cell.kernel, (0, x.channels), (1, gates))
        self._owns(layer.cell.recurrent_kernel, (0, y), (1, gates))
        self._owns(layer.cell.bias, (0, gates))
        self._costs += [(4 * x.rate, (x.channels, y)), (4 * x.rate, (y, y))]
        return y, x.rate

    def _norm(self, layer, entering: Sequence[_Flow], shape):
        (x,) = entering
        for weight in layer.weights:
            self._owns(weight, (0, x.channels))
        self._gates.pop(x.layer, None)
        self._gates[layer.name] = [weight.name for weight in layer.trainable_weights]
        return x.channels, x.rate

    def _add(self, layer, entering: Sequence[_Flow], shape):
        first, *others = entering
        for other in others:
            self._unite(first.channels, other.channels)
        return first.channels, first.rate

    def _average(self, layer, entering: Sequence[_Flow], shape):
        (x,) = entering
        self._costs.append((x.rate * x.bands, (x.channels,)))  # on the device a depthwise convolution
        return x.channels, x.rate

    def _reshape(self, layer, entering: Sequence[_Flow], shape):
        (x,) = entering
        rate = x.rate * np.prod(x.shape[2:]) / np.prod(shape[2:])
        channels, _ = (self._each if x.shape[-1] == shape[-1] else self._other)(layer, entering, shape)
        return channels, rate

    def _each(self, layer, entering: Sequence[_Flow], shape):
        (x,) = entering
        return x.channels, x.rate

    def _other(self, layer, entering: Sequence[_Flow], shape):
        for flow in entering:
            self._fix(flow.channels)
        return self._fix(self._new(shape)), entering[0].rate

    def _new(self, shape) -> np.ndarray:
        numbers = np.arange(len(self._parents), len(self._parents) + shape[-1])
        self._parents += numbers.tolist()
        return numbers

    def _make(self, layer, shape) -> np.ndarray:
        if layer.name not in self._made:
            self._made[layer.name] = self._new(shape)
            self._gates[layer.name] = [weight.name for weight in layer.trainable_weights]
        return self._made[layer.name]

    def _fix(self, channels: np.ndarray) -> np.ndarray:
        self._fixed.append(channels)
        return channels

    def _owns(self, weight, *rows: tuple[int, np.ndarray]) -> None:
        if weight is None:
            return
        for (_, before), (_, now) in zip(self.rows.get(weight.name, ()), rows):  # a layer that is used again
            self._unite(before, now)
        self.rows[weight.name] = list(rows)

    def _unite(self, some: np.ndarray, others: np.ndarray) -> None:
        for a, b in zip(some, others, strict=True):
            a, b = self._find(a), self._find(b)
            self._parents[max(a, b)] = min(a, b)

    def _find(self, channel: int) -> int:
        while self._parents[channel] != channel:
            channel = self._parents[channel]
        return int(channel)

    def _find_groups(self, fixed: set[int]) -> tuple[Group, ...]:
        makers: dict[int, list[str]] = defaultdict(list)
        for name, channels in self._made.items():
            for channel in np.unique(channels).tolist():
                makers[channel].append(name)
        groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for channel, layers in sorted(makers.items()):
            if channel not in fixed:
                groups[tuple(layers)].append(channel)
        return tuple(Group(layers, np.array(channels)) for layers, channels in groups.items())


RULES = {  # by exact type: a subclass may do otherwise
    keras.layers.Conv2D: ChannelGraph._conv,
    keras.layers.DepthwiseConv2D: ChannelGraph._depthwise,
    keras.layers.RNN: ChannelGraph._lstm,
    keras.layers.BatchNormalization: ChannelGraph._norm,
    keras.layers.Add: ChannelGraph._add,
    keras.layers.Reshape: ChannelGraph._reshape,
    Average: ChannelGraph._average,
    keras.layers.ReLU: ChannelGraph._each,
    keras.layers.Dropout: ChannelGraph._each,
    keras.layers.ZeroPadding2D: ChannelGraph._each,
}


def choose(graph: ChannelGraph, importance: np.ndarray, share: float, least: int, multiple: int) -> np.ndarray:
    """The channels to keep, bool [channels], so that at most `share` of the MACs are left. importance: of each channel,
    what it costs to lose it; least: channels that every group keeps; multiple: of which it keeps some.

    Greedy: the next to go are the least important channels of one group, as many as leave it a multiple; of the group
    in which that costs the least per MAC it saves. Raises ConfigError if `least` channels in every group are too many.
    """
    kept = graph.everything
    orders = [group.channels[np.argsort(importance[group.channels], kind="stable")] for group in graph.groups]
    whole = macs = graph.macs_per_second(kept)
    while macs > share * whole:
        steps = []
        for order in orders:
            left = order[kept[order]]
            n = max(least, (len(left) - 1) // multiple * multiple)
            if n < len(left):
                without = kept.copy()
                without[left[:-n]] = False
                saved = macs - graph.macs_per_second(without)
                steps.append((importance[left[:-n]].sum() / max(saved, 1), len(steps), without))
        if not steps:
            raise ConfigError(
                f"a share of {share} of the MACs cannot be reached: {macs / whole:.3f} are left with {least} channels "
                "in each group; ask for a greater share, or train a narrower network."
            )
        kept = min(steps)[2]
        macs = graph.macs_per_second(kept)
    return kept
