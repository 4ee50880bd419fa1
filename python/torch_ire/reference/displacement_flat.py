"""IRE after a step that another optimizer took."""

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
    r"""Amplifies the displacement of the step just taken on the flat coordinates.

    .. math::
        \theta \leftarrow \theta + \kappa n \, (\theta - (1 - \delta) \, \theta_{\text{previous}})

    Args:
        params: Tensors after the step, updated in place; float32, float64, bfloat16 or float16, dense, one dtype and
            device.
        previous: The same tensors before the step. Read only.
        flat_masks: Packed masks, uint8 of ``ceil(numel / 8)``: bit ``i % 8`` of byte ``i // 8`` is coordinate ``i`` in
            memory order.
        kappa: Enhancement of the flat coordinates.
        decay: :math:`\delta`, lr times decoupled weight decay, to keep the decay at its base rate; 0 amplifies the
            decay too.
        kappa_tensor: One number on the device that replaces ``kappa``.

    Raises:
        RuntimeError: A list has the wrong length, or a tensor the wrong device, dtype, shape or strides. Nothing has
            been changed.

    Cost: 12 + 1/8 bytes per float32 coordinate; no workspace.
    Determinism: elementwise; the same bits from run to run. Sharp coordinates keep their bits.

    Example:
        >>> import torch
        >>> from torch_ire import ops
        >>> theta, previous = torch.tensor([0.9, 0.9]), torch.ones(2)
        >>> first_is_flat = torch.tensor([0b01], dtype=torch.uint8)
        >>> ops.displacement_flat_([theta], [previous], [first_is_flat], kappa=2.0)
        >>> theta
        tensor([0.7000, 0.9000])

    References:
        Wang et al., "Improving Generalization and Convergence by Enhancing Implicit Regularization", arXiv:2405.20763,
        Algorithm 1.
    """
    kappa = scalar(kappa_tensor, kappa)
    if kappa == 0:
        return
    for param, before, flat_mask in zip(params, previous, flat_masks, strict=True):
        theta = opmath(param)
        amplified = theta + kappa * (theta - (1 - decay) * opmath(before))
        param.copy_(amplified.where(unpack(flat_mask, param) & ((theta != opmath(before)) | (decay != 0)), theta))


__all__ = ["displacement_flat_"]
