"""Hessian of a loss closure: exact products by automatic differentiation, or finite differences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from torch_ire.curvature.closure_operator import ClosureOperator
from torch_ire.curvature.parameters import scattered_like

__all__ = ["HessianOperator"]

Method = Literal["auto", "reverse", "forward", "finite_difference"]


class HessianOperator(ClosureOperator):
    r"""The Hessian of a loss, through its products :math:`v \mapsto \nabla^2 L(\theta) v`.

    Gradients, BatchNorm statistics, train or eval mode and the random state of the model are left as found; dropout
    draws the same mask in every product. torch's attention runs by its math formula inside.

    Args:
        closure: `closure() -> loss`, a scalar tensor with its graph; `closure(batch) -> mean loss` with `data`.
        params: parameters, or names with parameters (`model.named_parameters()`); a subset gives the corresponding
            block. Devices and dtypes may differ; flat vectors are on the first one's device, float64 where any
            parameter is and float32 otherwise.
        data: batches, iterated anew for each product; the operator is the mean over their samples.
        batch_size: number of samples of a batch; default: length of its first tensor.
        check_deterministic: with `data`, compare two passes before the first product and say what differs.
        method: `"reverse"` (reverse over reverse), `"forward"` (forward over reverse), `"finite_difference"` (central
            difference of gradients; needs first derivatives only, relative error about 1e-4 in float32). `"auto"` is
            `"finite_difference"` for sharded parameters (FSDP2, tensor parallel), whose hooks know first derivatives
            alone: all ranks then take part in every product, each with flat vectors of all coordinates, and parameters
            that are not in the list must be frozen. Else it is `"reverse"`: inside a solver the graph of the gradient
            is held and a product is one backward pass through it, where forward over reverse runs the model anew.

    Raises:
        ValueError: where a parameter is frozen, complex or listed twice, the closure returns no loss with a graph, or
            parameters are sharded and another method than finite differences is asked for.
        RuntimeError: where an operation has no second derivative, with the way around it.
    Cost: about two gradients a product; memory of two graphs inside a solver.

    Example:
        >>> import torch
        >>> from torch_ire.curvature import HessianOperator
        >>> theta = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> HessianOperator(lambda: (theta**3).sum(), [theta]).matvec(torch.ones(2))
        tensor([ 6., 12.])

    References:
        Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation 6 (1994).
    """

    def __init__(
        self,
        closure: Callable[..., Tensor],
        params: Iterable[Tensor] | Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
        *,
        data: Iterable[Any] | None = None,
        batch_size: Callable[[Any], int] | None = None,
        check_deterministic: bool = True,
        method: Method = "auto",
    ) -> None:
        if method not in ("auto", "reverse", "forward", "finite_difference"):
            raise ValueError(f"method: expected auto, reverse, forward or finite_difference, got {method!r}")
        super().__init__(closure, params, data=data, batch_size=batch_size, check_deterministic=check_deterministic)
        self._options: dict[str, Any] = {"data": data, "batch_size": batch_size, "method": method}
        if self.sharded and method not in ("auto", "finite_difference"):
            raise ValueError(f'method: sharded parameters (DTensor) need "finite_difference", got {method!r}')
        automatic: Method = "finite_difference" if self.sharded else "reverse"
        self.method = automatic if method == "auto" else method
        if self.method == "finite_difference":
            self.symmetry_tolerance = 0.05

    def blocks(self) -> dict[str, HessianOperator]:
        """One operator a parameter: the diagonal blocks, for spectra by layer."""
        return {
            name: HessianOperator(self._closure, {name: param}, check_deterministic=False, **self._options)
            for name, param in self._named.items()
        }

    def _loss_of(self, value: Any) -> Tensor:
        return value  # type: ignore[no-any-return]

    def _linearize(self, value: Tensor) -> tuple[Tensor, ...]:
        gradients = self._gradients(value, create_graph=True)
        self._check_graph_once(gradients)
        return gradients

    def _multiply(self, held: Sequence[Tensor], pieces: list[Tensor]) -> list[Tensor]:
        # A parameter that enters the loss linearly, or not at all, has a gradient without graph: its row is zero.
        curved = [(g, v) for g, v in zip(held, pieces, strict=True) if g.requires_grad]
        if not curved:
            return [torch.zeros_like(p) for p in self._params]
        gradients, vectors = zip(*curved, strict=True)
        return list(self._gradients(gradients, vectors, retain_graph=True))

    def _product(self, vector: Tensor) -> Tensor:
        if self.method == "finite_difference":
            return self._finite_difference(vector)
        return super()._product(vector)

    def _single_product(self, pieces: list[Tensor]) -> list[Tensor]:
        if self.method == "forward":
            with self._evaluation():
                return self._fresh_product(pieces)
        return super()._single_product(pieces)

    def _fresh_product(self, pieces: list[Tensor], *batch: Any) -> list[Tensor]:
        if self.method != "forward":
            return super()._fresh_product(pieces, *batch)
        with forward_ad.dual_level():
            with torch.no_grad():
                # Adding a dual zero in place hangs the tangent on the parameter itself, wherever the model keeps it.
                for param, tangent in zip(self._params, pieces, strict=True):
                    if not param.requires_grad:
                        continue
                    param.add_(forward_ad.make_dual(torch.zeros_like(param), tangent))  # type: ignore[no-untyped-call]
            loss = self._evaluate(*batch)
            gradients = self._gradients(loss)
            tangents = [forward_ad.unpack_dual(g).tangent for g in gradients]  # type: ignore[no-untyped-call]
            return [
                torch.zeros_like(p) if t is None else t.detach() for p, t in zip(self._params, tangents, strict=True)
            ]

    def rounding_at(self, vector: Tensor) -> float:
        """Norm of the error of H v: for finite differences, the distance from the quotient with a shorter step."""
        if self.method != "finite_difference":
            return super().rounding_at(vector)
        self.num_matvecs += 1
        shorter = self._finite_difference(vector.to(self.dtype), share=0.7)
        return float(torch.linalg.vector_norm(shorter - self.matvec(vector)))

    def _finite_difference(self, vector: Tensor, share: float = 1.0) -> Tensor:
        norm = float(vector.norm())
        if norm == 0.0:
            return torch.zeros_like(vector)
        kept = [p.detach().clone() for p in self._params]
        theta = self.layout.flatten(kept)
        coarsest = max(torch.finfo(dtype).eps for dtype in self.layout.dtypes)
        step = share * coarsest ** (1 / 3) * (1.0 + float(theta.norm())) / norm
        gradients = []
        try:
            try:
                for sign in (1.0, -1.0):
                    self._write(self.layout.unflatten(theta + sign * step * vector))
                    gradients.append(self.loss_and_gradient()[1])
            finally:
                self._write(kept)
        except BaseException:
            self._write(kept)  # again: Ctrl-C may have interrupted the first time
            raise
        quotient: Tensor = (gradients[0] - gradients[1]) / (2 * step)
        return quotient

    def _write(self, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for param, value in zip(self._params, values, strict=True):
                if param.requires_grad:  # one that was frozen meanwhile is a constant
                    param.copy_(scattered_like(value, param))
