"""What the eigensolvers return."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

__all__ = ["Eigenpairs", "Which"]

Which = Literal["largest", "smallest", "both"]


@dataclass(frozen=True)
class Eigenpairs:
    """Approximate eigenpairs, with what is known of their errors.

    Args:
        ritz_values: (k,), float64 on the CPU, in decreasing order.
        basis: (k, p), row i belongs to `ritz_values[i]`; orthonormal rows.
        residual_norms: (k,), ||H v_i - theta_i v_i||: an eigenvalue lies within that distance of theta_i.
        error_bounds: (k,), estimate of |theta_i - eigenvalue|: the smaller of the residual norm and its square over
            the gap to the nearest unwanted Ritz value.
        converged: whether every error bound is within the tolerance asked for.
        num_matvecs: products with H that this run took, all counted.
        unwanted_value: the Ritz value next to the wanted ones, nan where there is none.
        verified: whether a second search, orthogonal to these vectors, found no repeated eigenvalue.
        interrupted: whether the run was stopped from the keyboard; what is here is what it had.

    Raises:
        ImportError: `plot()` without matplotlib.

    Cost: k vectors of memory.

    Example:
        >>> import torch
        >>> from torch_ire import curvature
        >>> pairs = curvature.lanczos(torch.diag(torch.tensor([3.0, 2.0, 1.0])), k=1)
        >>> pairs.ritz_vectors.shape, pairs.converged
        (torch.Size([3, 1]), True)

    References:
        Parlett, The Symmetric Eigenvalue Problem (1998), section 11.7: the error bounds.
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
