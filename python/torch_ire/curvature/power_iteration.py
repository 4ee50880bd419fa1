"""Block power iteration with Rayleigh-Ritz and deflation: few vectors held, no Krylov basis."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torch_ire.curvature.basis_rows import orthonormalized
from torch_ire.curvature.eigenpairs import Eigenpairs
from torch_ire.curvature.error_bounds import allowed_errors, error_bounds
from torch_ire.curvature.operator import Operator, as_operator
from torch_ire.curvature.probes import ProbeSource
from torch_ire.curvature.progress import progress_bar

__all__ = ["power_iteration"]


def power_iteration(
    operator: Any,
    k: int = 1,
    *,
    which: str = "largest",
    tol: float = 1e-3,
    max_matvecs: int | None = None,
    warm_start: Eigenpairs | Tensor | None = None,
    seed: int = 0,
    size: int | None = None,
    progress: bool | None = None,
) -> Eigenpairs:
    r"""Eigenpairs by the power method, when memory for a Lanczos basis is short.

    A block X of the k pairs still sought and one more is multiplied, turned to its Ritz vectors and orthonormalized;
    converged leading pairs are taken out of the block and projected out of what follows (deflation).

    .. math::
        X \leftarrow \mathrm{orth}\big((I - Q Q^T)(H + \sigma I) X\big)

    The shift :math:`\sigma`, as large as the most negative Ritz value met, makes the largest eigenvalue in the
    algebraic sense the dominant one too; it costs no product.

    Args:
        operator: what `as_operator` takes.
        k: number of pairs, 1 to p.
        which: "largest" or "smallest" in the algebraic sense, or "magnitude".
        tol: as for `lanczos`, with the gap to the block's own next Ritz value.
        max_matvecs: most products; default 500 k + 500.
        warm_start: an earlier result, or a basis as columns (p, m).
        seed: of the start block.
        size: p, where `operator` is a plain callable.
        progress: None shows a bar on a terminal; False never.

    Returns:
        `Eigenpairs`; `verified` is true, since every block starts from random vectors of its own.

    Raises:
        ValueError: on k, which, tol or warm_start out of range.
        FloatingPointError: where the operator returns nan or inf.

    Cost: k + 1 products an iteration, fewer as pairs are found; memory 2 (k + 1) p. `lanczos` takes far fewer products.
    Determinism: a seed gives the same result as far as the operator does.

    Example:
        >>> import torch
        >>> from torch_ire import curvature
        >>> top = curvature.power_iteration(torch.diag(torch.tensor([4.0, 1.0, -9.0])))
        >>> round(top.ritz_values.item(), 2)
        4.0

    References:
        Saad, Numerical Methods for Large Eigenvalue Problems (2011), chapter 5: subspace iteration with deflation.
    """
    H = as_operator(operator, size=size)
    if not 1 <= k <= H.size:
        raise ValueError(f"k: expected 1 to {H.size} (the operator's size), got {k}")
    if which not in ("largest", "smallest", "magnitude"):
        raise ValueError(f'which: expected "largest", "smallest" or "magnitude", got {which!r}')
    if not (math.isfinite(tol) and tol > 0):
        raise ValueError(f"tol: expected a positive number, got {tol}")
    limit = max_matvecs if max_matvecs is not None else 500 * k + 500
    block = _Block(H, k, which, tol, warm_start, ProbeSource(H, seed))
    before, interrupted = H.num_matvecs, False
    with H.linearized(), progress_bar(f"power iteration, {k} {which}", limit, progress) as advance:
        try:
            while block.wanted and H.num_matvecs - before + len(block.rows) <= limit:
                advance(len(block.rows), f"{k - block.wanted} of {k} pairs")
                block.iterate()
        except KeyboardInterrupt:
            if not len(block.values):
                raise
            interrupted = True
    return block.result(H.num_matvecs - before, interrupted)


class _Block:
    """The rows being iterated and those already found."""

    def __init__(
        self,
        operator: Operator,
        k: int,
        which: str,
        tol: float,
        warm_start: Eigenpairs | Tensor | None,
        probes: ProbeSource,
    ) -> None:
        self._H, self._which, self._tol = operator, which, tol
        self.wanted = k
        count = min(k + 1, operator.size)
        rows = torch.stack([probes.gaussian() for _ in range(count)])
        if warm_start is not None:
            basis = warm_start.basis if isinstance(warm_start, Eigenpairs) else warm_start.T
            if basis.dim() != 2 or basis.shape[1] != operator.size:
                raise ValueError(f"warm_start: expected ({operator.size}, m), got {tuple(basis.T.shape)}")
            rows[: min(len(basis), count)] = basis[:count].to(rows)
        self.rows = orthonormalized(rows)  # the block to multiply next
        self._ritz_rows = self.rows  # and that of the last Ritz values
        self._found = rows[:0]
        self._found_values: list[float] = []
        self._found_residuals: list[float] = []
        self._found_bounds: list[float] = []
        self.values: list[float] = []
        self._residuals: list[float] = []
        self._bounds: list[float] = []
        self._shift = 0.0
        self._scale = 0.0  # a lower bound of the norm of H
        self._rounding = 0.0  # of a product, where it was measured

    def iterate(self) -> None:
        """One multiplication of the block, its Ritz pairs, and the next block."""
        products = torch.stack([self._H.matvec(row) for row in self.rows])
        if not bool(torch.isfinite(products).all()):
            raise FloatingPointError(f"matvec {self._H.num_matvecs}: the operator returned nan or inf")
        self._scale = max(self._scale, float(torch.linalg.vector_norm(products, dim=1).max()))
        small, rounding = self._H.compressed(self.rows, products, self._scale)
        self._rounding = max(self._rounding, rounding)
        values, turn = torch.linalg.eigh(small)
        order = self._order(values)
        values, turn = values[order], turn[:, order].to(self.rows)
        self._ritz_rows, products = turn.T @ self.rows, turn.T @ products
        residual_rows = self._deflated(products - values.to(products)[:, None] * self._ritz_rows)
        self.values = values.tolist()
        self._residuals = torch.linalg.vector_norm(residual_rows, dim=1).tolist()
        known = torch.tensor(self._residuals, dtype=torch.float64)
        wanted = self.wanted
        bounds = error_bounds(values, known, values[wanted:], known[wanted:]) if len(values) > wanted else known
        self._bounds = (bounds + self._rounding).tolist()
        sign = -1.0 if self._which == "smallest" else 1.0
        if self._which != "magnitude":
            self._shift = max(self._shift, -min(sign * v for v in self.values))
        following = sign * products + self._shift * self._ritz_rows
        done = self._leading_converged()
        self._take(done)
        if self.wanted:
            # Twice: the first round leaves roundings of the found pairs, enlarged where the block was nearly dependent.
            for _ in range(2):
                following = orthonormalized(self._deflated(following[-len(self.values) :]))
            self.rows = following

    def _order(self, values: Tensor) -> Tensor:
        key = {"largest": values, "smallest": -values, "magnitude": values.abs()}[self._which]
        return key.argsort(descending=True)

    def _leading_converged(self) -> int:
        scale = max(abs(v) for v in [*self.values, *self._found_values])
        values, bounds = torch.tensor([self.values[: self.wanted], self._bounds[: self.wanted]], dtype=torch.float64)
        good = bounds <= allowed_errors(values, self._tol, scale, self._H.dtype)
        return int(good.long().cumprod(0).sum())

    def _take(self, done: int) -> None:
        self._found = torch.cat([self._found, self._ritz_rows[:done]])
        self._found_values += self.values[:done]
        self._found_residuals += self._residuals[:done]
        self._found_bounds += self._bounds[:done]
        self.wanted -= done
        self.values, self._residuals = self.values[done:], self._residuals[done:]
        self._bounds, self._ritz_rows = self._bounds[done:], self._ritz_rows[done:]

    def _deflated(self, rows: Tensor) -> Tensor:
        return rows - (rows @ self._found.T) @ self._found if len(self._found) else rows

    def result(self, num_matvecs: int, interrupted: bool) -> Eigenpairs:
        """Found pairs, and the best of the block for what is missing."""
        missing = min(self.wanted, len(self.values))
        values = self._found_values + self.values[:missing]
        residuals = self._found_residuals + self._residuals[:missing]
        bounds = self._found_bounds + self._bounds[:missing]
        basis = torch.cat([self._found, self._ritz_rows[:missing]]) if missing else self._found
        order = sorted(range(len(values)), key=lambda i: -values[i])
        unwanted = self.values[missing] if len(self.values) > missing else math.nan
        return Eigenpairs(
            ritz_values=torch.tensor([values[i] for i in order], dtype=torch.float64),
            basis=basis[order],
            residual_norms=torch.tensor([residuals[i] for i in order], dtype=torch.float64),
            error_bounds=torch.tensor([bounds[i] for i in order], dtype=torch.float64),
            converged=self.wanted == 0,
            num_matvecs=num_matvecs,
            unwanted_value=unwanted,
            verified=self.wanted == 0,
            interrupted=interrupted,
        )
