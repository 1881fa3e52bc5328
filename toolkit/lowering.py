"""The operators of a step model as layers of the C core: shapes for any number of frames, and every constant.

    lower(graph, dims of its inputs) -> Lowered: values, and the layers between them

All that TFLite's reference kernels compute from scales when they prepare is computed here, in the same floating-point
operations, so that the integers are the same: toolkit/core/ea_layers.h. What would not be exactly the same is refused
with an UnsupportedError that names the operator. FULLY_CONNECTED is, because TFLite's runtimes do not agree on it:
tflite-runtime 2.14 and ai-edge-litert 2.3 differ by 1 LSB in 0.04 % of its outputs; a CONV_2D of 1 x 1 is the same
layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from .errors import UnsupportedError
from .flatbuffer import Graph, Operator, Tensor

LANES = 16  # EA_LANES
SAME, VALID = 0, 1
RELU, RELU6 = 1, 3
SCALES = 1e-18, 1e18  # products and quotients of three fit any floating-point type
ADD_SHIFT = 20  # bits by which ADD raises its inputs


class Kind(IntEnum):
    """What the core computes, numbered as in ea_model.h, and what only says where integers lie."""

    CONV, DEPTHWISE, ADD, AVERAGE, MAX, COPY = 1, 2, 3, 4, 5, 6
    INSERT = 101  # the input is a part of the output, at origin
    EXTRACT = 102  # the output is a part of the input, at origin
    RESHAPE = 103


@dataclass(eq=False)
class Value:
    """An int8 tensor that is computed: dims as TFLite has them; [rows][cols][channels] as the core does."""

    dims: tuple[int, ...]
    scale: np.float32
    zero_point: int
    padded: bool = False  # parts of it are never written: they hold the zero point

    @property
    def shape(self) -> tuple[int, int, int]:
        """(rows, cols, channels): time, bands, channels of one clip."""
        if len(self.dims) == 2:
            return self.dims[0], 1, self.dims[1]
        return self.dims[1], math.prod(self.dims[2:-1]), self.dims[-1]


@dataclass(eq=False)
class Layer:
    """One layer: what it reads and writes, and what the core needs to know of it."""

    kind: Kind
    inputs: tuple[Value, ...]
    output: Value
    window: tuple[int, int] = (1, 1)  # rows, cols
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    activation: tuple[int, int] = (-128, 127)
    weights: bytes = b""
    rescale: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    origin: tuple[int, int, int] = (0, 0, 0)  # row, col, channel


@dataclass(frozen=True)
class Lowered:
    """values by index of the graph's tensor."""

    values: dict[int, Value]
    layers: list[Layer]


def quantize_multiplier(real: float) -> tuple[int, int]:
    """real >= 0 as (m, exponent): m * 2^(exponent - 31), 31 bits, rounded half up; 0 below 2^-32."""
    fraction, exponent = math.frexp(real)
    m = math.floor(fraction * 2**31 + 0.5)
    if m == 2**31:
        m, exponent = 2**30, exponent + 1
    return (m, exponent) if m and exponent >= -31 else (0, 0)


def lower(graph: Graph, entering: dict[int, tuple[int, ...]]) -> Lowered:
    """entering: the dims of the graph's inputs, by index of the tensor. UnsupportedError if an operator, its type or
    its form is one that the core does not compute exactly, or if the graph is not what its tensors say."""
    lowering = _Lowering(graph)
    as_converted = True
    for index, dims in entering.items():
        lowering.make(index, dims)
        as_converted &= dims == graph.tensors[index].shape
    for op in graph.operators:
        compute = _OPERATORS.get(op.name)
        if compute is None:
            raise UnsupportedError(f"the native runtime does not compute {op.name}.")
        before = len(lowering.values)
        compute(lowering, op, *_operands(graph, op))
        if len(lowering.values) != before + 1:
            raise UnsupportedError(f"{op.name} writes a tensor that is there already.")
        if as_converted and lowering.values[op.outputs[0]].dims != graph.tensors[op.outputs[0]].shape:
            raise UnsupportedError(f"{op.name} gives {list(lowering.values[op.outputs[0]].dims)}, the model says "
                                   f"{list(graph.tensors[op.outputs[0]].shape)}.")
    return Lowered(lowering.values, lowering.layers)


def _operands(graph: Graph, op: Operator) -> list[Tensor | None]:
    """The tensors of the inputs; one output it must have."""
    if len(op.outputs) != 1 or op.outputs[0] < 0 or not op.inputs:
        raise UnsupportedError(f"{op.name} has {len(op.inputs)} inputs and {len(op.outputs)} outputs.")
    return [graph.tensors[i] if i >= 0 else None for i in op.inputs]


class _Lowering:
    """The values and layers so far."""

    def __init__(self, graph: Graph):
        self.graph, self.values, self.layers = graph, {}, []

    def make(self, index: int, dims: tuple[int, ...]) -> Value:
        """The value of a tensor of the graph."""
        tensor = self.graph.tensors[index]
        if tensor.type != "int8" or tensor.data is not None or tensor.is_variable or len(tensor.scales) != 1:
            raise UnsupportedError(f"the native runtime computes int8 tensors of one scale, not {tensor.type} of "
                                   f"{len(tensor.scales)}.")
        scale, zero_point = tensor.scales[0], int(tensor.zero_points[0])
        if not (SCALES[0] <= scale <= SCALES[1] and -128 <= zero_point <= 127):
            raise UnsupportedError(f"a tensor has scale {scale} and zero point {zero_point}.")
        if not 2 <= len(dims) <= 4 or min(dims) < 1 or math.prod(dims) > 2**26 or (len(dims) > 2 and dims[0] != 1):
            raise UnsupportedError(f"a tensor is {list(dims)}; the native runtime computes one clip at a time, in 2 to "
                                   "4 axes.")
        value = self.values[index] = Value(dims, scale, zero_point)
        return value

    def read(self, op: Operator, position: int) -> Value:
        """The value that is an input of op; not a constant."""
        value = self.values.get(op.inputs[position]) if position < len(op.inputs) else None
        if value is None:
            raise UnsupportedError(f"the native runtime computes {op.name} of tensors only, not of constants.")
        return value

    def window_input(self, op: Operator, window: tuple[int, int]) -> tuple[Value, tuple[int, int], dict]:
        """(input with its zeros around it, dims of rows and cols of the output, what a Layer says of the window)."""
        x, options = self.read(op, 0), op.options
        if len(x.dims) != 4:
            raise UnsupportedError(f"{op.name} of {len(x.dims)} axes.")
        stride = options["stride_h"], options["stride_w"]
        dilation = options.get("dilation_h", 1), options.get("dilation_w", 1)
        if min(stride + dilation + window) < 1 or options["padding"] not in (SAME, VALID):
            raise UnsupportedError(f"{op.name} has window {window}, stride {stride}, dilation {dilation}.")
        sizes, edges = [], []
        for n, k, s, d in zip(x.dims[1:3], window, stride, dilation):
            reach = (k - 1) * d + 1
            out = -(-n // s) if options["padding"] == SAME else (n - reach) // s + 1
            missing = max(0, (out - 1) * s + reach - n)
            if out < 1 or (options["padding"] == VALID and missing):
                raise UnsupportedError(f"{op.name} of {n} has no room for a window of {reach}.")
            sizes.append(out)
            edges.append((missing // 2, missing - missing // 2))
        if any(map(any, edges)):
            if op.name.endswith("POOL_2D"):
                raise UnsupportedError(f"the native runtime does not compute {op.name} over edges.")
            x = self.pad(x, edges)
        return x, tuple(sizes), {"window": window, "stride": stride, "dilation": dilation}

    def pad(self, x: Value, edges: list[tuple[int, int]]) -> Value:
        """x [1, rows, cols, channels] with zeros around its rows and cols."""
        (top, bottom), (before, after) = edges
        _, rows, cols, channels = x.dims
        padded = Value((1, top + rows + bottom, before + cols + after, channels), x.scale, x.zero_point, padded=True)
        self.layers.append(Layer(Kind.INSERT, (x,), padded, origin=(top, before, 0)))
        return padded


def _activation(op: Operator, y: Value) -> tuple[int, int]:
    code, low, high = op.options["activation"], -128, 127
    if code not in (0, RELU, RELU6):
        raise UnsupportedError(f"the native runtime does not compute {op.name} with activation {code}.")
    if code:
        low = y.zero_point
    if code == RELU6:
        high = min(127, y.zero_point + math.floor(float(np.float32(6) / y.scale) + 0.5))
    return low, high


def _same_scale(op: Operator, *values: Value) -> None:
    if len({(float(v.scale), v.zero_point) for v in values}) > 1:
        raise UnsupportedError(f"the native runtime does not compute {op.name} of tensors of different scales.")


def _weights(op: Operator, tensor: Tensor | None, n_axes: int, channels_axis: int) -> tuple[np.ndarray, np.ndarray]:
    """(int8 weights, float64 scale of each output channel)"""
    if tensor is None or tensor.type != "int8" or tensor.data is None or len(tensor.shape) != n_axes:
        raise UnsupportedError(f"the native runtime computes {op.name} with constant int8 weights of {n_axes} axes.")
    channels, k = tensor.shape[channels_axis], len(tensor.scales)
    if k not in (1, channels) or (k > 1 and tensor.axis != channels_axis) or tensor.zero_points.any() or (
            min(tensor.shape) < 1 or not ((tensor.scales >= 0) & (tensor.scales <= SCALES[1])).all()):
        raise UnsupportedError(f"{op.name} has weights {list(tensor.shape)} with {k} scales along axis {tensor.axis}.")
    return tensor.data, np.broadcast_to(tensor.scales.astype(np.float64), (channels,))


def _rescale(op: Operator, operands: list, x: Value, weights: np.ndarray, reals: np.ndarray) -> np.ndarray:
    """What follows the sums x * weights [channels, k]; EA_RESCALE_WORDS. reals: output per sum, float64 [channels]."""
    bias = np.zeros(len(weights), np.int64)
    if len(operands) > 2 and operands[2] is not None:
        tensor = operands[2]
        if tensor.type != "int32" or tensor.data is None or tensor.shape != (len(weights),):
            raise UnsupportedError(f"{op.name} has a bias of {tensor.type} {list(tensor.shape)}.")
        bias += tensor.data
    wide = weights.astype(np.int64)
    folded = bias - x.zero_point * wide.sum(axis=1)
    parts = [quantize_multiplier(float(real)) for real in reals]
    exponents = np.array([exponent for _, exponent in parts])
    left, right = np.maximum(exponents, 0), np.maximum(-exponents, 0)
    largest = np.abs(wide).sum(axis=1) * 255 + np.maximum(np.abs(bias), np.abs(folded))
    if (left > 30).any() or (largest >= 2**30 >> np.minimum(left, 30)).any():
        raise UnsupportedError(f"the sums of {op.name} do not fit 32 bits.")
    table = np.zeros((4, _padded(len(weights))), np.int32)
    table[:, : len(weights)] = folded, [m for m, _ in parts], left, right
    return table.reshape(4, -1, LANES).swapaxes(0, 1).ravel()


def _padded(n: int) -> int:
    return -(-n // LANES) * LANES


def _rows_of(weights: np.ndarray) -> bytes:
    """[channels, k] -> each row padded with zeros to whole blocks."""
    return np.pad(weights, ((0, 0), (0, -weights.shape[1] % LANES))).astype(np.int8).tobytes()


def _conv(lowering: _Lowering, op: Operator, *operands) -> None:
    weights, scales = _weights(op, operands[1] if len(operands) > 1 else None, 4, 0)
    original = lowering.read(op, 0)
    x, (rows, cols), window = lowering.window_input(op, weights.shape[1:3])
    if weights.shape[3] != x.dims[3]:
        raise UnsupportedError(f"the native runtime does not compute {op.name} of {x.dims[3]} channels in groups of "
                               f"{weights.shape[3]}.")
    y = lowering.make(op.outputs[0], (1, rows, cols, len(weights)))
    flat = weights.reshape(len(weights), -1)
    rescale = _rescale(op, operands, original, flat, np.float64(x.scale) * scales / np.float64(y.scale))
    lowering.layers.append(Layer(Kind.CONV, (x,), y, **window, activation=_activation(op, y), weights=_rows_of(flat),
                                 rescale=rescale))


def _depthwise(lowering: _Lowering, op: Operator, *operands) -> None:
    weights, scales = _weights(op, operands[1] if len(operands) > 1 else None, 4, 3)
    x, (rows, cols), window = lowering.window_input(op, weights.shape[1:3])
    channels = weights.shape[3]
    if weights.shape[0] != 1 or channels != x.dims[3]:
        raise UnsupportedError(f"the native runtime does not compute {op.name} of {x.dims[3]} channels to {channels}.")
    y = lowering.make(op.outputs[0], (1, rows, cols, channels))
    taps = weights.reshape(-1, channels)
    rescale = _rescale(op, operands, x, taps.T, np.float64(x.scale) * scales / np.float64(y.scale))
    blocks = np.pad(taps, ((0, 0), (0, -channels % LANES))).reshape(len(taps), -1, LANES).swapaxes(0, 1)
    lowering.layers.append(Layer(Kind.DEPTHWISE, (x,), y, **window, activation=_activation(op, y),
                                 weights=blocks.astype(np.int8).tobytes(), rescale=rescale))


def _add(lowering: _Lowering, op: Operator, *operands) -> None:
    a, b = lowering.read(op, 0), lowering.read(op, 1)
    if len(a.dims) != len(b.dims) or a.dims[-1] != b.dims[-1] or any(
            m != n and 1 not in (m, n) for m, n in zip(a.dims, b.dims)):
        raise UnsupportedError(f"the native runtime does not compute {op.name} of {list(a.dims)} and {list(b.dims)}.")
    y = lowering.make(op.outputs[0], tuple(map(max, a.dims, b.dims)))
    largest = 2 * np.float64(max(a.scale, b.scale))
    reals = (np.float64(a.scale) / largest, np.float64(b.scale) / largest,
             largest / (2.0**ADD_SHIFT * np.float64(y.scale)))
    terms = []
    for real, zero_point in zip(reals, (a.zero_point, b.zero_point, None)):
        multiplier, exponent = quantize_multiplier(float(real))
        if not real < 1 or exponent > 0:
            raise UnsupportedError(f"{op.name} has scales {a.scale}, {b.scale} and {y.scale}, too far apart.")
        terms += ([] if zero_point is None else [zero_point]) + [multiplier, -exponent]
    lowering.layers.append(Layer(Kind.ADD, (a, b), y, activation=_activation(op, y),
                                 rescale=np.array(terms, np.int32)))


def _pool(lowering: _Lowering, op: Operator, *operands) -> None:
    x, (rows, cols), window = lowering.window_input(op, (op.options["filter_h"], op.options["filter_w"]))
    y = lowering.make(op.outputs[0], (1, rows, cols, x.dims[3]))
    _same_scale(op, x, y)
    kind = Kind.AVERAGE if op.name == "AVERAGE_POOL_2D" else Kind.MAX
    lowering.layers.append(Layer(kind, (x,), y, **window, activation=_activation(op, y)))


def _concatenation(lowering: _Lowering, op: Operator, *operands) -> None:
    parts = [lowering.read(op, i) for i in range(len(op.inputs))]
    n_axes, axis = len(parts[0].dims), op.options["axis"]
    axis += n_axes if axis < 0 else 0
    others = {(*p.dims[:axis], *p.dims[axis + 1:], len(p.dims)) for p in parts}
    if n_axes not in (3, 4) or not 1 <= axis < n_axes or len(others) > 1 or op.options["activation"]:
        raise UnsupportedError(f"the native runtime does not compute {op.name} of {[list(p.dims) for p in parts]} "
                               f"along axis {axis}.")
    dims = list(parts[0].dims)
    dims[axis] = sum(p.dims[axis] for p in parts)
    y, start = lowering.make(op.outputs[0], tuple(dims)), 0
    _same_scale(op, y, *parts)
    for part in parts:
        origin = [0, 0, 0]
        origin[{1: 0, n_axes - 1: 2}.get(axis, 1)] = start
        lowering.layers.append(Layer(Kind.INSERT, (part,), y, origin=tuple(origin)))
        start += part.dims[axis]


def _pad(lowering: _Lowering, op: Operator, *operands) -> None:
    x, edges = lowering.read(op, 0), _integers(op, operands, 1)
    if len(x.dims) != 4 or edges.shape != (4, 2) or edges.min() < 0 or edges.max() > 2**20 or edges[[0, 3]].any():
        raise UnsupportedError(f"the native runtime does not compute {op.name} of {list(x.dims)} by {edges.tolist()}.")
    y = lowering.make(op.outputs[0], tuple(int(n) for n in x.dims + edges.sum(axis=1)))
    _same_scale(op, x, y)
    y.padded = True
    lowering.layers.append(Layer(Kind.INSERT, (x,), y, origin=(int(edges[1, 0]), int(edges[2, 0]), 0)))


def _reshape(lowering: _Lowering, op: Operator, *operands) -> None:
    x, dims = lowering.read(op, 0), [int(n) for n in _integers(op, operands, 1).ravel()]
    rest, n = math.prod(d for d in dims if d != -1), math.prod(x.dims)
    if dims.count(-1) == 1 and rest > 0:
        dims[dims.index(-1)] = n // rest
    if math.prod(dims) != n or min(dims) < 1:
        raise UnsupportedError(f"{op.name} of {list(x.dims)} to {dims}.")
    y = lowering.make(op.outputs[0], tuple(dims))
    _same_scale(op, x, y)
    lowering.layers.append(Layer(Kind.RESHAPE, (x,), y))


def _slice(lowering: _Lowering, op: Operator, *operands) -> None:
    x, options = lowering.read(op, 0), op.options
    starts, ends = _integers(op, operands, 1).ravel(), _integers(op, operands, 2).ravel()
    n_axes = len(x.dims)
    if len(starts) != n_axes or len(ends) != n_axes:
        raise UnsupportedError(f"{op.name} of {list(x.dims)} from {len(starts)} starts to {len(ends)} ends.")
    if op.name == "SLICE":
        bounds = [(int(s), n if e == -1 else int(s) + int(e)) for s, e, n in zip(starts, ends, x.dims)]
    else:
        if any(options[key] for key in ("ellipsis_mask", "new_axis_mask", "shrink_axis_mask", "offset")) or (
                _integers(op, operands, 3) != 1).any():
            raise UnsupportedError(f"the native runtime computes {op.name} in steps of one, all axes kept.")
        bounds = []
        for i, n in enumerate(x.dims):
            start, end, _ = slice(None if options["begin_mask"] >> i & 1 else int(starts[i]),
                                  None if options["end_mask"] >> i & 1 else int(ends[i])).indices(n)
            bounds.append((start, end))
    if n_axes not in (3, 4) or any(not 0 <= s < e <= n for (s, e), n in zip(bounds, x.dims)):
        raise UnsupportedError(f"{op.name} of {list(x.dims)} to {bounds}.")
    y = lowering.make(op.outputs[0], tuple(e - s for s, e in bounds))
    _same_scale(op, x, y)
    col = bounds[2][0] if n_axes == 4 else 0
    lowering.layers.append(Layer(Kind.EXTRACT, (x,), y, origin=(bounds[1][0], col, bounds[-1][0])))


def _integers(op: Operator, operands: tuple, position: int) -> np.ndarray:
    """A constant input of integers."""
    tensor = operands[position] if position < len(operands) else None
    if tensor is None or tensor.data is None or tensor.type not in ("int32", "int64"):
        raise UnsupportedError(f"the native runtime computes {op.name} only where its shape is a constant.")
    return tensor.data.astype(np.int64)


_OPERATORS = {
    "CONV_2D": _conv, "DEPTHWISE_CONV_2D": _depthwise, "ADD": _add, "AVERAGE_POOL_2D": _pool,
    "MAX_POOL_2D": _pool, "CONCATENATION": _concatenation, "PAD": _pad, "RESHAPE": _reshape,
    "SLICE": _slice, "STRIDED_SLICE": _slice,
}  # fmt: skip
