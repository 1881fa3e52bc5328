"""The named integer functions against Python's unbounded integers, over their whole range."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("hypothesis")
from hypothesis import example, given
from hypothesis import strategies as st

from toolkit import fixedpoint

INT32 = st.integers(-(1 << 31), (1 << 31) - 1)


def floor_half_up(numerator: int, n: int) -> int:
    return (2 * numerator + (1 << n)) // (2 << n)


@given(st.integers(-(1 << 62), 1 << 61), st.integers(0, 62))
@example(-3, 1)
@example(-1, 1)
@example(1, 1)
@example(-(1 << 62), 62)
@example(1 << 61, 62)
def test_round_shift_is_half_up(x, n):
    assert int(fixedpoint.round_shift(np.int64(x), n)) == floor_half_up(x, n)


def test_round_shift_halves_go_up_on_both_sides_of_zero():
    assert fixedpoint.round_shift(np.arange(-6, 7), 2).tolist() == [-1, -1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 1, 2]


def test_round_shift_takes_a_shift_per_row():
    x = np.full((3, 4), 24)
    assert fixedpoint.round_shift(x, np.array([[0], [4], [5]])).tolist() == [[24] * 4, [2] * 4, [1] * 4]


@given(st.integers(-(1 << 40), 1 << 40), st.integers(-40, 20))
def test_scale_is_a_power_of_two(x, n):
    expected = x << n if n >= 0 else floor_half_up(x, -n)
    assert int(fixedpoint.scale(np.int64(x), n)) == expected


@given(INT32, INT32, INT32, st.integers(-(1 << 30), 1 << 30))
@example(-(1 << 31), -(1 << 30), -(1 << 31), 1 << 30)
@example((1 << 31) - 1, 1 << 30, (1 << 31) - 1, -(1 << 30))
def test_rotate_quarter_with_any_twiddle(a, b, c, s):
    c >>= 1  # a Q1.30 cosine
    got = fixedpoint.rotate_quarter(np.int64(a), np.int64(c), np.int64(b), np.int64(s))
    assert int(got) == floor_half_up(a * c - b * s, 32)


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_saturate_keeps_what_fits(bits):
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    x = np.array([low - 1, low, low + 1, 0, high - 1, high, high + 1, -(1 << 60), 1 << 60])
    assert fixedpoint.saturate(x, bits).tolist() == [low, low, low + 1, 0, high - 1, high, high, low, high]


def test_bit_length_at_every_power_of_two():
    x = [0] + [(1 << n) + d for n in range(63) for d in (-1, 0, 1)] + [(1 << 63) - 1]
    got = fixedpoint.bit_length(np.array(x))
    assert got.tolist() == [v.bit_length() for v in x] and got.dtype == np.int64


@given(st.integers(0, (1 << 63) - 1))
def test_bit_length(x):
    assert int(fixedpoint.bit_length(x)) == x.bit_length()


@given(st.integers(0, (1 << 62) - 1))
@example((1 << 62) - 1)
def test_sqrt_is_the_floor(x):
    assert int(fixedpoint.sqrt(np.int64(x))) == math.isqrt(x)


def test_sqrt_around_every_kind_of_square():
    """Where a float64 root is off by one: next to the squares of large numbers."""
    roots = [1, 2, 3, (1 << 26) - 1, 1 << 26, 94906265, 94906266, 94906267, (1 << 31) - 1]
    roots += [int(r) for r in np.random.Generator(np.random.PCG64(1)).integers(1 << 26, (1 << 31) - 1, 2000)]
    x = [r * r + d for r in roots for d in (-1, 0, 1)]
    assert fixedpoint.sqrt(np.array(x)).tolist() == [math.isqrt(v) for v in x]


@pytest.mark.parametrize("function, arguments", [
    ("round_shift", (1,)), ("scale", (-1,)), ("saturate", (16,)), ("bit_length", ()), ("sqrt", ())])
def test_arrays_stay_int64(function, arguments):
    result = getattr(fixedpoint, function)(np.arange(5), *arguments)
    assert result.dtype == np.int64 and result.shape == (5,)
