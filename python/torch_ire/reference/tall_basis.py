"""What the reference operators on a tall basis share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["coefficients", "combination"]


def coefficients(vectors: Sequence[Tensor], bases: Sequence[Tensor], gram_inverse: Tensor | None) -> Tensor:
    """Q v over all pieces in float64, on the first basis's device; times the inverse Gram matrix where there is one."""
    device = bases[0].device
    overlaps = [(basis.to(flat.dtype) @ flat.to(basis.device)) for flat, basis in zip(vectors, bases, strict=True)]
    total = torch.stack([overlap.to(device=device, dtype=torch.float64) for overlap in overlaps]).sum(0)
    return total if gram_inverse is None else gram_inverse.to(total) @ total


def combination(weights: Tensor, basis: Tensor, like: Tensor) -> Tensor:
    """Q^T c for the coordinates of one piece, in its dtype and on its device."""
    return (weights.to(device=basis.device, dtype=like.dtype) @ basis.to(like.dtype)).to(like.device)
