"""What all tests share: the checkout on the path, the reason of every skip, STRICT=1, and the common fixtures.

A run ends with `N passed, M skipped` and one line per reason. With STRICT=1 in the environment a skip is a failure:
work is done only where a strict run is green on a machine that has every part.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STRICT = os.environ.get("STRICT", "0") not in ("", "0")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a job that a script put into the background: tests send
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it to their children, which would inherit the deafness

if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

try:
    import hypothesis
except ImportError:  # the tests that need it skip, with the reason
    pass
else:
    hypothesis.settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
    hypothesis.settings.load_profile("repeatable")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """As if -rfEs were given: the summary names each failure, and the reason of each skip."""
    chars = config.option.reportchars
    if not set(chars) & set("aAN"):
        config.option.reportchars = chars + "".join(char for char in "fEs" if char not in chars)


# Tests of the host's folders; where TensorFlow is not installed (a device, .venv-litert) they do not belong to the run.
HOST_TESTS = [f"test_{name}.py" for name in """action architectures arena arguments attacks augment card channels
              compare conditions data deploy deploy_again det distill distribute facts fetch figures fleet fleet_sshd
              gates_failing int16 inventory keyring_command kill_matrix layer_error layers micro mine op_versions oracle
              own plan preflight prune publish pull_attacks qat quantize recipe release samples search slim sound_groups
              speak streams train units wheels""".split()]
collect_ignore = [] if importlib.util.find_spec("tensorflow") else HOST_TESTS
# These hold TensorFlow in the process, in which tflite-runtime then loads no model: `make check` runs them apart.
TENSORFLOW_TESTS = tuple(f"test_{name}.py" for name in """architectures channels distill distribute layers prune
                         qat train""".split())


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    named = any(argument.endswith(TENSORFLOW_TESTS) for argument in config.args)
    if collection_path.suffix == ".py" and (collection_path.name in TENSORFLOW_TESTS) != named:
        return collection_path.name.startswith("test_") or None
    return None



def pytest_report_header() -> list[str]:
    lines = ["strict: a skip is a failure (STRICT=1)"] if STRICT else []
    if collect_ignore:
        lines.append(f"no TensorFlow here: the tests of toolkit/ and devices/, without {', '.join(collect_ignore)}")
    return lines


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if STRICT and report.skipped and not hasattr(report, "wasxfail"):
        path, line, reason = report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{path}:{line}: skipped in a strict run. {reason}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport():
    _fail_if_skipped((yield).get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report():
    _fail_if_skipped((yield).get_result())


@pytest.fixture(scope="session")
def core():
    """The C core of the checkout, as ctypes loaded it."""
    from toolkit import native

    if native.library() is None:
        pytest.skip(native.HOW_TO_BUILD)
    return native.library()


@pytest.fixture(params=["numpy", "native"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each of the two front ends in turn."""
    if request.param == "native":
        request.getfixturevalue("core")
    return request.param


@pytest.fixture(scope="session")
def compiler() -> str:
    """The system's C compiler: $CC, or cc, gcc, clang."""
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        if name and shutil.which(name):
            return name
    pytest.skip("no C compiler is installed (Debian: gcc)")
