"""Layers with two faces: `whole` for training on clips, `step` for streaming on a device, with shared weights.

An architecture is a function build(net, frames, n_labels, **parameters) -> scores that makes every layer through a
`Net`. Built with Net(step=False) the past of a temporal layer is zeros (causal zero padding); built again with
Net(step=True, layers=whole.layers) it is a ring-buffer state that enters and leaves the model:

    z = concat([state, x], time);  state_out = z[:, -length:];  y = valid convolution of z

so that zero state = causal zero padding and step = whole by construction. Tensors are [batch, time, 1, channels],
which converts to plain CONV_2D and DEPTHWISE_CONV_2D.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import tensorflow as tf
import tf_keras as keras


@dataclass(frozen=True)
class State:
    """One ring buffer of a step model: the tensor that enters and the one that leaves, [1, length, 1, channels]."""

    name: str
    entering: object
    leaving: object


class Net:
    """Makes the layers of one architecture, by name, as whole or as step."""

    def __init__(self, step: bool, layers: dict[str, keras.layers.Layer] | None = None):
        self.step = step
        self.layers = {} if layers is None else layers  # shared between the whole and the step form
        self.states: list[State] = []

    def layer(self, name: str, make: Callable[..., keras.layers.Layer], *args, **kwargs) -> keras.layers.Layer:
        """The layer of that name, made at the first call."""
        if name not in self.layers:
            self.layers[name] = make(*args, name=name, **kwargs)
        return self.layers[name]

    def past(self, x, length: int, name: str):
        """x [B, T, 1, C] -> z [B, length + T, 1, C]: `length` frames of the past in front."""
        if length == 0:
            return x
        if not self.step:
            return keras.layers.ZeroPadding2D(((length, 0), (0, 0)), name=f"{name}_past")(x)
        state = keras.Input((length, 1, x.shape[-1]), batch_size=1, name=f"{name}_state")
        z = keras.layers.Concatenate(axis=1, name=f"{name}_concat")([state, x])
        keep = keras.layers.Lambda(lambda z: z[:, -length:], name=f"{name}_keep")
        self.states.append(State(f"{name}_state", state, keep(z)))
        return z

    def conv(self, x, filters: int, kernel: int, name: str, stride: int = 1, bias: bool = False):
        """Causal convolution over time. A stride of s turns s frames into one; feed steps of a multiple of s."""
        z = self.past(x, kernel - stride, name)
        make = keras.layers.Conv2D
        return self.layer(name, make, filters, (kernel, 1), (stride, 1), "valid", use_bias=bias)(z)

    def depthwise(self, x, kernel: int, name: str):
        """Causal convolution over time, each channel by itself."""
        z = self.past(x, kernel - 1, name)
        return self.layer(name, keras.layers.DepthwiseConv2D, (kernel, 1), 1, "valid", use_bias=False)(z)

    def norm(self, x, name: str):
        """Batch normalization; folds into the convolution before it."""
        return self.layer(name, keras.layers.BatchNormalization, momentum=0.95)(x)

    def relu(self, x, name: str):
        return self.layer(name, keras.layers.ReLU)(x)

    def add(self, x, y, name: str):
        return self.layer(name, keras.layers.Add)([x, y])

    def dropout(self, x, rate: float, name: str):
        return self.layer(name, keras.layers.Dropout, rate)(x) if rate and not self.step else x


def build_whole(build, n_features: int, n_labels: int, parameters: dict) -> tuple[keras.Model, Net]:
    """frames float [B, T, n_features] -> scores float [B, T/stride, n_labels] (logits), and its Net."""
    net = Net(step=False)
    frames = keras.Input((None, n_features), name="frames")
    x = keras.layers.Lambda(lambda x: tf.expand_dims(x, 2), name="channels")(frames)
    scores = build(net, x, n_labels, **parameters)
    scores = keras.layers.Lambda(lambda x: x[:, :, 0], name="scores")(scores)
    return keras.Model(frames, scores, name="whole"), net


def build_step(build, n_features: int, n_labels: int, parameters: dict, n_frames: int, layers: dict) -> keras.Model:
    """The step form with the whole form's layers: inputs {frames [1, n_frames, n_features], NAME_state ...},
    outputs {scores [1, n_frames/stride, n_labels], NAME_state_out ...}. The batch is one."""
    net = Net(step=True, layers=layers)
    frames = keras.Input((n_frames, n_features), batch_size=1, name="frames")
    x = keras.layers.Reshape((-1, 1, n_features), name="channels_step")(frames)
    scores = build(net, x, n_labels, **parameters)
    scores = keras.layers.Reshape((-1, n_labels), name="scores")(scores)
    inputs = {"frames": frames, **{s.name: s.entering for s in net.states}}
    outputs = {"scores": scores, **{f"{s.name}_out": s.leaving for s in net.states}}
    return keras.Model(inputs, outputs, name="step")
