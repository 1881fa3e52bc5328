"""The one door to TFLite: tflite-runtime where it is installed, else ai-edge-litert; reference kernels, one thread.

The reference kernels (BUILTIN_REF) give the same integers in both runtimes and in TFLite Micro, on x86-64 and on Arm.
The optimized ones do not: those of tflite-runtime 2.14 differ between x86-64 and aarch64 by up to 3 LSB in 29 % of the
scores of `kws` (1x1 CONV_2D on x86-64, DEPTHWISE_CONV_2D on Arm), and save a third of the time on x86-64.

A model is a `step` model: int8 input `frames` [1, T, n], int8 output `scores` [1, T/stride, labels], and one ring
buffer `NAME_state` in and `NAME_state_out` out per temporal layer. Tensors are found by their signature names, never
by position, and states are copied through views of the tensors' memory that are made once.
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
OPS = frozenset(
    "ADD CONCATENATION CONV_2D DELEGATE DEPTHWISE_CONV_2D FULLY_CONNECTED MAX_POOL_2D MUL PAD RESHAPE SLICE "
    "STRIDED_SLICE".split()
)  # what all runtimes here (tflite-runtime 2.14, ai-edge-litert, TFLite Micro) compute in int8


@dataclass(frozen=True)
class TensorInfo:
    """An int8 tensor of the model: real value = scale * (integer - zero_point)."""

    name: str  # in the signature
    index: int
    shape: tuple[int, ...]
    scale: float
    zero_point: int


RUNTIMES = {"tflite-runtime": "tflite_runtime", "ai-edge-litert": "ai_edge_litert"}  # by preference: package


@functools.cache
def _runtime():
    """(the interpreter class, its options, the runtime's name with major.minor version).

    EDGE_AUDIO_RUNTIME=ai-edge-litert (or tflite-runtime) asks for that one alone.
    """
    wanted = os.environ.get("EDGE_AUDIO_RUNTIME")
    if wanted and wanted not in RUNTIMES:
        raise UsageError(f"EDGE_AUDIO_RUNTIME is {wanted!r}; expected {' or '.join(RUNTIMES)}.")
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


def runtime_name() -> str:
    """The installed runtime, as bundles name it: "tflite-runtime-2.14" or "ai-edge-litert-2.3"."""
    return _runtime()[2]


class StepModel:
    """A streaming int8 model with its state.

    model:  the flatbuffer
    frames: T of one step; None: as converted. Any multiple of the converted T gives the same integers, because it is
            the same flatbuffer, resized.

    Attributes: input, output (TensorInfo), states (pairs of TensorInfo: entering, leaving), frames_per_step.
    Raises UnsupportedError for a model of another form, VerificationError if a state would change on its way round.
    """

    def __init__(self, model: bytes, frames: int | None = None):
        make, options, self.runtime = _runtime()
        try:
            self._interpreter = make(model_content=bytes(model), **options)
            inputs, outputs = self._signature()
            if INPUT not in inputs or OUTPUT not in outputs:
                raise UnsupportedError(f"the model has inputs {sorted(inputs)} and outputs {sorted(outputs)}; "
                                       f"a step model has {INPUT!r} and {OUTPUT!r}.")
            if frames is not None and frames != inputs[INPUT].shape[1]:
                self._interpreter.resize_tensor_input(inputs[INPUT].index, (1, frames, inputs[INPUT].shape[2]))
            self._interpreter.allocate_tensors()
            inputs, outputs = self._signature()
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UnsupportedError(f"{self.runtime} cannot load the model: {reason}.") from None
        self.input, self.output = inputs.pop(INPUT), outputs.pop(OUTPUT)
        _check_form(self.input.shape, self.output.shape)
        self.states = tuple((tensor, outputs.get(name + OUT_SUFFIX)) for name, tensor in sorted(inputs.items()))
        _check_states(self.states, outputs)
        self.frames_per_step = self.input.shape[1]
        self._frames = self._view(self.input)[0]
        self._scores = self._view(self.output)[0]
        self._rings = [(self._view(a), self._view(b), a.zero_point) for a, b in self.states]
        self._invoke = self._interpreter.invoke
        self.reset()

    def reset(self) -> None:
        """All states back to the zero point: the past is zeros."""
        for entering, _, zero_point in self._rings:
            entering.fill(zero_point)
        self._waiting = np.zeros((0, self.input.shape[2]), np.int8)

    def process(self, codes: np.ndarray) -> np.ndarray:
        """int8 codes [m, n] -> int8 scores [k, labels] of the steps they complete; the rest waits for the next call."""
        if len(self._waiting):
            codes = np.concatenate([self._waiting, codes])
        step, n_steps = self.frames_per_step, len(codes) // self.frames_per_step
        out = np.empty((n_steps, *self._scores.shape), np.int8)
        for i in range(n_steps):
            self._frames[:] = codes[i * step : (i + 1) * step]
            self._invoke()
            out[i] = self._scores
            for entering, leaving, _ in self._rings:
                entering[:] = leaving
        self._waiting = codes[n_steps * step :].copy()  # the caller may use its memory again
        return out.reshape(-1, self._scores.shape[1])

    def state(self) -> list[np.ndarray]:
        """Copies of the states, in the order of `states`."""
        return [entering.copy() for entering, _, _ in self._rings]

    def ops(self) -> tuple[str, ...]:
        """The names of the operations in the model, sorted, each once."""
        return tuple(sorted({op["op_name"] for op in self._interpreter._get_ops_details()} - {"DELEGATE"}))

    def tensors(self) -> list[dict]:
        """What the runtime says of every tensor (name, shape, dtype, quantization_parameters)."""
        return self._interpreter.get_tensor_details()

    def _signature(self) -> tuple[dict[str, TensorInfo], dict[str, TensorInfo]]:
        runner = self._interpreter.get_signature_runner()
        return ({name: _info(name, d) for name, d in runner.get_input_details().items()},
                {name: _info(name, d) for name, d in runner.get_output_details().items()})

    def _view(self, tensor: TensorInfo) -> np.ndarray:
        """The tensor's memory itself; stays valid because nothing reallocates after this."""
        address = self._interpreter.tensor(tensor.index)().__array_interface__["data"][0]
        size = int(np.prod(tensor.shape))
        memory = (ctypes.c_char * size).from_address(address)
        return np.frombuffer(memory, np.int8).reshape(tensor.shape)


def _info(name: str, details: dict) -> TensorInfo:
    if details["dtype"] is not np.int8:
        raise UnsupportedError(f"the model's tensor {name!r} is {np.dtype(details['dtype'])}; all must be int8.")
    scale, zero_point = details["quantization"]
    shape = tuple(int(n) for n in details["shape"])
    return TensorInfo(name, int(details["index"]), shape, float(scale), int(zero_point))


def _check_form(entering: tuple[int, ...], leaving: tuple[int, ...]) -> None:
    """frames [1, T, n] become scores [1, T / stride, labels]."""
    if len(entering) != 3 or len(leaving) != 3 or entering[0] != 1 or leaving[0] != 1 or entering[1] % leaving[1]:
        raise UnsupportedError(f"the model turns {INPUT} {entering} into {OUTPUT} {leaving}; "
                               "a step model turns [1, T, n] into [1, T / stride, labels].")


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
