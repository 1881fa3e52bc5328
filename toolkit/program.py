"""A step model as a program of the C core (toolkit/core/ea_model.h): where every tensor lies, and the operations.

    compile_model(graph, dims, ...) -> Program

Much of a step model only says where integers lie: rings are concatenated and sliced, bands padded, axes reshaped. That
is not computed but placed: the smaller tensor lies inside the larger one, and whoever writes it writes it there. A
ring buffer and the new frames behind it are then one piece of memory, the zeros around the bands are written at reset
and never again, and at the end of a step the ring moves on by one memmove. What cannot be placed is copied. Memory is
reused: tensors that are never needed at the same time may lie at the same place.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from .errors import UnsupportedError
from .flatbuffer import Graph
from .lowering import LANES, Kind, Layer, Value, lower

MAGIC, VERSION = 0x504D4145, 1  # EA_MODEL_MAGIC, EA_MODEL_VERSION
FILL = 0  # EA_FILL
ALIGNMENT, LARGEST = 16, 1 << 28  # bytes; of any field: EA_MODEL_LARGEST


@dataclass(frozen=True)
class Program:
    """blob: for ea_model_init. states: where a state that enters lies in the arena, by its name."""

    blob: bytes
    states: dict[str, int]


@dataclass(frozen=True)
class Place:
    """Where a value lies: bytes into its root, and from one row or column to the next."""

    root: Value
    offset: int
    row_step: int
    col_step: int


def compile_model(graph: Graph, dims: dict[str, tuple[int, ...]], frames: str, scores: str,
                  states: dict[str, str]) -> Program:
    """dims: of each input of the graph; frames, scores: that input and that output; states: output -> the input that it
    becomes for the next step. Raises UnsupportedError."""
    lowered = lower(graph, {graph.inputs[name]: shape for name, shape in dims.items()})
    inputs = {name: lowered.values[index] for name, index in graph.inputs.items()}
    outputs = {name: lowered.values.get(index) for name, index in graph.outputs.items()}
    if missing := [name for name, value in outputs.items() if value is None or value in inputs.values()]:
        raise UnsupportedError(f"the model does not compute its output {missing[0]!r}.")
    pasts = {inputs[entering]: outputs[leaving] for leaving, entering in states.items()}
    if len(inputs[frames].dims) != 3 or len(outputs[scores].dims) != 3 or any(
            leaving.dims != entering.dims for entering, leaving in pasts.items()):
        raise UnsupportedError("the model's frames and scores must have 3 axes, and states leave as they enter.")
    placement = _Placement(lowered.layers, outputs[scores])
    layers = [*placement.layers, *(Layer(Kind.COPY, (leaving,), entering) for entering, leaving in pasts.items())]
    arena = _Arena(placement, layers, inputs[frames], outputs[scores], list(pasts))
    operations = [_fill(arena, root) for root in arena.persistent]
    constants = bytearray()
    operations += [_operation(arena, layer, constants) for layer in layers]
    _check_moves(operations[len(operations) - len(pasts):])
    ends = [word for value in (inputs[frames], outputs[scores])
            for word in (arena.place(value).offset, value.shape[0], arena.place(value).row_step, value.shape[2])]
    depth = max((layer[20] for layer in operations), default=0)
    header = [arena.patch + _aligned(3 * (depth + LANES)), arena.patch, len(arena.persistent), len(operations), *ends]
    words = [word for words in (header, [len(constants)], *operations) for word in words]
    if max(words) > LARGEST:
        raise UnsupportedError(f"the model takes more than {LARGEST >> 20} MB.")
    size = 4 * (3 + len(words)) + len(constants)
    return Program(struct.pack(f"<{3 + len(words)}i", MAGIC, VERSION, size, *words) + constants,
                   {name: _state_offset(arena, name, inputs[name]) for name in states.values()})


def _aligned(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT


def _dense(value: Value) -> tuple[int, int]:
    """The steps of a value whose rows and columns follow each other."""
    _, cols, channels = value.shape
    return cols * channels, channels


def _state_offset(arena: _Arena, name: str, value: Value) -> int:
    place = arena.place(value)
    if (place.row_step, place.col_step) != _dense(value):
        raise UnsupportedError(f"the state {name!r} does not lie in one piece.")
    return place.offset


class _Placement:
    """Which value lies inside which other one, and the layers that remain to be computed."""

    def __init__(self, layers: list[Layer], scores: Value):
        self._scores = scores  # they are read after the rings have moved on, so they lie by themselves
        self._inside: dict[Value, tuple[Value, Layer]] = {}
        self.layers = []
        for layer in reversed(layers):  # so that it is known where the output lies
            if layer.kind < Kind.INSERT:
                self.layers.append(layer)
            elif not self._placed(layer):
                self.layers.append(layer)  # as a copy
        self.layers.reverse()
        self.padded = [layer.output for layer in layers if layer.output.padded]

    def _placed(self, layer: Layer) -> bool:
        """Put the part inside the whole; of two reshaped values the one inside the other, the input first."""
        (x,), y = layer.inputs, layer.output
        pairs = {Kind.INSERT: [(x, y)], Kind.EXTRACT: [(y, x)], Kind.RESHAPE: [(x, y), (y, x)]}[layer.kind]
        for part, whole in pairs:
            if part not in self._inside and part is not self._scores and self.root(whole) is not part:
                self._inside[part] = whole, layer
                if self.place(part) is not None:
                    return True
                del self._inside[part]
        return False

    def root(self, value: Value) -> Value:
        while value in self._inside:
            value = self._inside[value][0]
        return value

    def place(self, value: Value) -> Place | None:
        """None where its rows and columns would not be evenly spaced."""
        if value not in self._inside:
            return Place(value, 0, *_dense(value))
        whole, layer = self._inside[value]
        place = self.place(whole)
        if place is None:
            return None
        return reshaped(place, whole, value) if layer.kind is Kind.RESHAPE else at_origin(place, layer)


def reshaped(place: Place, whole: Value, value: Value) -> Place | None:
    """The place of a value with the integers of `whole`, which lies at place; None if they are not evenly spaced."""
    if (place.row_step, place.col_step) == _dense(whole):
        return Place(place.root, place.offset, *_dense(value))
    if value.shape[0] == whole.shape[0] and place.col_step == whole.shape[2]:  # rows stay, what is in them is dense
        return Place(place.root, place.offset, place.row_step, value.shape[2])
    return None


def at_origin(place: Place, layer: Layer) -> Place:
    """The place of the part of a layer in that of the whole."""
    row, col, channel = layer.origin
    offset = place.offset + row * place.row_step + col * place.col_step + channel
    return Place(place.root, offset, place.row_step, place.col_step)


class _Arena:
    """Where the roots lie in memory. persistent: those that keep something from one step to the next."""

    def __init__(self, placement: _Placement, layers: list[Layer], frames: Value, scores: Value, pasts: list[Value]):
        self._placement = placement
        root, end = placement.root, len(layers)
        used = {root(frames): [-1], root(scores): [end]}
        for i, layer in enumerate(layers):
            for value in (*layer.inputs, layer.output):
                used.setdefault(root(value), []).append(i)
        self.persistent = list(dict.fromkeys(root(value) for value in (*pasts, *placement.padded)))
        if root(scores) in map(root, pasts):
            raise UnsupportedError("the model's scores are a part of a state.")
        spans = {value: (-1, end) if value in self.persistent else (min(times), max(times))
                 for value, times in used.items()}
        self._offsets: dict[Value, int] = {}
        for value in sorted(spans, key=lambda value: (value not in self.persistent, -_size(value))):
            self._offsets[value] = self._free_offset(value, spans)
        ends = [offset + _size(value) for value, offset in self._offsets.items()]
        self.patch = _aligned(max(ends, default=0) + LANES)

    def _free_offset(self, value: Value, spans: dict) -> int:
        """The lowest offset where no placed value lies that is needed at the same time."""
        first, last = spans[value]
        taken = sorted((offset, offset + _size(other)) for other, offset in self._offsets.items()
                       if spans[other][0] <= last and first <= spans[other][1])
        offset = 0
        for begin, end in taken:
            if offset + _size(value) <= begin:
                break
            offset = max(offset, _aligned(end))
        return offset

    def place(self, value: Value) -> Place:
        """Where a value lies, in bytes into the arena."""
        place = self._placement.place(value)
        return Place(place.root, self._offsets[place.root] + place.offset, place.row_step, place.col_step)


def _size(value: Value) -> int:
    rows, cols, channels = value.shape
    return rows * cols * channels


def _fill(arena: _Arena, root: Value) -> list[int]:
    return _record(FILL, (1, 1, _size(root)), None, arena.place(root), activation=(root.zero_point, 0, 0), run=0)


def _operation(arena: _Arena, layer: Layer, constants: bytearray) -> list[int]:
    """The words of an ea_operation; its constants go to the end of `constants`."""
    x, y, output = arena.place(layer.inputs[0]), arena.place(layer.output), layer.output
    if layer.kind is Kind.ADD:
        return _add(arena, layer, constants)
    if layer.kind not in (Kind.CONV, Kind.DEPTHWISE, Kind.AVERAGE, Kind.MAX):
        return _copy(layer, x, y)
    (tap_rows, tap_cols), (row_dilation, col_dilation) = layer.window, layer.dilation
    channels = run = layer.inputs[0].shape[2]
    taps = [tap_rows, tap_cols, row_dilation * x.row_step, col_dilation * x.col_step]
    if layer.kind is Kind.CONV:
        if x.col_step == channels and (col_dilation == 1 or tap_cols == 1):  # a row of the window is one piece
            run, taps[1] = tap_cols * channels, 1
            if taps[2] == run or tap_rows == 1:
                run, taps[0] = tap_rows * run, 1
        depth = len(layer.weights) // output.shape[2]
    else:
        depth = 0
    if taps[1] == 1:  # the inner loop is the longer one
        taps = [1, taps[0], 0, taps[2]]
    steps = layer.stride[0] * x.row_step, layer.stride[1] * x.col_step
    return _record(layer.kind, output.shape, x, y, steps, taps=taps, run=run, depth=depth,
                   weights=_append(constants, layer.weights), rescale=_append(constants, layer.rescale.tobytes()),
                   activation=(output.zero_point, *layer.activation))


def _append(constants: bytearray, data: bytes) -> int:
    """Where the data begin in the constants."""
    constants += bytes(-len(constants) % ALIGNMENT)
    start = len(constants)
    constants += data
    return start


def _add(arena: _Arena, layer: Layer, constants: bytearray) -> list[int]:
    a, b, y = (arena.place(value) for value in (*layer.inputs, layer.output))
    shape, shapes = layer.output.shape, [value.shape for value in layer.inputs]
    if shapes[0] == shapes[1]:
        shape = _merged(shape, a, b, y)
    steps = [(0 if own[0] < shape[0] else place.row_step, 0 if own[1] < shape[1] else place.col_step)
             for place, own in zip((a, b), shapes)]
    return _record(Kind.ADD, shape, a, y, steps[0], other=(b.offset, *steps[1]),
                   rescale=_append(constants, layer.rescale.astype("<i4").tobytes()),
                   activation=(layer.output.zero_point, *layer.activation))


def _copy(layer: Layer, x: Place, y: Place) -> list[int]:
    (source,), target = layer.inputs, layer.output
    shape = source.shape if layer.kind is Kind.INSERT else target.shape
    if layer.kind is Kind.INSERT:
        y = at_origin(y, layer)
    elif layer.kind is Kind.EXTRACT:
        x = at_origin(x, layer)
    elif layer.kind is Kind.RESHAPE:
        as_target, as_source = reshaped(x, source, target), reshaped(y, target, source)
        if as_target is not None:
            x = as_target
        elif as_source is not None:
            y, shape = as_source, source.shape
        else:
            raise UnsupportedError(f"the native runtime does not compute RESHAPE of {source.dims} to {target.dims} "
                                   "within larger tensors.")
    return _record(Kind.COPY, _merged(shape, x, y), x, y)


def _merged(shape: tuple[int, int, int], *places: Place) -> tuple[int, int, int]:
    """The shape with columns, and rows, that follow each other everywhere taken as one."""
    rows, cols, channels = shape
    if cols == 1 or all(place.col_step == channels for place in places):
        cols, channels = 1, cols * channels
        if all(place.row_step == channels for place in places):
            rows, channels = 1, rows * channels
    return rows, cols, channels


def _record(kind: int, shape: tuple[int, int, int], x: Place | None, y: Place, steps: tuple[int, int] | None = None,
            other: tuple[int, int, int] = (0, 0, 0), weights: int = 0, rescale: int = 0,
            taps: list[int] = (1, 1, 0, 0), run: int | None = None, depth: int = 0,
            activation: tuple[int, int, int] = (0, -128, 127)) -> list[int]:
    """The words of ea_operation, in its order. steps: from window to window in x, if not those of x itself."""
    offset, steps = (x.offset, steps or (x.row_step, x.col_step)) if x else (0, (0, 0))
    return [int(kind), offset, other[0], y.offset, weights, rescale, *shape, *steps, *other[1:], y.row_step, y.col_step,
            *taps, shape[2] if run is None else run, depth, *activation]


def _check_moves(moves: list[list[int]]) -> None:
    """The moves at the end of a step: none may read what itself or one before it has overwritten."""
    spans = []
    for words in moves:
        _, source, _, target, _, _, rows, cols, run, *steps = words
        reach = [(rows - 1) * steps[i] + (cols - 1) * steps[i + 1] + run for i in (0, 4)]
        reads, writes = (source, source + reach[0]), (target, target + reach[1])
        upwards = source < target < reads[1]
        if upwards or any(reads[0] < end and begin < reads[1] for begin, end in spans):
            raise UnsupportedError("the model's states overlap.")
        spans.append(writes)
