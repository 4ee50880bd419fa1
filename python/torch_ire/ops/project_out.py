"""What a tall orthonormal basis leaves of a vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torch_ire.ops.registration import call, register_fake


def project_out(vectors: Sequence[Tensor], bases: Sequence[Tensor], gram_inverse: Tensor | None = None) -> list[Tensor]:
    r"""Takes out of a vector what lies in the row space of Q; vector and basis are in pieces, and stay so.

    .. math::
        v \leftarrow v - Q^T G^{-1} Q v, \qquad G^{-1} = I \text{ where none is given}

    Args:
        vectors: The pieces of v: float32, float64, bfloat16 or float16, contiguous, one dtype and device.
        bases: For each piece the columns of Q that belong to its coordinates, ``(m, numel)`` with the same m, rows
            without gaps: views of one ``(m, p)`` tensor will do. float32 or bfloat16; float64 along float64 vectors.
        gram_inverse: :math:`(Q Q^T)^{-1}`, ``(m, m)`` in float32 (float64 along float64), where the rows of Q are not
            orthonormal, as those rounded to bfloat16 are not.

    Returns:
        The pieces of the result, like ``vectors``.

    Raises:
        RuntimeError: A tensor has the wrong device, dtype, shape or strides, or a list the wrong length.

    Cost: two reads of Q, two of the vector and a write.
    Determinism: sums within 4096 coordinates in float32 (float64), beyond in float64, in an order that depends on the
        sizes alone: the same bits whatever the number of threads.

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
    if gram_inverse is not None:
        gram_inverse = gram_inverse.contiguous()
    projected: list[Tensor] = call("project_out", vectors[0].device, vectors, bases, gram_inverse)
    return projected


@register_fake("project_out")
def _(vectors: Sequence[Tensor], *_: Any, **__: Any) -> list[Tensor]:
    """One tensor like each."""
    return [torch.empty_like(vector) for vector in vectors]


__all__ = ["project_out"]
