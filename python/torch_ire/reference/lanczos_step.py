"""One Lanczos step on a stored basis."""

from __future__ import annotations

import torch
from torch import Tensor


def lanczos_step_(basis: Tensor, product: Tensor, *, count: int) -> Tensor:
    r"""Extends an orthonormal basis by the direction of a product, with full reorthogonalization.

    .. math::
        w \leftarrow (I - V^T V)^2 \, w, \qquad v_{\text{count}} \leftarrow w / \lVert w \rVert

    V is the matrix of the first ``count`` rows. For a symmetric operator all but the last two of the coefficients
    :math:`V w` are rounding errors (the three-term recurrence); larger ones reveal an asymmetry.

    Args:
        basis: ``(n, p)``, rows without gaps, float32, float64 or bfloat16; the first ``count`` rows are orthonormal, up
            to their rounding in bfloat16. Row ``count`` is written if it exists; for a zero residual it becomes NaN
            or inf.
        product: ``(p,)``, contiguous, H times the last of those rows; float64 along a float64 basis, else float32; same
            device. Becomes the residual w.
        count: Rows of the basis so far, 1 to n.

    Returns:
        ``(count + 1,)`` in float64: the coefficients :math:`V w` of both passes together, and the norm of the residual.

    Raises:
        RuntimeError: A tensor has the wrong device, dtype, shape or strides, or ``count`` is out of range. Nothing has
            been changed.

    Cost: three reads of V (the second pass's overlaps are taken from the read that ends the first), half as many bytes
        with a bfloat16 basis, and 24 bytes a float32 coordinate.
    Determinism: sums within 4096 coordinates in the dtype of the product, beyond in float64, in an order that depends
        only on the sizes: the same bits for any number of threads.

    A row rounded to bfloat16 differs from w / ||w|| by a vector of length 0.0017 (at most 2^-8). Against such rows two
    passes leave overlaps of the square of theirs, about 10^-6 / p, so that w is as orthogonal to what is stored as with
    a float32 basis; the new row is then rounded once more.

    References:
        Parlett, The Symmetric Eigenvalue Problem (1998), sections 6.9 and 13.8: two passes are enough.

    Example:
        >>> import torch
        >>> from torch_ire import ops
        >>> basis = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
        >>> ops.lanczos_step_(basis, torch.tensor([3.0, 4.0]), count=1)
        tensor([3., 4.], dtype=torch.float64)
        >>> basis[1]
        tensor([0., 1.])
    """
    rows = basis[:count].to(product.dtype)
    total = torch.zeros(count, dtype=torch.float64, device=basis.device)
    for _ in range(2):
        overlaps = rows @ product
        product -= rows.T @ overlaps
        total += overlaps
    norm = torch.linalg.vector_norm(product, dtype=torch.float64)
    if count < len(basis):
        basis[count] = product / norm
    return torch.cat([total, norm.reshape(1)])


def meta(basis: Tensor, *_: object, count: int) -> Tensor:
    """The result without its value, for compilers and meta tensors."""
    return basis.new_empty(count + 1, dtype=torch.float64)


__all__ = ["lanczos_step_"]
