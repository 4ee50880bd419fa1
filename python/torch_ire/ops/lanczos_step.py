"""The vector work of a Lanczos step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_ire.ops.registration import call, mark_mutated, register_fake


def lanczos_step_(basis: Tensor, product: Tensor, *, count: int) -> Tensor:
    r"""Extends an orthonormal basis by the direction of a product, with full reorthogonalization.

    .. math::
        w \leftarrow (I - V^T V)^2 \, w, \qquad v_{\text{count}} \leftarrow w / \lVert w \rVert

    with V the first ``count`` rows. The three-term recurrence is contained: of the coefficients :math:`V w` all but
    the last two are rounding for a symmetric operator, which is how an asymmetry shows.

    Args:
        basis: ``(n, p)``, contiguous, float32 or float64; the first ``count`` rows are orthonormal. Row ``count`` is
            written, if there is one; for a zero residual it holds nan or inf.
        product: ``(p,)``, H times the last of those rows, same dtype and device. Becomes the residual w.
        count: Rows of the basis so far, 1 to n.

    Returns:
        ``(count + 1,)`` in float64: the coefficients :math:`V w` of both passes together, and the norm of the residual.

    Raises:
        RuntimeError: A tensor has the wrong device, dtype, shape or strides, or ``count`` is out of range; nothing has
            been changed then.

    Cost: three reads of V (the second pass's overlaps are taken from the read that ends the first), and 24 bytes a
        float32 coordinate.
    Determinism: sums within 4096 coordinates in the dtype of the basis, beyond in float64, in an order that depends on
        the sizes alone: the same bits whatever the number of threads.

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
    step: Tensor = call("lanczos_step_", basis.device, basis, product, count=count)
    mark_mutated([basis, product])
    return step


@register_fake("lanczos_step_")
def _(basis: Tensor, product: Tensor, *, count: int) -> Any:  # noqa: ARG001
    """The coefficients and the norm."""
    return basis.new_empty(count + 1, dtype=torch.float64)


__all__ = ["lanczos_step_"]
