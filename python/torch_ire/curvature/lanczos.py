"""Thick-restart Lanczos: the eigenpairs at the ends of the spectrum."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_ire.curvature.eigenpairs import Eigenpairs, Which
from torch_ire.curvature.error_bounds import allowed_errors, error_bounds
from torch_ire.curvature.krylov import KrylovSpace
from torch_ire.curvature.operator import Operator, as_operator
from torch_ire.curvature.probes import ProbeSource
from torch_ire.curvature.progress import progress_bar

__all__ = ["lanczos"]

#: Up to this size the search for repeated eigenvalues is on by default: its products are cheap there.
_VERIFIED_SIZE = 1000
#: Weight of the i-th vector of an earlier basis in the start vector is i to this power. Lanczos resolves the outer
#: eigenvalues first, so the inner ones get the larger share; anything from 1 to 3 takes the same number of products.
_WARM_EXPONENT = 2.0
#: Share of a random vector in a warm start, so that a direction that the old basis lacks is not lost: at 0.001 a new
#: leading eigenvalue went unseen at tol = 1e-3, from 0.02 on it did not, and up to 0.05 it costs no product.
_WARM_NOISE = 0.03
#: The second search ends when its outermost Ritz value is known this well, relative to the spread of its Ritz values:
#: a repeated eigenvalue would stand out by then, because it lies beyond all that the search converges to.
_SECOND_SEARCH_ACCURACY = 0.02


def lanczos(
    operator: Any,
    k: int = 10,
    *,
    which: Which = "largest",
    tol: float = 1e-3,
    max_matvecs: int | None = None,
    max_basis: int | None = None,
    warm_start: Eigenpairs | Tensor | None = None,
    verify: bool | None = None,
    storage: torch.dtype | None = None,
    seed: int = 0,
    size: int | None = None,
    progress: bool | None = None,
) -> Eigenpairs:
    r"""Eigenpairs at an end, or both ends, of the spectrum of a symmetric operator.

    Each step extends an orthonormal basis V by the part of H v that is orthogonal to it (two Gram-Schmidt passes over
    the whole basis, so no ghost copies) and takes eigenpairs of :math:`V^T H V`. A full basis is restarted with its
    best Ritz vectors. Where H v lies in the span (identity, low rank), the run goes on in a random direction.

    Args:
        operator: what `as_operator` takes.
        k: number of pairs, 1 to p.
        which: "largest" and "smallest" in the algebraic sense; "both" gives ceil(k/2) largest and floor(k/2) smallest.
        tol: relative accuracy of the eigenvalues: the run ends when min(r, r^2 / gap) <= tol |theta| for every pair, r
            the residual norm and gap the distance to the nearest unwanted Ritz value (an eigenvalue of magnitude below
            eps^(2/3) ||H|| counts as one of that magnitude).
        max_matvecs: most products; default 20 k + 100. What has not converged by then is returned with
            `converged=False`.
        max_basis: vectors held at a time, at least k + 2; default max(2 k + 16, 40). Memory is (max_basis + k) p,
            the k in the operator's dtype.
        warm_start: the result of an earlier run or a basis as columns (p, m), ordered by decreasing eigenvalue.
        verify: search again, orthogonally to what was found, for repeated eigenvalues, of which one start vector shows
            one copy. Costs about another run. None: where p <= 1000.
        storage: dtype of the basis. bfloat16, along a float32 operator, halves its memory in about the same time;
            rounding then moves each row by u = 0.0016 of its length, which limits what can be reached: residual norms
            to u times the couplings of the steps (0.0005 ||H|| is typical) and eigenvalues to the square of that over
            the gap. Both are measured and in `residual_norms` and `error_bounds`, so a tolerance that is out of reach
            ends with `converged=False`.
        seed: of the start vector and of random directions.
        size: p, where `operator` is a plain callable.
        progress: None shows a bar on a terminal; False never.

    Returns:
        `Eigenpairs`. Ctrl-C returns what there is, with `interrupted=True`.

    Raises:
        ValueError: on k, tol, max_basis or warm_start out of range, or an operator that is found not symmetric.
        FloatingPointError: where the operator returns nan or inf.

    Cost: one product a step; outside of it two passes over the basis. One synchronization with the device a step.
    Determinism: a seed gives the same result as far as the operator does.

    Example:
        >>> import torch
        >>> from torch_ire import curvature
        >>> top = curvature.lanczos(torch.diag(torch.arange(50.0)), k=2, tol=1e-6)
        >>> [round(x, 2) for x in top.ritz_values.tolist()]
        [49.0, 48.0]

    References:
        Wu and Simon, Thick-restart Lanczos method for large symmetric eigenvalue problems, SIAM J. Matrix Anal. Appl.
        22 (2000). Parlett, The Symmetric Eigenvalue Problem (1998), chapters 11 and 13.
    """
    H = as_operator(operator, size=size)
    _check_arguments(H, k, which, tol, max_basis, storage)
    probes = ProbeSource(H, seed)
    capacity = min(H.size, max_basis if max_basis is not None else max(2 * k + 16, 40))
    limit = max_matvecs if max_matvecs is not None else 20 * k + 100
    search = _Search(k, which, tol, verify if verify is not None else H.size <= _VERIFIED_SIZE)
    start = probes.gaussian() if warm_start is None else _warm_vector(H, warm_start, which, probes)
    before, interrupted = H.num_matvecs, False
    with H.linearized(), progress_bar(f"lanczos, {k} {which}", limit, progress) as advance:
        space = KrylovSpace(H, capacity, start, probes, storage)
        try:
            while not search.finished(space) and H.num_matvecs - before < limit:
                if space.full:
                    search.make_room(space)
                space.expand()
                advance(1, search.note)
        except KeyboardInterrupt:
            if space.size == 0:
                raise
            interrupted = True
    return search.result(space, H.num_matvecs - before, interrupted)


class _Search:
    """Which Ritz pairs are wanted, whether they are good, and what to keep of a full basis."""

    def __init__(self, k: int, which: Which, tol: float, verify: bool) -> None:
        self._k, self._which, self._tol, self._verify = k, which, tol, verify
        self._locked = 0  # rows of the basis that hold found pairs while the second search runs
        self._found: _Pairs | None = None  # those pairs
        self.verified = False
        self.note = ""  # for the progress bar

    def wanted(self, available: int, k: int) -> list[int]:
        """Positions of the wanted among `available` values in decreasing order."""
        k = min(k, available)
        top = {"largest": k, "smallest": 0, "both": (k + 1) // 2}[self._which]
        return [*range(top), *range(available - (k - top), available)]

    def pairs(self, space: KrylovSpace) -> _Pairs:
        """The wanted Ritz pairs of the whole basis."""
        values, coefficients = _decreasing(space.matrix)
        index = self.wanted(space.size, self._k)
        outside = torch.ones(space.size, dtype=torch.bool)
        outside[index] = False
        residuals, unwanted = space.residual_norms(coefficients), values[outside]
        bounds = error_bounds(values[index], residuals[index], unwanted, residuals[outside])
        distance = (values[index][:, None] - unwanted[None, :]).abs()
        nearest = float(unwanted[distance.amin(0).argmin()]) if len(unwanted) else math.nan
        return _Pairs(values[index], coefficients[:, index], residuals[index], bounds, nearest)

    def allowed(self, space: KrylovSpace, values: Tensor) -> Tensor:
        """The error that the tolerance leaves each value."""
        return allowed_errors(values, self._tol, space.scale, space.operator.dtype)

    def _note_worst(self, space: KrylovSpace, pairs: _Pairs) -> None:
        if len(pairs.values):
            allowed = self.allowed(space, pairs.values).clamp(min=torch.finfo(torch.float64).tiny)
            self.note = f"relative error at most {float((pairs.bounds / allowed).max()) * self._tol:.1e}"

    def good(self, space: KrylovSpace, pairs: _Pairs) -> bool:
        """Whether every wanted pair is there and within tolerance."""
        enough = space.size >= min(self._k + 1, space.operator.size)
        return enough and bool((pairs.bounds <= self.allowed(space, pairs.values)).all())

    def finished(self, space: KrylovSpace) -> bool:
        """Whether nothing is left to do; turns to the second search where that is wanted."""
        if space.exhausted:
            self.verified = True
            return True
        if self._locked:
            return self._second_search_done(space)
        pairs = self.pairs(space)
        if not self.good(space, pairs):
            self._note_worst(space, pairs)
            return False
        if not self._verify:
            return True
        space.lock(pairs.coefficients)
        self._locked, self._found = space.size, pairs
        return False

    def _second_search_done(self, space: KrylovSpace) -> bool:
        """Compare the deflated operator's outermost Ritz values with the found ones."""
        if space.size == self._locked:
            return False
        found = space.matrix.diagonal()[: self._locked].sort(descending=True).values
        chain = space.matrix[self._locked :, self._locked :]
        values, coefficients = _decreasing(chain)
        residuals = (space.coupling[self._locked :] @ coefficients).abs()
        top = len(self.wanted(len(found), self._k)) if self._which == "largest" else (self._k + 1) // 2
        known = _SECOND_SEARCH_ACCURACY * float(values[0] - values[-1])
        outside, inside = False, True
        for sign, position, count in ((1.0, 0, top), (-1.0, -1, self._locked - top)):
            if (sign > 0 and self._which == "smallest") or (sign < 0 and self._which == "largest") or count == 0:
                continue
            edge = found[top - 1] if sign > 0 else found[top if self._which == "both" else 0]
            slack = float(self.allowed(space, edge))
            outside |= bool(sign * (values[position] - edge) - residuals[position] > slack)
            inside &= bool(
                sign * (values[position] - edge) + residuals[position] <= slack
                and residuals[position] <= max(known, slack)
            )
        if outside:  # a repeated eigenvalue: it joins the wanted ones, which then are looked through again
            self._locked, self._found = 0, None
        self.verified = inside
        if inside and self._found is not None:  # the bounds claim no more than this search excludes
            excluded = error_bounds(self._found.values, self._found.residuals, values, residuals)
            excluded = excluded.minimum(self.allowed(space, self._found.values))
            self._found = self._found._replace(bounds=self._found.bounds.maximum(excluded))
        return inside

    def make_room(self, space: KrylovSpace) -> None:
        """Restart a full basis with the best half of what is not wanted yet."""
        size, locked = space.size, self._locked
        held = locked if locked else min(self._k, size - 2)
        kept = max(1, (size - held) // 2) + (0 if locked else held)
        _, inner = _decreasing(space.matrix[locked:, locked:])
        inner = inner[:, self.wanted(size - locked, min(kept, size - locked - 1))]
        coefficients = torch.zeros(size, locked + inner.shape[1], dtype=torch.float64)
        coefficients[:locked, :locked] = torch.eye(locked, dtype=torch.float64)
        coefficients[locked:, locked:] = inner
        space.restart(coefficients)

    def result(self, space: KrylovSpace, num_matvecs: int, interrupted: bool) -> Eigenpairs:
        """The wanted pairs as tensors."""
        if self._found is not None and not space.exhausted:  # the locked rows are those pairs still
            pairs, converged = self._found, True
            coefficients = torch.eye(space.size, self._locked, dtype=torch.float64)
        else:
            pairs = self.pairs(space)
            coefficients, converged = pairs.coefficients, self.good(space, pairs)
        bounds = pairs.bounds + space.rounding
        if space.rounding > 0:
            converged = converged and bool((bounds <= self.allowed(space, pairs.values)).all())
        return Eigenpairs(
            ritz_values=pairs.values,
            basis=space.vectors(coefficients),
            residual_norms=pairs.residuals,
            error_bounds=bounds,
            converged=converged,
            num_matvecs=num_matvecs,
            unwanted_value=pairs.unwanted,
            verified=self.verified,
            interrupted=interrupted,
        )


class _Pairs(NamedTuple):
    """Ritz values, their coefficients in the basis, residual norms, error bounds, and the nearest unwanted value."""

    values: Tensor
    coefficients: Tensor
    residuals: Tensor
    bounds: Tensor
    unwanted: float


def _decreasing(matrix: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(matrix)
    return values.flip(0), vectors.flip(1)


def _check_arguments(
    H: Operator, k: int, which: str, tol: float, max_basis: int | None, storage: torch.dtype | None
) -> None:
    if not 1 <= k <= H.size:
        raise ValueError(f"k: expected 1 to {H.size} (the operator's size), got {k}")
    if which not in ("largest", "smallest", "both"):
        raise ValueError(f'which: expected "largest", "smallest" or "both", got {which!r}')
    if not (math.isfinite(tol) and tol > 0):
        raise ValueError(f"tol: expected a positive number, got {tol}")
    if max_basis is not None and max_basis < min(k + 2, H.size):
        raise ValueError(f"max_basis: expected at least k + 2 = {k + 2}, got {max_basis}")
    allowed = {H.dtype, torch.bfloat16} if H.dtype == torch.float32 else {H.dtype}
    if storage is not None and storage not in allowed:
        raise ValueError(
            f"storage: expected {' or '.join(map(str, allowed))} along an operator of {H.dtype}, got {storage}"
        )


def _warm_vector(H: Operator, warm_start: Eigenpairs | Tensor, which: Which, probes: ProbeSource) -> Tensor:
    basis = warm_start.basis if isinstance(warm_start, Eigenpairs) else warm_start.T
    if basis.dim() != 2 or basis.shape[1] != H.size or len(basis) == 0:
        raise ValueError(f"warm_start: expected a basis of shape ({H.size}, m), got {tuple(basis.T.shape)}")
    order = torch.arange(1, len(basis) + 1, dtype=torch.float64)
    rank = {"largest": order, "smallest": order.flip(0), "both": torch.minimum(order, order.flip(0))}[which]
    weights = rank**_WARM_EXPONENT
    weights = (weights / weights.norm()).to(dtype=H.dtype, device=H.device)
    start: Tensor = weights @ basis.to(dtype=H.dtype, device=H.device)
    noise = probes.gaussian()
    start = start / start.norm() + noise * (_WARM_NOISE / noise.norm())
    if not bool(torch.isfinite(start).all()):
        raise ValueError("warm_start: the basis holds nan or inf, or only zeros")
    return start
