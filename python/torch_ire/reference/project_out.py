"""v - Q^T Q v and the step that amplifies only what is orthogonal to Q, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_ire.reference.arithmetic import opmath

__all__ = ["displacement_projected_", "project_out"]


def project_out(vectors: Sequence[Tensor], basis: Tensor, gram_inverse: Tensor | None = None) -> list[Tensor]:
    """See :func:`torch_ire.ops.project_out`, which this mirrors."""
    flat = torch.cat([opmath(v).reshape(-1) for v in vectors]).to(_accumulator(basis))
    removed = _overlap(basis, flat, gram_inverse) @ basis.to(flat.dtype)
    pieces = (flat - removed).split([v.numel() for v in vectors])
    return [piece.reshape(v.shape).to(v.dtype) for piece, v in zip(pieces, vectors, strict=True)]


def displacement_projected_(
    params: Sequence[Tensor],
    previous: Sequence[Tensor],
    basis: Tensor,
    *,
    kappa: float,
    gram_inverse: Tensor | None = None,
) -> None:
    """See :func:`torch_ire.ops.displacement_projected_`, which this mirrors."""
    displacements = [opmath(p) - opmath(q) for p, q in zip(params, previous, strict=True)]
    for param, flat_part in zip(params, project_out(displacements, basis, gram_inverse), strict=True):
        param.copy_(opmath(param) + kappa * flat_part)


def _overlap(basis: Tensor, flat: Tensor, gram_inverse: Tensor | None) -> Tensor:
    overlap = basis.to(flat.dtype) @ flat
    return overlap if gram_inverse is None else gram_inverse.to(flat.dtype) @ overlap


def _accumulator(basis: Tensor) -> torch.dtype:
    return torch.float64 if basis.dtype == torch.float64 else torch.float32
