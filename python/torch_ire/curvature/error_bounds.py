"""Bounds of eigenvalue errors from residual norms."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["allowed_errors", "error_bounds"]

#: Uncertainty of a Ritz value in residual norms r. *Some* eigenvalue lies within r, but the one in question may be
#: farther away if the start vector has a small component along its eigenvector.
_SAFETY = 4.0
#: Accepted error of a zero eigenvalue, in roundings of the operator's norm.
_ROUNDINGS_OF_ZERO = 128.0


def error_bounds(values: Tensor, residuals: Tensor, others: Tensor, other_residuals: Tensor) -> Tensor:
    r"""Bounds of :math:`|\theta_i - \lambda_i|`.

    .. math:: \min\Big(4 r_i, \frac{2 r_i^2}{g_i + \sqrt{g_i^2 + 4 r_i^2}}\Big), \qquad
        g_i = |\theta_i - \theta_j| - 4 r_j

    with the nearest other Ritz value theta_j; 4 r_i if g_i is not positive.

    Args:
        values: (k,), the wanted Ritz values.
        residuals: (k,), their residual norms.
        others: (n,), the unwanted Ritz values.
        other_residuals: (n,), their residual norms.

    Returns:
        (k,); the residual norms if there are no others.

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
    """The error that a relative tolerance allows each eigenvalue of an operator of norm `scale` in `dtype`.

    Values below eps^(2/3) scale count as zero: products do not resolve them.
    """
    eps = torch.finfo(dtype).eps
    zero = eps ** (2 / 3) * scale
    of_zero = torch.full_like(values, max(tol * zero, _ROUNDINGS_OF_ZERO * eps * scale))
    return torch.where(values.abs() > zero, tol * values.abs(), of_zero)
