"""IRE with an exact projector, after a step that another optimizer took."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from torch_ire.reference.arithmetic import opmath
from torch_ire.reference.tall_basis import coefficients, combination


def displacement_projected_(
    params: Sequence[Tensor],
    previous: Sequence[Tensor],
    bases: Sequence[Tensor],
    *,
    kappa: float,
    decay: float = 0.0,
    gram_inverse: Tensor | None = None,
) -> None:
    r"""Amplifies the displacement of the step just taken, except in the sharp directions Q.

    .. math::
        \theta \leftarrow \theta + \kappa (I - Q^T G^{-1} Q) \, (\theta - (1 - \delta) \, \theta_{\text{previous}})

    Args:
        params: Tensors after the step, updated in place; float32, float64, bfloat16 or float16, contiguous, one dtype
            and device.
        previous: The same tensors before the step. Read only.
        bases: For each tensor the columns of Q that belong to it; see :func:`project_out`.
        kappa: Enhancement of the flat directions.
        decay: :math:`\delta`, lr times decoupled weight decay, to keep the decay at its base rate; 0 amplifies the
            decay too.
        gram_inverse: As for :func:`project_out`.

    Raises:
        RuntimeError: A list has the wrong length, or a tensor the wrong device, dtype, shape or strides. Nothing has
            been changed.

    Cost: two reads of Q and 20 bytes per float32 coordinate; no workspace of the parameters' size.
    Determinism: as :func:`project_out`.

    References:
        Wang et al., arXiv:2405.20763, Algorithm 1 with the projector of Theorems 5.5 and 5.6.

    Example:
        >>> import torch
        >>> from torch_ire import ops
        >>> theta = torch.tensor([1.0, 1.0])
        >>> ops.displacement_projected_([theta], [torch.zeros(2)], [torch.tensor([[1.0, 0.0]])], kappa=2.0)
        >>> theta
        tensor([1., 3.])
    """
    if not params or kappa == 0:  # 0 times an infinite displacement is no change
        return
    steps = [
        (opmath(param) - (1 - decay) * opmath(before)).reshape(-1)
        for param, before in zip(params, previous, strict=True)
    ]
    weights = coefficients(steps, bases, gram_inverse)
    for param, step, basis in zip(params, steps, bases, strict=True):
        flat_part = (step - combination(weights, basis, step)).reshape(param.shape)
        param.copy_(opmath(param) + kappa * flat_part)


__all__ = ["displacement_projected_"]
