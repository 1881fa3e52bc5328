"""Writes small .tflite files of a few operators by hand, for tests; no package is needed.

    model(tensors, operators, inputs, outputs) -> bytes

A table is a dict {field number: value}; a value is a Scalar, bytes (a string), a list of tables, a numpy vector, or a
table. Every part is written behind the one that points to it, aligned as flatbuffers asks for.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np

CODES = {"ADD": 0, "AVERAGE_POOL_2D": 1, "CONCATENATION": 2, "CONV_2D": 3, "DEPTHWISE_CONV_2D": 4, "FULLY_CONNECTED": 9,
         "MAX_POOL_2D": 17, "RESHAPE": 22, "PAD": 34, "MUL": 18, "STRIDED_SLICE": 45, "SLICE": 65}
OPTIONS = {"ADD": 11, "AVERAGE_POOL_2D": 5, "CONCATENATION": 10, "CONV_2D": 1, "DEPTHWISE_CONV_2D": 2, "MUL": 21,
           "FULLY_CONNECTED": 8, "MAX_POOL_2D": 5, "RESHAPE": 17, "PAD": 22, "STRIDED_SLICE": 32, "SLICE": 48}
TYPES = {"float32": 0, "int32": 2, "int16": 7, "int8": 9}


@dataclass(frozen=True)
class Scalar:
    """A number of a table, as struct packs it."""

    form: str
    value: int


@dataclass
class Tensor:
    """scales: one, or one per index of axis; zero point 0 but for one scale."""

    shape: tuple[int, ...]
    scales: tuple[float, ...] = ()
    zero_point: int = 0
    axis: int = 0
    data: np.ndarray | None = None  # of a constant
    type: str = "int8"


@dataclass
class Operator:
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: dict[int, Scalar] = field(default_factory=dict)


def constant(values, kind: str = "int32") -> Tensor:
    values = np.array(values, kind)
    return Tensor(values.shape, type=kind, data=values)


def step_model(shape: tuple[int, int, int], out: tuple[int, int, int], x: Tensor, y: Tensor, name: str,
               constants: list[Tensor], options: dict[int, Scalar], twice: bool = False) -> bytes:
    """frames [1, rows, cols * channels] -> one operator on [1, *shape] -> scores [1, 1, all of out]."""
    rows, cols, channels = shape
    quantized = {"scales": x.scales, "zero_point": x.zero_point}
    tensors = [Tensor((1, rows, cols * channels), **quantized), constant([1, *shape]), Tensor((1, *shape), **quantized),
               Tensor((1, *out), y.scales, y.zero_point), constant([1, 1, np.prod(out)]),
               Tensor((1, 1, int(np.prod(out))), y.scales, y.zero_point), *constants]
    inputs = (2,) * (2 if twice else 1) + tuple(range(6, len(tensors)))
    return model(tensors, [Operator("RESHAPE", (0, 1), (2,)), Operator(name, inputs, (3,), options),
                                Operator("RESHAPE", (3, 4), (5,))], {"frames": 0}, {"scores": 5})


def model(tensors: list[Tensor], operators: list[Operator], inputs: dict[str, int], outputs: dict[str, int]) -> bytes:
    """A TFLite model of one subgraph and one signature, whose names are those of inputs and outputs."""
    names = sorted({op.name for op in operators})
    buffers, tables = [{}], []
    for tensor in tensors:
        table = {0: np.array(tensor.shape, np.int32), 1: Scalar("b", TYPES[tensor.type]), 2: Scalar("I", 0), 3: b"t"}
        if tensor.scales:
            zero_points = [tensor.zero_point] if len(tensor.scales) == 1 else [0] * len(tensor.scales)
            table[4] = {2: np.array(tensor.scales, np.float32), 3: np.array(zero_points, np.int64),
                        6: Scalar("i", tensor.axis)}
        if tensor.data is not None:
            table[2] = Scalar("I", len(buffers))
            buffers.append({0: np.frombuffer(tensor.data.tobytes(), np.uint8)})
        tables.append(table)
    graph = {0: tables, 1: np.array(list(inputs.values()), np.int32), 2: np.array(list(outputs.values()), np.int32),
             3: [{0: Scalar("I", names.index(op.name)), 1: np.array(op.inputs, np.int32),
                  2: np.array(op.outputs, np.int32), 3: Scalar("B", OPTIONS[op.name]), 4: op.options}
                 for op in operators]}
    maps = [[{0: name.encode(), 1: Scalar("I", index)} for name, index in side.items()] for side in (inputs, outputs)]
    codes = [{0: Scalar("b", CODES[name]), 2: Scalar("i", 1), 3: Scalar("i", CODES[name])} for name in names]
    signature = {0: maps[0], 1: maps[1], 2: b"serving_default", 4: Scalar("I", 0)}
    out = bytearray(b"\0\0\0\0TFL3")
    struct.pack_into("<I", out, 0, _table(out, {0: Scalar("I", 3), 1: codes, 2: [graph], 4: buffers, 7: [signature]}))
    return bytes(out)


def _align(out: bytearray, size: int, ahead: int = 0) -> None:
    out += bytes(-(len(out) + ahead) % size)


def _table(out: bytearray, fields: dict) -> int:
    """Appends a table and all it points to; returns where it begins."""
    n = max(fields, default=-1) + 1
    _align(out, 8)
    vtable = len(out)
    out += bytes(4 + 2 * n)
    _align(out, 8)
    start = len(out)
    out += struct.pack("<i", start - vtable)
    places = {}
    for number, value in fields.items():
        form = value.form if isinstance(value, Scalar) else "I"
        _align(out, struct.calcsize(form))
        places[number] = len(out)
        out += struct.pack("<" + form, value.value if isinstance(value, Scalar) else 0)
        struct.pack_into("<H", out, vtable + 4 + 2 * number, places[number] - start)
    struct.pack_into("<HH", out, vtable, 4 + 2 * n, len(out) - start)
    for number, value in fields.items():
        if not isinstance(value, Scalar):
            struct.pack_into("<I", out, places[number], _part(out, value) - places[number])
    return start


def _part(out: bytearray, value) -> int:
    if isinstance(value, dict):
        return _table(out, value)
    if isinstance(value, list):
        _align(out, 4)
        start = len(out)
        out += struct.pack("<I", len(value)) + bytes(4 * len(value))
        for i, item in enumerate(value):
            at = start + 4 + 4 * i
            struct.pack_into("<I", out, at, _table(out, item) - at)
        return start
    text = isinstance(value, bytes)
    _align(out, 16, ahead=4)  # what follows the length is aligned, as TFLite wants its constants
    start = len(out)
    out += struct.pack("<I", len(value)) + (value + b"\0" if text else value.tobytes())
    return start
