"""The diagonal curvature estimate and its running mean."""

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
    r"""Updates the running mean of the diagonal curvature with the estimate of one batch.

    .. math::
        h \leftarrow \beta h + (1 - \beta) \, B \, (g / s)^2

    :math:`g` is the gradient of the mean loss over :math:`B` predictions with labels drawn from the model, :math:`s`
    the loss scale. An estimate that is not finite leaves :math:`h` unchanged. A coordinate of :math:`h` that is not
    finite is replaced by the estimate: initialise :math:`h` with NaN, and the mean needs no bias correction.

    Args:
        hessian_diags: Running means, updated in place; float64 for float64 gradients, else float32; shapes and strides
            of the gradients.
        grads: Gradients; float32, float64, bfloat16 or float16, dense (any dense strides), one dtype and device. Read
            only.
        beta: Weight of the past, in [0, 1]; 0 keeps the last estimate alone.
        num_predictions: :math:`B`, the number of predictions in the batch; positive. It does not change a ranking.
        grad_scale: One number; gradients are divided by it first (the loss scale of AMP).

    Raises:
        RuntimeError: A number is out of its range, a list has the wrong length, or a tensor the wrong device, dtype,
            shape or strides. Nothing has been changed.

    Cost: 12 bytes per float32 coordinate; no workspace.
    Determinism: elementwise; the same bits from run to run. The square is taken in float32 (float64 for float64).

    Example:
        >>> import torch
        >>> from torch_ire import ops
        >>> h = torch.full((3,), torch.nan)
        >>> ops.hessian_diag_([h], [torch.tensor([1.0, 2.0, torch.inf])], beta=0.5)
        >>> ops.hessian_diag_([h], [torch.tensor([3.0, torch.nan, 1.0])], beta=0.5)
        >>> h
        tensor([5., 4., 1.])

    References:
        Wang et al., "Improving Generalization and Convergence by Enhancing Implicit Regularization", arXiv:2405.20763,
            Eq. (6).
        Liu et al., "Sophia: A Scalable Stochastic Second-order Optimizer", arXiv:2305.14342, the Gauss-Newton-Bartlett
            estimator.
    """
    # a scale of 0 leaves no finite estimate, as a division by it would
    scale = scalar(grad_scale, 1.0)
    grad_factor = 1.0 / scale if scale else float("inf")
    for h, grad in zip(hessian_diags, grads, strict=True):
        estimate = num_predictions * (opmath(grad.detach()) * grad_factor).square()
        mean = torch.where(h.isfinite(), beta * h + (1 - beta) * estimate, estimate)
        h.copy_(torch.where(estimate.isfinite(), mean, h))


__all__ = ["hessian_diag_"]
