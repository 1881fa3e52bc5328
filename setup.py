"""The wheel: py3-none-PLATFORM, because the core is a plain shared library that any Python 3 loads with ctypes."""

import os
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.dist import Distribution

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:
    from wheel.bdist_wheel import bdist_wheel


class BuildCore(build_py):
    """Compiles the core with the Makefile's flags (CC chooses the compiler) before the files are collected."""

    def run(self):
        if os.environ.get("EDGE_AUDIO_SKIP_CORE") != "1":
            subprocess.run(["make", "-s", "core"], cwd=Path(__file__).parent, check=True)
        super().run()


class PlatformWheel(bdist_wheel):
    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


class WithCore(Distribution):
    def has_ext_modules(self):
        return True


setup(cmdclass={"build_py": BuildCore, "bdist_wheel": PlatformWheel}, distclass=WithCore)
