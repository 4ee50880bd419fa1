"""The base class of AdmIRE, SGDIRE and SAMIRE: one flat ``torch.optim.Optimizer`` with a mask."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from torch_ire import _native
from torch_ire.optim.loading import DECLARED, load
from torch_ire.optim.mask_engine import MaskEngine, Targets
from torch_ire.optim.saving import apart, saved
from torch_ire.replicas import check_replicas
from torch_ire.sampled_loss import LabelGenerator
from torch_ire.sharding import check_placements
from torch_ire.steps.arguments import check_ire_arguments
from torch_ire.steps.compiled_step import fill_lists
from torch_ire.steps.schedule import (
    enhancement,
    join_schedule,
    past_warmup,
    place_schedule,
)
from torch_ire.steps.step import take_step
from torch_ire.steps.step_plan import StepPlan, create_state
from torch_ire.steps.update_rules import (
    UpdateRule,
    check_base_arguments,
    present_direction,
)
from torch_ire.summary import summarize


class IREOptimizer(torch.optim.Optimizer):
    """Base class: parameter groups, schedule, mask, state dict. Subclasses name the update rule of a group.

    No attribute holds a reference to the optimizer, so that reference counting frees it; and no method assigns one
    after construction, since Lightning's wrapper inherits these methods and shares the attributes.
    """

    _masks: MaskEngine
    _plan: StepPlan
    _report: dict[str, Any]

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)
        self._begin()

    def _begin(self) -> None:
        self._masks, self._plan = MaskEngine(), StepPlan()
        self._report = {"skipped": None}

    def _rule(self, group: Mapping[str, Any]) -> UpdateRule:
        raise RuntimeError(f"{type(self).__name__} does not name the update rule of a group")

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Tells ``torch.amp.GradScaler`` to leave unscaling and skipping to the step, which does both on the device.

        Lightning never clips the gradients of such an optimizer. In a process with Lightning the scaler therefore
        unscales and skips itself, as for the plain optimizers of torch.
        """
        return "lightning" not in sys.modules and "pytorch_lightning" not in sys.modules

    @property
    def label_generator(self) -> LabelGenerator:
        """Draws the labels of "fisher" masks between ``mask_due()`` and ``update_mask()``; saved in the state dict."""
        return self._masks.label_generator

    # -- groups ------------------------------------------------------------------------------------------------------

    def _check_group(self, group: Mapping[str, Any]) -> None:
        """Raises ``ValueError`` for an argument out of its range; subclasses add their own."""
        check_base_arguments(group)
        self._rule(group).check(group)
        check_ire_arguments(group)
        if group["implementation"] == "native" and _native.module is None:
            raise ValueError(f"implementation='native': the native operators did not load ({_native.error})")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a parameter group, checked like those of the constructor; it joins the schedule at its present step.

        Args:
            param_group: ``{"params": ..., **arguments}``.

        Raises:
            ValueError: An argument is out of its range.
            TypeError: A parameter is complex, or a ``DTensor`` that the curvature does not support.
        """
        if isinstance(param_group, dict):
            self._check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            if any(param.is_complex() for param in group["params"]):
                raise TypeError(f"{type(self).__name__} does not support complex parameters")
            check_placements(type(self).__name__, group)
        except TypeError:
            self.param_groups.pop()
            raise
        join_schedule(group, self.param_groups[0])

    def __getstate__(self) -> dict[str, Any]:
        labels, whole = self.label_generator, super().__getstate__()
        return {**whole, "state": apart(whole["state"]), "_labels": labels.state_dict() if labels.used else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        labels = state.get("_labels")
        super().__setstate__({key: value for key, value in state.items() if key != "_labels"})
        if "_plan" not in self.__dict__:  # a copy or an unpickled optimizer; torch also calls this when it loads
            self._begin()
        if labels is not None:
            self.label_generator.load_state_dict(labels)
        for group in self.param_groups:
            for key, value in self.defaults.items():
                if key != "differentiable":  # torch adds it to the defaults, and no group of ours has it
                    group.setdefault(key, value)
        place_schedule(self.param_groups)

    # -- mask --------------------------------------------------------------------------------------------------------

    def _targets(self) -> Targets:
        state = self.state
        return Targets(type(self).__name__, self.param_groups, state.__getitem__, lambda param: state.get(param, {}))

    def mask_due(self) -> bool:
        """Whether to call ``update_mask()`` before the coming step: at t = T_w, T_w + K, ... (Algorithm 1).

        Always ``False`` for the curvatures that ``step()`` refreshes itself: "second_moment" and "random", unless the
        optimizer is capturable. Until the call of ``update_mask()``, :func:`torch_ire.sampled_cross_entropy` without a
        generator draws from :attr:`label_generator`. Cost: for a capturable optimizer, one number read from the device.
        """
        return self._masks.due(self._targets())

    def _check_refresh(self) -> None:
        """Raises if the mask cannot be refreshed now."""
        for group in self.param_groups:  # a schedule may have driven an argument out of its range
            check_ire_arguments(group)

    def update_mask(
        self,
        loss: Tensor | None = None,
        *,
        num_predictions: float = 1.0,
        grad_scale: float | Tensor | None = None,
        process_group: torch.distributed.ProcessGroup | None = None,
    ) -> None:
        r"""Refreshes the flat mask from a curvature estimate, Eqs. (5) and (6), and clears ``.grad`` ("fisher").

        .. math::
            h \leftarrow \beta h + (1 - \beta) B g \odot g, \qquad
            n_i = [\, h_i \text{ is finite and at most the } \mathrm{round}(\gamma N)\text{-th smallest} \,]

        Args:
            loss: For ``curvature="hutchinson"``: a scalar loss with its graph. For "fisher": nothing; ``.grad`` holds
                the gradients of :func:`torch_ire.sampled_cross_entropy`.
            num_predictions: B, the number of independent predictions in the batch. It matters for ``curvature_beta`` >
                0 with batches of different sizes, and to readers of ``hessian_diag``.
            grad_scale: The loss scale of the gradients, for ``curvature_beta`` > 0; a ranking does not need it.
            process_group: The replicas whose "hutchinson" estimates are averaged: Hessian products bypass the hooks
                that average gradients in ``DistributedDataParallel``.

        Raises:
            RuntimeError: No parameter has a gradient, a gradient is sparse, the curvature does not need this call, or
                "hutchinson" lacks the replicas. No tensor has been changed then.
            ValueError: ``num_predictions`` is not a positive number.

        Cost: one to three reads of the gradients, at most 4 MiB of workspace with ``curvature_beta=0``. Determinism:
        exact and independent of the number of threads. Replicas with equal gradients get equal masks without
        communication. For sharded parameters all ranks have to call, also one without gradients, and each gets the
        threshold that one process would get: 49 KiB per rank and shard group.

        References:
            Wang et al., arXiv:2405.20763, Eqs. (5) and (6).
        """
        self._check_refresh()
        self._masks.update(self._targets(), loss, num_predictions, grad_scale, process_group)
        create_state(self.param_groups, self.state, self._rule)

    def ire_summary(self, *, over_mesh: bool = False) -> dict[str, Any]:
        """The present effect of IRE as plain numbers: flat share, threshold, kappa, share of the displacement.

        Args:
            over_mesh: For sharded parameters, sum over all ranks; all of them have to call. Otherwise the shares are
                those of this rank's shards; thresholds are those of all ranks either way.

        Returns:
            ``flat_share`` (of all coordinates with a mask), ``flat_share_by_parameter`` (by name, or by
            "group.position"), ``threshold`` (of the last refresh in this process, by ranking, and by group for several
            gammas), ``kappa_eff`` (by group), ``displacement_share``: the share of the squared displacement, along the
            present direction of the base optimizer, that IRE adds; ``None`` if that direction is gone (SGD without
            momentum and gradients).

        Cost: one read of masks and moments, and a synchronization with the device.
        """
        return summarize(
            self.param_groups,
            [float(enhancement(group)) if past_warmup(group) else 0.0 for group in self.param_groups],
            self.state,
            self._masks.thresholds,
            lambda group, param, state: present_direction(self._rule(group), group, param, state),
            over_mesh,
        )

    def check_replicas(self, process_group: torch.distributed.ProcessGroup | None = None) -> None:
        """Raises if replicas have drifted apart: parameters, state, the schedule, or the position of the labels.

        All ranks have to call, between two steps. Ranks that hold the same shard compare it. Without
        ``torch.distributed`` there is nothing to compare.

        Args:
            process_group: The ranks whose plain parameters should be equal; ``None``: all.

        Raises:
            RuntimeError: Something differs; on every rank, naming the first such tensor.

        Cost: one read of parameters and state, and a few messages of 16 bytes per tensor.
        """
        keys = dict.fromkeys(key for group in self.param_groups for key in self._rule(group).moment_keys)
        labels = self.label_generator
        check_replicas(type(self).__name__, self.param_groups, self.state, (*DECLARED, *keys), labels, process_group)

    # -- step --------------------------------------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of the base optimizer, amplified by ``1 + kappa`` on the flat coordinates.

        Args:
            closure: Evaluates the model and returns the loss; called first, with gradients enabled.

        Returns:
            The closure's loss, or ``None``.

        Raises:
            RuntimeError: A gradient is sparse or has another dtype, device or shape than its parameter, or a state
                tensor does not fit its parameter. Nothing has been changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        take_step(self, {}, getattr(self, "found_inf", None))
        return loss

    @property
    def last_step_skipped(self) -> Tensor | None:
        """Whether the last step changed nothing because a gradient was not finite: a bool on the device.

        ``None`` before the first step, without ``skip_nonfinite=True`` or a ``GradScaler``, and for a step in a
        compiled graph.
        """
        return self._report["skipped"]  # type: ignore[no-any-return]

    def _backup_of(self, param: Tensor) -> Tensor | None:
        """Memory for a parameter while a perturbation has moved it."""
        return None

    def _init_group(self, group: dict[str, Any], *lists: list[Any]) -> None:
        """Fills the lists of a step for Dynamo, which looks for this name."""
        fill_lists(self, group, *lists)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """As ``torch.optim.Optimizer.state_dict``; each ``flat_mask`` is a bool tensor of its parameter's shape.

        The groups hold the position of :attr:`label_generator`.
        """
        return saved(super().state_dict(), self._parameters(), self.param_groups, self.label_generator)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads the result of :meth:`state_dict`, or a checkpoint of the base optimizer from ``torch.optim``.

        State tensors keep their dtypes, whatever the parameter's. IRE arguments that the checkpoint lacks stay.

        Args:
            state_dict: Plain dict of tensors and numbers.

        Raises:
            ValueError: The state dict belongs to another model, or a value does not fit its parameter. Nothing has been
                changed then.
        """
        load(self, state_dict, super().load_state_dict)

    def _parameters(self) -> list[Tensor]:
        return [param for group in self.param_groups for param in group["params"]]
