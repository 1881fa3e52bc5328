"""What this machine has and lacks for each part of the toolkit, without starting anything."""

from __future__ import annotations

import platform
import sys
from importlib import metadata

import numpy as np

from . import __version__
from .errors import EdgeAudioError


def doctor() -> dict:
    """{version, python, machine, parts: [{name, needed, found, detail}]}; needed parts are those of `run`."""
    checks = [
        ("TFLite runtime", True, _runtime),
        ("C core", True, _core),
        ("released bundles", True, _bundles),
        ("signature library", False, _signature),
        ("trusted keys", False, _keys),
        ("microphone (listen)", False, _microphone),
        ("other audio files (soundfile)", False, lambda: metadata.version("soundfile")),
        ("other sample rates (soxr)", False, lambda: metadata.version("soxr")),
        ("pictures (matplotlib)", False, lambda: metadata.version("matplotlib")),
    ]
    parts = []
    for name, needed, check in checks:
        try:
            found, detail = True, check()
        except EdgeAudioError as error:
            found, detail = False, str(error)
        except metadata.PackageNotFoundError as error:
            found, detail = False, f"not installed: pip install {error.args[0]}"
        parts.append({"name": name, "needed": needed, "found": found, "detail": detail})
    return {"version": __version__, "python": platform.python_version(), "numpy": np.__version__,
            "machine": platform.machine(), "system": sys.platform, "parts": parts}


def _runtime() -> str:
    from .interpreter import runtime_name

    return runtime_name()


def _core() -> str:
    from . import native
    from .errors import MissingPartError

    if native.library() is None:
        raise MissingPartError(native.HOW_TO_BUILD)
    return "loaded"


def _bundles() -> str:
    from .bundle import load_bundle, released_bundles
    from .errors import BundleError

    names = [f"{name} {load_bundle(path, 'off').manifest.version}" for name, path in released_bundles().items()]
    if not names:
        raise BundleError("none is installed")
    return ", ".join(names)


def _signature() -> str:
    from .signature import library_name

    return library_name()


def _keys() -> str:
    from .signature import read_trusted_keys

    return ", ".join(f"{key.key_id} ({key.comment})" for key in read_trusted_keys())


def _microphone() -> str:
    from .errors import MicrophoneError
    from .mic import list_devices

    names = [device["name"] for device in list_devices()]
    if not names:
        raise MicrophoneError("no microphone was found; plug one in and look for it with `arecord -l`")
    return ", ".join(names)
