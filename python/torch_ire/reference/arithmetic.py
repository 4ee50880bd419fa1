"""What the reference operators share: working precision, packed masks in memory order, and the counter-based random numbers.

The random numbers repeat ``csrc/math/counter_rng.h`` bit for bit in int64 arithmetic, so that the reference rounds like the native operators.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_U32 = 0xFFFFFFFF
_U64 = 0xFFFFFFFFFFFFFFFF


def opmath(tensor: Tensor) -> Tensor:
    """The tensor in the precision of the arithmetic: float64 as it is, everything else float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def scalar(tensor: Tensor | None, otherwise: float) -> float:
    """A scalar that may live in memory."""
    return otherwise if tensor is None else float(tensor)


def memory_order(tensor: Tensor) -> Tensor:
    """A flat view of a dense tensor whose element i is the i-th in memory."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))


def unpack(flat_mask: Tensor, like: Tensor) -> Tensor:
    """Packed bits as a bool tensor with the shape and strides of ``like``."""
    bits = (flat_mask.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=flat_mask.device)) & 1
    out = torch.empty_like(like, dtype=torch.bool)
    memory_order(out).copy_(bits.flatten()[: like.numel()])
    return out


def pack(flags: Tensor) -> Tensor:
    """A bool tensor as packed bits in its memory order; the inverse of :func:`unpack`."""
    padded = torch.zeros(-(-flags.numel() // 8) * 8, dtype=torch.uint8, device=flags.device)
    padded[: flags.numel()] = memory_order(flags)
    return (padded.view(-1, 8) << torch.arange(8, dtype=torch.uint8, device=flags.device)).sum(1, dtype=torch.uint8)


def flat_bits(flat_masks: Sequence[Tensor], i: int, like: Tensor) -> Tensor:
    """The i-th mask unpacked; no mask at all means that nothing is flat."""
    return unpack(flat_masks[i], like) if flat_masks else torch.zeros_like(like, dtype=torch.bool)


def mix64(a: int, b: int | None = None) -> int:
    """Finalizer of splitmix64; of two numbers, the second mixed with the first one's image."""
    if b is not None:
        return mix64(mix64(a & _U64) ^ (b & _U64))
    x = (a + 0x9E3779B97F4A7C15) & _U64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _U64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _U64
    return x ^ (x >> 31)


def step_key(tensor_key: int, step: int) -> int:
    """The key of one tensor at one step."""
    return mix64(tensor_key, step)


def uniform_open(random: int) -> float:
    """64 random bits as a number in (0, 1)."""
    return ((random >> 12) + 0.5) * 2.0**-52


def _mix32(x: Tensor) -> Tensor:
    # int64 holds a 32-bit product modulo 2^64, of which the low 32 bits are right
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _U32
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _U32
    return x ^ (x >> 16)


def random_bits(key: int, numel: int, device: torch.device) -> Tensor:
    """32 random bits, as int64, for each element of a tensor in memory order."""
    i = torch.arange(numel, dtype=torch.int64, device=device)
    inner = _mix32((i & _U32) ^ (key & _U32))
    return _mix32((inner + (key >> 32) + (i >> 32) * 0x9E3779B9) & _U32)


def round_stochastic(values: Tensor, key: int) -> Tensor:
    """float32 to bfloat16, up or down with probabilities that keep the expectation; not finite: as it is."""
    flat = memory_order(values)
    bits = flat.view(torch.int32).to(torch.int64) & _U32
    carried = (bits + (random_bits(key, flat.numel(), flat.device) & 0xFFFF)) >> 16
    rounded = ((carried << 16) & _U32).to(torch.int64)
    as_float = torch.where(rounded >= 2**31, rounded - 2**32, rounded).to(torch.int32).view(torch.float32)
    out = torch.empty_like(values, dtype=torch.bfloat16)
    memory_order(out).copy_(torch.where(flat.isfinite(), as_float, flat))
    return out
