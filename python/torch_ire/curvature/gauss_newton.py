"""Generalized Gauss-Newton matrix of a model's outputs and a loss of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_ire.curvature.closure_operator import ClosureOperator

__all__ = ["GaussNewtonOperator"]


@dataclass(frozen=True)
class _Linearization:
    outputs: Tensor
    output_gradient: Tensor
    cotangent: Tensor
    pulled_back: tuple[Tensor, ...]


class GaussNewtonOperator(ClosureOperator):
    r"""The Gauss-Newton matrix :math:`J^T (\nabla^2_z L) J`, J the Jacobian of the outputs z.

    It is positive semi-definite for a convex loss, and for cross-entropy the Fisher matrix of the model's own softmax.

    Args:
        closure: `closure() -> (outputs, loss)`, or `closure(batch) -> (outputs, mean loss)` with `data`; the loss must
            be computed from that very `outputs` tensor.
        params, data, batch_size, check_deterministic: as for `HessianOperator`.

    Raises:
        ValueError: where the closure returns something else, or the loss does not depend on the outputs.
    Cost: about two gradients a product; memory of two graphs inside a solver.

    Example:
        >>> import torch
        >>> from torch_ire.curvature import GaussNewtonOperator
        >>> theta = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> def closure():
        ...     outputs = theta**2
        ...     return outputs, 0.5 * (outputs**2).sum()
        >>> GaussNewtonOperator(closure, [theta]).matvec(torch.ones(2))
        tensor([ 4., 16.])

    References:
        Schraudolph, Fast curvature matrix-vector products for second-order gradient descent, Neural Computation 14
        (2002). Wang et al., arXiv 2405.20763, Eq. (6): the IRE mask estimates its diagonal.
    """

    def __init__(
        self,
        closure: Callable[..., tuple[Tensor, Tensor]],
        params: Iterable[Tensor] | Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
        *,
        data: Iterable[Any] | None = None,
        batch_size: Callable[[Any], int] | None = None,
        check_deterministic: bool = True,
    ) -> None:
        super().__init__(closure, params, data=data, batch_size=batch_size, check_deterministic=check_deterministic)
        if self.sharded:
            raise ValueError("params: sharded parameters (DTensor) have no product here; HessianOperator takes them")

    def _loss_of(self, value: Any) -> Tensor:
        if not isinstance(value, tuple) or len(value) != 2 or not isinstance(value[0], Tensor):
            raise ValueError("closure: expected (outputs, loss), a tensor and a scalar loss computed from it")
        return value[1]  # type: ignore[no-any-return]

    def _linearize(self, value: tuple[Tensor, Tensor]) -> _Linearization:
        outputs, loss = value
        (output_gradient,) = torch.autograd.grad(loss, outputs, create_graph=True, allow_unused=True)
        if output_gradient is None:
            raise ValueError("closure: the loss does not depend on the returned outputs")
        # J^T w is linear in w, so its derivative along w gives J v with two reverse passes and no forward mode.
        cotangent = torch.zeros_like(outputs, requires_grad=True)
        pulled_back = self._gradients(outputs, cotangent, create_graph=True)
        self._check_graph_once([*pulled_back, output_gradient])
        return _Linearization(outputs, output_gradient, cotangent, pulled_back)

    def _multiply(self, held: _Linearization, pieces: list[Tensor]) -> list[Tensor]:
        reached = [(j, v) for j, v in zip(held.pulled_back, pieces, strict=True) if j.requires_grad]
        if not reached or not held.output_gradient.requires_grad:
            return [torch.zeros_like(p) for p in self._params]
        rows, vectors = zip(*reached, strict=True)
        (pushed,) = torch.autograd.grad(rows, held.cotangent, vectors, retain_graph=True)
        (curved,) = torch.autograd.grad(held.output_gradient, held.outputs, pushed, retain_graph=True)
        return list(self._gradients(held.outputs, curved, retain_graph=True))
