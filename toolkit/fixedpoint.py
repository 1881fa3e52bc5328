"""Integer arithmetic of the whole front end: every rounding, shift and saturation has its name here.

C twin: core/ea_fixed.h. All functions take int64 (scalars or arrays) and return int64. Rounding is "half up",
floor(x + 1/2); right shifts of negative numbers are arithmetic, as numpy's are.
"""

from __future__ import annotations

import numpy as np


def round_shift(x, n):
    """floor(x / 2**n + 1/2) for 0 <= n <= 62 (n: scalar or broadcastable array)."""
    n = np.asarray(n, np.int64)
    half = np.where(n > 0, np.left_shift(np.int64(1), np.maximum(n - 1, 0)), 0)
    return np.right_shift(x + half, n)


def scale(x, n):
    """x * 2**n for n >= 0, rounded half up for n < 0. The result fits int64."""
    n = np.asarray(n, np.int64)
    return np.where(n >= 0, np.left_shift(x, np.maximum(n, 0)), round_shift(x, np.maximum(-n, 0)))


def rotate_quarter(a, c, b, s):
    """(a*c - b*s) * 2**-32 rounded half up: one component of a product with a Q1.30 twiddle, divided by 4."""
    return np.right_shift(a * c - b * s + (1 << 31), 32)


def saturate(x, bits):
    """x limited to the range of a signed integer of `bits` bits."""
    return np.clip(x, -(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def bit_length(x):
    """Number of bits of x >= 0: the least b with x < 2**b."""
    x = np.asarray(x, np.int64)
    high, low = np.right_shift(x, 31), np.bitwise_and(x, (1 << 31) - 1)  # float64 is exact below 2**53
    wide = high > 0
    return np.where(wide, 31, 0) + np.frexp(np.where(wide, high, low).astype(np.float64))[1].astype(np.int64)


def sqrt(x):
    """floor(sqrt(x)) for 0 <= x < 2**62, exact: the float64 root is off by at most one."""
    x = np.asarray(x, np.int64)
    root = np.sqrt(x.astype(np.float64)).astype(np.int64)
    root -= root * root > x
    return root + ((root + 1) * (root + 1) <= x)
