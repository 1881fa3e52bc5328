"""The one door to TFLite: tflite-runtime where it is installed, else ai-edge-litert; reference kernels, one thread.

The reference kernels (BUILTIN_REF) give the same integers in both runtimes and in TFLite Micro, on x86-64 and on Arm.
The optimized ones do not: those of tflite-runtime 2.14 differ between x86-64 and aarch64 by up to 3 LSB in 29 % of the
scores of `kws` (1x1 CONV_2D on x86-64, DEPTHWISE_CONV_2D on Arm), and save a third of the time on x86-64.

A model is a `step` model: int8 input `frames` [1, T, n], int8 output `scores` [1, T/stride, labels], one ring buffer
`NAME_state` in and `NAME_state_out` out per convolution over time, and the state of an LSTM inside its op. Tensors are
found by their signature names, never by position, and states are copied through views of the tensors' memory that are
made once.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
from dataclasses import dataclass

import numpy as np

from .errors import MissingPartError, UnsupportedError, UsageError, VerificationError

INPUT, OUTPUT, STATE_SUFFIX, OUT_SUFFIX = "frames", "scores", "_state", "_out"
LSTM = "UNIDIRECTIONAL_SEQUENCE_LSTM"
LSTM_STATES = {"output": (18, np.int8), "cell": (19, np.int16)}  # which of its inputs they are, and of what type
OPS = frozenset(
    f"ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DELEGATE DEPTHWISE_CONV_2D FULLY_CONNECTED LOGISTIC MAX_POOL_2D MEAN "
    f"MUL PAD RELU RESHAPE SLICE STRIDED_SLICE TANH TRANSPOSE {LSTM}".split()
)  # the same integers in tflite-runtime 2.14 (x86-64, aarch64, armv7), ai-edge-litert 2.3 and, but for the LSTM's last
# bit or two, in TFLite Micro (where SUM gives others); FULLY_CONNECTED differs between the first two by at most 1 LSB


@dataclass(frozen=True)
class TensorInfo:
    """An integer tensor of the model: real value = scale * (integer - zero_point)."""

    name: str  # in the signature
    index: int
    shape: tuple[int, ...]
    scale: float
    zero_point: int


NATIVE = "native"  # the C core's own executor, toolkit/engine.py
RUNTIMES = {"tflite-runtime": "tflite_runtime", "ai-edge-litert": "ai_edge_litert"}  # by preference: package


@functools.cache
def _runtime():
    """(the interpreter class, its options, the runtime's name with major.minor version).

    EDGE_AUDIO_RUNTIME=ai-edge-litert (or tflite-runtime) asks for that one alone.
    """
    wanted = _wanted()
    wanted = "" if wanted == NATIVE else wanted
    unusable = []
    for name in [wanted] if wanted else RUNTIMES:
        try:
            version = importlib.import_module(RUNTIMES[name]).__version__  # importlib.metadata would take 15 ms
            if name == "tflite-runtime" and int(np.__version__.split(".")[0]) >= 2:  # its import would succeed
                unusable.append(f"tflite-runtime {version} cannot work with numpy {np.__version__}, it needs `numpy<2`")
                continue
            module = importlib.import_module(f"{RUNTIMES[name]}.interpreter")
        except ModuleNotFoundError as error:
            if error.name == RUNTIMES[name]:
                continue
            unusable.append(f"{name} does not load ({error})")
        except ImportError as error:  # made for another machine, or for an older C library
            unusable.append(f"{name} does not load ({' '.join(str(error).split())})")
        else:
            resolver = module.OpResolverType.BUILTIN_REF
            options = {"num_threads": 1, "experimental_op_resolver_type": resolver}
            return module.Interpreter, options, f"{name}-{'.'.join(version.split('.')[:2])}"
    missing = f"{wanted} is not installed" if wanted else "no TFLite runtime is installed"
    way_out = wanted or "tflite-runtime (Python up to 3.11) or ai-edge-litert"
    raise MissingPartError(f"{'; '.join(unusable) or missing}; install {way_out}.")


def _wanted() -> str:
    wanted = os.environ.get("EDGE_AUDIO_RUNTIME", "")
    if wanted and wanted not in (*RUNTIMES, NATIVE):
        raise UsageError(f"EDGE_AUDIO_RUNTIME is {wanted!r}; expected {', '.join(RUNTIMES)} or {NATIVE}.")
    return wanted


def runtime_name() -> str:
    """The runtime that is used, as bundles name it: "tflite-runtime-2.14", "ai-edge-litert-2.3", or "native"."""
    return NATIVE if _wanted() == NATIVE else _runtime()[2]


def open_model(model: bytes, frames: int = 1):
    """The Engine of the C core where it computes all operators of the model, else a StepModel: one face, and the same
    integers. EDGE_AUDIO_RUNTIME asks for one alone, which then must know the model. Raises what they raise."""
    wanted = _wanted()
    if wanted in ("", NATIVE):
        from .engine import Engine  # which imports this file

        try:
            return Engine(model, frames)
        except (UnsupportedError, MissingPartError):
            if wanted:
                raise
    return StepModel(model, frames)


class Steps:
    """What the two runtimes of a step model share: frames that wait for the end of their step, in `_waiting`."""

    def finish(self) -> np.ndarray:
        """int8 scores [k, labels] of the frames that still wait for the end of their step; then as after reset.

        The step is filled up with zeros. They come after the frames that these scores see, so they change the state
        alone, which ends here."""
        _, _, width = self.input.shape
        waiting = len(self._waiting) // width
        scores = self.process(np.zeros((-waiting % self.frames_per_step, width), np.int8))[: waiting // self.stride]
        self.reset()
        return scores


class StepModel(Steps):
    """A streaming int8 model with its state.

    model:  the flatbuffer
    frames: T of one step, rounded down to a multiple of the T it was converted with, which is the least. Every T gives
            the same integers, because it is the same flatbuffer, resized; a longer step costs less and comes later.

    Attributes: input, output (TensorInfo, as converted), stride (frames per score), frames_per_step (T), states (pairs
    of TensorInfo: entering, leaving), variables (TensorInfo of what each LSTM keeps: its output int8, its cell int16).
    Raises UnsupportedError for a model of another form, VerificationError if a state would change on its way round.
    """

    def __init__(self, model: bytes, frames: int = 1):
        make, options, self.runtime = _runtime()
        try:
            self._interpreter = make(model_content=bytes(model), **options)
            inputs, outputs = self._signature()
            if INPUT not in inputs or OUTPUT not in outputs:
                raise UnsupportedError(f"the model has inputs {sorted(inputs)} and outputs {sorted(outputs)}; "
                                       f"a step model has {INPUT!r} and {OUTPUT!r}.")
            self.input, self.output = inputs[INPUT], outputs[OUTPUT]
            self._resize(frames)
            self._n_tensors = len(self._interpreter.get_tensor_details())  # before the runtime adds its own
            self._interpreter.allocate_tensors()
            inputs, outputs = self._signature()
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UnsupportedError(f"{self.runtime} cannot load the model: {reason}.") from None
        if self.frames_per_step != self.stride * outputs[OUTPUT].shape[1]:
            raise UnsupportedError(f"the model gives {outputs[OUTPUT].shape[1]} scores for {self.frames_per_step} "
                                   f"frames; it was converted to give one for {self.stride}.")
        del inputs[INPUT], outputs[OUTPUT]
        self.states = tuple((tensor, outputs.get(name + OUT_SUFFIX)) for name, tensor in sorted(inputs.items()))
        _check_states(self.states, outputs)
        self.variables = self._lstm_states()
        self._frames, self._scores = self._memory(self.input), self._memory(self.output)
        self._rings = [(self._memory(entering), self._memory(leaving)) for entering, leaving in self.states]
        self._past = [(ring, bytes([entering.zero_point % 256]) * len(ring))
                      for (entering, _), (ring, _) in zip(self.states, self._rings)]
        self._invoke = self._interpreter.invoke
        self.reset()

    def reset(self) -> None:
        """All states back to the zero point: the past is zeros."""
        self._interpreter.reset_all_variables()
        for ring, zeros in self._past:
            ring[:] = zeros
        self._waiting = b""

    def process(self, codes: np.ndarray) -> np.ndarray:
        """int8 codes [m, n] -> int8 scores [k, labels] of the steps they complete; the rest waits for the next call."""
        if codes.dtype != np.int8 or codes.shape[1:] != self.input.shape[2:]:
            raise UsageError(f"codes are {codes.dtype} {list(codes.shape)}, expected int8 [m, {self.input.shape[2]}].")
        codes = self._waiting + codes.tobytes()
        scores, size = bytearray(), len(self._frames)
        for end in range(size, len(codes) + 1, size):
            self._frames[:] = codes[end - size : end]
            self._invoke()
            scores += self._scores
            for entering, leaving in self._rings:
                entering[:] = leaving
        self._waiting = codes[len(codes) - len(codes) % size :]
        return np.frombuffer(scores, np.int8).reshape(-1, self.output.shape[2])

    def state(self) -> list[np.ndarray]:
        """Copies of the states that enter the next step, in the order of `states`, then those of `variables`."""
        rings = [np.frombuffer(bytearray(ring), np.int8).reshape(entering.shape)
                 for (entering, _), (ring, _) in zip(self.states, self._rings)]
        return rings + [self._interpreter.get_tensor(tensor.index) for tensor in self.variables]

    def ops(self) -> tuple[str, ...]:
        """The names of the operations in the model, sorted, each once."""
        return tuple(sorted({op["op_name"] for op in self._interpreter._get_ops_details()} - {"DELEGATE"}))

    def tensors(self) -> list[dict]:
        """What the runtime says of every tensor of the model that is not empty (index, name, shape, dtype,
        quantization_parameters)."""
        return [t for t in self._interpreter.get_tensor_details()[: self._n_tensors] if np.prod(t["shape"])]

    def _signature(self) -> tuple[dict[str, TensorInfo], dict[str, TensorInfo]]:
        runner = self._interpreter.get_signature_runner()
        return ({name: _info(name, d) for name, d in runner.get_input_details().items()},
                {name: _info(name, d) for name, d in runner.get_output_details().items()})

    def _resize(self, frames: int) -> None:
        """frames [1, T, n] become scores [1, T / stride, labels], with another T from now on."""
        entering, leaving = self.input.shape, self.output.shape
        if (len(entering), len(leaving), entering[:1], leaving[:1]) != (3, 3, (1,), (1,)) or (
                0 in entering + leaving or entering[1] % leaving[1]):
            raise UnsupportedError(f"the model turns {INPUT} {entering} into {OUTPUT} {leaving}; "
                                   "a step model turns [1, T, n] into [1, T / stride, labels].")
        self.stride = entering[1] // leaving[1]
        self.frames_per_step = entering[1] * max(1, frames // entering[1])
        if self.frames_per_step != entering[1]:
            self._interpreter.resize_tensor_input(self.input.index, (1, self.frames_per_step, entering[2]))

    def _lstm_states(self) -> tuple[TensorInfo, ...]:
        """The tensors in which LSTMs keep their output and their cell from one invocation to the next."""
        found = []
        for op in self._interpreter._get_ops_details():
            if op["op_name"] == LSTM:
                for name, (position, dtype) in LSTM_STATES.items():
                    details = self._interpreter.get_tensor_details()[op["inputs"][position]]
                    found.append(_info(f"lstm{len(found) // 2}_{name}", details, dtype))
        return tuple(found)

    def _memory(self, tensor: TensorInfo) -> memoryview:
        """The bytes of a tensor themselves; they stay where they are, because nothing reallocates from now on. (A copy
        from one memoryview to another takes 50 ns, from one array to another 200.)"""
        array = self._interpreter.tensor(tensor.index)()
        memory = (ctypes.c_char * array.nbytes).from_address(array.__array_interface__["data"][0])
        return memoryview(memory).cast("B")


def _info(name: str, details: dict, dtype: type = np.int8) -> TensorInfo:
    if details["dtype"] is not dtype:
        raise UnsupportedError(f"the model's tensor {name!r} is {np.dtype(details['dtype'])}; it must be "
                               f"{np.dtype(dtype)}.")
    scale, zero_point = details["quantization"]
    shape = tuple(int(n) for n in details["shape"])
    return TensorInfo(name, int(details["index"]), shape, float(scale), int(zero_point))


def _check_states(states, outputs) -> None:
    for entering, leaving in states:
        if not entering.name.endswith(STATE_SUFFIX) or leaving is None:
            raise UnsupportedError(f"the model's input {entering.name!r} has no output {entering.name + OUT_SUFFIX!r}.")
        if (entering.shape, entering.scale, entering.zero_point) != (leaving.shape, leaving.scale, leaving.zero_point):
            raise VerificationError(
                f"the state {entering.name!r} enters as {entering.shape} scale {entering.scale} zero point "
                f"{entering.zero_point} and leaves as {leaving.shape} {leaving.scale} {leaving.zero_point}; "
                "both must be equal."
            )
    if len(outputs) != len(states):
        raise UnsupportedError(f"the model has {len(outputs)} state outputs for {len(states)} state inputs.")
