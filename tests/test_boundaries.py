"""Who may import whom, held by reading every file; nothing optional at import time; names and sizes of files.

The table is the architecture: what ships to a device (toolkit/) knows nothing of how a model is made (models/),
quantized (quantize/) or delivered (devices/), and needs numpy alone.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("toolkit", "models", "quantize", "devices", "tests")
STDLIB = sys.stdlib_module_names | {"_sha2", "_sha256"}  # of other versions of Python: toolkit/digest.py
MAX_LINES = 400
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "scripts", "misc"}

TFLITE = {"tflite_runtime", "ai_edge_litert"}
SCIENTIFIC = {"numpy", "scipy", "matplotlib", "soundfile", "soxr", "pooch", "requests", "rich", "optuna", "pandas",
              "sed_eval", "sed_scores_eval", "pesq", "pystoi"}
SSH = {"asyncssh", "fabric", "paramiko"}


@dataclass(frozen=True)
class Rule:
    """What the files of one folder may import; a name stands for itself and all below it."""

    at_import: set[str]  # besides the standard library and the folder itself
    never: set[str]  # not inside functions either
    lazily: dict[str, set[str]] = field(default_factory=dict)  # library: the only files that may, inside functions
    anything_lazily: bool = True  # other libraries inside functions


def one_file(libraries: set[str], *files: str) -> dict[str, set[str]]:
    return {library: set(files) for library in libraries}


RULES = {
    "toolkit": Rule(
        at_import={"numpy"},
        never={"tensorflow", "tf_keras", "keras", "models", "quantize", "devices"},
        lazily={
            **one_file(TFLITE, "toolkit/interpreter.py"),
            **one_file({"sounddevice"}, "toolkit/mic.py"),
            **one_file({"soundfile", "soxr"}, "toolkit/audio.py"),
            **one_file({"cryptography", "nacl"}, "toolkit/signature.py"),
            **one_file({"yaml"}, "toolkit/config.py"),
            **one_file({"matplotlib"}, "toolkit/plot.py"),
        },
        anything_lazily=False,
    ),
    "models": Rule(
        at_import={"toolkit", "tensorflow", "tf_keras"} | SCIENTIFIC,
        never={"quantize", "devices", "tensorflow_model_optimization"} | TFLITE,
    ),
    "quantize": Rule(
        at_import={"toolkit", "models", "tensorflow", "tf_keras"} | SCIENTIFIC,
        never={"devices"} | TFLITE,
        lazily=one_file({"tensorflow_model_optimization"}, "quantize/prune.py", "quantize/qat.py"),
    ),
    "devices": Rule(
        at_import=SSH | {f"toolkit.{name}" for name in """arguments bundle config digest errors keyring manifest profile
                         signature""".split()},
        never={"tensorflow", "tf_keras", "keras", "models", "quantize"},
    ),
}


def python_files(*folders: str) -> list[Path]:
    """Relative to the root; no hidden folder, no build output."""
    files = [path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted(path for path in files if not any(part.startswith((".", "__pycache__")) for part in path.parts[:-1]))


class Imports(ast.NodeVisitor):
    """(line, dotted name, inside a function?) of every import, relative ones resolved."""

    def __init__(self, package: str):
        self.package, self.found, self.depth = package.split("."), [], 0

    def visit_FunctionDef(self, node):
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    visit_AsyncFunctionDef = visit_Lambda = visit_FunctionDef

    def visit_If(self, node):
        if "TYPE_CHECKING" in ast.unparse(node.test):
            return
        self.generic_visit(node)

    def visit_Import(self, node):
        self.found += [(node.lineno, alias.name, self.depth > 0) for alias in node.names]

    def visit_ImportFrom(self, node):
        base = self.package[: len(self.package) - node.level + 1] if node.level else []
        module = ".".join([*base, *([node.module] if node.module else [])])
        names = [f"{module}.{alias.name}" for alias in node.names]
        self.found += [(node.lineno, name, self.depth > 0) for name in names]

    def visit_Call(self, node):
        """importlib.import_module and __import__: with a literal an import like any other, else one of "?"."""
        if ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            constant = node.args and isinstance(node.args[0], ast.Constant)
            self.found.append((node.lineno, node.args[0].value if constant else "?", self.depth > 0))
        self.generic_visit(node)


def covers(names: set[str], imported: str) -> bool:
    return any(imported == name or imported.startswith(name + ".") for name in names)


def violations(path: Path, source: str) -> list[str]:
    """What the file (relative path) imports against the rule of its folder."""
    folder, name = path.parts[0], path.as_posix()
    rule = RULES[folder]
    live = path.parts[:2] == ("toolkit", "live")  # the daemon is an extra, with libraries of its own
    visitor = Imports(".".join(path.parts[:-1]))
    visitor.visit(ast.parse(source))
    wrong = []
    for line, imported, in_function in visitor.found:
        top = imported.split(".")[0]
        if covers(rule.never, imported):
            wrong.append(f"{name}:{line} imports {imported}, which {folder}/ never does")
        elif imported == "?":  # a module named by the user or by the table of runtimes
            if folder == "toolkit" and name != "toolkit/interpreter.py":
                wrong.append(f"{name}:{line} imports a module whose name is not in the source")
        elif top in STDLIB or top == folder or covers(rule.at_import, imported):
            continue
        elif top in rule.lazily:
            if name not in rule.lazily[top] or not in_function:
                wrong.append(f"{name}:{line} imports {top}: only inside functions of {sorted(rule.lazily[top])}")
        elif not in_function or not (rule.anything_lazily or live) or top in ("toolkit", "tests"):
            wrong.append(f"{name}:{line} imports {imported}, which is not in the table")
    return wrong


@pytest.mark.parametrize("path", python_files(*RULES), ids=str)
def test_imports_keep_the_table(path):
    assert violations(path, (ROOT / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path, source", [
    ("toolkit/kws.py", "import scipy"), ("toolkit/kws.py", "def f():\n    import scipy"),
    ("toolkit/kws.py", "def f():\n    from models import data"), ("toolkit/kws.py", "try:\n    import yaml\nexcept: 0"),
    ("toolkit/config.py", "import yaml"), ("toolkit/audio.py", "class A:\n    import soundfile"),
    ("toolkit/mic.py", "def f():\n    import soundfile"), ("toolkit/kws.py", "from quantize.pack import f"),
    ("toolkit/kws.py", "def f():\n    importlib.import_module(name)"), ("toolkit/live/web.py", "import paho.mqtt"),
    ("toolkit/live/web.py", "def f():\n    import tensorflow"), ("toolkit/kws.py", "from ..models import data"),
    ("models/data.py", "import quantize"), ("models/data.py", "def f():\n    import devices.fleet"),
    ("models/data.py", "import piper"), ("quantize/pack.py", "def f():\n    import tensorflow_model_optimization"),
    ("quantize/prune.py", "import tensorflow_model_optimization"), ("quantize/pack.py", "from devices import keygen"),
    ("devices/deploy.py", "from toolkit.features import FrontEnd"), ("devices/deploy.py", "import numpy"),
    ("devices/deploy.py", "def f():\n    __import__('tensorflow')"), ("devices/deploy.py", "from toolkit import kws")])
def test_the_table_forbids(path, source):
    assert len(violations(Path(path), source)) == 1


@pytest.mark.parametrize("path, source", [
    ("toolkit/kws.py", "import os, numpy.linalg\nfrom .errors import A\nfrom . import native"),
    ("toolkit/kws.py", "from toolkit import bundle"),
    ("toolkit/config.py", "def f():\n    import yaml"), ("toolkit/interpreter.py", "def f():\n    import_module(name)"),
    ("toolkit/live/web.py", "def f():\n    import paho.mqtt"), ("toolkit/live/web.py", "from ..errors import A"),
    ("toolkit/kws.py", "if TYPE_CHECKING:\n    import yaml"), ("models/data.py", "def f():\n    import piper"),
    ("models/data.py", "import tensorflow, toolkit.kws, scipy"),
    ("quantize/pack.py", "from models.data import f\nimport tf_keras"),
    ("quantize/qat.py", "def f():\n    import tensorflow_model_optimization as tfmot"),
    ("devices/deploy.py", "import asyncssh\nfrom toolkit.bundle import load_bundle")])
def test_the_table_allows(path, source):
    assert violations(Path(path), source) == []


def test_importing_the_toolkit_loads_numpy_alone():
    """In a fresh interpreter: every module of toolkit/ but the daemon, then no library is there that was not before."""
    names = [".".join(path.with_suffix("").parts) for path in python_files("toolkit")
             if path.parts[1] not in ("live", "__main__.py")]
    program = (f"import sys; sys.path.insert(0, {str(ROOT)!r}); import numpy; before = set(sys.modules)\n"
               f"for name in {names!r}: __import__(name.removesuffix('.__init__'))\n"
               "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = {name for name in done.stdout.split() if name not in STDLIB and not name.startswith("_")}
    assert loaded == {"toolkit"}


@pytest.mark.parametrize("path", python_files(*FOLDERS), ids=str)
def test_files_are_read_in_one_sitting(path):
    n_lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
    assert n_lines <= MAX_LINES, f"{path} has {n_lines} lines, at most {MAX_LINES}; split it by subject"


@pytest.mark.parametrize("folder", ["toolkit/core", "tests/arm"])
def test_c_files_too(folder):
    lines = {path.name: len(path.read_text(encoding="ascii").splitlines()) for path in (ROOT / folder).glob("*.[ch]")}
    assert lines and max(lines.values()) <= MAX_LINES, lines


@pytest.mark.parametrize("folder", FOLDERS)
def test_files_are_named_after_their_subject(folder):
    names = {part for path in python_files(folder) for part in path.with_suffix("").parts}
    assert not names & FORBIDDEN_NAMES
