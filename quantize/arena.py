"""What a model takes on a microcontroller: bytes of tensor arena in TFLite Micro, and whether its integers agree.

TFLite Micro runs in a process of its own (`python -m quantize.arena MODEL CODES OUT`) in the environment .venv-tflm,
which `make quantize` sets up where the wheel exists, or in that of $EDGE_AUDIO_TFLM, a Python. Where there is none, the
arena is None and the reason is said; it is never estimated.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from toolkit.errors import VerificationError

ROOT = Path(__file__).parents[1]
LARGEST_ARENA = 1 << 26  # bytes that the measuring run is given
NOT_INSTALLED = "tflite-micro is not installed; `make .venv-tflm/ready` gets it (requirements-tflm.txt)."
TOTAL = re.compile(r"Arena allocation total (\d+) bytes")


@dataclass(frozen=True)
class Arena:
    """What TFLite Micro says of a model."""

    bytes: int | None  # of one tensor arena in which everything fits, on x86-64; 32-bit pointers take less
    runtime: str | None = None  # "tflite-micro-0.dev20261023182759"
    lsb: dict[int, int] = field(default_factory=dict)  # {difference from the runtime here in LSB: number of scores}
    reason: str | None = None  # why nothing was measured

    def to_dict(self) -> dict:
        """For the report."""
        return {"arena_bytes": self.bytes, "runtime": self.runtime, "lsb": self.lsb, "reason": self.reason}


def measure_arena(model: bytes, codes: np.ndarray) -> Arena:
    """Runs a step model over clips of int8 codes [n, T, width] in TFLite Micro and in the runtime here.

    Raises VerificationError if TFLite Micro is there and does not run the model.
    """
    from toolkit.interpreter import StepModel

    python = tflm_python()
    if python is None:
        return Arena(None, reason=NOT_INSTALLED)
    needed, runtime, scores = run_micro(python, model, codes)
    step, here = StepModel(model), []
    for clip in codes:
        step.reset()
        here.append(step.process(clip))
    values, counts = np.unique(np.abs(scores.astype(int) - np.stack(here)), return_counts=True)
    return Arena(needed, runtime, {int(v): int(n) for v, n in zip(values, counts)})


def tflm_python() -> Path | None:
    """The Python that has tflite-micro."""
    named = os.environ.get("EDGE_AUDIO_TFLM")
    if named:
        return Path(named)
    if importlib.util.find_spec("tflite_micro"):
        return Path(sys.executable)
    own = ROOT / ".venv-tflm" / "bin" / "python"
    return own if (own.parents[1] / "ready").exists() else None


def run_micro(
    python: Path, model: bytes, codes: np.ndarray, arena_bytes: int = LARGEST_ARENA
) -> tuple[int, str, np.ndarray]:
    """(bytes of arena used, runtime, int8 scores [n, T/stride, labels]) of clips int8 [n, T, width], each from the
    reset state, in an arena of arena_bytes. Raises VerificationError if the model does not run in it."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "model.tflite").write_bytes(model)
        np.save(folder / "codes.npy", codes)
        command = [str(python), "-m", "quantize.arena", "model.tflite", "codes.npy", "scores.npz", str(arena_bytes)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        try:
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        except OSError as error:
            raise VerificationError(f"the Python of TFLite Micro, {python}, does not start ({error}).") from None
        total = TOTAL.search(done.stderr)  # its C++ reports there, and nowhere else
        if done.returncode or total is None:
            said = (done.stderr.strip().splitlines() or ["it crashed"])[-1]
            raise VerificationError(f"TFLite Micro does not run the model in {arena_bytes} bytes: {said[:200]}")
        with np.load(folder / "scores.npz") as result:
            return int(total[1]), str(result["runtime"]), result["scores"]


def _run(model: bytes, codes: np.ndarray, arena_bytes: int) -> tuple[str, np.ndarray]:
    """In the process that has TFLite Micro: its name and the scores; it prints the arena to stderr."""
    from importlib.metadata import version

    from tflite_micro import runtime

    entering, leaving = _signature(model)
    micro = runtime.Interpreter.from_bytes(model, arena_size=arena_bytes)
    details = {name: micro.get_input_details(i) for name, i in entering.items()}
    frames_per_step = details["frames"]["shape"][1]
    states = [name for name in entering if name != "frames"]
    scores = []
    for clip in codes:
        micro.reset()  # what an LSTM keeps inside
        ring = {
            name: np.full(d["shape"], d["quantization_parameters"]["zero_points"][0], np.int8)
            for name, d in details.items()
        }
        for i in range(0, len(clip) - frames_per_step + 1, frames_per_step):
            ring["frames"] = clip[None, i : i + frames_per_step]
            for name, value in ring.items():
                micro.set_input(value, entering[name])
            micro.invoke()
            scores.append(micro.get_output(leaving["scores"])[0].copy())
            for name in states:
                ring[name] = micro.get_output(leaving[f"{name}_out"]).copy()
    micro.print_allocations()
    n_labels = scores[0].shape[-1]
    return f"tflite-micro-{version('tflite-micro')}", np.concatenate(scores).reshape(len(codes), -1, n_labels)


def _signature(model: bytes) -> tuple[dict[str, int], dict[str, int]]:
    """Position of each input and output by its name in the signature, which TFLite Micro itself does not read."""
    from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

    tree = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))
    signature, graph = tree.signatureDefs[0], tree.subgraphs[0]
    return (
        {item.name.decode(): list(graph.inputs).index(item.tensorIndex) for item in signature.inputs},
        {item.name.decode(): list(graph.outputs).index(item.tensorIndex) for item in signature.outputs},
    )


if __name__ == "__main__":
    name, computed = _run(Path(sys.argv[1]).read_bytes(), np.load(sys.argv[2]), int(sys.argv[4]))
    np.savez(sys.argv[3], runtime=name, scores=computed)
