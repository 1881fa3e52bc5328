"""Where the error of quantization comes from: every layer of the int8 step model beside the same layer in float.

Of each activation three ratios of signal to quantization noise, in dB, one bit being 6 dB:

    sqnr_db      the float model against the int8 model: all error between the input and here
    alone_db     the layer by itself: in float and in int8 on the same input, which is that of the int8 model
    rounding_db  the float values rounded to the 256 codes of this tensor, and nothing else

alone_db names the layer to work on. If rounding_db is about as low, its range is too wide for what mostly happens in
it (bound the activation, as ReLU6 does); if rounding_db is far above, its weights are to blame (train with
quantization). An LSTM is one operator: its output is measured, its gates and its cell are out of reach.

The float twin is the same step model, converted without quantization. Both graphs must be the same sequence of
operators, so that activations pair by position: quantize/slim.py leaves no names. A clip is one invocation from the
reset state, resized to the length of the clip, which gives the same integers as its steps. To be read, every activation
becomes an output of the graph: experimental_preserve_all_tensors does not keep them, an ADD of TFLite 2.14 writes over
its first input all the same.
"""

from __future__ import annotations

import copy
import re
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

from models.recipe import Recipe
from toolkit.errors import DataError, VerificationError
from toolkit.interpreter import INPUT, _runtime

from .convert import Converted, in_child, load_model
from .slim import pack_tree, tflite_schema

MOVES = frozenset("RESHAPE PAD CONCATENATION SLICE STRIDED_SLICE TRANSPOSE".split())  # the same values elsewhere
LARGEST_DB = 200.0  # instead of infinity
FOLLOWERS = re.compile("Relu|FusedBatchNorm|BiasAdd|ReadVariableOp|Pad")  # fused into an operator that has weights


@dataclass(frozen=True)
class LayerError:
    """One activation of the int8 model: real value = scale * (code - zero_point)."""

    layer: str  # of Keras; "after NAME" of the layer before it where the converter leaves no name, as of an LSTM
    op: str  # "CONV_2D"; "INPUT" of the frames
    sqnr_db: float  # all error up to here; -200 .. 200, which means none at all
    alone_db: float  # what this layer adds
    rounding_db: float  # what the range of this tensor costs
    scale: float
    zero_point: int
    low: float  # the float model's least value on the clips
    high: float
    used: float  # share of the 256 codes, from the least that occurred to the greatest
    saturated: float  # share of values that are more than half a step out of the int8 range in float

    def to_dict(self) -> dict:
        """For the report."""
        return asdict(self)


def layer_errors(recipe: Recipe, weights: Path, converted: Converted, codes: np.ndarray) -> list[LayerError]:
    """Of the frames and of every activation that a layer computes, in signal order, on clips of int8 codes
    [n, T, width]. weights: those that `converted` was made of. Raises VerificationError if both graphs are not one."""
    return compare_layers(in_child(_float_model, recipe, weights), converted.model, codes)


def worst(errors: list[LayerError], n: int = 3) -> list[LayerError]:
    """The n layers that add the most error, the worst first."""
    return sorted(errors, key=lambda error: error.alone_db)[:n]


def compare_layers(float_model: bytes, int8_model: bytes, codes: np.ndarray) -> list[LayerError]:
    """layer_errors of two flatbuffers of the same graph. Values that an operator only moves are left out."""
    twin, graph = _Graph(float_model), _Graph(int8_model)
    _check_same_graph(twin, graph)
    frames_per_step = graph.tensors[graph.frames].shape[1]
    used = codes.shape[1] // frames_per_step * frames_per_step
    if len(codes) == 0 or used == 0:
        raise DataError(
            f"{len(codes)} clips of {codes.shape[1]} frames tell nothing of layers; give some of at least "
            f"{frames_per_step} frames."
        )
    shape = (1, used, codes.shape[2])
    computed = [k for k in range(len(graph.ops)) if graph.computes(k)]
    int8, whole = _Probe(graph, {graph.frames: shape}), _Probe(twin, {twin.frames: shape})
    alone, feeds = _cut(_Graph(float_model), graph, int8, computed)

    frames = _Sums(INPUT, "INPUT", *graph.quantization(graph.frames))
    layers = [_Sums(twin.layer(k), graph.ops[k], *graph.quantization(graph.leaving(k))) for k in computed]
    for clip in codes[:, None, :used]:
        real = graph.real(graph.frames, clip)
        frames.add(real, clip, real)
        int8.run({graph.frames: clip})
        whole.run({twin.frames: np.float32(real)})
        alone.run({new: np.float32(graph.real(i, int8.read(i))) for new, i in feeds.items()})
        for k, sums in zip(computed, layers):
            sums.add(whole.read(twin.leaving(k)), int8.read(graph.leaving(k)), alone.read(twin.leaving(k)))
    return [sums.result() for sums in (frames, *layers)]


class _Sums:
    """What is summed up of one activation over the clips."""

    def __init__(self, layer: str, op: str, scale: float, zero_point: int):
        self.layer, self.op, self.scale, self.zero_point = layer, op, scale, zero_point
        self.noise = np.zeros((3, 2))  # rows: model, layer alone, rounding; columns: signal, error, as sums of squares
        self.low, self.high, self.least, self.greatest = np.inf, -np.inf, 127, -128
        self.outside = self.count = 0

    def add(self, expected: np.ndarray, codes: np.ndarray, alone: np.ndarray) -> None:
        """One clip: the float model's values, the int8 model's codes, the float layer's values on its input."""
        steps = np.round(expected / self.scale) + self.zero_point
        rounded, got = (self.scale * (c - float(self.zero_point)) for c in (np.clip(steps, -128, 127), codes))
        for row, (x, y) in zip(self.noise, ((expected, got), (alone, got), (expected, rounded))):
            row += np.square(x, dtype=float).sum(), np.square(x - y, dtype=float).sum()
        self.low, self.high = min(self.low, expected.min()), max(self.high, expected.max())
        self.least, self.greatest = min(self.least, int(codes.min())), max(self.greatest, int(codes.max()))
        self.outside += int(((steps < -128) | (steps > 127)).sum())
        self.count += codes.size

    def result(self) -> LayerError:
        ratios = [sqnr_db(signal, error) for signal, error in self.noise]
        low, high, used = float(self.low), float(self.high), (self.greatest - self.least + 1) / 256
        outside = self.outside / self.count
        return LayerError(self.layer, self.op, *ratios, self.scale, self.zero_point, low, high, used, outside)


def sqnr_db(signal: float, error: float) -> float:
    """10 log10 of two sums of squares, within +-LARGEST_DB."""
    with np.errstate(divide="ignore"):
        ratio = 10 * (np.log10(signal) - np.log10(error)) if error else LARGEST_DB
    return float(np.clip(ratio, -LARGEST_DB, LARGEST_DB))


class _Graph:
    """The only graph of a flatbuffer."""

    def __init__(self, model: bytes):
        schema = tflite_schema()
        names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
        self.tree = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))
        graph = self.tree.subgraphs[0]
        self.tensors, self.operators = graph.tensors, graph.operators
        self.ops = [names[self.tree.operatorCodes[op.opcodeIndex].builtinCode] for op in self.operators]
        entering = {item.name.decode(): int(item.tensorIndex) for item in self.tree.signatureDefs[0].inputs}
        self.frames = entering[INPUT]

    def entering(self, k: int) -> dict[int, int]:
        """{position: tensor} of what operator k gets from others: no constants, nothing that an LSTM keeps."""
        return {
            position: int(i)
            for position, i in enumerate(self.operators[k].inputs)
            if i >= 0 and not self.tensors[i].isVariable and not self._has_data(i)
        }

    def _has_data(self, index: int) -> bool:
        data = self.tree.buffers[self.tensors[index].buffer].data
        return data is not None and len(data) > 0

    def leaving(self, k: int) -> int:
        """The tensor that operator k computes."""
        return int(self.operators[k].outputs[0])

    def computes(self, k: int) -> bool:
        """Whether operator k gives other values than it gets, or the same in another scale."""
        scales = {self.quantization(i) for i in self.entering(k).values()}
        return self.ops[k] not in MOVES or scales != {self.quantization(self.leaving(k))}

    def quantization(self, index: int) -> tuple[float, int]:
        """(scale, zero point)."""
        known = self.tensors[index].quantization
        if known is None or known.scale is None or len(known.scale) != 1:
            raise VerificationError(f"tensor {index} of the int8 model has no scale; it is not a full-integer model.")
        return float(known.scale[0]), int(known.zeroPoint[0])

    def real(self, index: int, codes: np.ndarray) -> np.ndarray:
        """float64."""
        scale, zero_point = self.quantization(index)
        return scale * (codes - float(zero_point))

    def layer(self, k: int) -> str:
        """What to call operator k."""
        own, before = (_keras_layer(self.tensors[i].name) for i in (self.leaving(k), self.operators[k].inputs[0]))
        return own or (f"after {before}" if before else f"operator {k}")


class _Probe:
    """A graph whose activations can all be read; inputs of other shapes than these are states, and zero."""

    def __init__(self, graph: _Graph, shapes: dict[int, tuple[int, ...]]):
        make, options, runtime = _runtime()
        graph.tree.subgraphs[0].outputs = np.array([op.outputs[0] for op in graph.operators], np.int32)
        try:
            self._interpreter = make(model_content=pack_tree(graph.tree), **options)
            for index, shape in shapes.items():
                self._interpreter.resize_tensor_input(index, shape)
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise VerificationError(f"{runtime} does not run the graph whose layers are compared: {reason}.") from None
        for state in self._interpreter.get_input_details():
            if state["index"] not in shapes:  # set once: no operator writes into an input
                past = np.full(state["shape"], state["quantization"][1], state["dtype"])
                self._interpreter.set_tensor(state["index"], past)

    def run(self, inputs: dict[int, np.ndarray]) -> None:
        """One clip."""
        self._interpreter.reset_all_variables()
        for index, value in inputs.items():
            self._interpreter.set_tensor(index, value)
        self._interpreter.invoke()

    def read(self, index: int) -> np.ndarray:
        return self._interpreter.get_tensor(index)


def _cut(twin: _Graph, graph: _Graph, int8: _Probe, computed: list[int]) -> tuple[_Probe, dict[int, int]]:
    """(the computing operators of the float graph, each with inputs of its own; {such an input: the int8 graph's tensor
    that it is to get})."""
    feeds, cut = {}, twin.tree.subgraphs[0]
    for k in computed:
        op, sources = twin.operators[k], graph.entering(k)
        op.inputs = op.inputs.copy()
        for position, i in twin.entering(k).items():
            op.inputs[position] = len(cut.tensors)
            feeds[len(cut.tensors)] = sources[position]
            cut.tensors.append(copy.copy(cut.tensors[i]))
    cut.operators[:] = [twin.operators[k] for k in computed]
    cut.inputs, twin.tree.signatureDefs = np.array(list(feeds), np.int32), None
    return _Probe(twin, {new: int8.read(i).shape for new, i in feeds.items()}), feeds


def _check_same_graph(twin: _Graph, graph: _Graph) -> None:
    def forms(side: _Graph) -> list[str]:
        made_by = {side.leaving(k): k for k in range(len(side.ops))}
        return [
            f"{op} of {[made_by.get(i, 'input') for i in side.entering(k).values()]} "
            f"to {list(side.tensors[side.leaving(k)].shape)}"
            for k, op in enumerate(side.ops)
        ]

    for k, (ours, theirs) in enumerate(zip_longest(forms(graph), forms(twin), fillvalue="none")):
        if ours != theirs:
            raise VerificationError(
                f"operator {k} of the int8 model is {ours}, of the float model {theirs}; the error "
                "of a layer can only be told where both are the same graph."
            )


def _float_model(recipe: Recipe, weights: Path) -> bytes:
    """In the process that may hold TensorFlow: the step model, not quantized."""
    from models.layers import build_step, tf

    whole, net, module = load_model(recipe, weights)
    form = (module.build, recipe.features.width, len(recipe.labels), recipe.model.parameters, module.STRIDE, net.layers)
    return tf.lite.TFLiteConverter.from_keras_model(build_step(*form, fused=True)).convert()


def _keras_layer(name: bytes | None) -> str | None:
    """`front` of "step/front_relu/Relu;step/front_norm/FusedBatchNormV3;step/front/Conv2D1", if it is of that form."""
    parts = [part.split("/") for part in (name or b"").decode().split(";") if part.count("/") >= 2]
    weighty = [part for part in parts if not FOLLOWERS.match(part[-1])] or parts
    return "/".join(weighty[0][1:-1]) if weighty else None
