"""Projects a vector out of the span of a basis."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_ire.reference.arithmetic import opmath
from torch_ire.reference.tall_basis import coefficients, combination


def project_out(vectors: Sequence[Tensor], bases: Sequence[Tensor], gram_inverse: Tensor | None = None) -> list[Tensor]:
    r"""Removes the part of a vector in the row space of Q; vector and basis come in pieces.

    .. math::
        v \leftarrow v - Q^T G^{-1} Q v, \qquad G^{-1} = I \text{ if none is given}

    Args:
        vectors: The pieces of v: float32, float64, bfloat16 or float16, contiguous, one dtype and device.
        bases: For each piece the columns of Q that belong to its coordinates, ``(m, numel)`` with the same m, rows
            without gaps: views of one ``(m, p)`` tensor will do. float32 or bfloat16; float64 along float64 vectors.
        gram_inverse: :math:`(Q Q^T)^{-1}`, ``(m, m)`` in float32 (float64 along float64), if the rows of Q are not
            orthonormal, for instance after rounding to bfloat16.

    Returns:
        The pieces of the result, like ``vectors``.

    Raises:
        RuntimeError: A list has the wrong length, or a tensor the wrong device, dtype, shape or strides.

    Cost: two reads of Q, two of the vector and a write.
    Determinism: sums within 4096 coordinates in float32 (float64), beyond in float64, in an order that depends only on
        the sizes: the same bits for any number of threads.

    Example:
        >>> import torch
        >>> from torch_ire import ops
        >>> ops.project_out([torch.tensor([3.0, 4.0])], [torch.tensor([[1.0, 0.0]])])
        [tensor([0., 4.])]

    References:
        Wang et al., arXiv:2405.20763, Theorems 5.5 and 5.6: the projector P_{m+1:p}.
    """
    if not vectors:
        return []
    wide = [opmath(vector).reshape(-1) for vector in vectors]
    weights = coefficients(wide, bases, gram_inverse)
    return [
        (flat - combination(weights, basis, flat)).reshape(vector.shape).to(vector.dtype)
        for vector, flat, basis in zip(vectors, wide, bases, strict=True)
    ]


def meta(vectors: Sequence[Tensor], *_: object) -> list[Tensor]:
    """The result without its value, for compilers and meta tensors."""
    return [torch.empty_like(vector) for vector in vectors]


__all__ = ["project_out"]
