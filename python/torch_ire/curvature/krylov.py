"""A growing orthonormal basis with the operator's matrix in it: the state of a Lanczos run."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_ire.curvature.operator import Operator
from torch_ire.curvature.probes import ProbeSource
from torch_ire.ops import lanczos_step_

__all__ = ["KrylovSpace", "orthonormalized"]

#: A new direction shorter than this many roundings of ||H|| is noise: the space is invariant.
_BREAKDOWN_ROUNDINGS = 32.0
#: Columns turned at a time when the basis is rotated in place; bounds the extra memory, still long enough for BLAS.
_ROTATED_COLUMNS = 65536


class KrylovSpace:
    """Orthonormal rows V with T = V H V^T and the relation H V^T = V^T T + v_next coupling^T.

    After a plain step `coupling` has one non-zero, the norm of the residual; after a thick restart it is full. What a
    lock drops from that relation is kept as one residual norm a row, in `dropped`.

    Args:
        operator: H.
        capacity: rows that may be expanded, at most p.
        start: (p,), the first direction, of any length but zero.
        probes: where random directions come from when the space turns out invariant.
    """

    def __init__(self, operator: Operator, capacity: int, start: Tensor, probes: ProbeSource) -> None:
        self.operator = operator
        self.capacity = min(capacity, operator.size)
        self._probes = probes
        self._rows = torch.empty(self.capacity + 1, operator.size, dtype=operator.dtype, device=operator.device)
        self._product = torch.empty_like(start)
        self._rows[0] = start / torch.linalg.vector_norm(start)
        self._matrix = torch.zeros(self.capacity + 1, self.capacity + 1, dtype=torch.float64)
        self.size = 0
        self.coupling = torch.zeros(0, dtype=torch.float64)
        self.dropped = torch.zeros(0, dtype=torch.float64)
        self.scale = 0.0

    @property
    def matrix(self) -> Tensor:
        """T, (size, size)."""
        return self._matrix[: self.size, : self.size]

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
        self._product.copy_(self.operator.matvec(self._rows[self.size]))
        step = lanczos_step_(self._rows, self._product, count=count).cpu()
        column, norm = step[:-1], float(step[-1])
        if not bool(torch.isfinite(step).all()):
            raise FloatingPointError(f"matvec {self.operator.num_matvecs}: the operator returned nan or inf")
        self.scale = max(self.scale, float(column.abs().max()), norm)
        self._check_symmetry(column[:-1])
        self._matrix[: self.size, self.size] = self._matrix[self.size, : self.size] = column[:-1]
        self._matrix[self.size, self.size] = column[-1]
        self.size = count
        self.dropped = torch.cat([self.dropped, torch.zeros(1, dtype=torch.float64)])
        self.coupling = torch.zeros(count, dtype=torch.float64)
        if norm > _BREAKDOWN_ROUNDINGS * torch.finfo(self.operator.dtype).eps * self.scale:
            self.coupling[-1] = norm
        elif not self.exhausted:
            self._set_random_direction()

    def _check_symmetry(self, measured: Tensor) -> None:
        """For a symmetric H the new column is known but for its last entry; measuring it again costs nothing."""
        if not len(measured):
            return
        slack = self.operator.symmetry_tolerance * self.scale + 2.0 * self.dropped
        excess = (measured - self.coupling).abs() - slack
        if bool((excess > 0).any()):
            row = int(excess.argmax())
            raise ValueError(
                f"the operator is not symmetric: v{row} . H v{self.size} = {float(measured[row]):.6g}, but "
                f"v{self.size} . H v{row} = {float(self.coupling[row]):.6g} (norm of H at least {self.scale:.3g})"
            )

    def residual_norms(self, coefficients: Tensor) -> Tensor:
        """||H x - theta x|| of Ritz vectors with these coefficient columns, (size, n); upper bounds after a lock."""
        return (self.coupling @ coefficients).abs() + self._dropped_by(coefficients)

    def _dropped_by(self, coefficients: Tensor) -> Tensor:
        return coefficients.abs().T @ self.dropped

    def vectors(self, coefficients: Tensor) -> Tensor:
        """Those vectors as rows, (n, p)."""
        turn = coefficients.T.to(self._rows)
        return turn @ self._rows[: self.size]

    def restart(self, coefficients: Tensor) -> None:
        """Shrink the basis to these combinations, (size, n), keeping the newest direction: a thick restart."""
        newest = self._rows[self.size].clone()
        coupling = self.coupling @ coefficients
        self._rotate(coefficients)
        self.coupling = coupling
        self._rows[self.size] = newest

    def lock(self, coefficients: Tensor) -> None:
        """Shrink the basis to these combinations, count them as invariant and go on in a random direction."""
        residuals = self.residual_norms(coefficients)
        self._rotate(coefficients)
        self.dropped = residuals
        self.coupling = torch.zeros(self.size, dtype=torch.float64)
        if not self.exhausted:
            self._set_random_direction()

    def _rotate(self, coefficients: Tensor) -> None:
        kept = coefficients.shape[1]
        turn = coefficients.T.to(self._rows)
        for begin in range(0, self.operator.size, _ROTATED_COLUMNS):
            columns = slice(begin, begin + _ROTATED_COLUMNS)
            self._rows[:kept, columns] = turn @ self._rows[: self.size, columns]
        matrix = coefficients.T @ self.matrix @ coefficients
        self.dropped = self._dropped_by(coefficients)
        self.size = kept
        self._matrix[:kept, :kept] = (matrix + matrix.T) / 2

    def _set_random_direction(self) -> None:
        direction = self._probes.gaussian()
        rows = self._rows[: self.size]
        for _ in range(2):
            direction /= torch.linalg.vector_norm(direction)
            direction -= rows.T @ (rows @ direction)
        self._rows[self.size] = direction / torch.linalg.vector_norm(direction)


def orthonormalized(rows: Tensor) -> Tensor:
    """An orthonormal basis of the row space of (m, p) rows of full rank, in float64 where it matters.

    Two rounds of Cholesky on the Gram matrix: reads of the rows only, no (p, m) copy.
    """
    for _ in range(2):
        gram = (rows @ rows.T).to(torch.float64)
        factor, failure = torch.linalg.cholesky_ex(gram)
        if int(failure):
            orthogonal: Tensor = torch.linalg.qr(rows.T).Q
            return orthogonal.T.contiguous()
        identity = torch.eye(len(rows), dtype=torch.float64, device=rows.device)
        inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
        rows = inverse.to(rows.dtype) @ rows
    return rows
