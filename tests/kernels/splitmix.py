"""SplitMix64 in Python's own integers, forwards and backwards."""

from __future__ import annotations

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15
_MIX1 = 0xBF58476D1CE4E5B9
_MIX2 = 0x94D049BB133111EB


def mix(x: int) -> int:
    x = (x ^ (x >> 30)) * _MIX1 & _MASK
    x = (x ^ (x >> 27)) * _MIX2 & _MASK
    return x ^ (x >> 31)


def unmix(x: int) -> int:
    """The inverse of :func:`mix`."""
    x = _unshift(x, 31) * pow(_MIX2, -1, 1 << 64) & _MASK
    x = _unshift(x, 27) * pow(_MIX1, -1, 1 << 64) & _MASK
    return _unshift(x, 30)


def _unshift(x: int, by: int) -> int:
    y = x
    for _ in range(64 // by):
        y = x ^ (y >> by)
    return y


def noise_bits(seed: int, token: int) -> int:
    """The 64 random bits of an id for a row's seed."""
    return mix((mix(seed & _MASK) + (token + 1) * _STEP) & _MASK)


def seed_that_gives(bits: int, token: int) -> int:
    """The seed, an int64, for which an id has these bits."""
    seed = unmix((unmix(bits) - (token + 1) * _STEP) & _MASK)
    return seed - (1 << 64) if seed >> 63 else seed
