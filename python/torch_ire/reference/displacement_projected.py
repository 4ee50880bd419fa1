"""IRE with an exact projector after another optimizer's step, in plain torch."""

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
    """See :func:`torch_ire.ops.displacement_projected_`, which this mirrors."""
    if not params:
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
