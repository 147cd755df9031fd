"""The Gumbel noise of an id: a function of the row's seed and the id, and of nothing else.

SplitMix64 (Steele, Lea & Flood 2014): the stream of seed s starts at mix(s) and advances by
the golden ratio; the bits of id v are mix(mix(s) + (v + 1)·step), 64 of them. With
u = (bits + ½)/2⁶⁴ the noise is g = −ln(−ln u).

64 bits keep the tail that 24 would cut off: g reaches 45, where noise made of float32
numbers ends at 16.6 and so never draws an id that stands further behind the best.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _signed(x: int) -> int:
    """The int64 with the same 64 bits."""
    return x - (1 << 64) if x >> 63 else x


_STEP = _signed(0x9E3779B97F4A7C15)
_MIX1 = _signed(0xBF58476D1CE4E5B9)
_MIX2 = _signed(0x94D049BB133111EB)


def gumbel_noise(seeds: Tensor, vocabulary: int) -> Tensor:
    """float64 (N, V) from seeds int64 (N,)."""
    ids = torch.arange(1, vocabulary + 1, device=seeds.device)
    bits = _mix(_mix(seeds).unsqueeze(-1) + ids * _STEP)
    # Of u and 1 − u the smaller, which float64 resolves as finely as there are bits.
    near_one = bits < 0
    bits = torch.where(near_one, ~bits, bits)
    high, low = (bits >> 32).double(), (bits & 0xFFFFFFFF).double()
    x = high * 2.0**-32 + (low + 0.5) * 2.0**-64
    exponential = torch.where(near_one, -torch.log1p(-x), -x.log())
    return -exponential.log()


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _MIX1
    x = (x ^ _shifted(x, 27)) * _MIX2
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """The logical shift to the right; PyTorch's own repeats the sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)
