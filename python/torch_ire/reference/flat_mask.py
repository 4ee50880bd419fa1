"""Scores and a threshold to packed bits, one tensor at a time in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_ire.reference.arithmetic import pack, score_of
from torch_ire.reference.kth_value import kth_value


def flat_mask_(
    flat_masks: Sequence[Tensor],
    scores: Sequence[Tensor],
    threshold: Tensor,
    *,
    score: str = "value",
    k: int | None = None,
) -> None:
    """See :func:`torch_ire.ops.flat_mask_`, which this mirrors."""
    if k is not None:
        threshold.copy_(kth_value(scores, k, score=score))
    limit = threshold.detach().double().reshape(())
    limit = torch.where(limit.isnan(), torch.inf, limit)
    for flat_mask, tensor in zip(flat_masks, scores, strict=True):
        ranked = score_of(tensor.detach(), score)
        flat_mask.copy_(pack(ranked.isfinite() & (ranked.double() <= limit)))


__all__ = ["flat_mask_"]
