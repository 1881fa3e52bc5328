"""What the toolkit weighs: memory and start-up time above numpy and a TFLite runtime that holds the same model.

Each figure is the least of several processes, those compared taking turns, so that a busy machine does not count. As
in an installed package, the modules are compiled to bytecode beforehand.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from released import released

from toolkit.interpreter import RUNTIMES

ROOT = Path(__file__).resolve().parents[1]
TURNS = 5
LIBRARIES = """
import os, sys, time
import numpy
from {package}.interpreter import Interpreter, OpResolverType
start_s = time.process_time()
"""
BARE = """
interpreter = Interpreter(model_path={model!r}, num_threads=1, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
interpreter.allocate_tensors()
"""
TOOLKIT = """
from toolkit.bundle import load_bundle
from toolkit.stream import Pipeline
pipeline = Pipeline([load_bundle("kws", {policy!r})])
"""
FIGURES = """
cpu_ms = 1000 * (time.process_time() - start_s)
pages = int(open("/proc/self/statm").read().split()[1])
for_signatures = sorted({"nacl", "cryptography", "toolkit.signature"} & set(sys.modules))
print([cpu_ms, pages * os.sysconf("SC_PAGE_SIZE") / 2**20, for_signatures])
"""


def usable(runtime: str, package: str) -> bool:
    old_numpy = int(np.__version__.split(".")[0]) < 2
    return importlib.util.find_spec(package) is not None and (runtime != "tflite-runtime" or old_numpy)


@pytest.fixture(scope="module", params=[name for name, package in RUNTIMES.items() if usable(name, package)])
def weights(request, tmp_path_factory) -> dict[str, tuple[float, float, list[str]]]:
    """Program -> (CPU time in ms after the libraries, resident memory in MB, what was loaded for signatures)."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("memory is read from Linux's /proc")
    folder = tmp_path_factory.mktemp("weight")
    (folder / "model.tflite").write_bytes(released().members["model"])
    programs = {policy: TOOLKIT.format(policy=policy) for policy in ("off", "require")}
    programs["bare"] = BARE.format(model=str(folder / "model.tflite"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(folder / "pyc"),
                   "EDGE_AUDIO_RUNTIME": request.param}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    measured = {name: [] for name in programs}
    for turn in range(1 + TURNS):
        for name, program in programs.items():
            program = LIBRARIES.format(package=RUNTIMES[request.param]) + program + FIGURES
            command = [sys.executable, "-c", program]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            if turn:  # the first one compiles
                measured[name].append(ast.literal_eval(done.stdout))
    least = {name: (min(r[0] for r in runs), min(r[1] for r in runs), runs[0][2]) for name, runs in measured.items()}
    print(f"\n{request.param}:", ", ".join(f"{name} {ms:.1f} ms {mb:.1f} MB" for name, (ms, mb, _) in least.items()))
    return least


def test_importing_and_loading_the_bundle(weights):
    extra_ms, extra_mb = (weights["off"][i] - weights["bare"][i] for i in (0, 1))
    assert extra_ms <= 60 and extra_mb <= 6, f"{extra_ms:.0f} ms, {extra_mb:.1f} MB"


def test_checking_the_signature(weights):
    extra_ms, extra_mb = (weights["require"][i] - weights["off"][i] for i in (0, 1))
    assert extra_ms <= 60 and extra_mb <= 15, f"{extra_ms:.0f} ms, {extra_mb:.1f} MB"


def test_only_where_the_policy_asks_for_it(weights):
    assert weights["off"][2] == []
    assert weights["require"][2] in (["nacl", "toolkit.signature"], ["cryptography", "toolkit.signature"])
