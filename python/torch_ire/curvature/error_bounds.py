"""How far a Ritz value may be from the eigenvalue that it stands for."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["allowed_errors", "error_bounds"]

#: Residual norms by which an eigenvalue may lie beyond the Ritz value next to the wanted ones, and at most beyond a
#: wanted one. A residual norm r says that *some* eigenvalue is within r; the one that is meant may be farther while the
#: start vector has little of it. With 4 the bounds hold in 99.9 % of random matrices once a second search agrees.
_SAFETY = 4.0
#: Roundings of the operator's norm up to which the error of a zero eigenvalue is accepted.
_ROUNDINGS_OF_ZERO = 128.0


def error_bounds(values: Tensor, residuals: Tensor, others: Tensor, other_residuals: Tensor) -> Tensor:
    r"""Bounds of :math:`|\theta_i - \lambda_i|`.

    .. math:: \min\Big(4 r_i, \frac{2 r_i^2}{g_i + \sqrt{g_i^2 + 4 r_i^2}}\Big), \qquad
        g_i = \min_j \big(|\theta_i - \theta_j| - 4 r_j\big)

    over the other Ritz values: about r^2 / g for a gap that is known, 4 r for one that is not.

    Args:
        values: (k,), the wanted Ritz values.
        residuals: (k,), their residual norms.
        others: (n,), the Ritz values that are not wanted.
        other_residuals: (n,), their residual norms.

    Returns:
        (k,). The residual norms themselves if there are no others.

    References:
        Li and Li, A note on eigenvalues of perturbed Hermitian matrices, Linear Algebra Appl. 395 (2005).
    """
    if not len(others):
        return residuals
    distances, nearest = (values[:, None] - others[None, :]).abs().min(1)
    gaps = distances - _SAFETY * other_residuals[nearest]
    # 2 r / (...) first: r^2 underflows for tiny operators.
    quadratic = residuals * (2 * residuals / (gaps + torch.hypot(gaps, 2 * residuals)).clamp(min=1e-300))
    return torch.where(gaps > 0, quadratic, _SAFETY * residuals).minimum(_SAFETY * residuals)


def allowed_errors(values: Tensor, tol: float, scale: float, dtype: torch.dtype) -> Tensor:
    """The error that a relative tolerance leaves each value of an operator of norm `scale`, rounded in `dtype`.

    Values below eps^(2/3) scale count as zero: products do not resolve them.
    """
    eps = torch.finfo(dtype).eps
    zero = eps ** (2 / 3) * scale
    of_zero = torch.full_like(values, max(tol * zero, _ROUNDINGS_OF_ZERO * eps * scale))
    return torch.where(values.abs() > zero, tol * values.abs(), of_zero)
