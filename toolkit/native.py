"""The C core as a plain shared library, loaded with ctypes; one call per block of samples.

The library lies beside the sources (core/libea.so), built by `make core` in a checkout and by the wheel's build.
EDGE_AUDIO_CORE names another file (a sanitizer build, for example).
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

import numpy as np

from .errors import MissingPartError, UnsupportedError
from .tables import Tables

LIBRARY = Path(__file__).parent / "core" / "libea.so"
HOW_TO_BUILD = (
    "the C core is not built (toolkit/core/libea.so is missing); run `make core` in a checkout (it needs a C compiler) "
    "or install the wheel of this platform."
)
EA_OK = 0
BLOCK = 16384  # samples of one call at most; more are cut, so that a front end keeps one output buffer


@functools.cache
def library() -> ctypes.CDLL | None:
    """The loaded core, or None where it is not built. MissingPartError if a file is there that cannot be loaded."""
    named = os.environ.get("EDGE_AUDIO_CORE")
    path = Path(named or LIBRARY)
    if not path.exists():
        if named:
            raise MissingPartError(f"EDGE_AUDIO_CORE names {named}, which is not there; build it or unset the name.")
        return None
    try:
        lib = ctypes.CDLL(str(path))
    except OSError as error:
        raise MissingPartError(f"the C core {path} does not load on this machine ({error}); run `make core`.") from None
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    lib.ea_frontend_memory_bytes.restype = size
    lib.ea_frontend_memory_bytes.argtypes = [pointer, size]
    lib.ea_frontend_init.argtypes = [pointer, pointer, size, pointer, size]
    lib.ea_frontend_reset.argtypes = [pointer]
    lib.ea_frontend_reset.restype = None
    lib.ea_frontend_process.argtypes = [pointer, pointer, ctypes.c_int64, pointer, ctypes.c_int64, pointer]
    lib.ea_requantize.argtypes = [pointer, ctypes.c_int64, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32, pointer]
    return lib


def _address(array: np.ndarray) -> int:
    """Of the data of a writable, contiguous array, which the caller keeps alive. (`array.ctypes.data` takes 0.8 us,
    as long as the core takes for a frame.)"""
    return ctypes.addressof(ctypes.c_char.from_buffer(array)) if array.size else 0


class NativeFrontEnd:
    """ea_frontend behind FrontEnd; owns the memory that the C side works in."""

    def __init__(self, tables: Tables):
        self._lib = library()
        self._tables = np.frombuffer(tables.blob, np.uint8).copy()
        needed = self._lib.ea_frontend_memory_bytes(_address(self._tables), len(self._tables))
        if needed == 0:
            raise UnsupportedError("the C core refuses the front-end tables: a field is out of range.")
        self._memory = np.zeros(needed // 8 + 1, np.uint64)
        handle = ctypes.c_void_p()
        status = self._lib.ea_frontend_init(
            ctypes.addressof(handle), _address(self._tables), len(self._tables), _address(self._memory), needed
        )
        if status != EA_OK:
            raise UnsupportedError(f"the C core cannot start the front end (status {status}).")
        self._handle = handle.value
        self._out = np.empty((BLOCK // tables.hop_length + 1, tables.width), np.int16)  # all that a BLOCK completes
        self._out_address = _address(self._out)
        self._n_frames = ctypes.c_int64()
        self._n_frames_address = ctypes.addressof(self._n_frames)

    def reset(self) -> None:
        self._lib.ea_frontend_reset(self._handle)

    def process(self, samples: np.ndarray) -> np.ndarray:
        if len(samples) > BLOCK:
            return np.concatenate([self.process(samples[i : i + BLOCK]) for i in range(0, len(samples), BLOCK)])
        data = samples.tobytes()  # the fastest way to a pointer, for strided and read-only arrays too
        status = self._lib.ea_frontend_process(
            self._handle, data, len(data) // 2, self._out_address, len(self._out), self._n_frames_address
        )
        if status != EA_OK:
            raise UnsupportedError(f"the C front end stopped with status {status}.")
        return self._out[: self._n_frames.value].copy()


def requantize(features: np.ndarray, multiplier: int, shift: int, zero_point: int) -> np.ndarray:
    """int8 codes of int16 features, any shape; see features.Requantization."""
    features = np.asarray(features, np.int16)
    codes = np.empty(features.shape, np.int8)
    status = library().ea_requantize(features.tobytes(), features.size, multiplier, shift, zero_point, _address(codes))
    if status != EA_OK:
        raise UnsupportedError(f"the C core refuses the requantization {multiplier}, {shift}, {zero_point}.")
    return codes
