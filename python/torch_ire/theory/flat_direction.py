"""Closed forms of the exact projector P_{m+1:p} for the problems of the experiments.

A curvature object in the sense of `torch_ire.curvature.FlatProjector`: it adds kappa P (theta - previous) with P of the
Hessian at `previous`. Each replica, or pair, has one flat direction, the lower eigenvector of a 2 x 2 matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["PairProjector", "RadialProjector", "TangentProjector", "lower_eigenvector"]


def lower_eigenvector(h11: Tensor, h12: Tensor, h22: Tensor) -> tuple[Tensor, Tensor]:
    """Unit eigenvector of [[h11, h12], [h12, h22]] with the lower eigenvalue, elementwise."""
    half = (h22 - h11) / 2
    root = torch.hypot(half, h12)
    # Of two expressions for the direction, take the one without cancellation.
    first = torch.where(half >= 0, half + root, h12)
    second = torch.where(half >= 0, -h12, half - root)
    norm = torch.hypot(first, second)
    return first / norm, second / norm


class RadialProjector:
    """P_{m+1:p} of L = (1 + u^2) |v|^2 / 2, a replica per row: u (R,), v (R, d).

    Orthogonal to v the Hessian is 1 + u^2, so the flat direction lies in the plane of the u axis and v.
    """

    def refresh(self) -> None:
        """Does nothing: `amplify_` computes the projector."""

    def amplify_(self, params: Sequence[Tensor], previous: Sequence[Tensor], kappa: float) -> None:
        """Theta <- theta + kappa P (theta - previous)."""
        (u, v), (u0, v0) = params, previous
        radius = v0.norm(dim=1)
        unit = v0 / radius.clamp(min=torch.finfo(v0.dtype).tiny)[:, None]
        along_u, along_v = lower_eigenvector(radius**2, 2 * u0 * radius, 1 + u0**2)
        with torch.no_grad():
            step = along_u * (u - u0) + along_v * ((v - v0) * unit).sum(1)
            u.add_(step * along_u, alpha=kappa)
            v.add_((step * along_v)[:, None] * unit, alpha=kappa)


class PairProjector:
    """P_{m+1:p} of L = sum (a b - 1)^2 / 2.

    The flat direction of a pair is the lower eigenvector of [[b^2, 2ab - 1], [2ab - 1, a^2]].
    """

    def refresh(self) -> None:
        """Does nothing: `amplify_` computes the projector."""

    def _direction(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return lower_eigenvector(b**2, 2 * a * b - 1, a**2)

    def amplify_(self, params: Sequence[Tensor], previous: Sequence[Tensor], kappa: float) -> None:
        """Theta <- theta + kappa P (theta - previous)."""
        (a, b), (a0, b0) = params, previous
        along_a, along_b = self._direction(a0, b0)
        with torch.no_grad():
            step = along_a * (a - a0) + along_b * (b - b0)
            a.add_(step * along_a, alpha=kappa)
            b.add_(step * along_b, alpha=kappa)


class TangentProjector(PairProjector):
    """The tangent (a, -b) of the manifold a b = const, in place of the eigenvector."""

    def _direction(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        norm = torch.hypot(a, b)
        return a / norm, -b / norm
