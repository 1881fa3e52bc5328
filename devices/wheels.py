"""``python -m devices.wheels [ARCH...]`` (``make wheels``): one wheel per architecture, for any Python 3 that it has.

A wheel holds toolkit/ and its C core, compiled here: with gcc for this machine, with Debian's cross compilers for the
others. It is built by setup.py from a copy of what ships, so that nothing of the checkout (its own core, another
build's leavings) gets in. The same sources and tools give the same bytes, in any folder, time zone and umask and from
any commit: entries are sorted, their modes fixed, their time is SOURCE_DATE_EPOCH or, if that is not set, the first
that a zip can hold. So a device whose runtime has not changed is never sent another one.

Being a zip, a wheel also runs where nothing is installed: PYTHONPATH=WHEEL python3 -m toolkit.ota.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.arguments import Parser
from toolkit.errors import EdgeAudioError, MissingPartError

REPOSITORY = Path(__file__).resolve().parents[1]
SHIPPED = ("toolkit", "pyproject.toml", "setup.py", "Makefile", "README.md", "LICENSE")
NOT_SHIPPED = shutil.ignore_patterns("__pycache__", "*.so", "*.new", ".*")
FIRST_ZIP_TIME = "315532800"  # 1980-01-01
CORE = "toolkit/core/libea.so"
BUILD = """import sys
from setuptools.build_meta import build_wheel
build_wheel(sys.argv[1], {"--build-option": sys.argv[2:]})"""


@dataclass(frozen=True)
class Architecture:
    """A kind of machine, and who compiles for it."""

    name: str
    machine: str  # uname -m, and in the names of wheels
    elf_machine: int  # e_machine in the header of its libraries
    triplet: str
    packages: str  # Debian's, of its cross compiler

    def compiler(self) -> str:
        return "gcc" if self.machine == platform.machine() else f"{self.triplet}-gcc"

    def compiler_packages(self) -> str:
        return "gcc libc6-dev" if self.compiler() == "gcc" else self.packages


ARCHITECTURES = {known.name: known for known in (
    Architecture("x86-64", "x86_64", 62, "x86_64-linux-gnu", "gcc-x86-64-linux-gnu libc6-dev-amd64-cross"),
    Architecture("aarch64", "aarch64", 183, "aarch64-linux-gnu", "gcc-aarch64-linux-gnu libc6-dev-arm64-cross"),
    Architecture("armv7", "armv7l", 40, "arm-linux-gnueabihf", "gcc-arm-linux-gnueabihf libc6-dev-armhf-cross"),
)}


def require_tools(chosen: Iterable[Architecture]) -> None:
    """MissingPartError that names every tool which is not installed, and its Debian packages."""
    needed = {"make": "make", **{each.compiler(): each.compiler_packages() for each in chosen}}
    if missing := {tool: packages for tool, packages in needed.items() if not shutil.which(tool)}:
        raise MissingPartError(f"{' and '.join(missing)} not found; sudo apt install {' '.join(missing.values())}, or "
                               f"name the machines to build for, as in `make wheels ARCH=x86-64`.")


def build_wheel(architecture: Architecture, folder: Path) -> Path:
    """The wheel, in `folder`, where it replaces one of the same name only when it is whole.

    MissingPartError without a compiler, EdgeAudioError if the build fails; why, the compiler said on stderr."""
    require_tools([architecture])
    with tempfile.TemporaryDirectory(prefix="edge-audio-wheel-") as temporary:
        source, built = Path(temporary, "source"), Path(temporary, "built")
        built.mkdir()
        copy_shipped(source)
        command = [sys.executable, "-c", BUILD, str(built), f"--plat-name=linux_{architecture.machine}"]
        environment = build_environment(architecture)
        done = subprocess.run(command, cwd=source, env=environment, umask=0o022, stdout=subprocess.DEVNULL)
        if done.returncode != 0:
            raise EdgeAudioError(f"the wheel for {architecture.name} is not built (status {done.returncode}); "
                                 f"{architecture.compiler()} or setuptools said above what is wrong.")
        (wheel,) = built.iterdir()
        check_core(wheel, architecture)
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = Path(shutil.copyfile(wheel, folder / f".{wheel.name}.new"))
        return unfinished.rename(folder / wheel.name)


def copy_shipped(folder: Path) -> None:
    """What a wheel is built from, with modes that no umask has touched."""

    def copy(source: str, target: str) -> None:
        shutil.copyfile(source, target)
        os.chmod(target, 0o644)

    folder.mkdir()
    for name in SHIPPED:
        if (path := REPOSITORY / name).is_dir():
            shutil.copytree(path, folder / name, ignore=NOT_SHIPPED, copy_function=copy)
        else:
            copy(path, folder / name)


def build_environment(architecture: Architecture) -> dict[str, str]:
    """Variables of the build. Of the user's (language, flags for compilers or make) SOURCE_DATE_EPOCH alone counts."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    time = os.environ.get("SOURCE_DATE_EPOCH", FIRST_ZIP_TIME)
    return {**kept, "CC": architecture.compiler(), "SOURCE_DATE_EPOCH": time}


def check_core(wheel: Path, architecture: Architecture) -> None:
    """EdgeAudioError if the core in the wheel is for another machine than its name says."""
    with zipfile.ZipFile(wheel) as archive:
        header = archive.read(CORE)[:20]
    if (found := int.from_bytes(header[18:20], "little")) != architecture.elf_machine:
        raise EdgeAudioError(f"{architecture.compiler()} compiles for ELF machine {found}, expected "
                             f"{architecture.elf_machine} for {wheel.name}; is it another compiler of that name?")


def main(arguments: Sequence[str] | None = None) -> int:
    """A JSON line per wheel: {wheel, architecture, size_bytes, sha256}."""
    parser = Parser(prog="python -m devices.wheels", description="The wheels that devices install.")
    parser.add_argument("architectures", nargs="*", metavar="ARCH",
                        help=f"of {', '.join(ARCHITECTURES)} (default: all)")
    parser.add_argument("--into", type=Path, default=Path("dist"), metavar="DIR", help="default: %(default)s")
    try:
        options = parser.parse_args(arguments)
        if unknown := [name for name in options.architectures if name not in ARCHITECTURES]:
            parser.error(f"unknown architecture {', '.join(unknown)}; there are {', '.join(ARCHITECTURES)}")
        chosen = [ARCHITECTURES[name] for name in dict.fromkeys(options.architectures or ARCHITECTURES)]
        require_tools(chosen)  # of all, before anything is built
        for architecture in chosen:
            path = build_wheel(architecture, options.into)
            content = path.read_bytes()
            print(json.dumps({"wheel": str(path), "architecture": architecture.name, "size_bytes": len(content),
                              "sha256": hashlib.sha256(content).hexdigest()}), flush=True)
    except EdgeAudioError as error:
        print(f"wheels: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
