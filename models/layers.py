"""Layers with two faces: `whole` for training on clips, `step` for streaming on a device, with shared weights.

An architecture is a function build(net, frames, n_labels, **parameters) -> scores that makes every layer through a
`Net`. Built with Net(step=False) the past of a temporal layer is zeros (causal zero padding); built again with
Net(step=True, layers=whole.layers) it is a ring-buffer state that enters and leaves the model:

    z = concat([state, x], time);  state_out = z[:, -length:];  y = valid convolution of z

so that zero state = causal zero padding and step = whole by construction. Tensors are [batch, time, mels, channels],
which converts to plain CONV_2D and DEPTHWISE_CONV_2D. A net that convolves over time alone keeps mels = 1 and has its
bands as channels, as they come in; `bands` turns them into an axis to slide over.

An LSTM has a third face: Net(step=True, fused=True) leaves its state inside the op, which is what is converted (one
UNIDIRECTIONAL_SEQUENCE_LSTM, set to zero by reset_all_variables); with fused=False its state enters and leaves too.

How many filters a convolution has and how many units an LSTM, the architecture says, or a recipe's model.channels for
it: that is what is left of them after pruning (quantize/channels.py). The step form has as many as its whole form.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass

from models.quiet import stderr_on_failure
from toolkit.errors import ConfigError

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
with stderr_on_failure():
    import tensorflow as tf
    import tf_keras as keras

    tf.config.list_physical_devices()  # or it would tell later that there is no GPU

LARGEST_CELL = 10.0  # of an LSTM; cell_clip of the fused op, which tf-keras does not know


@dataclass(frozen=True)
class State:
    """A state of a step model: the tensor that enters and the one that leaves. A ring buffer is [1, length, mels,
    channels], an LSTM's hidden or cell state [1, units]."""

    name: str
    entering: object
    leaving: object


class Cell(keras.layers.LSTMCell):
    """An LSTM's cell that stays within +-10, as the converter makes it. Its output needs no change: tanh(10) is 1."""

    def call(self, inputs, states, training=None):
        y, (hidden, cell) = super().call(inputs, states, training)
        return y, [hidden, tf.clip_by_value(cell, -LARGEST_CELL, LARGEST_CELL)]


class Average(keras.layers.Lambda):
    """The mean over the bands, of each channel by itself."""


class Net:
    """Makes the layers of one architecture, by name, as whole or as step.

    channels: {layer: filters or units} of convolutions and LSTMs that are to have others than the architecture says.
    Kernels and strides are frames, or (frames, bands). Over the bands a convolution is "same" as TensorFlow has it,
    or, with same=False, valid: a kernel as wide as the axis leaves one band.
    """

    def __init__(
        self,
        step: bool,
        layers: dict[str, keras.layers.Layer] | None = None,
        fused: bool = False,
        channels: dict[str, int] | None = None,
    ):
        self.step, self.fused = step, fused
        self.layers = {} if layers is None else layers  # shared between the whole and the step form
        self.channels = channels or {}
        self.sized: list[str] = []  # layers that choose how many channels leave them
        self.states: list[State] = []

    def layer(self, name: str, make: Callable[..., keras.layers.Layer], *args, **kwargs) -> keras.layers.Layer:
        """The layer of that name, made at the first call."""
        if name not in self.layers:
            self.layers[name] = make(*args, name=name, **kwargs)
        return self.layers[name]

    def _size(self, name: str, channels: int) -> int:
        self.sized.append(name)
        return self.channels.get(name, channels)

    def bands(self, x):
        """x [B, T, 1, C] -> [B, T, C, 1]: the features of a frame, side by side."""
        return keras.layers.Reshape((-1, x.shape[3], 1), name="bands")(x)

    def past(self, x, length: int, name: str, edges: tuple[int, int] = (0, 0)):
        """x [B, T, M, C] -> z [B, length + T, M + edges, C]: `length` frames of the past in front, zeros at both ends
        of the bands. Only the new frames are padded: the ring buffer keeps its zeros."""
        if not self.step:
            padding = ((length, 0), edges)
            return keras.layers.ZeroPadding2D(padding, name=f"{name}_past")(x) if length or any(edges) else x
        if any(edges):
            x = keras.layers.ZeroPadding2D(((0, 0), edges), name=f"{name}_edges")(x)
        if length == 0:
            return x
        state = keras.Input((length, *x.shape[2:]), batch_size=1, name=f"{name}_state")
        z = keras.layers.Concatenate(axis=1, name=f"{name}_concat")([state, x])
        keep = keras.layers.Lambda(lambda z: z[:, -length:], name=f"{name}_keep")
        self.states.append(State(f"{name}_state", state, keep(z)))
        return z

    def conv(self, x, filters: int, kernel, name: str, stride=1, bias: bool = False, same: bool = True):
        """Causal convolution over time. A stride of s turns s frames into one; feed steps of a multiple of s."""
        kernel, stride, filters = _pair(kernel), _pair(stride), self._size(name, filters)
        z = self.past(x, kernel[0] - stride[0], name, _edges(x, kernel, stride, same))
        return self.layer(name, keras.layers.Conv2D, filters, kernel, stride, "valid", use_bias=bias)(z)

    def depthwise(self, x, kernel, name: str, same: bool = True):
        """Causal convolution over time, each channel by itself."""
        kernel = _pair(kernel)
        z = self.past(x, kernel[0] - 1, name, _edges(x, kernel, (1, 1), same))
        return self.layer(name, keras.layers.DepthwiseConv2D, kernel, 1, "valid", use_bias=False)(z)

    def lstm(self, x, units: int, name: str):
        """x [B, T, 1, C] -> [B, T, 1, units]."""
        sequence = keras.layers.Reshape((-1, x.shape[3]), name=f"{name}_sequence")(x)
        cell = Cell(self._size(name, units), name="cell")
        layer = self.layer(name, keras.layers.RNN, cell, return_sequences=True, return_state=True)
        units = layer.cell.units
        if self.fused:
            fused = keras.layers.LSTM(units, return_sequences=True, name=f"{name}_fused")
            fused.cell = layer.cell
            y = fused(sequence)
        elif self.step:
            past = [keras.Input((units,), batch_size=1, name=f"{name}_{part}_state") for part in ("hidden", "cell")]
            y, *last = layer(sequence, initial_state=past)
            self.states += [State(entering.name, entering, leaving) for entering, leaving in zip(past, last)]
        else:
            y, *_ = layer(sequence)
        return keras.layers.Reshape((-1, 1, units), name=f"{name}_frames")(y)

    def average(self, x, name: str):
        """x [B, T, M, C] -> [B, T, 1, C]: the mean over the bands; add() broadcasts it back. Converted it is a
        depthwise convolution: an AVERAGE_POOL_2D has one scale for its input and its output, which the converter takes
        from the output, so that the bands would be clipped to the range of their mean."""

        def mean(x):
            if not self.step:
                return tf.reduce_mean(x, axis=2, keepdims=True)
            kernel = tf.fill((1, x.shape[2], x.shape[3], 1), 1 / x.shape[2])
            return tf.nn.depthwise_conv2d(x, kernel, (1, 1, 1, 1), "VALID")

        return Average(mean, name=name)(x)

    def norm(self, x, name: str):
        """Batch normalization; folds into the convolution before it."""
        return self.layer(name, keras.layers.BatchNormalization, momentum=0.95)(x)

    def relu(self, x, name: str, limit: float | None = None):
        """With a limit (as 6 in ReLU6) no outlier widens the int8 range."""
        return self.layer(name, keras.layers.ReLU, limit)(x)

    def add(self, x, y, name: str):
        if x.shape[3] != y.shape[3]:
            raise ConfigError(
                f"{name} adds {x.shape[3]} channels to {y.shape[3]}: model.channels must leave as many to both."
            )
        return self.layer(name, keras.layers.Add)([x, y])

    def dropout(self, x, rate: float, name: str):
        return self.layer(name, keras.layers.Dropout, rate)(x) if rate and not self.step else x


def _pair(size) -> tuple[int, int]:
    """(frames, bands) of a kernel or a stride."""
    return (size, 1) if isinstance(size, int) else tuple(size)


def _edges(x, kernel: tuple[int, int], stride: tuple[int, int], same: bool) -> tuple[int, int]:
    """Zeros below and above the bands, as padding="same" has them."""
    bands = x.shape[2]
    total = max(0, (-(-bands // stride[1]) - 1) * stride[1] + kernel[1] - bands) if same else 0
    return total // 2, total - total // 2


def build_whole(
    build, n_features: int, n_labels: int, parameters: dict, channels: dict[str, int] | None = None
) -> tuple[keras.Model, Net]:
    """frames float [B, T, n_features] -> scores float [B, T/stride, n_labels] (logits), and its Net. Raises ConfigError
    for channels of layers that there are not, or that fit no layer after them."""
    net = Net(step=False, channels=channels)
    frames = keras.Input((None, n_features), name="frames")
    x = keras.layers.Lambda(lambda x: tf.expand_dims(x, 2), name="channels")(frames)
    scores = build(net, x, n_labels, **parameters)
    _check_channels(net, scores, n_labels)
    scores = keras.layers.Lambda(lambda x: x[:, :, 0], name="scores")(scores)
    return keras.Model(frames, scores, name="whole"), net


def _check_channels(net: Net, scores, n_labels: int) -> None:
    for name in net.channels:
        if name not in net.sized:
            near = difflib.get_close_matches(name, net.sized, 1)
            hint = f"did you mean {near[0]}?" if near else f"expected some of {', '.join(net.sized)}"
            raise ConfigError(f"model.channels names {name!r}, which is no convolution or LSTM of the network; {hint}")
    if net.channels and scores.shape[3] != n_labels:
        raise ConfigError(f"model.channels gives {scores.shape[3]} scores to {n_labels} labels: leave their layer out.")


def build_step(
    build, n_features: int, n_labels: int, parameters: dict, n_frames: int, layers: dict, fused: bool = False
) -> keras.Model:
    """The step form with the whole form's layers: inputs {frames [1, n_frames, n_features], NAME_state ...},
    outputs {scores [1, n_frames/stride, n_labels], NAME_state_out ...}. The batch is one. fused: without the states of
    LSTMs, for the converter."""
    net = Net(step=True, layers=layers, fused=fused)
    frames = keras.Input((n_frames, n_features), batch_size=1, name="frames")
    x = keras.layers.Reshape((-1, 1, n_features), name="channels_step")(frames)
    scores = build(net, x, n_labels, **parameters)
    scores = keras.layers.Reshape((-1, n_labels), name="scores")(scores)
    inputs = {"frames": frames, **{s.name: s.entering for s in net.states}}
    outputs = {"scores": scores, **{f"{s.name}_out": s.leaving for s in net.states}}
    return keras.Model(inputs, outputs, name="step")
