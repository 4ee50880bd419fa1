"""The perturbation of sharpness-aware minimization."""

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
    r"""Saves the parameters and moves them to the point of SAM's gradient.

    .. math::
        \theta_{\text{backup}} \leftarrow \theta, \qquad
        \theta \leftarrow \theta + \rho \frac{g}{\lVert g \rVert + 10^{-12}}
        \quad \text{or, adaptive,} \quad
        \theta + \rho \frac{\theta^2 g}{\lVert |\theta| g \rVert + 10^{-12}}

    Args:
        params: Tensors to move in place; float32, float64, bfloat16 or float16, dense, one dtype and device.
        grads: Directions; dtype, shape and strides of the parameters. Read only. Their scale cancels, so an AMP loss
            scale may stay in.
        backups: Receive the parameters of before the move; dtype, shape and strides of the parameters.
        norm: One number on the device: :func:`torch_ire.ops.global_norm` of the gradients (adaptive: with the
            parameters as weights). A norm that is not finite moves nothing.
        rho: Radius of the perturbation.
        adaptive: ASAM.

    Raises:
        RuntimeError: A list has the wrong length, or a tensor the wrong device, dtype, shape or strides. Nothing has
            been changed.

    Cost: 16 bytes per float32 coordinate; no workspace.
    Determinism: elementwise; the same bits from run to run.

    Example:
        >>> import torch
        >>> from torch_ire import ops
        >>> theta, backup, g = torch.ones(2), torch.empty(2), torch.tensor([3.0, -4.0])
        >>> ops.sam_perturb_([theta], [g], [backup], torch.tensor(5.0), rho=0.5)
        >>> theta, backup
        (tensor([1.3000, 0.6000]), tensor([1., 1.]))

    References:
        Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", arXiv:2010.01412, Eq. 2.
        Kwon et al., "ASAM", arXiv:2102.11600, Eq. 5.
    """
    scale = rho / (float(norm) + 1e-12) if norm.isfinite() else 0.0
    for param, grad, backup in zip(params, grads, backups, strict=True):
        backup.copy_(param)
        if scale:
            theta = opmath(param)
            param.copy_(theta + scale * (theta**2 * opmath(grad) if adaptive else opmath(grad)))


__all__ = ["sam_perturb_"]
