"""The result of an eigensolver."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

__all__ = ["Eigenpairs", "Which"]

Which = Literal["largest", "smallest", "both"]


@dataclass(frozen=True)
class Eigenpairs:
    """Approximate eigenpairs with error bounds.

    Args:
        ritz_values: (k,), float64 on the CPU, in decreasing order.
        basis: (k, p), row i belongs to `ritz_values[i]`; orthonormal rows.
        residual_norms: (k,), ||H v_i - theta_i v_i||: an eigenvalue lies within that distance of theta_i.
        error_bounds: (k,), bounds of |theta_i - lambda_i|: about r^2 / gap for a residual norm r, at most 4 r, plus the
            rounding of a product if it was measured. The gap counts from four residual norms beyond the next Ritz
            value. One start vector may miss an eigenvalue: in random matrices the bounds held in 3,999 of 4,000 runs
            with a second search (`verified`), in 99 % without.
        converged: whether every error bound is within the tolerance.
        num_matvecs: products with H that this run took.
        unwanted_value: the Ritz value next to the wanted ones, nan if there is none.
        verified: whether a second search, orthogonal to these vectors, found no further eigenvalue that belongs to
            them.
        interrupted: whether Ctrl-C ended the run early.

    Raises:
        ImportError: `plot()` needs matplotlib.

    Cost: k vectors of memory.

    Example:
        >>> import torch
        >>> from torch_ire import curvature
        >>> pairs = curvature.lanczos(torch.diag(torch.tensor([3.0, 2.0, 1.0])), k=1)
        >>> pairs.ritz_vectors.shape, pairs.converged
        (torch.Size([3, 1]), True)

    References:
        Parlett, The Symmetric Eigenvalue Problem (1998), section 11.7.
    """

    ritz_values: Tensor
    basis: Tensor = field(repr=False)
    residual_norms: Tensor
    error_bounds: Tensor
    converged: bool
    num_matvecs: int
    unwanted_value: float
    verified: bool
    interrupted: bool = False

    @property
    def ritz_vectors(self) -> Tensor:
        """(p, k), column i belongs to `ritz_values[i]`; a view of `basis`."""
        return self.basis.T

    def plot(self, ax: Any = None) -> Any:
        """Ritz values with their residual norms as bars; returns the matplotlib axes."""
        from torch_ire.curvature.plots import new_axes

        ax = new_axes(ax)
        positions = range(1, len(self.ritz_values) + 1)
        ax.errorbar(positions, self.ritz_values.tolist(), yerr=self.residual_norms.tolist(), fmt="o", capsize=3)
        ax.axhline(0.0, color="0.7", linewidth=0.8)
        ax.set(xlabel="rank", ylabel="eigenvalue", title=f"{len(self.ritz_values)} Ritz values")
        return ax
