"""Steps taken during the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from torch_ire.interrupts import DeferredInterrupts, run_all
from torch_ire.optim.ire_optimizer import IREOptimizer
from torch_ire.optim.mask_engine import Targets, draw, draws_itself
from torch_ire.optim.sam_ire import SAMIRE
from torch_ire.sampled_loss import LabelGenerator
from torch_ire.steps.operator_call import operator_call
from torch_ire.steps.schedule import advance, is_due, note_refresh, step_number, track_max_lr
from torch_ire.steps.step_plan import plan_group
from torch_ire.steps.tensor_lists import indexed_parameters


class StepInBackward:
    r"""Takes each parameter's step as soon as its gradient is there, and frees the gradient.

    .. math:: \theta_{t+1} = \theta_t + (1 + \kappa n_t) \odot \Delta_t

    The numbers are those of the ordinary optimizer, to the bit, but only a few gradients exist at a time. The schedule
    advances at the end of each backward pass. A "fisher" or "hutchinson" refresh ranks all parameters, so its own pass,
    once in ``mask_interval`` steps, holds all gradients::

        opt = torch_ire.StepInBackward(model.parameters(), lambda params: torch_ire.AdmIRE(params, lr=1e-3))
        for x, y in loader:
            if opt.mask_due():
                with opt.paused():
                    torch_ire.sampled_cross_entropy(model(x)).backward()
                opt.update_mask()
            F.cross_entropy(model(x), y).backward()     # steps

    Args:
        params: The parameters, or parameter groups, of the optimizer.
        make: Makes the optimizer from ``params``: :class:`AdmIRE` or :class:`SGDIRE`.

    Raises:
        TypeError: ``make`` returns another optimizer; SAM needs all gradients at once.
        ValueError: The optimizer has a projector, which mixes parameters, or ``skip_nonfinite``, which needs all
            gradients.

    It does not support methods that need all gradients before the step: clipping by the global norm, ``GradScaler``,
    accumulation over micro-batches, ``DistributedDataParallel``. Activation checkpoints need ``use_reentrant=False``: a
    reentrant one is a backward pass of its own and would count as a step.

    Cost: the step of the optimizer, with one operator call per parameter.

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

    def __init__(self, params: Iterable[nn.Parameter], make: Callable[[list[Any]], IREOptimizer]) -> None:
        optimizer = make(list(params))
        _check(optimizer)
        self.optimizer = optimizer
        self._attach()

    def _attach(self) -> None:
        self._is_paused = False
        self._backward = -1  # the backward pass that has begun to step
        # parameters that are frozen now have a hook too, in case they are unfrozen
        self._hooks = [_add_hook(param, self._step) for _, _, param in indexed_parameters(self.param_groups)]
        # group numbers, not groups: loading a checkpoint replaces the groups
        self._places = {
            param: (index, number)
            for index, (number, param) in enumerate(
                (number, param) for number, group in enumerate(self.param_groups) for param in group["params"]
            )
        }

    def __getstate__(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer, "is_attached": bool(self._hooks)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.optimizer = state["optimizer"]
        self._attach()  # copies of parameters have no hooks
        if not state["is_attached"]:
            self.detach()

    @torch.no_grad()
    def _step(self, param: Tensor) -> None:
        if self._is_paused:
            return
        optimizer, (index, number) = self.optimizer, self._places[param]
        group = optimizer.param_groups[number]
        backward = torch._C._current_graph_task_id()
        if self._backward != backward:
            torch.autograd.Variable._execution_engine.queue_callback(self._finish)
            self._backward = backward
        if draws_itself(group) and is_due(group):
            draw(optimizer._targets(), [(index, group, param)])
        rule = optimizer._rule(group)
        lists = plan_group(type(optimizer).__name__, group, [(index, param)], optimizer.state, rule)
        with DeferredInterrupts():
            run_all([operator_call(some, rule, {}, None, None) for some in lists])
        param.grad = None

    @torch.no_grad()
    def _finish(self) -> None:
        """Counts the step at the end of a backward pass."""
        for group in self.param_groups:
            track_max_lr(group)
            if draws_itself(group) and is_due(group):
                note_refresh(group, step_number(group))
        self.optimizer._masks.after_step(self.optimizer._targets(), may_have_skipped=False)
        advance(self.param_groups)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of the optimizer."""
        return self.optimizer.param_groups

    def _targets(self) -> Targets:
        return self.optimizer._targets()

    @property
    def label_generator(self) -> LabelGenerator:
        """As :attr:`AdmIRE.label_generator`."""
        return self.optimizer.label_generator

    def mask_due(self) -> bool:
        """Whether to call ``update_mask()`` before the coming step, as :meth:`AdmIRE.mask_due`."""
        return self.optimizer.mask_due()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context in which backward passes accumulate gradients and take no step, for a refresh."""
        was_paused, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = was_paused

    def update_mask(
        self,
        loss: Tensor | None = None,
        *,
        num_predictions: float = 1.0,
        grad_scale: float | Tensor | None = None,
        process_group: torch.distributed.ProcessGroup | None = None,
    ) -> None:
        """Refreshes all masks, as :meth:`AdmIRE.update_mask`.

        Args:
            loss: For ``curvature="hutchinson"``: a scalar loss with its graph.
            num_predictions: B, the number of independent predictions in the batch.
            grad_scale: The loss scale of the gradients, for ``curvature_beta`` > 0.
            process_group: The replicas whose "hutchinson" estimates are averaged.

        Raises:
            RuntimeError: No parameter has a gradient, because the pass was not :meth:`paused`.
        """
        self.optimizer.update_mask(
            loss, num_predictions=num_predictions, grad_scale=grad_scale, process_group=process_group
        )

    def ire_summary(self, *, over_mesh: bool = False) -> dict[str, Any]:
        """As :meth:`AdmIRE.ire_summary`."""
        return self.optimizer.ire_summary(over_mesh=over_mesh)

    def state_dict(self) -> dict[str, Any]:
        """The state dict of the optimizer; it also loads into an ordinary one."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads a state dict of this class or of the ordinary optimizer.

        Raises:
            ValueError: The state dict belongs to another model. Nothing has been changed then.
        """
        self.optimizer.load_state_dict(state_dict)

    def detach(self) -> None:
        """Removes the hooks: backward passes leave gradients again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def _add_hook(param: Tensor, hook: Callable[[Tensor], None]) -> Any:
    """Registers a hook, also on a frozen parameter, which torch refuses."""
    was_trainable = param.requires_grad
    try:
        param.requires_grad_(True)
        return param.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
    finally:
        param.requires_grad_(was_trainable)


def _check(optimizer: Any) -> None:
    if not isinstance(optimizer, IREOptimizer) or isinstance(optimizer, SAMIRE):
        raise TypeError(f"StepInBackward is for AdmIRE and SGDIRE, got {type(optimizer).__name__}")
    for group in optimizer.param_groups:
        if not isinstance(group["curvature"], str):
            raise ValueError("StepInBackward: an exact projector mixes parameters, which step one by one")
        if group["skip_nonfinite"]:
            raise ValueError("StepInBackward: skip_nonfinite=True needs all gradients before the step")
