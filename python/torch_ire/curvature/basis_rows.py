"""The rows of a Krylov basis in memory: in the operator's precision, or rounded to bfloat16."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from torch_ire.ops import lanczos_step_

__all__ = ["BasisRows", "RoundedRows", "orthonormalized"]

#: Columns rotated at a time: bounds the extra memory and is long enough for BLAS.
_BLOCK_COLUMNS = 65536
#: The same on other devices, where launches cost more than memory.
_BLOCK_COLUMNS_OF_DEVICE = 1 << 20
#: Rows start at multiples of this many elements, so that kernels move 16 bytes at a time for any p.
_ROW_ALIGNMENT = 8


class BasisRows:
    """Orthonormal rows in the operator's precision.

    Args:
        capacity: maximum number of rows.
        start: (p,), a unit vector, the first row.
        storage: dtype of the rows.
    """

    def __init__(self, capacity: int, start: Tensor, storage: torch.dtype) -> None:
        self._size = len(start)
        stride = -(-self._size // _ROW_ALIGNMENT) * _ROW_ALIGNMENT
        padded = torch.empty(capacity, stride, dtype=storage, device=start.device)
        self._rows = padded[:, : self._size]
        self._rows[0] = start
        self._dtype = start.dtype

    def direction(self, r: int) -> Tensor:
        """Row r in the operator's dtype."""
        return self._rows[r]

    def step(self, product: Tensor, count: int) -> tuple[Tensor, float]:
        """Run `lanczos_step_` with the first `count` rows; overwrites `product`.

        Returns:
            the overlaps of the rows with the product, (count,), and the norm of the residual.
        """
        result = lanczos_step_(self._rows, product, count=count).cpu()
        return result[:-1], float(result[-1])

    def rounding(self, r: int) -> float:
        """Norm of the rounding error of the stored row r."""
        del r
        return 0.0

    @property
    def symmetry_slack(self) -> float:
        """Asymmetry of the matrix that rounding of the rows can cause, relative to the norm of H."""
        return 0.0

    def extended(self, matrix: Tensor, overlaps: Tensor) -> Tensor:
        """Append one row and column to V H V^T: the overlaps of all rows with the product."""
        size = len(overlaps)
        larger = torch.empty(size, size, dtype=torch.float64, device="cpu")
        larger[:-1, :-1] = matrix
        larger[-1] = larger[:, -1] = overlaps
        return larger

    def combinations(self, coefficients: Tensor) -> Tensor:
        """Linear combinations of the first rows, (n, p); one column of coefficients each."""
        return coefficients.T.to(self._rows) @ self._rows[: len(coefficients)]

    def rotate(self, coefficients: Tensor, matrix: Tensor, coupling: Tensor) -> Tensor:
        """Replace the first rows by combinations of them and move the next row up.

        Args:
            coefficients: (size, kept), one column per new row.
            matrix: V H V^T of the old rows.
            coupling: (size,), the overlaps of H v_r with the next row.

        Returns:
            V H V^T of the new rows.
        """
        del coupling
        size, kept = coefficients.shape
        newest = self._rows[size].clone()
        turn = coefficients.T.to(self._rows)
        for columns in self._column_blocks():
            self._rows[:kept, columns] = turn @ self._rows[:size, columns]
        self._rows[kept] = newest
        matrix = coefficients.T @ matrix @ coefficients
        return (matrix + matrix.T) / 2

    def _column_blocks(self) -> Iterator[slice]:
        width = _BLOCK_COLUMNS if self._rows.device.type == "cpu" else _BLOCK_COLUMNS_OF_DEVICE
        for begin in range(0, self._size, width):
            yield slice(begin, begin + width)


class RoundedRows(BasisRows):
    r"""Rows Q rounded to bfloat16: orthonormal up to a rounding that is measured.

    .. math:: V = F Q, \qquad F^{-1} F^{-T} = Q Q^T

    V is never formed, but every result refers to it: Ritz pairs are those of the span of the stored rows. A step reads
        Q
    six times, as much traffic as a float32 basis; only the memory is halved.

    Args:
        capacity: maximum number of rows.
        start: (p,), a unit vector in float32, the first row.
    """

    def __init__(self, capacity: int, start: Tensor) -> None:
        super().__init__(capacity, start, torch.bfloat16)
        self._gram = torch.zeros(capacity, capacity, dtype=torch.float64, device="cpu")
        self._rounding = torch.zeros(capacity, dtype=torch.float64, device="cpu")
        self._direction = torch.empty_like(start)
        self._measure(0)

    def direction(self, r: int) -> Tensor:
        """Row r in the operator's dtype."""
        return self._direction.copy_(self._rows[r])

    def rounding(self, r: int) -> float:
        """Norm of the rounding error of the stored row r."""
        return float(self._rounding[r])

    @property
    def symmetry_slack(self) -> float:
        """Twice the largest rounding of a row, from either side."""
        return 4.0 * 2.0**-8

    def step(self, product: Tensor, count: int) -> tuple[Tensor, float]:
        """As in the exact case; also measures the rounding of the new row."""
        coefficients, norm = super().step(product, count)
        if count < len(self._rows) and norm > 0.0:
            self._rounding[count] = torch.linalg.vector_norm(product.div_(norm).sub_(self._rows[count]))
            self._measure(count)
        return self._overlaps(coefficients), norm

    def _overlaps(self, coefficients: Tensor) -> Tensor:
        """Q w from the coefficients of two passes, which are (2 - G) Q w."""
        count = len(coefficients)
        gram = self._gram[:count, :count]
        overlaps: Tensor = torch.linalg.solve(
            2.0 * torch.eye(count, dtype=torch.float64, device="cpu") - gram, coefficients
        )
        return overlaps

    def _measure(self, r: int) -> None:
        """Compute row r of the Gram matrix."""
        vector = self.direction(r)
        self._gram[r, r] = torch.linalg.vector_norm(vector, dtype=torch.float64).square()
        if r > 0:  # no new row is written: the slice has no room for one
            coefficients = lanczos_step_(self._rows[:r], vector, count=r).cpu()[:-1]
            self._gram[r, :r] = self._gram[:r, r] = self._overlaps(coefficients)

    def _factor(self, size: int) -> Tensor:
        """F^-1, lower triangular."""
        factor: Tensor = torch.linalg.cholesky(self._gram[:size, :size])
        return factor

    def extended(self, matrix: Tensor, overlaps: Tensor) -> Tensor:
        """As in the exact case, from Q H Q^T."""
        factor = self._factor(len(overlaps))
        inner = factor[:-1, :-1]
        stored = super().extended(inner @ matrix @ inner.T, overlaps)
        return _congruent(factor, stored)

    def _turn(self, coefficients: Tensor) -> Tensor:
        """Coefficients of V as those of Q, transposed."""
        factor = self._factor(len(coefficients))
        turn: Tensor = torch.linalg.solve_triangular(factor.T, coefficients, upper=True).T.to(self._direction)
        return turn

    def combinations(self, coefficients: Tensor) -> Tensor:
        """Combinations of the rows of V as rows, (n, p), in the operator's precision."""
        turn = self._turn(coefficients)
        vectors = torch.empty(len(turn), self._size, dtype=self._dtype, device=self._rows.device)
        for columns in self._column_blocks():
            vectors[:, columns] = turn @ self._rows[: len(coefficients), columns].to(self._dtype)
        return vectors

    def rotate(self, coefficients: Tensor, matrix: Tensor, coupling: Tensor) -> Tensor:
        """As in the exact case. Rounding adds E to the new rows X, so the matrix is that of X + E.

        To first order H X^T = X^T T + v_next coupling^T, so E H X^T = E X^T T + E v_next coupling^T.
        """
        size, kept = coefficients.shape
        newest, lost = self._rows[size].clone(), self._rounding[size].clone()
        turn = self._turn(coefficients)
        added = torch.zeros(kept, kept, dtype=torch.float64, device=self._rows.device)  # E X^T
        squares = torch.zeros(kept, dtype=torch.float64, device=self._rows.device)
        for columns in self._column_blocks():
            exact = turn @ self._rows[:size, columns].to(self._dtype)
            self._rows[:kept, columns] = exact.to(self._rows.dtype)
            error = self._rows[:kept, columns].to(self._dtype) - exact
            added += error @ exact.T
            squares += error.square().sum(1)
        self._rounding[:kept] = squares.sqrt().cpu()
        for r in range(kept):
            self._measure(r)
        self._rows[kept] = newest
        self._measure(kept)
        self._rounding[kept] = lost
        matrix = coefficients.T @ matrix @ coefficients
        first_order = added.cpu() @ matrix + torch.outer(self._gram[:kept, kept], coupling @ coefficients)
        matrix = matrix + first_order + first_order.T
        return _congruent(self._factor(kept), (matrix + matrix.T) / 2)


def _congruent(factor: Tensor, matrix: Tensor) -> Tensor:
    """F matrix F^T for a lower triangular factor F^-1."""
    half = torch.linalg.solve_triangular(factor, matrix, upper=False)
    turned: Tensor = torch.linalg.solve_triangular(factor, half.T, upper=False)
    return turned


def orthonormalized(rows: Tensor) -> Tensor:
    """Orthonormal basis of the row space of (m, p) rows of full rank; the Gram matrix is in float64.

    Two rounds of Cholesky QR: they read the rows and need no (p, m) copy.
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
