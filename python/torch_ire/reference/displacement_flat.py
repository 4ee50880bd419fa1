"""IRE after another optimizer's step, one tensor at a time in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from torch_ire.reference.arithmetic import opmath, scalar, unpack


def displacement_flat_(
    params: Sequence[Tensor],
    previous: Sequence[Tensor],
    flat_masks: Sequence[Tensor],
    *,
    kappa: float,
    decay: float = 0.0,
    kappa_tensor: Tensor | None = None,
) -> None:
    """See :func:`torch_ire.ops.displacement_flat_`, which this mirrors."""
    kappa = scalar(kappa_tensor, kappa)
    for param, before, flat_mask in zip(params, previous, flat_masks, strict=True):
        theta = opmath(param)
        amplified = theta + kappa * (theta - (1 - decay) * opmath(before))
        param.copy_(amplified.where(unpack(flat_mask, param), theta))


__all__ = ["displacement_flat_"]
