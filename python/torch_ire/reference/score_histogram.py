"""Digits of ordered scores in int64 arithmetic, counted by torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_ire.reference.arithmetic import memory_order, score_of


def score_histogram(
    tensors: Sequence[Tensor], prefix: Tensor, *, shift: int, score: str = "value", wide: bool = False
) -> Tensor:
    """See :func:`torch_ire.ops.score_histogram`, which this mirrors."""
    counts = torch.zeros(2048, dtype=torch.int64, device=prefix.device)
    for tensor in tensors:
        scores = score_of(memory_order(tensor), score)
        scores = scores.double() if wide else scores
        digits = _ordered_keys(scores) >> shift
        top = shift + 11 >= 8 * scores.element_size()
        buckets = digits + 1024 if top else (digits & 2047)[(digits >> 11) == prefix]
        counts += torch.bincount(buckets, minlength=2048)
    return counts


def _ordered_keys(scores: Tensor) -> Tensor:
    # sign and magnitude to two's complement; the magnitude of a NaN is made the largest, its sign dropped
    of_scores = torch.int64 if scores.dtype == torch.float64 else torch.int32
    bits = scores.view(of_scores).to(torch.int64)
    magnitude = bits & torch.iinfo(of_scores).max
    keys = torch.where(bits < 0, -magnitude, magnitude)
    return torch.where(scores.isnan(), torch.iinfo(of_scores).max, keys)


__all__ = ["score_histogram"]
