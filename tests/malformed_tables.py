"""Hostile front-end tables against the C core: `python tests/malformed_tables.py header|body`.

Meant for a sanitizer build (EDGE_AUDIO_CORE), which ends the process at the first access outside the exact number of
bytes given to the core. Tables are refused, or they run: prints how many of each.

header: random header words and truncations of right tables. The core refuses them or computes without overflow.
body:   headers and segment starts that hold together around random bytes. Anything may come out, memory is safe.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import signals
import twins

from toolkit import native
from toolkit.tables import ALGORITHM, HEADER_WORDS, LOG_SEGMENTS, MAGIC, make_tables

EA_OK, EA_BAD_TABLES, EA_BAD_ARGUMENT, EA_NO_SPACE = range(4)


class ExactMemory:
    """malloc of exactly n bytes, so that a sanitizer sees the first byte beyond; free on exit."""

    def __init__(self, n: int | bytes):
        self.size = n if isinstance(n, int) else len(n)
        self.address = LIBC.malloc(max(self.size, 1))
        if not isinstance(n, int):
            ctypes.memmove(self.address, n, self.size)

    def __enter__(self) -> ExactMemory:
        return self

    def __exit__(self, *_) -> None:
        LIBC.free(self.address)


LIBC = ctypes.CDLL(None)
LIBC.malloc.restype, LIBC.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
LIBC.free.restype, LIBC.free.argtypes = None, [ctypes.c_void_p]


def run(blob: bytes, samples: np.ndarray) -> bool:
    """Map, start and process; whether the core accepted the tables. All memory has exactly the documented size."""
    lib = native.library()
    with ExactMemory(blob) as tables:
        needed = lib.ea_frontend_memory_bytes(tables.address, tables.size)
        assert needed < 1 << 20
        handle, n_frames = ctypes.c_void_p(), ctypes.c_int64(-1)
        with ExactMemory(needed or 4096) as memory, ExactMemory(samples.tobytes()) as audio:
            status = lib.ea_frontend_init(
                ctypes.addressof(handle), tables.address, tables.size, memory.address, memory.size)
            if needed == 0:
                assert status == EA_BAD_TABLES and handle.value is None, status
                return False
            assert status == EA_OK, status
            header = np.frombuffer(blob[: 4 * HEADER_WORDS], "<i4")
            win_length, hop_length, n_mels, n_mfcc = (int(header[i]) for i in (4, 5, 7, 8))
            frames, width = max(0, (len(samples) - win_length) // hop_length + 1), n_mfcc or n_mels
            with ExactMemory(2 * frames * width) as out:
                status = lib.ea_frontend_process(handle, audio.address, len(samples), out.address, frames - 1,
                                                 ctypes.addressof(n_frames))
                assert (status, n_frames.value) == (EA_NO_SPACE, 0) or frames == 0
                status = lib.ea_frontend_process(handle, audio.address, len(samples), out.address, frames,
                                                 ctypes.addressof(n_frames))
                assert (status, n_frames.value) == (EA_OK, frames)
    return True


def hostile_header(rng: np.random.Generator) -> bytes:
    """Right tables with one to three wrong header words, cut short or prolonged half of the time."""
    blob = BLOBS[rng.integers(len(BLOBS))]
    words = np.frombuffer(blob[: 4 * HEADER_WORDS], "<i4").astype(np.int64)
    for index in rng.integers(0, 14, rng.integers(1, 4)):
        was = words[index]
        words[index] = rng.choice([was + rng.integers(-3, 4), was * 2, was // 2, -was, 0, 1, 2**31 - 1, -(2**31),
                                   rng.integers(0, 64), rng.integers(-(2**31), 2**31)])
    body = blob[4 * HEADER_WORDS :]
    if rng.integers(2):
        body = (body + bytes(64))[: rng.integers(0, len(body) + 64)]
    if rng.integers(8):
        words[:3] = MAGIC, ALGORITHM, 4 * HEADER_WORDS + len(body)
    header = words.astype(np.uint32).view(np.int32).astype("<i4").tobytes() if rng.integers(16) else b""
    return (header + body)[: rng.integers(0, 200)] if rng.integers(16) == 0 else header + body


def hostile_body(rng: np.random.Generator) -> bytes:
    """A header in range, or one step outside of it, and arrays of the right size with random contents."""
    n_fft = 1 << int(rng.integers(4, 13))
    win_length = int(rng.integers(1, n_fft + 1))
    n_mels = int(rng.integers(1, 257))
    n_mfcc = int(rng.integers(0, n_mels + 1))
    n_twiddle, m = 0, n_fft // 8
    while m > 1:
        n_twiddle, m = n_twiddle + 6 * m, m // 4
    top = n_fft // 2 + 1 + int(rng.integers(8) == 0)  # one bin too many
    starts = np.sort(rng.integers(0, top + 1, n_mels + 2))
    starts[-1] = top
    if rng.integers(8) == 0:
        starts[rng.integers(n_mels + 2)] = rng.integers(0, 65536)
    sizes = [2 * win_length, 4 * n_twiddle, 8 * (n_fft // 4 + 1), None, 2 * (n_fft // 2 + 1), 4 * (LOG_SEGMENTS + 1),
             2 * n_mfcc * n_mels]
    arrays = [starts.astype("<u2").tobytes() if size is None else rng.bytes(size) for size in sizes]
    body = b"".join(array + bytes(-len(array) % 4) for array in arrays)
    header = [MAGIC, ALGORITHM, 4 * HEADER_WORDS + len(body), 16000, win_length, int(rng.integers(1, win_length + 1)),
              n_fft, n_mels, n_mfcc, int(rng.integers(2)), int(rng.integers(15, 40)), int(rng.choice([0, 1, 32767])),
              int(rng.integers(-(2**31), 2**31)), int(rng.integers(0, 16)), 0, 0]
    return np.array(header, "<i4").tobytes() + body


def refuses_bad_arguments() -> None:
    """Null pointers, odd addresses, too little memory: a status, not a crash."""
    lib, blob = native.library(), BLOBS[0]
    with ExactMemory(bytes(4) + blob) as tables, ExactMemory(1 << 16) as memory:
        handle, right = ctypes.c_void_p(), tables.address + 4
        where, init = ctypes.addressof(handle), lib.ea_frontend_init
        needed = lib.ea_frontend_memory_bytes(right, len(blob))
        assert 0 < needed <= memory.size
        for shift in (1, 2, 3):
            assert lib.ea_frontend_memory_bytes(right - shift, len(blob)) == 0
            assert init(where, right - shift, len(blob), memory.address, needed) == EA_BAD_ARGUMENT
        assert lib.ea_frontend_memory_bytes(None, len(blob)) == 0
        assert init(None, right, len(blob), memory.address, needed) == EA_BAD_ARGUMENT
        assert init(where, None, len(blob), memory.address, needed) == EA_BAD_ARGUMENT
        assert init(where, right, len(blob), None, needed) == EA_BAD_ARGUMENT
        assert init(where, right, len(blob), memory.address + 4, needed) == EA_BAD_ARGUMENT
        for size in (0, 1, 8, needed // 2, needed - 1):
            assert init(where, right, len(blob), memory.address, size) == EA_NO_SPACE
        assert handle.value is None and init(where, right, len(blob), memory.address, needed) == EA_OK
        n_frames = ctypes.c_int64()
        for arguments in ((None, 5, memory.address, 5, ctypes.addressof(n_frames)),
                          (right, -1, memory.address, 5, ctypes.addressof(n_frames)),
                          (right, 5, memory.address, 5, None)):
            assert lib.ea_frontend_process(handle, *arguments) == EA_BAD_ARGUMENT
    for bad in ((None, 1, 1, 1, 0, None), (None, -1, 1, 1, 0, None), (None, 0, 0, 1, 0, None), (None, 0, 1, 0, 0, None),
                (None, 0, 1, 47, 0, None), (None, 0, -5, 1, 0, None)):
        assert lib.ea_requantize(*bad) == EA_BAD_ARGUMENT
    assert lib.ea_requantize(None, 0, 1, 1, 0, None) == EA_OK


BLOBS = [make_tables(config).blob for config in twins.CONFIGS.values()]


def main(kind: str, n: int) -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    make = {"header": hostile_header, "body": hostile_body}[kind]
    samples = signals.noise(5000)
    refuses_bad_arguments()
    accepted = 0
    for _ in range(n):
        blob = make(rng)
        long = len(blob) > 64 and np.frombuffer(blob[:64], "<i4")[5] > 200
        accepted += run(blob, samples if long else samples[:300])
    print(json.dumps({"kind": kind, "refused": n - accepted, "ran": accepted}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
