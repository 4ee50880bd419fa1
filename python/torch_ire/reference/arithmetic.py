"""What the reference operators share: working precision, masks, and random numbers.

The random numbers repeat ``csrc/math/counter_rng.h`` bit for bit in int64 arithmetic, so that the reference rounds like
the native operators.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_ire.counter_rng import mix64, uniform_open
from torch_ire.packed_mask import memory_order, pack, unpack
from torch_ire.packed_state import packed_views

__all__ = [
    "flat_bits",
    "load_param",
    "memory_order",
    "mix64",
    "opmath",
    "pack",
    "random_bits",
    "round_stochastic",
    "scalar",
    "score_of",
    "segments",
    "step_key",
    "store_param",
    "uniform_open",
    "unpack",
]

_U32 = 0xFFFFFFFF


def opmath(tensor: Tensor) -> Tensor:
    """The tensor in the precision of the arithmetic: float64 as it is, everything else float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def scalar(tensor: Tensor | None, otherwise: float) -> float:
    """A scalar that may live in memory."""
    return otherwise if tensor is None else float(tensor)


def score_of(tensor: Tensor, score: str) -> Tensor:
    """What of a tensor is ranked: squares in float32 whatever the dtype, else in working precision."""
    if score == "square":
        return tensor.float().square()
    if score == "abs":
        return opmath(tensor).abs()
    if score == "value":
        return opmath(tensor)
    raise ValueError(f'score: expected "value", "abs" or "square", got "{score}"')


def flat_bits(flat_masks: Sequence[Tensor], i: int, like: Tensor) -> Tensor:
    """The i-th mask unpacked; no mask at all means that nothing is flat."""
    return unpack(flat_masks[i], like) if flat_masks else torch.zeros_like(like, dtype=torch.bool)


def segments(packed: Sequence[Tensor], params: Sequence[Tensor]) -> Sequence[Tensor]:
    """A list that holds one packed tensor, or nothing, as one tensor per parameter, or nothing."""
    return packed_views(packed[0], params) if packed else ()


def step_key(tensor_key: int, step: int) -> int:
    """The key of one tensor at one step."""
    return mix64(tensor_key, step)


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
    rounded = (carried << 16) & _U32
    as_float = torch.where(rounded >= 2**31, rounded - 2**32, rounded).to(torch.int32).view(torch.float32)
    out = torch.empty_like(values, dtype=torch.bfloat16)
    memory_order(out).copy_(torch.where(flat.isfinite(), as_float, flat))
    return out


def load_param(param: Tensor, i: int, compensations: Sequence[Tensor], master_params: Sequence[Tensor]) -> Tensor:
    """theta, of which a parameter is the rounding: with its compensation, or its copy, where they belong to it."""
    theta = opmath(param)
    if compensations:
        low = compensations[i].float()
        return torch.where(_same_bits((theta + 0.75 * low).to(param.dtype), param), theta + low, theta)
    if master_params:
        return torch.where(_same_bits(master_params[i].to(param.dtype), param), master_params[i], theta)
    return theta


def store_param(
    param: Tensor,
    i: int,
    theta: Tensor,
    compensations: Sequence[Tensor],
    master_params: Sequence[Tensor],
    rounding_keys: Sequence[int],
    step: int,
) -> None:
    """Rounds theta into the parameter, and keeps what the parameter does not hold where there is a place for it."""
    param.copy_(round_stochastic(theta, step_key(rounding_keys[i], step)) if rounding_keys else theta)
    if compensations:
        rest = theta - param.float()
        compensations[i].copy_(torch.where(rest.isfinite(), rest, 0.0))
    if master_params:
        master_params[i].copy_(theta)


def _same_bits(a: Tensor, b: Tensor) -> Tensor:
    return a.view(torch.int16) == b.view(torch.int16)
