"""A projector for each parameter: the diagonal blocks of the Hessian only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_ire.curvature.flat_projector import FlatProjector
from torch_ire.curvature.hessian import HessianOperator

__all__ = ["BlockFlatProjector"]


class BlockFlatProjector:
    """One `FlatProjector` a parameter, for models whose full basis would not fit or whose layers are to be even.

    The Hessian is replaced by its diagonal blocks, and each parameter loses its own m leading directions: memory is m
    times the model at most, but never more than m rows as long as one parameter at a time. Used as `curvature=` like
    `FlatProjector`.

    Args:
        projectors: one a parameter, each made with that parameter.
        params: those parameters.

    Raises:
        ValueError: on lists of different length.

    Cost: two reads of all bases an application; `refresh` takes m products a parameter.

    Example:
        >>> import torch
        >>> from torch_ire import curvature
        >>> weight = torch.tensor([1.0, 0.1], requires_grad=True)
        >>> H = curvature.HessianOperator(lambda: (weight**4).sum(), [weight])
        >>> curvature.BlockFlatProjector.from_operator(H, m=1)([torch.ones(2)])[0].round(decimals=4)
        tensor([0., 1.])

    References:
        Wang et al., arXiv 2405.20763, Theorems 5.5 and 5.6, block by block.
    """

    def __init__(self, projectors: Sequence[FlatProjector], params: Sequence[Tensor]) -> None:
        if len(projectors) != len(params):
            raise ValueError(f"projectors: expected one a parameter ({len(params)}), got {len(projectors)}")
        self.projectors = list(projectors)
        self._params = list(params)

    @classmethod
    def from_operator(
        cls,
        operator: HessianOperator,
        m: int = 1,
        *,
        tol: float = 1e-2,
        storage: torch.dtype | None = None,
        seed: int = 0,
        progress: bool | None = None,
    ) -> BlockFlatProjector:
        """The projector that removes the m leading eigenvectors of every parameter's own block.

        Args:
            operator: the Hessian of the whole.
            m: sharp directions a parameter, at least 1; where a parameter has no more than m coordinates, all but one,
                and the only one of a scalar.
            tol: relative accuracy of the eigenvalues.
            storage: dtype of the stored bases.
            seed: of the start vectors.
            progress: None shows a bar on a terminal; False never.

        Cost: that of one `lanczos` run a parameter.
        """
        if m < 1:
            raise ValueError(f"m: expected at least 1, got {m}")
        projectors = []
        for block in operator.blocks().values():
            if block.size == 1:
                projectors.append(
                    FlatProjector(torch.ones(1, 1, dtype=block.dtype, device=block.device), params=block.params)
                )
                continue
            projectors.append(
                FlatProjector.from_operator(
                    block, min(m, block.size - 1), tol=tol, storage=storage, seed=seed, progress=progress
                )
            )
        return cls(projectors, operator.params)

    def __call__(self, vectors: list[Tensor]) -> list[Tensor]:
        """P v for one tensor a parameter."""
        return [projector([v])[0] for projector, v in zip(self.projectors, vectors, strict=True)]

    def amplify_(
        self, params: Sequence[Tensor], previous: Sequence[Tensor], kappa: float, *, decay: float = 0.0
    ) -> None:
        """See `FlatProjector.amplify_`."""
        for projector in self.projectors:
            projector.amplify_(params, previous, kappa, decay=decay)

    def refresh(self) -> None:
        """See `FlatProjector.refresh`: either every block follows or, on an exception, none."""
        held = [projector._followed() if projector.refreshable else projector._held for projector in self.projectors]
        for projector, followed in zip(self.projectors, held, strict=True):
            projector._held = followed
