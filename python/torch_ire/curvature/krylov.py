"""A growing orthonormal basis with the operator's matrix in it: the state of a Lanczos run."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torch_ire.curvature.basis_rows import BasisRows, RoundedRows
from torch_ire.curvature.operator import ROUNDINGS_OF_A_PRODUCT, Operator, asymmetry
from torch_ire.curvature.probes import ProbeSource

__all__ = ["KrylovSpace"]

#: A new direction shorter than this many roundings of ||H|| is noise: the space is invariant.
_BREAKDOWN_ROUNDINGS = 32.0


class KrylovSpace:
    """Orthonormal rows V with T = V H V^T and the relation H V^T = V^T T + v_next coupling^T.

    After a plain step `coupling` has one non-zero, the norm of the residual; after a thick restart it is full. What a
    lock drops from that relation is kept as one residual norm a row, in `dropped`, and what rounding takes from stored
    rows in `rounded`; the latter errors are random, so they add up in quadrature.

    Args:
        operator: H.
        capacity: rows that may be expanded, at most p.
        start: (p,), the first direction, of any length but zero.
        probes: where random directions come from when the space turns out invariant.
        storage: dtype of the rows in memory: the operator's, or bfloat16 along float32.
    """

    def __init__(
        self,
        operator: Operator,
        capacity: int,
        start: Tensor,
        probes: ProbeSource,
        storage: torch.dtype | None = None,
    ) -> None:
        self.operator = operator
        self.capacity = min(capacity, operator.size)
        self._probes = probes
        unit = start / torch.linalg.vector_norm(start)
        exact = storage is None or storage == operator.dtype
        self._rows = (
            BasisRows(self.capacity + 1, unit, operator.dtype) if exact else RoundedRows(self.capacity + 1, unit)
        )
        self._product = torch.empty_like(start)
        self.matrix = torch.zeros(0, 0, dtype=torch.float64)  # T
        self.coupling = torch.zeros(0, dtype=torch.float64)
        self.dropped = torch.zeros(0, dtype=torch.float64)
        self.rounded = torch.zeros(0, dtype=torch.float64)
        self.scale = 0.0
        self.rounding = 0.0  # of a product, where an asymmetry gave reason to measure it

    @property
    def size(self) -> int:
        """Rows whose products are known."""
        return len(self.matrix)

    @property
    def full(self) -> bool:
        """Whether a restart must make room before the next product."""
        return self.size == self.capacity

    @property
    def exhausted(self) -> bool:
        """Whether the basis spans everything."""
        return self.size == self.operator.size

    def expand(self) -> None:
        """Take one product, with the newest direction, and make the next one.

        Raises:
            FloatingPointError: where the product holds nan or inf.
            ValueError: where the operator turns out not symmetric.
        """
        count = self.size + 1
        # A copy, for the product may be the operator's own memory; into the same place, for fresh pages cost more.
        self._product.copy_(self.operator.matvec(self._rows.direction(self.size)))
        column, norm = self._rows.step(self._product, count)
        if not (bool(torch.isfinite(column).all()) and math.isfinite(norm)):
            raise FloatingPointError(f"matvec {self.operator.num_matvecs}: the operator returned nan or inf")
        self.scale = max(self.scale, float(column.abs().max()), norm)
        self._check_symmetry(column[:-1])
        self.matrix = self._rows.extended(self.matrix, column)
        self.dropped = torch.cat([self.dropped, torch.zeros(1, dtype=torch.float64)])
        lost = norm * self._rows.rounding(count)
        self.rounded = torch.cat([self.rounded, torch.tensor([lost], dtype=torch.float64)])
        self.coupling = torch.zeros(count, dtype=torch.float64)
        if norm > _BREAKDOWN_ROUNDINGS * torch.finfo(self.operator.dtype).eps * self.scale:
            self.coupling[-1] = norm
        elif not self.exhausted:
            self._set_random_direction()

    def _check_symmetry(self, measured: Tensor) -> None:
        """For a symmetric H the new column is known but for its last entry; measuring it again costs nothing."""
        if not len(measured):
            return
        slack = (self.operator.symmetry_tolerance + self._rows.symmetry_slack) * self.scale + 2.0 * self.dropped
        excess = (measured - self.coupling).abs() - slack
        row = int(excess.argmax())
        if excess[row] <= ROUNDINGS_OF_A_PRODUCT * self.rounding:
            return
        for suspect in (self.size, row):
            self.rounding = max(self.rounding, self.operator.rounding_at(self._rows.direction(suspect)))
        if excess[row] > ROUNDINGS_OF_A_PRODUCT * self.rounding:
            one, other = float(measured[row]), float(self.coupling[row])
            raise asymmetry(row, self.size, one, other, self.scale, self.rounding)

    def residual_norms(self, coefficients: Tensor) -> Tensor:
        """||H x - theta x|| of Ritz vectors with these coefficient columns, (size, n); upper bounds after a lock."""
        rounded = coefficients.square().T @ self.rounded.square()
        return ((self.coupling @ coefficients).square() + rounded).sqrt() + self._dropped_by(coefficients)

    def _dropped_by(self, coefficients: Tensor) -> Tensor:
        return coefficients.abs().T @ self.dropped

    def vectors(self, coefficients: Tensor) -> Tensor:
        """Those vectors as rows, (n, p)."""
        return self._rows.combinations(coefficients)

    def restart(self, coefficients: Tensor) -> None:
        """Shrink the basis to these combinations, (size, n), keeping the newest direction: a thick restart."""
        coupling = self.coupling @ coefficients
        self._rotate(coefficients)
        self.coupling = coupling

    def lock(self, coefficients: Tensor) -> None:
        """Shrink the basis to these combinations, count them as invariant and go on in a random direction."""
        residuals = self.residual_norms(coefficients)
        self._rotate(coefficients)
        self.dropped = residuals
        self.coupling = torch.zeros(self.size, dtype=torch.float64)
        if not self.exhausted:
            self._set_random_direction()

    def _rotate(self, coefficients: Tensor) -> None:
        dropped = self._dropped_by(coefficients)
        rounded = coefficients.square().T @ self.rounded.square()
        self.matrix = self._rows.rotate(coefficients, self.matrix, self.coupling)
        lost = self.scale * torch.tensor([self._rows.rounding(r) for r in range(self.size)], dtype=torch.float64)
        self.dropped, self.rounded = dropped, (rounded + lost.square()).sqrt()

    def _set_random_direction(self) -> None:
        self._rows.step(self._probes.gaussian(), self.size)
