"""The perturbation of SAM and ASAM, one tensor at a time in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from torch_ire.reference.arithmetic import opmath


def sam_perturb_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    backups: Sequence[Tensor],
    norm: Tensor,
    *,
    rho: float,
    adaptive: bool = False,
) -> None:
    """See :func:`torch_ire.ops.sam_perturb_`, which this mirrors."""
    scale = rho / (float(norm) + 1e-12) if norm.isfinite() else 0.0
    for param, grad, backup in zip(params, grads, backups, strict=True):
        backup.copy_(param)
        if scale:
            theta = opmath(param)
            param.copy_(theta + scale * (theta**2 * opmath(grad) if adaptive else opmath(grad)))


__all__ = ["sam_perturb_"]
