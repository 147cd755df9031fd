"""Device code of the noise; ``noise`` defines it."""

from __future__ import annotations

import triton
import triton.language as tl

_STEP: tl.constexpr = tl.constexpr(0x9E3779B97F4A7C15)
_MIX1: tl.constexpr = tl.constexpr(0xBF58476D1CE4E5B9)
_MIX2: tl.constexpr = tl.constexpr(0x94D049BB133111EB)


@triton.jit
def _mix(x):
    """The finaliser of SplitMix64, a bijection of the 64-bit integers."""
    x = (x ^ (x >> 30)) * _MIX1
    x = (x ^ (x >> 27)) * _MIX2
    return x ^ (x >> 31)


@triton.jit
def exponential(seed, columns):
    """E = −ln u of the ids ``columns`` for a row's seed, float32; −ln E is the Gumbel noise.

    Float32 keeps both tails of u, which has 64 bits: the smaller of u and 1 − u is what is
    rounded to it. E lies between 2⁻⁶⁵ and 45.1.
    """
    state = _mix(seed.to(tl.uint64)) + (columns.to(tl.uint64) + 1) * _STEP
    bits = _mix(state)
    # u is (bits + ½)/2⁶⁴; x is the smaller of u and 1 − u.
    near_one = (bits >> 63) != 0
    bits = tl.where(near_one, ~bits, bits)
    high = (bits >> 32).to(tl.uint32).to(tl.float32)
    low = bits.to(tl.uint32).to(tl.float32)
    x = tl.fma(high, 2.0**-32, (low + 0.5) * 2.0**-64)
    # Where u is near 1, −ln u is −ln y plus what rounding took from 1 − x.
    y = 1.0 - x
    minus_log = -tl.log(tl.where(near_one, y, x))
    return tl.where(near_one, minus_log + (x - (1.0 - y)), minus_log)
