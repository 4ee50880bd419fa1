"""v - Q^T Q v in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from torch_ire.reference.arithmetic import opmath
from torch_ire.reference.tall_basis import coefficients, combination


def project_out(vectors: Sequence[Tensor], bases: Sequence[Tensor], gram_inverse: Tensor | None = None) -> list[Tensor]:
    """See :func:`torch_ire.ops.project_out`, which this mirrors."""
    if not vectors:
        return []
    wide = [opmath(vector).reshape(-1) for vector in vectors]
    weights = coefficients(wide, bases, gram_inverse)
    return [
        (flat - combination(weights, basis, flat)).reshape(vector.shape).to(vector.dtype)
        for vector, flat, basis in zip(vectors, wide, bases, strict=True)
    ]


__all__ = ["project_out"]
