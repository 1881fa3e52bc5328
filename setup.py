"""The wheel: py3-none-PLATFORM, because the core is a plain shared library that any Python 3 loads with ctypes."""

import os
import re
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.dist import Distribution

ROOT = Path(__file__).parent
CORE = ROOT / "toolkit" / "core" / "libea.so"
OLDEST = 17  # glibc 2.17: manylinux2014, and the first one on aarch64


class BuildCore(build_py):
    """Compiles the core with the Makefile's flags (CC chooses the compiler) before the files are collected."""

    def run(self):
        if os.environ.get("EDGE_AUDIO_SKIP_CORE") != "1":
            done = subprocess.run(["make", "-s", "core"], cwd=ROOT)
            if done.returncode != 0:
                raise SystemExit("setup.py: the C core does not compile; `make core` tries that alone")
        super().run()


class PlatformWheel(bdist_wheel):
    """Named after the oldest glibc that has every symbol of the core: manylinux_2_17_x86_64, and not linux_x86_64.

    The core needs no library but libc, so that is all that the name promises. It stays linux_* with another libc."""

    def get_tag(self):
        platform = super().get_tag()[2]
        library = CORE.read_bytes() if CORE.exists() else b""
        if versions := re.findall(rb"\0GLIBC_2\.(\d+)", library):
            platform = platform.replace("linux_", f"manylinux_2_{max(OLDEST, *map(int, versions))}_", 1)
        return "py3", "none", platform


class WithCore(Distribution):
    def has_ext_modules(self):
        return True


setup(cmdclass={"build_py": BuildCore, "bdist_wheel": PlatformWheel}, distclass=WithCore)
