"""v - Q^T Q v, and the step that amplifies only what is orthogonal to Q, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_ire.reference.arithmetic import opmath

__all__ = ["displacement_projected_", "project_out"]


def project_out(vectors: Sequence[Tensor], bases: Sequence[Tensor], gram_inverse: Tensor | None = None) -> list[Tensor]:
    """See :func:`torch_ire.ops.project_out`, which this mirrors."""
    wide = [opmath(vector).reshape(-1) for vector in vectors]
    coefficients = _coefficients(wide, bases, gram_inverse)
    return [
        (flat - _combination(coefficients, basis, flat)).reshape(vector.shape).to(vector.dtype)
        for vector, flat, basis in zip(vectors, wide, bases, strict=True)
    ]


def displacement_projected_(
    params: Sequence[Tensor],
    previous: Sequence[Tensor],
    bases: Sequence[Tensor],
    *,
    kappa: float,
    decay: float = 0.0,
    gram_inverse: Tensor | None = None,
) -> None:
    """See :func:`torch_ire.ops.displacement_projected_`, which this mirrors."""
    steps = [
        (opmath(param) - (1 - decay) * opmath(before)).reshape(-1)
        for param, before in zip(params, previous, strict=True)
    ]
    coefficients = _coefficients(steps, bases, gram_inverse)
    for param, step, basis in zip(params, steps, bases, strict=True):
        flat_part = (step - _combination(coefficients, basis, step)).reshape(param.shape)
        param.copy_(opmath(param) + kappa * flat_part)


def _coefficients(vectors: Sequence[Tensor], bases: Sequence[Tensor], gram_inverse: Tensor | None) -> Tensor:
    """Q v over all pieces, on the first basis's device, in the widest precision among them."""
    overlaps = [basis.to(flat.dtype) @ flat.to(basis.device) for flat, basis in zip(vectors, bases, strict=True)]
    dtype = torch.float64 if any(o.dtype == torch.float64 for o in overlaps) else torch.float32
    total = torch.stack([o.to(device=bases[0].device, dtype=dtype) for o in overlaps]).sum(0)
    return total if gram_inverse is None else gram_inverse.to(total) @ total


def _combination(coefficients: Tensor, basis: Tensor, like: Tensor) -> Tensor:
    return (coefficients.to(device=basis.device, dtype=like.dtype) @ basis.to(like.dtype)).to(like.device)
