"""The state of a Lanczos run: a growing orthonormal basis and the projected operator."""

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

    After a plain step `coupling` has one non-zero, the norm of the residual; after a thick restart it is full.
    `dropped` holds one norm per row for the residuals that a lock drops from the relation, `rounded` one for the
    rounding of stored rows; the latter are random and add in quadrature.

    Args:
        operator: H.
        capacity: rows that may be expanded, at most p.
        start: (p,), the first direction, not zero.
        probes: source of random directions when the space is invariant.
        storage: dtype of the stored rows: the operator's, or bfloat16 with float32.
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
        self.matrix = torch.zeros(0, 0, dtype=torch.float64, device="cpu")  # T
        self.coupling = torch.zeros(0, dtype=torch.float64, device="cpu")
        self.dropped = torch.zeros(0, dtype=torch.float64, device="cpu")
        self.rounded = torch.zeros(0, dtype=torch.float64, device="cpu")
        self.scale = 0.0
        self.rounding = 0.0  # of a product; measured once an asymmetry is suspected

    @property
    def size(self) -> int:
        """Number of rows whose products are known."""
        return len(self.matrix)

    @property
    def full(self) -> bool:
        """Whether the next product needs a restart first."""
        return self.size == self.capacity

    @property
    def exhausted(self) -> bool:
        """Whether the basis spans the whole space."""
        return self.size == self.operator.size

    def expand(self) -> None:
        """Multiply the newest direction and append the next one.

        Raises:
            FloatingPointError: if the product holds nan or inf.
            ValueError: if the operator is not symmetric.
        """
        count = self.size + 1
        # A copy: the product may be the operator's own memory. Always into the same pages, which is faster.
        self._product.copy_(self.operator.matvec(self._rows.direction(self.size)))
        column, norm = self._rows.step(self._product, count)
        if not (bool(torch.isfinite(column).all()) and math.isfinite(norm)):
            raise FloatingPointError(f"matvec {self.operator.num_matvecs}: the operator returned nan or inf")
        self.scale = max(self.scale, float(column.abs().max()), norm)
        self._check_symmetry(column[:-1])
        self.matrix = self._rows.extended(self.matrix, column)
        self.dropped = torch.cat([self.dropped, torch.zeros(1, dtype=torch.float64, device="cpu")])
        lost = norm * self._rows.rounding(count)
        self.rounded = torch.cat([self.rounded, torch.tensor([lost], dtype=torch.float64, device="cpu")])
        self.coupling = torch.zeros(count, dtype=torch.float64, device="cpu")
        if norm > _BREAKDOWN_ROUNDINGS * torch.finfo(self.operator.dtype).eps * self.scale:
            self.coupling[-1] = norm
        elif not self.exhausted:
            self._set_random_direction()

    def _check_symmetry(self, measured: Tensor) -> None:
        """Symmetry predicts all of the new column but its last entry; the step measures it at no cost."""
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
        """||H x - theta x|| of Ritz vectors with these coefficient columns, (size, n). Upper bounds after a lock."""
        rounded = coefficients.square().T @ self.rounded.square()
        return ((self.coupling @ coefficients).square() + rounded).sqrt() + self._dropped_by(coefficients)

    def _dropped_by(self, coefficients: Tensor) -> Tensor:
        return coefficients.abs().T @ self.dropped

    def vectors(self, coefficients: Tensor) -> Tensor:
        """The vectors with these coefficient columns as rows, (n, p)."""
        return self._rows.combinations(coefficients)

    def restart(self, coefficients: Tensor) -> None:
        """Thick restart: shrink the basis to these combinations, (size, n), and keep the newest direction."""
        coupling = self.coupling @ coefficients
        self._rotate(coefficients)
        self.coupling = coupling

    def lock(self, coefficients: Tensor) -> None:
        """Shrink the basis to these combinations, treat them as invariant and continue in a random direction."""
        residuals = self.residual_norms(coefficients)
        self._rotate(coefficients)
        self.dropped = residuals
        self.coupling = torch.zeros(self.size, dtype=torch.float64, device="cpu")
        if not self.exhausted:
            self._set_random_direction()

    def _rotate(self, coefficients: Tensor) -> None:
        dropped = self._dropped_by(coefficients)
        rounded = coefficients.square().T @ self.rounded.square()
        self.matrix = self._rows.rotate(coefficients, self.matrix, self.coupling)
        lost = self.scale * torch.tensor(
            [self._rows.rounding(r) for r in range(self.size)], dtype=torch.float64, device="cpu"
        )
        self.dropped, self.rounded = dropped, (rounded + lost.square()).sqrt()

    def _set_random_direction(self) -> None:
        self._rows.step(self._probes.gaussian(), self.size)
