"""The exact projector onto flat directions: everything but the leading eigenvectors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from torch_ire import ops, reference
from torch_ire.curvature.basis_rows import orthonormalized
from torch_ire.curvature.closure_operator import ClosureOperator
from torch_ire.curvature.eigenpairs import Eigenpairs
from torch_ire.curvature.lanczos import lanczos
from torch_ire.curvature.operator import Operator, as_operator
from torch_ire.curvature.rayleigh_ritz import rayleigh_ritz

__all__ = ["FlatProjector"]

Vectors = TypeVar("Vectors", Tensor, list[Tensor])


class _Held(NamedTuple):
    """A basis and what follows from it, replaced in one assignment: no exception leaves parts of two."""

    basis: Tensor
    gram_inverse: Tensor | None
    pieces: dict[int, Tensor]
    eigenpairs: Eigenpairs | None
    refreshes: int


class FlatProjector:
    r"""The projector :math:`P_{m+1:p} = I - Q^T Q`, Q the m leading eigenvectors of a Hessian as rows.

    As `curvature=` of an optimizer it turns IRE exact: :math:`\theta \leftarrow \theta + \kappa P (\theta -
    \theta_\text{previous})`. The optimizer calls `refresh()` where it would refresh a mask and `amplify_` after each
    step of the base optimizer.

    Args:
        basis: (m, p), orthonormal rows, float32, float64 or bfloat16. With bfloat16 rows, which rounding makes slightly
            oblique, the projector is onto the complement of their span all the same (through their Gram matrix).
        params: the parameters of the flat vector's coordinates, in order; needed by `amplify_`.
        operator: where `refresh()` takes products.
        tol: relative accuracy of the eigenvalues where Lanczos runs.
        refresh_tol: `refresh()` keeps to m products while the error bound of every eigenvalue of the old basis is
            within this, relative; else it runs Lanczos from that basis.
        full_interval: every so many refreshes run Lanczos, which sees directions that rose outside the basis; 0: never.

    Raises:
        ValueError: on shapes that do not fit each other.

    Example:
        >>> import torch
        >>> from torch_ire.curvature import FlatProjector
        >>> FlatProjector.from_operator(torch.diag(torch.tensor([9.0, 1.0, 0.5])), m=1)(torch.ones(3)).round(decimals=4)
        tensor([0., 1., 1.])

    References:
        Wang et al., arXiv 2405.20763, Theorems 5.5 and 5.6.

    Cost: two reads of the basis an application; `refresh` takes m products.
    """

    def __init__(
        self,
        basis: Tensor,
        *,
        params: Sequence[Tensor] | None = None,
        operator: Operator | None = None,
        tol: float = 1e-3,
        refresh_tol: float = 1e-2,
        full_interval: int = 10,
    ) -> None:
        if basis.dim() != 2:
            raise ValueError(f"basis: expected shape (m, p), got {tuple(basis.shape)}")
        self._params = None if params is None else list(params)
        size = basis.shape[1]
        if self._params is not None and sum(p.numel() for p in self._params) != size:
            raise ValueError(f"params: expected {size} coordinates, got {sum(p.numel() for p in self._params)}")
        if operator is not None and operator.size != size:
            raise ValueError(f"operator: expected size {size}, got {operator.size}")
        self._operator = operator
        self._tol, self._refresh_tol, self._full_interval = tol, refresh_tol, full_interval
        self._storage = basis.dtype
        self._held = self._prepared(basis, None, 0)

    @classmethod
    def from_operator(
        cls,
        operator: Any,
        m: int = 10,
        *,
        params: Sequence[Tensor] | None = None,
        tol: float = 1e-3,
        refresh_tol: float = 1e-2,
        full_interval: int = 10,
        storage: torch.dtype | None = None,
        seed: int = 0,
        size: int | None = None,
        progress: bool | None = None,
    ) -> FlatProjector:
        """The projector that removes the m leading eigenvectors of an operator.

        Args:
            operator: what `as_operator` takes; with a `HessianOperator` or `GaussNewtonOperator` its parameters are
                those that `amplify_` knows.
            m: number of sharp directions, 1 to p - 1.
            params: the parameters, for other operators.
            tol: relative accuracy of the eigenvalues.
            refresh_tol: see the class.
            full_interval: see the class.
            storage: dtype of the stored basis; bfloat16 halves its memory and the time of a step. Default: the
                operator's.
            seed: of the Lanczos start vector.
            size: p, where `operator` is a plain callable.
            progress: None shows a bar on a terminal; False never.

        Raises:
            ValueError: where m is out of range, or what `lanczos` raises.

        Warns:
            UserWarning: where `lanczos` was interrupted or ran out of products; the projector removes what it has.

        Cost: that of `lanczos`; m p stored.
        """
        H = as_operator(operator, size=size)
        if not 1 <= m < H.size:
            raise ValueError(f"m: expected 1 to {H.size - 1} (below the operator's size {H.size}), got {m}")
        pairs = lanczos(H, m, tol=tol, seed=seed, progress=progress)
        if not pairs.converged:
            warnings.warn(
                f"FlatProjector: {len(pairs.basis)} of {m} directions, to a relative error of up to "
                f"{float((pairs.error_bounds / pairs.ritz_values.abs()).max()):.1e} instead of {tol:.1e} "
                f"({'interrupted' if pairs.interrupted else 'out of products'})",
                stacklevel=2,
            )
        if params is None and isinstance(H, ClosureOperator):
            params = H.params
        projector = cls(
            pairs.basis.to(storage or H.dtype), params=params, operator=H, tol=tol, refresh_tol=refresh_tol,
            full_interval=full_interval,
        )  # fmt: skip
        projector._held = projector._held._replace(eigenpairs=pairs)
        return projector

    @property
    def eigenpairs(self) -> Eigenpairs | None:
        """What the last run or refresh found; None for a projector made from a bare basis."""
        return self._held.eigenpairs

    @property
    def basis(self) -> Tensor:
        """(m, p), the sharp directions as rows."""
        return self._held.basis

    @property
    def m(self) -> int:
        """Number of sharp directions."""
        return len(self.basis)

    @property
    def refreshable(self) -> bool:
        """Whether there is an operator to take products from."""
        return self._operator is not None

    def _prepared(self, basis: Tensor, eigenpairs: Eigenpairs | None, refreshes: int) -> _Held:
        """A basis in storage with what follows from it."""
        basis = basis.detach().to(self._storage).contiguous()
        gram_inverse: Tensor | None = None
        if self._storage in (torch.bfloat16, torch.float16) and len(basis):
            wide = basis.to(torch.float32)
            gram_inverse = torch.linalg.inv((wide @ wide.T).to(torch.float64)).to(torch.float32)
        pieces: dict[int, Tensor] = {}
        if self._params is not None:
            parts = torch.split(basis, [p.numel() for p in self._params], dim=1)
            pieces = {id(p): piece for p, piece in zip(self._params, parts, strict=True)}
        return _Held(basis, gram_inverse, pieces, eigenpairs, refreshes)

    def __call__(self, vectors: Vectors) -> Vectors:
        """P v.

        Args:
            vectors: (p,), or one tensor a parameter in the parameters' shapes.

        Returns:
            the same form and dtype.

        Cost: two reads of the basis.
        """
        if isinstance(vectors, Tensor):
            if vectors.shape != (self.basis.shape[1],):
                raise ValueError(f"expected a vector of shape ({self.basis.shape[1]},), got {tuple(vectors.shape)}")
            functions = _functions_for([vectors], self.basis)
            return cast("Tensor", functions.project_out([vectors], [self.basis], self._held.gram_inverse)[0])
        if sum(v.numel() for v in vectors) != self.basis.shape[1]:
            raise ValueError(f"expected tensors of {self.basis.shape[1]} coordinates together")
        pieces = torch.split(self.basis, [v.numel() for v in vectors], dim=1)
        functions = _functions_for(vectors, self.basis)
        return cast("list[Tensor]", functions.project_out(vectors, pieces, self._held.gram_inverse))

    def amplify_(
        self, params: Sequence[Tensor], previous: Sequence[Tensor], kappa: float, *, decay: float = 0.0
    ) -> None:
        r"""IRE after a step that was just taken, on all parameters at once.

        .. math:: \theta \leftarrow \theta + \kappa P \, (\theta - (1 - \delta) \theta_\text{previous})

        Args:
            params: the parameters after the step, updated in place. Those that the projector does not know stay as they
                are, for nothing is known of their curvature; those it knows and that are missing count as not moved.
            previous: their values before the step.
            kappa: enhancement of the flat directions.
            decay: the share by which a decoupled weight decay shrank them and which is not to be amplified.

        Raises:
            ValueError: without `params` given to the projector, or on lists of different length.

        Cost: two reads of the basis, 12 bytes a float32 coordinate. Nothing is flattened.
        """
        if self._params is None:
            raise ValueError("amplify_: this projector knows no parameters; pass params= when it is made")
        if len(params) != len(previous):
            raise ValueError(f"amplify_: {len(params)} params, but {len(previous)} previous values")
        known = [i for i, p in enumerate(params) if id(p) in self._held.pieces]
        if not known or kappa == 0.0:
            return
        moved, start = [params[i] for i in known], [previous[i] for i in known]
        with torch.no_grad():
            _functions_for([*moved, *start], self.basis).displacement_projected_(
                moved,
                start,
                [self._held.pieces[id(param)] for param in moved],
                kappa=kappa,
                decay=decay,
                gram_inverse=self._held.gram_inverse,
            )

    def refresh(self, *, full: bool = False, progress: bool | None = False) -> Eigenpairs:
        """Follow the eigenvectors to the operator's present state. Whatever is raised, the projector stays as it was.

        The m products with the old basis give its Ritz values, their residuals and, as one step of subspace iteration
        from products already paid for, a better basis. Where the residuals are too large, or `full_interval` is due,
        Lanczos runs from that basis.

        Args:
            full: run Lanczos whatever the residuals.
            progress: None shows a bar on a terminal; False never.

        Returns:
            the eigenpairs; after the short way `basis` is the improved one and values and residuals are those of the
            span it came from, so that their error bounds hold a fortiori.

        Raises:
            RuntimeError: without an operator (made from a bare basis, or unpickled).
            ValueError: on an operator that is not symmetric, with the measured asymmetry and rounding.
            FloatingPointError: on products with nan or inf, or whose rounding is as large as the eigenvalues.
            KeyboardInterrupt: on Ctrl-C.

        Cost: m products and m vectors of memory, or those of a warm-started `lanczos` beside it.
        """
        held = self._followed(full=full, progress=progress)
        self._held = held
        assert held.eigenpairs is not None
        return held.eigenpairs

    def _followed(self, *, full: bool = False, progress: bool | None = False) -> _Held:
        """What `refresh` will hold; changes nothing."""
        if self._operator is None:
            raise RuntimeError("refresh: this projector has no operator; make it with FlatProjector.from_operator")
        refreshes = self._held.refreshes + 1
        due = full or (self._full_interval > 0 and refreshes % self._full_interval == 0)
        wide = self.basis.to(self._operator.dtype)
        rows = orthonormalized(wide) if self._held.gram_inverse is not None else wide
        if due:
            pairs = lanczos(self._operator, self.m, tol=self._tol, warm_start=rows.T, verify=False, progress=progress)
        else:
            unwanted = math.nan if self.eigenpairs is None else self.eigenpairs.unwanted_value
            pairs = rayleigh_ritz(self._operator, rows, tol=self._refresh_tol, unwanted_value=unwanted)
            if not pairs.converged:
                pairs = lanczos(
                    self._operator, self.m, tol=self._tol, warm_start=pairs, verify=False, progress=progress
                )
        if pairs.interrupted:
            raise KeyboardInterrupt  # Ctrl-C is meant for the training run around this
        sizes = pairs.ritz_values.abs()
        if len(sizes) < self.m or bool((2 * pairs.error_bounds > sizes).all()):
            raise FloatingPointError(
                f"refresh: {len(sizes)} of {self.m} directions, eigenvalues up to {float(sizes.max()):.3g} with errors "
                f"from {float(pairs.error_bounds.min()):.3g}: the present eigenvectors are not known"
            )
        return self._prepared(pairs.basis, pairs, refreshes)

    def __getstate__(self) -> dict[str, Any]:
        # Closures do not pickle: a copy projects but does not refresh. Pieces belong to parameters by identity, which a
        # copy does not share.
        return {**self.__dict__, "_operator": None, "_held": self._held._replace(pieces={})}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._held = self._prepared(self.basis, self.eigenpairs, self._held.refreshes)

    def __repr__(self) -> str:
        return f"FlatProjector(m={self.m}, p={self.basis.shape[1]}, storage={self._storage})"


def _functions_for(tensors: Sequence[Tensor], basis: Tensor) -> ModuleType:
    """The operators where all tensors are of one kind that they take, plain torch for mixed or strided ones."""
    first = tensors[0]
    wide = torch.float64 if first.dtype == torch.float64 else torch.float32
    fits = basis.dtype == wide or (basis.dtype == torch.bfloat16 and wide == torch.float32)
    alike = all(
        t.dtype == first.dtype and t.device == first.device == basis.device and t.is_contiguous() for t in tensors
    )
    return ops if fits and alike else reference
