"""The native runtime: an int8 step model in the C core, with exactly the integers of TFLite's reference kernels.

    flatbuffer.read_model -> lowering.lower -> program.compile_model -> core/ea_model.c

It knows the operators of toolkit/lowering.py and raises UnsupportedError, naming the operator, for a model with others.
"""

from __future__ import annotations

import ctypes
import functools

import numpy as np

from . import native
from .errors import MissingPartError, UnsupportedError, UsageError
from .flatbuffer import Graph, read_model
from .interpreter import INPUT, NATIVE, OUT_SUFFIX, OUTPUT, Steps, TensorInfo, _check_states
from .program import compile_model


@functools.cache
def _library() -> ctypes.CDLL:
    lib = native.library()
    if lib is None or not hasattr(lib, "ea_model_process"):
        raise MissingPartError(native.HOW_TO_BUILD)
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    lib.ea_model_memory_bytes.restype = size
    lib.ea_model_memory_bytes.argtypes = [pointer, size]
    lib.ea_model_init.argtypes = [pointer, pointer, size, pointer, size]
    lib.ea_model_reset.restype = None
    lib.ea_model_reset.argtypes = [pointer]
    lib.ea_model_process.argtypes = [pointer, pointer, ctypes.c_int64, pointer]
    lib.ea_model_arena.restype = pointer
    lib.ea_model_arena.argtypes = [pointer]
    return lib


class Engine(Steps):
    """A streaming int8 model with its state, as interpreter.StepModel is: the same attributes, the same integers.

    model:  the flatbuffer
    frames: T of one step, rounded down to a multiple of the T it was converted with, which is the least

    Raises UnsupportedError for a damaged model, one of another form or one with operators that the core does not
    compute, VerificationError if a state would change on its way round, MissingPartError where the core is not built.
    """

    runtime = NATIVE

    def __init__(self, model: bytes, frames: int = 1):
        self._lib = _library()
        self._graph = graph = read_model(model)
        inputs = {name: _info(graph, name, index) for name, index in graph.inputs.items()}
        outputs = {name: _info(graph, name, index) for name, index in graph.outputs.items()}
        if INPUT not in inputs or OUTPUT not in outputs:
            raise UnsupportedError(f"the model has inputs {sorted(inputs)} and outputs {sorted(outputs)}; "
                                   f"a step model has {INPUT!r} and {OUTPUT!r}.")
        self.input, self.output = inputs.pop(INPUT), outputs.pop(OUTPUT)
        self.states = tuple((tensor, outputs.get(name + OUT_SUFFIX)) for name, tensor in sorted(inputs.items()))
        _check_states(self.states, outputs)
        self.variables = ()  # LSTMs, which keep some, are not among the operators
        self.stride, self.frames_per_step = _form(self.input.shape, self.output.shape, frames)
        dims = {INPUT: (1, self.frames_per_step, self.input.shape[2]), **{a.name: a.shape for a, _ in self.states}}
        program = compile_model(graph, dims, INPUT, OUTPUT, {b.name: a.name for a, b in self.states})
        self._start(program.blob)
        self._rings = [(self._lib.ea_model_arena(self._handle) + program.states[a.name], a.shape)
                       for a, _ in self.states]
        self._step_bytes = self.frames_per_step * self.input.shape[2]
        self._process = self._lib.ea_model_process
        self._make_room(self.frames_per_step // self.stride)
        self._waiting = b""

    def _start(self, blob: bytes) -> None:
        self._program = np.frombuffer(blob, np.uint8).copy()  # the core reads its constants here
        size = self._lib.ea_model_memory_bytes(native._address(self._program), len(blob))
        if size == 0:
            raise UnsupportedError("the C core refuses the model's program: a field is out of range.")
        self._memory, handle = np.zeros(size // 8 + 1, np.uint64), ctypes.c_void_p()
        status = self._lib.ea_model_init(ctypes.addressof(handle), native._address(self._program), len(blob),
                                         native._address(self._memory), size)
        if status != native.EA_OK:
            raise UnsupportedError(f"the C core cannot start the model (status {status}).")
        self._handle = handle.value

    def _make_room(self, n_scores: int) -> None:
        """One buffer for the scores of a call, so that its address need not be asked for each time (0.5 us)."""
        self._scores = np.empty((n_scores, self.output.shape[2]), np.int8)
        self._scores_address = native._address(self._scores)

    def reset(self) -> None:
        """All states back to the zero point: the past is zeros."""
        self._lib.ea_model_reset(self._handle)
        self._waiting = b""

    def process(self, codes: np.ndarray) -> np.ndarray:
        """int8 codes [m, n] -> int8 scores [k, labels] of the steps they complete; the rest waits for the next call."""
        if codes.dtype != np.int8 or codes.shape[1:] != self.input.shape[2:]:
            raise UsageError(f"codes are {codes.dtype} {list(codes.shape)}, expected int8 [m, {self.input.shape[2]}].")
        data = self._waiting + codes.tobytes()
        n_steps = len(data) // self._step_bytes
        n_scores = n_steps * self.frames_per_step // self.stride
        if n_scores > len(self._scores):
            self._make_room(n_scores)
        self._process(self._handle, data, n_steps, self._scores_address)
        self._waiting = data[n_steps * self._step_bytes :]
        return self._scores[:n_scores].copy()

    def state(self) -> list[np.ndarray]:
        """Copies of the states that enter the next step, in the order of `states`."""
        return [np.frombuffer(ctypes.string_at(address, int(np.prod(shape))), np.int8).reshape(shape)
                for address, shape in self._rings]

    def ops(self) -> tuple[str, ...]:
        """The names of the operations in the model, sorted, each once."""
        return tuple(sorted({op.name for op in self._graph.operators}))


def _info(graph: Graph, name: str, index: int) -> TensorInfo:
    tensor = graph.tensors[index]
    if tensor.type != "int8" or len(tensor.scales) != 1:
        raise UnsupportedError(f"the model's tensor {name!r} is {tensor.type}; it must be int8, of one scale.")
    return TensorInfo(name, index, tensor.shape, float(tensor.scales[0]), int(tensor.zero_points[0]))


def _form(entering: tuple[int, ...], leaving: tuple[int, ...], frames: int) -> tuple[int, int]:
    """(frames per score, frames per step) of frames [1, T, n] that become scores [1, T / stride, labels]."""
    if (len(entering), len(leaving), entering[:1], leaving[:1]) != (3, 3, (1,), (1,)) or (
            0 in entering + leaving or entering[1] % leaving[1]):
        raise UnsupportedError(f"the model turns {INPUT} {entering} into {OUTPUT} {leaving}; "
                               "a step model turns [1, T, n] into [1, T / stride, labels].")
    return entering[1] // leaving[1], entering[1] * max(1, frames // entering[1])
