"""Reads a .tflite: the graph of a model with one subgraph, as TFLite's schema (version 3) lays it out.

    read_model(data) -> Graph of tensors, operators and the names of its signature

A flatbuffer is tables that point to each other by offsets. Here every offset and length is checked before it is used,
so that any bytes whatever give a Graph or an UnsupportedError. Of an operator's options only those are read that
OPTIONS names; operators of other kinds are kept by name, for whoever runs the graph to refuse.
https://github.com/tensorflow/tensorflow/blob/v2.14.0/tensorflow/lite/schema/schema.fbs
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np

from .errors import UnsupportedError

IDENTIFIER = b"TFL3"
MAX_ITEMS, MAX_DIMENSIONS = 10_000, 8  # tensors or operators of a graph; axes of a tensor
TYPES = {0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 6: "bool", 7: "int16", 9: "int8"}
READ_TYPES = ("int8", "int16", "int32", "int64")  # whose constants can be had as arrays
NAMES = {
    0: "ADD", 1: "AVERAGE_POOL_2D", 2: "CONCATENATION", 3: "CONV_2D", 4: "DEPTHWISE_CONV_2D", 6: "DEQUANTIZE",
    9: "FULLY_CONNECTED", 14: "LOGISTIC", 17: "MAX_POOL_2D", 18: "MUL", 19: "RELU", 21: "RELU6", 22: "RESHAPE",
    25: "SOFTMAX", 28: "TANH", 34: "PAD", 39: "TRANSPOSE", 40: "MEAN", 43: "SQUEEZE",
    44: "UNIDIRECTIONAL_SEQUENCE_LSTM", 45: "STRIDED_SLICE", 49: "SPLIT", 60: "PADV2", 65: "SLICE", 70: "EXPAND_DIMS",
    74: "SUM", 114: "QUANTIZE",
}  # fmt: skip
_WINDOW = {"padding": (0, "b", 0), "stride_w": (1, "i", 0), "stride_h": (2, "i", 0)}
_POOL = {**_WINDOW, "filter_w": (3, "i", 0), "filter_h": (4, "i", 0), "activation": (5, "b", 0)}
OPTIONS = {  # operator: (code of its table, {option: (field, format, default)})
    "CONV_2D": (1, {**_WINDOW, "activation": (3, "b", 0), "dilation_w": (4, "i", 1), "dilation_h": (5, "i", 1)}),
    "DEPTHWISE_CONV_2D": (2, {**_WINDOW, "depth_multiplier": (3, "i", 0), "activation": (4, "b", 0),
                              "dilation_w": (5, "i", 1), "dilation_h": (6, "i", 1)}),
    "AVERAGE_POOL_2D": (5, _POOL),
    "MAX_POOL_2D": (5, _POOL),
    "CONCATENATION": (10, {"axis": (0, "i", 0), "activation": (1, "b", 0)}),
    "ADD": (11, {"activation": (0, "b", 0)}),
    "STRIDED_SLICE": (32, {"begin_mask": (0, "i", 0), "end_mask": (1, "i", 0), "ellipsis_mask": (2, "i", 0),
                           "new_axis_mask": (3, "i", 0), "shrink_axis_mask": (4, "i", 0), "offset": (5, "b", 0)}),
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """Real value = scale * (integer - zero_point), per index of `axis` where there are several scales."""

    shape: tuple[int, ...]
    type: str  # as numpy names it
    scales: np.ndarray  # float32 [k]; empty where it is not quantized
    zero_points: np.ndarray  # int64 [k]
    axis: int  # of the scales
    data: np.ndarray | None  # of a constant, [*shape]
    is_variable: bool = False


@dataclass(frozen=True)
class Operator:
    """One operation; inputs and outputs are indices of tensors, -1 for one that is left out."""

    name: str  # "CONV_2D"
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: dict[str, int] = field(default_factory=dict)  # those that OPTIONS names


@dataclass(frozen=True)
class Graph:
    """The only subgraph of a model; its signature names indices of tensors."""

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: dict[str, int]
    outputs: dict[str, int]


class _File:
    """Bytes with checked reads; all offsets count from the first byte."""

    def __init__(self, data: bytes):
        self.data = data

    def bad(self, what: str) -> UnsupportedError:
        return UnsupportedError(f"the model of {len(self.data)} bytes is damaged: {what}; convert it again.")

    def bytes(self, at: int, size: int) -> memoryview:
        if at < 0 or at + size > len(self.data):
            raise self.bad(f"{size} bytes at {at} lie outside of it")
        return memoryview(self.data)[at : at + size]

    def number(self, form: str, at: int) -> int:
        return struct.unpack("<" + form, self.bytes(at, struct.calcsize("<" + form)))[0]

    def table(self, at: int) -> _Table:
        return _Table(self, at + self.number("I", at))

    def vector(self, at: int, item_bytes: int, limit: int | None = None) -> tuple[int, int]:
        """(first item, number of items) of the vector that the offset at `at` points to."""
        start = at + self.number("I", at)
        n = self.number("I", start)
        if limit is not None and n > limit:
            raise self.bad(f"a list of {n} items, at most {limit} are read")
        self.bytes(start + 4, n * item_bytes)
        return start + 4, n


class _Table:
    """One table: fields by number, absent ones by default."""

    def __init__(self, file: _File, at: int):
        self.file, self.at = file, at
        self._fields = at - file.number("i", at)
        self._n = max(0, (file.number("H", self._fields) - 4) // 2)

    def _where(self, number: int) -> int | None:
        offset = self.file.number("H", self._fields + 4 + 2 * number) if number < self._n else 0
        return self.at + offset if offset else None

    def number(self, number: int, form: str, default: int = 0) -> int:
        at = self._where(number)
        return default if at is None else self.file.number(form, at)

    def table(self, number: int) -> _Table | None:
        at = self._where(number)
        return None if at is None else self.file.table(at)

    def tables(self, number: int) -> list[_Table]:
        at = self._where(number)
        if at is None:
            return []
        start, n = self.file.vector(at, 4, MAX_ITEMS)
        return [self.file.table(start + 4 * i) for i in range(n)]

    def array(self, number: int, dtype: str, limit: int | None = None) -> np.ndarray:
        at = self._where(number)
        if at is None:
            return np.empty(0, dtype)
        size = np.dtype(dtype).itemsize
        start, n = self.file.vector(at, size, limit)
        return np.frombuffer(self.file.bytes(start, n * size), dtype)

    def text(self, number: int) -> str:
        return self.array(number, "u1", MAX_ITEMS).tobytes().decode("utf-8", "replace")


def read_model(data: bytes) -> Graph:
    """The graph of a .tflite. UnsupportedError if it is damaged, or not of the form above."""
    file = _File(bytes(data))
    if file.data[4:8] != IDENTIFIER:
        raise file.bad(f"it begins with {file.data[:8]!r}, not with {IDENTIFIER!r} at byte 4")
    model = file.table(0)
    subgraphs, signatures = model.tables(2), model.tables(7)
    if len(subgraphs) != 1 or len(signatures) != 1:
        raise UnsupportedError(f"the model has {len(subgraphs)} subgraphs and {len(signatures)} signatures; one of "
                               "each can be run.")
    codes = [max(code.number(0, "b"), code.number(3, "i")) for code in model.tables(1)]
    buffers = model.tables(4)
    tensors = tuple(_tensor(file, table, buffers) for table in subgraphs[0].tables(0))
    operators = tuple(_operator(file, table, codes, len(tensors)) for table in subgraphs[0].tables(3))
    inputs, outputs = (_names(file, signatures[0].tables(i), len(tensors)) for i in (0, 1))
    return Graph(tensors, operators, inputs, outputs)


def _tensor(file: _File, table: _Table, buffers: list[_Table]) -> Tensor:
    shape = tuple(int(n) for n in table.array(0, "<i4", MAX_DIMENSIONS))
    code, buffer = table.number(1, "b"), table.number(2, "I")
    if min(shape, default=1) < 0:
        raise file.bad(f"a tensor of shape {list(shape)}")
    if buffer >= len(buffers):
        raise file.bad(f"buffer {buffer} of {len(buffers)}")
    quantization = table.table(4)
    scales, zero_points, axis = np.empty(0, "<f4"), np.empty(0, "<i8"), 0
    if quantization is not None:
        scales, zero_points = quantization.array(2, "<f4"), quantization.array(3, "<i8")
        axis = quantization.number(6, "i")
    if len(zero_points) != len(scales):
        raise file.bad(f"a tensor of {len(scales)} scales and {len(zero_points)} zero points")
    content, kind = buffers[buffer].array(0, "u1"), TYPES.get(code, f"type {code}")
    data = _constant(file, content, shape, kind) if len(content) and kind in READ_TYPES else None
    return Tensor(shape, kind, scales, zero_points, axis, data, bool(table.number(5, "b")))


def _constant(file: _File, content: np.ndarray, shape: tuple[int, ...], kind: str) -> np.ndarray:
    dtype = np.dtype(kind).newbyteorder("<")
    size = dtype.itemsize
    for n in shape:
        size *= n
    if size != len(content):
        raise file.bad(f"{len(content)} bytes of constants for {kind} {list(shape)}")
    return content.view(dtype).reshape(shape)


def _operator(file: _File, table: _Table, codes: list[int], n_tensors: int) -> Operator:
    index = table.number(0, "I")
    if index >= len(codes):
        raise file.bad(f"operator code {index} of {len(codes)}")
    name = NAMES.get(codes[index], f"operator {codes[index]}")
    inputs, outputs = (tuple(int(i) for i in table.array(n, "<i4", MAX_ITEMS)) for n in (1, 2))
    for i in inputs + outputs:
        if not -1 <= i < n_tensors:
            raise file.bad(f"{name} uses tensor {i} of {n_tensors}")
    return Operator(name, inputs, outputs, _options(file, table, name))


def _options(file: _File, table: _Table, name: str) -> dict[str, int]:
    if name not in OPTIONS:
        return {}
    code, fields = OPTIONS[name]
    options = table.table(4)
    if options is None:
        return {key: default for key, (_, _, default) in fields.items()}
    if table.number(3, "B") != code:
        raise file.bad(f"{name} has the options of another operator")
    return {key: options.number(number, form, default) for key, (number, form, default) in fields.items()}


def _names(file: _File, entries: list[_Table], n_tensors: int) -> dict[str, int]:
    names = {entry.text(0): entry.number(1, "I") for entry in entries}
    if len(names) != len(entries) or max(names.values(), default=0) >= n_tensors:
        raise file.bad("its signature names a tensor twice, or one that is not there")
    return names
