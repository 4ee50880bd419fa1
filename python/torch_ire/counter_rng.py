"""Counter-based random numbers in Python integers, as ``csrc/math/counter_rng.h`` computes them.

A random number is a pure function of a key and a counter, so replicas agree and a resumed run repeats itself.
"""

from __future__ import annotations

_U64 = 0xFFFFFFFFFFFFFFFF


def mix64(a: int, b: int | None = None) -> int:
    """The finalizer of splitmix64, a bijection of 64 bits; with ``b``, that of ``b`` xor the image of ``a``."""
    if b is not None:
        return mix64(mix64(a & _U64) ^ (b & _U64))
    x = (a + 0x9E3779B97F4A7C15) & _U64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _U64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _U64
    return x ^ (x >> 31)


def as_int64(x: int) -> int:
    """64 bits as a signed integer, for the ``int`` argument of an operator."""
    return x - 2**64 if x >= 2**63 else x


def uniform_open(random: int) -> float:
    """64 random bits as a number in (0, 1)."""
    return ((random >> 12) + 0.5) * 2.0**-52
