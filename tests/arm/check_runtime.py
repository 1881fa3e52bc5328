"""The wheel on Arm gives the integers of the checkout here: `python tests/arm/check_runtime.py` (`make check-arm`).

The whole Python runtime (C front end, int8 net in tflite-runtime and in the C core, detector) runs under qemu-user for
aarch64 (what pip installs on a 64-bit Raspberry Pi OS) and armv7 (Debian's numpy, for which there is no wheel), and on
this machine with the Python that runs this file (.venv/bin/python after `make setup`). There the wheel of `make wheels`
is installed, by pip under qemu, which must find its platform's name good and its requirements met; no file of the
checkout's toolkit is in reach. The self-tests of all released bundles, the detections of the sample scene and the
hashes of all its features, codes and scores (of every released bundle, in both runtimes) must be equal: one JSON line
per check, exit 1 with a sentence if one is not.

The Arm systems are unpacked, never installed: nothing is executed while they are made, so neither root nor
binfmt_misc is needed. They are made once, in --cache (default build/arm; 235 MB for both), and need the network only
then. On a board itself, `--integers` prints the hashes alone.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
BUNDLE, SCENE = "kws", "models/samples/scene.wav"
LSTM = "UNIDIRECTIONAL_SEQUENCE_LSTM"  # which the native runtime leaves to TFLite
RELEASED = sorted(path.stem for path in (REPOSITORY / "toolkit" / "bundles").glob("*.eab"))
CHECKS = {  # name: arguments of Python, in the repository's root; JSON lines come out
    "selftest": ("-m", "toolkit", "selftest", *RELEASED, "--signature", "require"),
    "run": ("-m", "toolkit", "run", BUNDLE, SCENE, "--signature", "require"),
    "integers": ("tests/arm/check_runtime.py", "--integers"),
}
MADE_BY = ("machine", "python", "numpy")  # in an answer as evidence, not to be compared
SUITE, PYTHON = "bookworm", "3.11"  # of the Arm environments: glibc 2.36, the last Python with tflite-runtime wheels
RUNTIME, ONE_RUNTIME = "tflite-runtime==2.14.*", {"EDGE_AUDIO_RUNTIME": "tflite-runtime"}
PACKAGES = "mmdebstrap debian-archive-keyring qemu-user-static gcc-aarch64-linux-gnu gcc-arm-linux-gnueabihf make"


@dataclass(frozen=True)
class Target:
    """An Arm machine and what its Python environment is made of."""

    name: str
    machine: str  # uname -m, also in the names of wheels
    architecture: str  # Debian's name
    triplet: str  # of the compiler and of library folders
    emulator: str
    debian: tuple[str, ...]
    wheels: tuple[str, ...]
    environment: tuple[str, ...] = ()  # options of venv for the toolkit's environment

    def recipe(self) -> str:
        """What its environment holds; one of another recipe is made anew."""
        return json.dumps([SUITE, self.debian, self.wheels])


TARGETS = (
    Target("aarch64", "aarch64", "arm64", "aarch64-linux-gnu", "qemu-aarch64-static",
           (f"python{PYTHON}-minimal", f"libpython{PYTHON}-stdlib", "libstdc++6"),
           (RUNTIME, "numpy<2", "pynacl", "cffi")),
    Target("armv7", "armv7l", "armhf", "arm-linux-gnueabihf", "qemu-arm-static",
           ("python3-numpy", "python3-nacl", "libstdc++6"), (RUNTIME,), ("--system-site-packages",)),
)


class CheckFailed(Exception):
    """One sentence: a program could not do its part."""


class MissingPart(CheckFailed):
    """A tool or the network is missing."""


def say(text: str) -> None:
    print(f"check-arm: {text}", file=sys.stderr, flush=True)


def require_tools(*tools: str) -> None:
    if missing := [tool for tool in tools if not shutil.which(tool)]:
        raise MissingPart(f"{' and '.join(missing)} not found; install {PACKAGES}.")


def is_made(target: Target, cache: Path) -> bool:
    recipe = cache / target.name / "recipe.json"
    return recipe.is_file() and recipe.read_text(encoding="ascii") == target.recipe()


def make_environment(target: Target, cache: Path) -> None:
    """cache/NAME with root/ (Debian's packages), packages/ (wheels), recipe.json; there whole or not at all."""
    folder, unfinished = cache / target.name, cache / f"{target.name}.unfinished"
    say(f"making {folder} (once, about 20 s)")
    started = time.monotonic()
    for old in (unfinished, folder):
        shutil.rmtree(old, ignore_errors=True)
    unfinished.mkdir(parents=True)
    fetch(["mmdebstrap", "--mode=chrootless", "--variant=extract", f"--architectures={target.architecture}",
           "--setup-hook=sed -i '/-updates\\|-security/d' \"$1\"/etc/apt/sources.list",  # the point release is enough
           f"--include={','.join(target.debian)}", SUITE, str(unfinished / "root")])
    platforms = [f"--platform={tag}_{target.machine}" for tag in ("manylinux_2_34", "manylinux_2_28", "manylinux2014")]
    fetch([sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", *platforms,
           "--only-binary=:all:", f"--python-version={PYTHON}", "--implementation=cp", "--abi=cp311", "--abi=abi3",
           f"--target={unfinished / 'packages'}", *target.wheels])
    (unfinished / "recipe.json").write_text(target.recipe(), encoding="ascii")
    unfinished.rename(folder)
    say(f"made {folder} in {time.monotonic() - started:.0f} s")


def fetch(command: list[str]) -> None:
    """Run a program that downloads and unpacks; MissingPart with its first error."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith(("E:", "ERROR:"))]
        reason = (errors or [done.stderr[-500:]])[0].strip()
        raise MissingPart(f"{' '.join(command[:3])} ended with {done.returncode}; is there a network? {reason}")


def build_core(folder: Path) -> Path:
    """The C core of this machine by the Makefile's own rule, made anew in `folder`."""
    core = folder / "libea.so"
    folder.mkdir(parents=True, exist_ok=True)
    output_of(["make", "-sB", "core", f"CORE={core}"])
    return core


def build_wheel(target: Target, folder: Path) -> Path:
    """The wheel of `make wheels`, made anew in `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    answer = output_of([sys.executable, "-m", "devices.wheels", target.name, "--into", str(folder)])
    return Path(json.loads(answer)["wheel"])


def output_of(command: list[str], environment: dict[str, str] | None = None) -> str:
    """What a program in the repository's root prints. CheckFailed with its last words."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment)
    if done.returncode != 0:
        raise CheckFailed(f"{' '.join(command)} ended with status {done.returncode}: {done.stderr[-500:]}")
    return done.stdout


@dataclass(frozen=True)
class Python:
    """A Python that has the toolkit: how to call it, and its whole environment."""

    where: str
    command: tuple[str, ...]
    environment: dict[str, str]

    def answer(self, check: str) -> list[dict]:
        """The JSON lines of a check. CheckFailed if it gives none; a failed self-test gives its line all the same."""
        command = [*self.command, *CHECKS[check]]
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=self.environment)
        if not done.stdout or done.returncode not in (0, 1):
            last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
            raise CheckFailed(f"{check} gives no answer on {self.where} (status {done.returncode}): {last}")
        return [json.loads(line) for line in done.stdout.splitlines()]


def emulated(target: Target, folder: Path, *packages: Path) -> Python:
    """The target's Python under qemu-user. Nothing of this machine's environment reaches it, nor does the checkout."""
    root, libraries = folder / "root", folder / "root" / "usr" / "lib" / target.triplet
    environment = {
        **ONE_RUNTIME,
        "PYTHONPATH": ":".join(map(str, packages)),
        "PYTHONPYCACHEPREFIX": str(folder / "bytecode"),
        "PYTHONNOUSERSITE": "1",
        "PYTHONSAFEPATH": "1",  # "" is not on the path
        "LD_LIBRARY_PATH": f"{libraries}:{libraries / 'blas'}:{libraries / 'lapack'}",  # no alternatives are set up
    }
    return Python(target.name, (shutil.which(target.emulator), "-L", str(root), f"{root}/usr/bin/python{PYTHON}"),
                  environment)


def install(target: Target, folder: Path, wheel: Path) -> Python:
    """The Python of a new virtual environment, as on a board, into which pip put the wheel. CheckFailed if pip does not
    take it there or misses one of its requirements."""
    if not (ours := importlib.util.find_spec("pip")):
        raise MissingPart(f"{sys.executable} has no pip; run `make check-arm`.")
    place, pip = folder / "venv", folder / "pip" / "pip"
    for old in (place, pip.parent):
        shutil.rmtree(old, ignore_errors=True)
    pip.parent.mkdir()
    pip.symlink_to(ours.submodule_search_locations[0])  # Python alone, so good for every machine
    python = emulated(target, folder, folder / "packages", pip.parent)
    output_of([*python.command, "-m", "venv", "--without-pip", *target.environment, str(place)], python.environment)
    python = replace(python, command=(*python.command[:-1], f"{place}/bin/python"))
    command = [*python.command, "-m", "pip", "--disable-pip-version-check"]
    output_of([*command, "install", "-q", "--no-index", "--no-deps", "--no-compile", str(wheel)], python.environment)
    done = subprocess.run([*command, "check"], capture_output=True, text=True, env=python.environment)
    if unmet := [line for line in done.stdout.splitlines() if line.startswith("edge-audio-toolkit")]:
        raise CheckFailed(f"pip check: {unmet[0]}")
    return python


def print_integers() -> None:
    """One JSON line: SHA-256 of the scene's features (both twins), codes, and scores of every released bundle in
    tflite-runtime and, but for an LSTM, in the native runtime; and what computed them."""
    import numpy as np

    from toolkit.audio import read_audio
    from toolkit.bundle import load_bundle, released_bundles
    from toolkit.engine import Engine
    from toolkit.interpreter import StepModel
    from toolkit.stream import BundleStage, make_front_end

    bundle = load_bundle(BUNDLE, "require")
    stage, native, twin = BundleStage(bundle), make_front_end(bundle, "native"), make_front_end(bundle, "numpy")
    samples, _ = read_audio(REPOSITORY / SCENE, native.tables.sample_rate_hz)
    features = native.process(samples)
    codes = stage.requantize.apply(features)
    arrays = {"features": features, "features_numpy": twin.process(samples), "codes": codes}
    for name, path in sorted(released_bundles().items()):
        released = load_bundle(str(path), "require")
        model, has_lstm = released.members["model"], LSTM in released.manifest.model.ops
        for runtime in (StepModel,) if has_lstm else (StepModel, Engine):
            arrays[f"{name}_{runtime.__name__}"] = runtime(model, 4).process(codes)
    made_by = dict(zip(MADE_BY, (platform.machine(), platform.python_version(), np.__version__), strict=True))
    hashes = {name: [*array.shape, hashlib.sha256(array.tobytes()).hexdigest()] for name, array in arrays.items()}
    print(json.dumps(made_by | hashes))


def difference(expected: list[dict], found: list[dict]) -> str | None:
    """Where two answers first differ, in words; None if they are equal."""
    for number, (here, there) in enumerate(zip(expected, found, strict=False), 1):
        for key in here | there:
            if key not in MADE_BY and here.get(key) != there.get(key):
                return f"line {number} has {key} {there.get(key)}, expected {here.get(key)}"
    return None if len(expected) == len(found) else f"{len(found)} lines, expected {len(expected)}"


def check_target(target: Target, cache: Path, expected: dict[str, list[dict]]) -> bool:
    """Print a line per check; True if all are equal."""
    folder, all_equal = cache / target.name, True
    wheel = build_wheel(target, folder / "wheel")
    python = install(target, folder, wheel)
    for check, reference in expected.items():
        found = python.answer(check)
        made_by = {key: found[0][key] for key in MADE_BY if key in found[0]}
        if made_by.get("machine", target.machine) != target.machine:
            raise CheckFailed(f"{check} ran on {made_by['machine']}, expected {target.machine}.")
        unequal = difference(reference, found)
        print(json.dumps({"target": target.name, "wheel": wheel.name, "check": check, "equal": unequal is None,
                          **made_by}), flush=True)
        if unequal:
            say(f"{target.name}: {check}: {unequal}.")
        all_equal &= not unequal
    return all_equal


def reference_answers(cache: Path) -> dict[str, list[dict]]:
    """What this machine says, which must be sound itself."""
    own = {"EDGE_AUDIO_CORE": str(build_core(cache / "here")), "PYTHONPATH": str(REPOSITORY), **ONE_RUNTIME}
    here = Python("this machine", (sys.executable,), {**os.environ, **own})
    expected = {check: here.answer(check) for check in CHECKS}
    for answer in expected["selftest"]:
        if answer["reason"]:
            raise CheckFailed(f"{answer['bundle']} fails its self-test on this machine: {answer['reason']}.")
    return expected


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The whole runtime on Arm, under QEMU, against this machine.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="of " + ", ".join(t.name for t in TARGETS))
    parser.add_argument("--cache", type=Path, default=REPOSITORY / "build" / "arm", help="of the Arm environments")
    parser.add_argument("--skip-missing", action="store_true", help="leave out what cannot be built here")
    parser.add_argument("--integers", action="store_true", help="print the hashes of this machine's integers and stop")
    options = parser.parse_args(arguments)
    if unknown := set(options.targets) - {target.name for target in TARGETS}:
        parser.error(f"unknown target {', '.join(sorted(unknown))}; there are {', '.join(t.name for t in TARGETS)}")
    if options.integers:
        print_integers()
        return 0
    cache, status, expected = options.cache.resolve(), 0, {}
    for target in TARGETS:
        if options.targets and target.name not in options.targets:
            continue
        try:
            require_tools("make", f"{target.triplet}-gcc", target.emulator)
            expected = expected or reference_answers(cache)
            if not is_made(target, cache):
                require_tools("mmdebstrap")
                make_environment(target, cache)
            status |= not check_target(target, cache, expected)
        except CheckFailed as error:
            say(f"{target.name}: {error}")
            status |= not (isinstance(error, MissingPart) and options.skip_missing)
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
