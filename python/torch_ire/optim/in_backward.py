"""Steps taken during the backward pass, with one mask ranking over all parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from torch_ire.optim.arguments import SELF_REFRESHING, asks_for_refresh
from torch_ire.optim.ire_optimizer import IREOptimizer
from torch_ire.optim.mask_refresh import MaskRefresh
from torch_ire.optim.sam_ire import SAMIRE
from torch_ire.optim.update_rules import functions_of


class StepInBackward:
    r"""Takes each parameter's step as soon as its gradient is there, and frees the gradient.

    .. math:: \theta_{t+1} = \theta_t + (1 + \kappa n_t) \odot \Delta_t

    The same numbers as one optimizer over all parameters, to the bit, without ever holding more than a few gradients
    at once: once the mask is there the update is one of each tensor alone. A refresh of the mask ranks all parameters,
    so it needs all gradients of its own pass, once in ``mask_interval`` steps::

        opt = torch_ire.StepInBackward(model.parameters(), lambda params: torch_ire.AdmIRE(params, lr=1e-3))
        for x, y in loader:
            if opt.mask_due():
                with opt.paused():
                    torch_ire.sampled_cross_entropy(model(x)).backward()
                opt.update_mask()
            F.cross_entropy(model(x), y).backward()     # steps

    Args:
        params: The parameters.
        make: Makes the optimizer of a list with one parameter: :class:`AdmIRE` or :class:`SGDIRE`. With
            ``curvature="second_moment"`` or "random" it has to be ``capturable=True``: their refresh is a call of
            :meth:`update_mask` then, without gradients.

    Raises:
        TypeError: ``make`` returns something else; SAM needs all gradients at once.
        ValueError: A projector mixes parameters, ``skip_nonfinite`` needs all gradients, or a curvature that ``step()``
            refreshes by itself would rank each parameter alone.

    What needs all gradients before the step does not go with it: clipping by the global norm, ``GradScaler``,
    accumulation over micro-batches, ``DistributedDataParallel``.

    Cost: that of the optimizers; one call of their operator for each parameter.

    Example:
        >>> import torch, torch_ire
        >>> model = torch.nn.Linear(4, 2)
        >>> opt = torch_ire.StepInBackward(model.parameters(), lambda params: torch_ire.SGDIRE(params, lr=0.1))
        >>> before = model.weight.detach().clone()
        >>> model(torch.ones(3, 4)).sum().backward()
        >>> torch.equal(model.weight, before), model.weight.grad
        (False, None)

    References:
        Wang et al., arXiv:2405.20763, Algorithm 1.
    """

    def __init__(self, params: Iterable[nn.Parameter], make: Callable[[list[nn.Parameter]], IREOptimizer]) -> None:
        self._optimizers: dict[Tensor, IREOptimizer] = {}
        for param in params:
            optimizer = make([param])
            _check(optimizer)
            self._optimizers[param] = optimizer
        self._hooks: list[Any] = []
        self._attach()

    def _attach(self) -> None:
        for index, optimizer in enumerate(self._optimizers.values()):
            # seeds are drawn by the position of a parameter, which one optimizer over all would know
            optimizer.first_index = index
        self._refresh = MaskRefresh(
            type(self).__name__,
            lambda: self.param_groups,
            lambda param: self._optimizers[param].state[param],
            lambda param: self._optimizers[param].state.get(param, {}),
            functions_of,
        )
        self._is_paused = False
        for owner in self._optimizers:
            if owner.requires_grad:
                self._hooks.append(owner.register_post_accumulate_grad_hook(self._step))  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        return {"optimizers": self.optimizers, "is_attached": bool(self._hooks)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # copies of parameters have no hooks, copies of optimizers no place among others
        self._optimizers = {optimizer.param_groups[0]["params"][0]: optimizer for optimizer in state["optimizers"]}
        self._hooks = []
        self._attach()
        if not state["is_attached"]:
            self.detach()

    def _step(self, param: Tensor) -> None:
        if not self._is_paused:
            optimizer = self._optimizers[param]
            optimizer.may_rehearse = False  # a gradient of zeros may be that of this parameter alone
            try:
                optimizer.step()
            finally:
                del optimizer.may_rehearse
            param.grad = None

    @property
    def optimizers(self) -> list[IREOptimizer]:
        """The optimizers in the order of the parameters, for learning rate schedulers."""
        return list(self._optimizers.values())

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all optimizers, one a parameter."""
        return [group for optimizer in self._optimizers.values() for group in optimizer.param_groups]

    def mask_due(self) -> bool:
        """Whether ``update_mask()`` is to be called before the coming step, as :meth:`AdmIRE.mask_due`."""
        return self._refresh.due()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context in which backward passes accumulate gradients as they do without this class: for a refresh."""
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False

    def update_mask(self, loss: Tensor | None = None, *, num_predictions: float = 1.0) -> None:
        """Refreshes all masks from one ranking over all parameters, as :meth:`AdmIRE.update_mask`.

        Args:
            loss: For ``curvature="hutchinson"``: a scalar loss with its graph.
            num_predictions: B, the number of independent predictions in the batch.

        Raises:
            RuntimeError: No parameter has a gradient: the pass was not :meth:`paused`.
        """
        self._refresh.from_gradients(loss, num_predictions, None, None)
        for param, optimizer in self._optimizers.items():
            if "flat_mask" in optimizer.state.get(param, {}):
                (group,) = optimizer.param_groups
                optimizer._rule(group).prepare(group, param, optimizer.state[param])

    def state_dict(self) -> dict[str, Any]:
        """The state dicts of the optimizers, in the order of the parameters."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self._optimizers.values()]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads what :meth:`state_dict` returned.

        Args:
            state_dict: For as many parameters.

        Raises:
            ValueError: It has another number of parameters, or one of another shape.
        """
        saved = state_dict["optimizers"]
        if len(saved) != len(self._optimizers):
            raise ValueError(
                f"{type(self).__name__}.load_state_dict: expected {len(self._optimizers)} parameters, got {len(saved)}"
            )
        for optimizer, state in zip(self._optimizers.values(), saved, strict=True):
            optimizer.load_state_dict(state)

    def detach(self) -> None:
        """Takes no more steps: backward passes leave gradients again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def _check(optimizer: Any) -> None:
    if not isinstance(optimizer, IREOptimizer) or isinstance(optimizer, SAMIRE):
        raise TypeError(f"StepInBackward is for AdmIRE and SGDIRE, got {type(optimizer).__name__}")
    for group in optimizer.param_groups:
        curvature = group["curvature"]
        if not isinstance(curvature, str):
            raise ValueError("StepInBackward: an exact projector mixes parameters, which step one by one here")
        if group["skip_nonfinite"]:
            raise ValueError("StepInBackward: skip_nonfinite=True has to see all gradients before the step")
        if curvature in SELF_REFRESHING and not asks_for_refresh(group):
            raise ValueError(
                f"StepInBackward: curvature={curvature!r} needs capturable=True, with which update_mask() ranks all "
                "parameters together"
            )
