"""Running mean of the diagonal curvature estimate, one tensor at a time in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_ire.reference.arithmetic import opmath, scalar


def hessian_diag_(
    hessian_diags: Sequence[Tensor],
    grads: Sequence[Tensor],
    *,
    beta: float,
    num_predictions: float = 1.0,
    grad_scale: Tensor | None = None,
) -> None:
    """See :func:`torch_ire.ops.hessian_diag_`, which this mirrors."""
    # a scale of 0 leaves no finite estimate, as a division by it would
    scale = scalar(grad_scale, 1.0)
    grad_factor = 1.0 / scale if scale else float("inf")
    for h, grad in zip(hessian_diags, grads, strict=True):
        estimate = num_predictions * (opmath(grad.detach()) * grad_factor).square()
        mean = torch.where(h.isfinite(), beta * h + (1 - beta) * estimate, estimate)
        h.copy_(torch.where(estimate.isfinite(), mean, h))


__all__ = ["hessian_diag_"]
