"""Every operator of the native runtime, of any weights, scales and forms: exactly the integers of TFLite's reference
kernels. The models are written by hand (tiny_tflite.py)."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_tflite as tiny
from tiny_tflite import Operator, Scalar, Tensor, constant, step_model

from toolkit.engine import Engine
from toolkit.interpreter import StepModel
from toolkit.lowering import quantize_multiplier

pytestmark = pytest.mark.usefixtures("core")
hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies


def check_equal(data: bytes, random: np.random.Generator) -> None:
    """Three steps of random codes, and the extremes."""
    here, there = Engine(data), StepModel(data)
    _, rows, width = here.input.shape
    codes = np.concatenate([random.integers(-128, 128, (3 * rows, width)), np.full((rows, width), -128),
                            np.full((rows, width), 127)]).astype(np.int8)
    assert np.array_equal(here.process(codes), there.process(codes))


def scale_of(random: np.random.Generator, low: float, high: float) -> float:
    return float(np.float32(np.exp(random.uniform(np.log(low), np.log(high)))))


def tensor_of(random: np.random.Generator, low: float = 1e-3, high: float = 1.0) -> Tensor:
    return Tensor((), (scale_of(random, low, high),), int(random.integers(-128, 128)))


def window_of(random: np.random.Generator, n: int, kernel: int, stride: int, dilation: int, same: bool) -> int:
    return -(-n // stride) if same else (n - (kernel - 1) * dilation - 1) // stride + 1


@hypothesis.settings(max_examples=150)
@hypothesis.given(st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
def test_convolutions(seed, is_depthwise, same):
    random = np.random.default_rng(seed)
    kernel, stride = random.integers(1, 5, 2), random.integers(1, 4, 2)
    dilation = random.integers(1, 3, 2) if random.random() < 0.3 else np.ones(2, int)
    rows, cols = (int(k * d + random.integers(0, 5)) for k, d in zip(kernel, dilation))
    channels = int(random.integers(1, 40))
    filters = channels if is_depthwise else int(random.integers(1, 40))
    x, y = tensor_of(random), tensor_of(random, 1e-2, 10.0)
    shape = (1, *kernel, filters) if is_depthwise else (filters, *kernel, channels)
    per_channel = random.random() < 0.7
    scales = tuple(scale_of(random, 1e-4, 1e-1) for _ in range(filters if per_channel and filters > 1 else 1))
    weights = Tensor(tuple(map(int, shape)), scales, 0, 3 if is_depthwise else 0,
                     random.integers(-127, 128, shape).astype(np.int8))
    bias = Tensor((filters,), (1.0,), type="int32", data=random.integers(-30000, 30000, filters).astype(np.int32))
    out = *(window_of(random, n, k, s, d, same) for n, k, s, d in zip((rows, cols), kernel, stride, dilation)), filters
    activation = Scalar("b", int(random.choice([0, 1, 3])))
    numbers = [Scalar("i", int(n)) for n in (stride[1], stride[0])]
    options = {0: Scalar("b", 0 if same else 1), 1: numbers[0], 2: numbers[1]}
    if is_depthwise:
        options |= {3: Scalar("i", 1), 4: activation}
        options |= {5: Scalar("i", int(dilation[1])), 6: Scalar("i", int(dilation[0]))}
    else:
        options |= {3: activation, 4: Scalar("i", int(dilation[1])), 5: Scalar("i", int(dilation[0]))}
    name = "DEPTHWISE_CONV_2D" if is_depthwise else "CONV_2D"
    check_equal(step_model((rows, cols, channels), out, x, y, name, [weights, bias], options), random)


@hypothesis.settings(max_examples=100)
@hypothesis.given(st.integers(0, 2**32 - 1))
def test_additions_with_every_broadcast(seed):
    """The second term is the mean of the first over rows, columns or both, so that every pair of codes meets."""
    random = np.random.default_rng(seed)
    rows, cols, channels = (int(v) for v in random.integers(1, 7, 3) * [1, 1, 6])
    kernel = int(random.choice([1, rows])), int(random.choice([1, cols]))
    shape, less = (rows, cols, channels), (rows - kernel[0] + 1, cols - kernel[1] + 1, channels)
    x, y = tensor_of(random), tensor_of(random, 1e-2, 3.0)
    quantized = {"scales": x.scales, "zero_point": x.zero_point}
    weights = Tensor((1, *kernel, channels), (0.01,), 0, 3, random.integers(-127, 128, (1, *kernel, channels), np.int8))
    bias = Tensor((channels,), (1.0,), type="int32", data=np.zeros(channels, np.int32))
    other = tensor_of(random)
    size = rows * cols * channels
    tensors = [Tensor((1, rows, cols * channels), **quantized), constant([1, *shape]), Tensor((1, *shape), **quantized),
               weights, bias, Tensor((1, *less), other.scales, other.zero_point),
               Tensor((1, *shape), y.scales, y.zero_point), constant([1, 1, size]),
               Tensor((1, 1, size), y.scales, y.zero_point)]
    one = Scalar("i", 1)
    operators = [Operator("RESHAPE", (0, 1), (2,)),
                 Operator("DEPTHWISE_CONV_2D", (2, 3, 4), (5,), {0: Scalar("b", 1), 1: one, 2: one, 3: one}),
                 Operator("ADD", (2, 5) if random.random() < 0.5 else (5, 2), (6,), {0: Scalar("b", seed % 2)}),
                 Operator("RESHAPE", (6, 7), (8,))]
    check_equal(tiny.model(tensors, operators, {"frames": 0}, {"scores": 8}), random)


def test_every_sum_of_two_codes():
    """All 65,536 pairs, at scales that differ by much and by little."""
    random = np.random.default_rng(5)
    for ratio in (1.0, 0.99, 0.3, 0.001):
        x, y = Tensor((), (0.05,), -7), Tensor((), (0.05 * (1 + ratio),), 11)
        tensors = [Tensor((1, 1, 512), x.scales, x.zero_point), constant([1, 2, 1, 256]),
                   Tensor((1, 2, 1, 256), x.scales, x.zero_point), *(constant(v) for v in ([0, 0, 0, 0], [1, 1, 1, 256],
                   [0, 1, 0, 0])), *(Tensor((1, 1, 1, 256), x.scales, x.zero_point) for _ in range(2)),
                   Tensor((1, 1, 1, 256), (0.05 * ratio,), 3),
                   Tensor((256, 1, 1, 256), (ratio,), 0, 0, np.eye(256, dtype=np.int8).reshape(256, 1, 1, 256)),
                   Tensor((1, 1, 1, 256), y.scales, y.zero_point), constant([1, 1, 256]),
                   Tensor((1, 1, 256), y.scales, y.zero_point), constant(np.zeros(256))]
        one = Scalar("i", 1)
        operators = [Operator("RESHAPE", (0, 1), (2,)), Operator("SLICE", (2, 3, 4), (6,)),
                     Operator("SLICE", (2, 5, 4), (7,)),
                     Operator("CONV_2D", (7, 9, 13), (8,), {0: Scalar("b", 1), 1: one, 2: one}),
                     Operator("ADD", (6, 8), (10,)), Operator("RESHAPE", (10, 11), (12,))]
        data = tiny.model(tensors, operators, {"frames": 0}, {"scores": 12})
        here, there = Engine(data), StepModel(data)
        a, b = np.meshgrid(np.arange(-128, 128), np.arange(-128, 128))
        codes = np.concatenate([a, b], axis=1).astype(np.int8)[random.permutation(256)]
        assert np.array_equal(here.process(codes), there.process(codes))


@hypothesis.settings(max_examples=60)
@hypothesis.given(st.integers(0, 2**32 - 1), st.sampled_from(["AVERAGE_POOL_2D", "MAX_POOL_2D"]))
def test_pools(seed, name):
    random = np.random.default_rng(seed)
    rows, cols, channels = (int(v) for v in random.integers(1, 9, 3) * [1, 1, 3])
    kernel = int(random.integers(1, rows + 1)), int(random.integers(1, cols + 1))
    stride = tuple(int(s) for s in random.integers(1, 4, 2))
    out = *(window_of(random, n, k, s, 1, False) for n, k, s in zip((rows, cols), kernel, stride)), channels
    x = tensor_of(random)
    numbers = {1: stride[1], 2: stride[0], 3: kernel[1], 4: kernel[0]}
    options = {0: Scalar("b", 1), 5: Scalar("b", seed % 2), **{key: Scalar("i", n) for key, n in numbers.items()}}
    check_equal(step_model((rows, cols, channels), out, x, x, name, [], options), random)


@hypothesis.settings(max_examples=60)
@hypothesis.given(st.integers(0, 2**32 - 1))
def test_parts_of_parts(seed):
    """A slice of a padded concatenation of a tensor with itself, along every axis."""
    random = np.random.default_rng(seed)
    shape = np.array([1, *random.integers(1, 5, 3)])
    axis = int(random.integers(1, 4))
    x = tensor_of(random)
    quantized = {"scales": x.scales, "zero_point": x.zero_point}
    joined = shape + shape * (np.arange(4) == axis)
    edges = np.zeros((4, 2), int)
    edges[1:3] = random.integers(0, 3, (2, 2))
    padded = joined + edges.sum(axis=1)
    start = np.array([int(random.integers(0, n)) for n in padded])
    size = np.array([int(random.integers(1, n - s + 1)) for n, s in zip(padded, start)])
    flat = [1, 1, int(size.prod())]

    def dims(values) -> tuple[int, ...]:
        return tuple(int(v) for v in values)

    tensors = [Tensor((1, int(shape[1]), int(shape[2] * shape[3])), **quantized), constant(shape),
               Tensor(dims(shape), **quantized), Tensor(dims(joined), **quantized), constant(edges),
               Tensor(dims(padded), **quantized), constant(start), constant(size), Tensor(dims(size), **quantized),
               constant(flat), Tensor(dims(flat), **quantized)]
    operators = [Operator("RESHAPE", (0, 1), (2,)), Operator("CONCATENATION", (2, 2), (3,), {0: Scalar("i", axis)}),
                 Operator("PAD", (3, 4), (5,)), Operator("SLICE", (5, 6, 7), (8,)), Operator("RESHAPE", (8, 9), (10,))]
    check_equal(tiny.model(tensors, operators, {"frames": 0}, {"scores": 10}), random)


@hypothesis.given(st.floats(1e-12, 1e12))
def test_multipliers_have_31_bits(real):
    multiplier, exponent = quantize_multiplier(real)
    if multiplier:
        assert 2**30 <= multiplier < 2**31 and multiplier * 2.0 ** (exponent - 31) == pytest.approx(real, rel=2**-30)
    else:
        assert real < 2**-32
