"""Eigenpairs out of a subspace that is already close to the eigenvectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torch_ire.curvature.basis_rows import orthonormalized
from torch_ire.curvature.eigenpairs import Eigenpairs
from torch_ire.curvature.error_bounds import error_bounds
from torch_ire.curvature.operator import Operator

__all__ = ["rayleigh_ritz"]

#: The correction of a row divides by its Ritz value; past this length it would no longer be a correction.
_LONGEST_CORRECTION = 0.5


def rayleigh_ritz(operator: Operator, rows: Tensor, *, tol: float, unwanted_value: float = math.nan) -> Eigenpairs:
    r"""Ritz pairs of the span of some rows, and a better basis from the same products.

    .. math:: x_i \leftarrow \mathrm{orth}(x_i + r_i / \theta_i) = \mathrm{orth}(H x_i)

    Args:
        operator: H.
        rows: (m, p), orthonormal, close to the leading eigenvectors.
        tol: relative accuracy that `converged` speaks of.
        unwanted_value: the (m + 1)-th eigenvalue as far as it is known, for the gap; nan: residuals alone count.

    Returns:
        `Eigenpairs`: values, residuals and bounds of the span of `rows`, and the improved basis.

    Raises:
        FloatingPointError: where the operator returns nan or inf.
        ValueError: where it is found not symmetric.

    Cost: m products, 2 m p memory.
    """
    before = operator.num_matvecs
    with operator.linearized():
        products = torch.stack([operator.matvec(row) for row in rows])
    if not bool(torch.isfinite(products).all()):
        raise FloatingPointError(f"matvec {operator.num_matvecs}: the operator returned nan or inf")
    scale = float(torch.linalg.vector_norm(products, dim=1).max())
    with operator.linearized():
        small, rounding = operator.compressed(rows, products, scale)
    values, turn = torch.linalg.eigh(small)
    values, turn = values.flip(0), turn.flip(1).to(rows)
    vectors, products = turn.T @ rows, turn.T @ products
    theta = values.to(rows)[:, None]
    residual_rows = products - theta * vectors
    residuals = torch.linalg.vector_norm(residual_rows, dim=1, dtype=torch.float64).cpu()
    others = torch.tensor([] if math.isnan(unwanted_value) else [unwanted_value], dtype=torch.float64)
    bounds = error_bounds(values, residuals, others, torch.zeros_like(others)) + rounding
    correctable = (residuals < _LONGEST_CORRECTION * values).to(rows.device)[:, None]
    divisors = theta.where(correctable, torch.ones_like(theta))
    improved = torch.where(correctable, vectors + residual_rows / divisors, vectors)
    return Eigenpairs(
        ritz_values=values,
        basis=orthonormalized(improved),
        residual_norms=residuals,
        error_bounds=bounds,
        converged=bool((bounds <= tol * values.abs()).all()),
        num_matvecs=operator.num_matvecs - before,
        unwanted_value=unwanted_value,
        verified=False,
    )
