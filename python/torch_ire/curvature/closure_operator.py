"""Operators that come out of a loss closure: data accumulation, determinism, and leaving the model as found."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from torch_ire.curvature.batches import BatchAverage, check_same_batches
from torch_ire.curvature.operator import Operator
from torch_ire.curvature.parameters import FlatLayout, named_tensors
from torch_ire.curvature.preserve_state import RandomState, frozen_buffers, math_attention
from torch_ire.dtensors import is_dtensor

__all__ = ["ClosureOperator"]


class ClosureOperator(Operator):
    """Shared ground of `HessianOperator` and `GaussNewtonOperator`.

    Args:
        closure: evaluates the model; takes a batch where `data` is given and nothing otherwise. It must not call
            `backward` and is run with the same random state every time.
        params: the parameters in whose coordinates the operator lives; others count as constants.
        data: a re-iterable of batches in fixed order (no shuffling); the operator is the mean over their samples.
        batch_size: number of samples of a batch, by which means are weighted; default: length of its first tensor.
        check_deterministic: go through `data` twice before the first product and say what differs.
    """

    def __init__(
        self,
        closure: Callable[..., Any],
        params: Iterable[Tensor] | Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
        *,
        data: Iterable[Any] | None,
        batch_size: Callable[[Any], int] | None,
        check_deterministic: bool,
    ) -> None:
        self._named = named_tensors(params)
        self._params = list(self._named.values())
        self.layout = FlatLayout(self._params)
        super().__init__(self.layout.size, self.layout.dtype, self.layout.device)
        # Products are as good as the coarsest parameter's gradient, whatever the dtype of the flat vectors.
        coarsest = max(torch.finfo(dtype).eps for dtype in self.layout.dtypes)
        self.symmetry_tolerance = max(self.symmetry_tolerance, coarsest**0.5)
        for name, param in self._named.items():
            if not param.requires_grad:
                raise ValueError(
                    f"params[{name}]: expected requires_grad=True; leave frozen parameters out of the list"
                )
        self.sharded = any(is_dtensor(param) for param in self._params)
        self._closure = closure
        self._data = None if data is None else BatchAverage(data, batch_size)
        self._unchecked = check_deterministic and data is not None
        self._random_state = RandomState(self.layout.devices)
        self._depth = 0
        self._held: Any = None
        self._graph_unchecked = True

    @property
    def params(self) -> list[Tensor]:
        """The parameters, in the order of the flat vector."""
        return list(self._params)

    @property
    def param_names(self) -> list[str]:
        """Their names: those given, or their positions."""
        return list(self._named)

    @abstractmethod
    def _linearize(self, value: Any) -> Any:
        """What is worth holding while the parameters stay: `value` is what the closure returned."""

    @abstractmethod
    def _multiply(self, held: Any, pieces: list[Tensor]) -> list[Tensor]:
        """The product with `pieces` from what `_linearize` returned."""

    @abstractmethod
    def _loss_of(self, value: Any) -> Tensor:
        """The scalar loss in what the closure returned."""

    def _gradients(self, outputs: Any, vectors: Any = None, **options: bool) -> tuple[Tensor, ...]:
        """One gradient per parameter; zeros for one that the outputs do not reach or that was frozen meanwhile."""
        free = [param for param in self._params if param.requires_grad]
        found = iter(torch.autograd.grad(outputs, free, vectors, allow_unused=True, materialize_grads=True, **options))
        return tuple(next(found) if param.requires_grad else torch.zeros_like(param) for param in self._params)

    def _check_graph_once(self, gradients: Iterable[Tensor]) -> None:
        """Refuse a gradient whose own derivative autograd would silently take for zero.

        An operation marked once-differentiable leaves a node without edges in the graph of the gradient; autograd
        skips it where it is asked for particular inputs.
        """
        if not self._graph_unchecked:
            return
        self._graph_unchecked = False
        waiting = [g.grad_fn for g in gradients if g.grad_fn is not None]
        seen = set(waiting)
        while waiting:
            node = waiting.pop()
            if node.name().split("::")[-1] == "Error":
                raise RuntimeError(
                    "the closure runs an operation marked once-differentiable. Switch it off (fused or custom "
                    'kernels), or take method="finite_difference", which needs first derivatives only'
                )
            following = {n for n, _ in node.next_functions if n is not None} - seen
            seen |= following
            waiting.extend(following)

    @contextmanager
    def _evaluation(self) -> Iterator[None]:
        with frozen_buffers(), math_attention(), self._random_state.replayed(), torch.enable_grad():
            yield

    def _evaluate(self, *batch: Any) -> Any:
        """The closure's value in the current scope, checked."""
        if not any(param.requires_grad for param in self._params):
            raise ValueError(
                f"params: all {len(self._params)} parameters have been frozen; nothing is left to derive by"
            )
        value = self._closure(*batch)
        loss = self._loss_of(value)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"closure: expected a scalar loss tensor, got {found}")
        if not loss.requires_grad:
            raise ValueError(
                "closure: the loss has no graph. Return the loss itself (not .item() or .detach()), compute it without "
                "torch.no_grad, and leave .backward() out"
            )
        return value

    @contextmanager
    def linearized(self) -> Iterator[Operator]:
        """Hold the graph of the gradient: inside, a product costs one backward pass through it, and memory for it.

        Without `data` only; an average over batches evaluates each batch anew. The parameters must not change inside.
        """
        self._depth += 1
        try:
            yield self
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._held = None

    def _product(self, vector: Tensor) -> Tensor:
        pieces = self.layout.unflatten(vector)
        with explained_double_backward():
            if self._data is None:
                return self.layout.flatten(self._single_product(pieces))
            self._check_data_once()
            total = torch.zeros_like(vector)
            for weight, batch in self._data.weighted():
                with self._evaluation():
                    product = self._fresh_product(pieces, batch)
                total.add_(self.layout.flatten(product), alpha=weight)
            return total

    def _fresh_product(self, pieces: list[Tensor], *batch: Any) -> list[Tensor]:
        """The product at the present parameters, nothing held."""
        return self._multiply(self._linearize(self._evaluate(*batch)), pieces)

    def _single_product(self, pieces: list[Tensor]) -> list[Tensor]:
        with self._evaluation():
            if self._depth == 0:
                return self._fresh_product(pieces)
            if self._held is None:
                self._held = self._linearize(self._evaluate())
            return self._multiply(self._held, pieces)

    def loss_and_gradient(self) -> tuple[float, Tensor]:
        """The loss and its flat gradient, (p,), with the same batches, weights and random state as the products."""
        if self._data is None:
            return self._batch_gradient()
        loss, gradient = 0.0, torch.zeros(self.size, dtype=self.dtype, device=self.device)
        for weight, batch in self._data.weighted():
            batch_loss, batch_gradient = self._batch_gradient(batch)
            loss += weight * batch_loss
            gradient.add_(batch_gradient, alpha=weight)
        return loss, gradient

    def _batch_gradient(self, *batch: Any) -> tuple[float, Tensor]:
        with self._evaluation():
            loss = self._loss_of(self._evaluate(*batch))
            pieces = self._sharded_gradient(loss) if self.sharded else self._gradients(loss)
        return float(loss.detach()), self.layout.flatten(pieces)

    def _sharded_gradient(self, loss: Tensor) -> tuple[Tensor, ...]:
        """By backward(), in whose hooks the ranks of FSDP2 meet; .grad is put back."""
        kept = [param.grad for param in self._params]
        try:
            for param in self._params:
                param.grad = None
            loss.backward()  # type: ignore[no-untyped-call]
            return tuple(torch.zeros_like(p) if p.grad is None else p.grad for p in self._params)
        finally:
            for param, grad in zip(self._params, kept, strict=True):
                param.grad = grad

    def _check_data_once(self) -> None:
        if self._unchecked and self._data is not None:
            self._unchecked = False
            check_same_batches(self._data, self._batch_gradient)


@contextmanager
def explained_double_backward() -> Iterator[None]:
    """Say what to do where an operation has no second derivative."""
    try:
        yield
    except RuntimeError as failure:
        text = str(failure)
        missing = "derivative for" in text and "not implemented" in text
        if "backward through the graph a second time" in text:
            raise RuntimeError(f"{text}\nThe closure must return the loss and leave .backward() out") from failure
        once = "once_differentiable" in text or "double backward" in text.lower()
        forward = "forward AD" in text or "forward-mode AD" in text
        if missing or once or forward:
            raise RuntimeError(
                f"{text}\nThe model has an operation without a second derivative. torch_ire switches torch's own "
                "attention to its math backend; a custom or fused kernel must be switched off by you, or take "
                'method="finite_difference", which needs first derivatives only'
            ) from failure
        raise
