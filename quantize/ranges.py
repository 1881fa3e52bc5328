"""The ranges of activations, by layer: read from a calibrated flatbuffer, kept beside weights, put into another.

A calibrated flatbuffer is what the converter makes on its way to int8: the graph is fused already, the numbers are
still float, and every activation has the least and the greatest value that occurred. What an operator computes is named
after the last layer that was fused into it ("step/stem_relu/Relu6;step/stem_norm/...;step/stem/Conv2D1"). There int8
rounds, and there training has to round (quantize/qat.py).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from toolkit.errors import VerificationError

from .slim import pack_tree, tflite_schema

FILE = "ranges.json"  # beside the weights that were trained with them
MOVES = frozenset("RESHAPE PAD CONCATENATION SLICE STRIDED_SLICE TRANSPOSE".split())  # the same values elsewhere
FRAMES = "frames"

Ranges = dict[str, tuple[float, float]]  # {layer: (low, high)}, zero between them


def read_ranges(weights: Path) -> Ranges:
    """Those beside a file of weights. Raises VerificationError."""
    path = weights.with_name(FILE)
    try:
        found = {str(layer): (float(low), float(high)) for layer, (low, high) in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        raise VerificationError(
            f"{path} is missing: quantize.method is aware, and its ranges were not trained with {weights.name}; "
            "python -m quantize.qat writes both."
        ) from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise VerificationError(f"{path} holds no ranges that can be read ({error}).") from None
    for layer, (low, high) in found.items():
        if not (np.isfinite((low, high)).all() and low <= 0 <= high and low < high):
            raise VerificationError(f"{path} gives {layer} the range {low} to {high}: expected zero within it.")
    return found


def write_ranges(path: Path, ranges: Ranges) -> None:
    """One line per layer."""
    lines = ",\n".join(f" {json.dumps(layer)}: {json.dumps(list(both))}" for layer, both in ranges.items())
    path.write_text("{\n" + lines + "\n}\n")


def ranges_of(calibrated: bytes) -> Ranges:
    """What was observed at every layer at which int8 rounds, widened to zero. Raises VerificationError."""
    graph, kinds = _graph(calibrated)[1:]
    found: Ranges = {}
    for op, kind in zip(graph.operators, kinds):
        if kind not in MOVES:
            tensor = graph.tensors[op.outputs[0]]
            layer, (low, high) = _layer(tensor, kind), _observed(tensor)
            before = found.get(layer, (0.0, 0.0))  # a layer that is used twice has one range
            found[layer] = min(before[0], low), max(before[1], high)
    return found


def with_ranges(calibrated: bytes, ranges: Ranges) -> bytes:
    """The calibrated flatbuffer with these ranges for the observed ones: of each layer, of what only moves its values,
    and of the ring buffers that they go through. Raises VerificationError if they are of another network."""
    tree, graph, kinds = _graph(calibrated)
    names = {m.tensorIndex: m.name.decode() for m in tree.signatureDefs[0].inputs}
    states = {int(i) for i in graph.inputs if names.get(int(i)) != FRAMES}
    now = {int(i): _observed(graph.tensors[i]) for i in graph.inputs if int(i) not in states}
    layers = set()
    for op, kind in zip(graph.operators, kinds):
        if kind in MOVES:
            entering = [now[i] for i in op.inputs if i in now and i not in states]
            if not entering:
                raise VerificationError(f"a {kind} of the network moves no activation: its range is not known.")
            both = min(low for low, _ in entering), max(high for _, high in entering)
            now |= {int(i): both for i in op.inputs if i in states}
        else:
            layer = _layer(graph.tensors[op.outputs[0]], kind)
            if layer not in ranges:
                raise VerificationError(f"{FILE} has no range of the layer {layer}: it is of another network.")
            layers.add(layer)
            both = ranges[layer]
        now[int(op.outputs[0])] = both
    if layers != set(ranges):
        raise VerificationError(f"{FILE} has a range of {min(set(ranges) - layers)}, which is no layer of the network.")
    for i, (low, high) in now.items():
        known = graph.tensors[i].quantization
        known.min, known.max = np.array([low], np.float32), np.array([high], np.float32)
    return pack_tree(tree)


def _graph(model: bytes):
    """(tree, its graph, the kind of each operator)."""
    schema = tflite_schema()
    tree = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))
    kinds = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
    codes = [kinds[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in tree.operatorCodes]
    graph = tree.subgraphs[0]
    return tree, graph, [codes[op.opcodeIndex] for op in graph.operators]


def _observed(tensor) -> tuple[float, float]:
    known = tensor.quantization
    if known is None or known.min is None or len(known.min) != 1:
        raise VerificationError(f"the converter observed no range of {tensor.name!r}; expected one for the tensor.")
    return float(known.min[0]), float(known.max[0])


def _layer(tensor, kind: str) -> str:
    """`stem_relu` of "step/stem_relu/Relu6;step/stem_norm/FusedBatchNormV3;step/stem/Conv2D1"."""
    parts = (tensor.name or b"").decode().split(";")[0].split("/")
    if len(parts) < 3:
        raise VerificationError(f"the converter names no layer for a {kind} ({tensor.name!r}): its range has no place.")
    return "/".join(parts[1:-1])
