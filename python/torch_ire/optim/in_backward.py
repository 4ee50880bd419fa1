"""Steps taken during the backward pass."""

from __future__ import annotations

import weakref
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
from torch_ire.steps.arguments import check_ire_arguments
from torch_ire.steps.operator_call import operator_call
from torch_ire.steps.schedule import Group, advance, is_due, note_refresh, step_number, track_max_lr
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

    Keep a reference to it: backward passes step as long as it exists, and leave gradients again afterwards. An
    exception inside a backward pass does not take back the steps before it, and the pass does not count as a step.

    It does not support what needs all gradients before the step: clipping by the global norm, ``GradScaler``,
    accumulation over micro-batches, ``DistributedDataParallel``. Activation checkpoints must be those with
    ``use_reentrant=False``: each reentrant one is a backward pass of its own, and would count as a step.

    Cost: that of the optimizer, with one call of its operator per parameter.

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
        self._places = self._present_places()
        self._hooks = {param: self._add_hook(param) for param in self._places}

    def _add_hook(self, param: Tensor) -> Any:
        """Registers the hook of a parameter, also of one that is frozen now, which torch refuses."""
        # the garbage collector does not look into hooks: with a strong reference nothing would free the model
        owner = weakref.ref(self)

        def step(param: Tensor) -> None:
            self = owner()
            if self is not None:
                self._step(param)

        was_trainable = param.requires_grad
        try:
            param.requires_grad_(True)
            return param.register_post_accumulate_grad_hook(step)  # type: ignore[no-untyped-call]
        finally:
            param.requires_grad_(was_trainable)

    def _present_places(self) -> dict[Tensor, tuple[int, Group]]:
        """The position and the group of each parameter."""
        return {param: (index, group) for index, group, param in indexed_parameters(self.param_groups)}

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
        backward = torch._C._current_graph_task_id()
        if self._backward != backward:
            for group in self.param_groups:  # a schedule may have driven an argument out of its range
                self.optimizer._rule(group).check(group)
                check_ire_arguments(group, tensors=False)
            self._places = self._present_places()
            torch.autograd.Variable._execution_engine.queue_callback(self._finish)
            self._backward = backward
        if param in self._places:  # otherwise it has left its group
            self._step_one(param)

    def _step_one(self, param: Tensor) -> None:
        optimizer, (index, group) = self.optimizer, self._places[param]
        if draws_itself(group) and is_due(group):
            draw(optimizer._targets(), [(index, group, param)])
        rule = optimizer._rule(group)
        lists = plan_group(type(optimizer).__name__, group, [(index, param)], optimizer.state, rule)
        with DeferredInterrupts():
            run_all([operator_call(some, rule, {}, None, None) for some in lists])
        param.grad = None

    @torch.no_grad()
    def _finish(self) -> None:
        """Steps the parameters that have joined a group since the last backward pass, and counts the step."""
        for param in [param for param in self._hooks if param not in self._places]:
            self._hooks.pop(param).remove()
        for param in [param for param in self._places if param not in self._hooks]:
            if param.grad is not None:
                self._step_one(param)
            self._hooks[param] = self._add_hook(param)
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
        """Context in which backward passes accumulate gradients as they do without this class: for a refresh."""
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
            RuntimeError: No parameter has a gradient: the pass was not :meth:`paused`.
        """
        self.optimizer.update_mask(
            loss, num_predictions=num_predictions, grad_scale=grad_scale, process_group=process_group
        )

    def ire_summary(self, *, over_mesh: bool = False) -> dict[str, Any]:
        """As :meth:`AdmIRE.ire_summary`."""
        return self.optimizer.ire_summary(over_mesh=over_mesh)

    def state_dict(self) -> dict[str, Any]:
        """The state dict of the optimizer, which loads into the ordinary one and back."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads the result of :meth:`state_dict`, or of the ordinary optimizer's.

        Raises:
            ValueError: It belongs to another model. Nothing has been changed then.
        """
        self.optimizer.load_state_dict(state_dict)

    def detach(self) -> None:
        """Removes the hooks: backward passes leave gradients again."""
        for hook in self._hooks.values():
            hook.remove()
        self._hooks = {}


def _check(optimizer: Any) -> None:
    if not isinstance(optimizer, IREOptimizer) or isinstance(optimizer, SAMIRE):
        raise TypeError(f"StepInBackward is for AdmIRE and SGDIRE, got {type(optimizer).__name__}")
    for group in optimizer.param_groups:
        if not isinstance(group["curvature"], str):
            raise ValueError("StepInBackward: an exact projector mixes parameters, which step one by one here")
        if group["skip_nonfinite"]:
            raise ValueError("StepInBackward: skip_nonfinite=True has to see all gradients before the step")
