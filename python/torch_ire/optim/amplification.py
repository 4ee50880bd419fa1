"""The displacement of a foreign optimizer's step, amplified after it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from torch_ire.interrupts import DeferredInterrupts
from torch_ire.layouts import laid_out_like, to_device
from torch_ire.optim.foreign_groups import ForeignGroup, check_mask
from torch_ire.optim.mask_engine import MaskEngine, Targets, create_masks
from torch_ire.packed_mask import follow_layout
from torch_ire.sharding import local_part
from torch_ire.steps.arguments import check_ire_arguments
from torch_ire.steps.compiled_step import check_capture
from torch_ire.steps.perturbation import buffer_for
from torch_ire.steps.projected import (
    amplify_projected,
    projected_parameters,
    projections,
    projector_of,
    refresh_projectors,
)
from torch_ire.steps.schedule import advance, enhancement, on_device, past_warmup, track_max_lr, unamplified_decay
from torch_ire.steps.state_init import ensure_saved_entry, is_state_init_step
from torch_ire.steps.update_rules import functions_of


class Amplification:
    """Where the steps of the optimizers of one handle start, and what is added to their displacements."""

    def __init__(self) -> None:
        self._previous: dict[Tensor, Tensor] = {}
        #: the parameters of the last step of each optimizer, with where it started
        self.started: dict[Tensor, Tensor] = {}
        self._masks_of_step: dict[Tensor, Tensor] = {}
        self._depth: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._creates_state = False

    @torch._disable_dynamo  # type: ignore[attr-defined]
    @torch.no_grad()
    def begin(self, optimizer: Optimizer, groups: Sequence[ForeignGroup], targets: Targets, masks: MaskEngine) -> None:
        """Makes the refreshes that are due, and keeps where the step starts; called before each step.

        Args:
            optimizer: The optimizer that steps.
            groups: Its groups.
            targets: The groups of all optimizers of the handle.
            masks: Their masks.

        Raises:
            RuntimeError: A mask does not fit its parameter, or the groups of a projector disagree.
            ValueError: A schedule has driven an argument out of its range.
        """
        # a step() that calls super().step() runs the hooks at both levels; a step that raised has run no post hook
        depth = self._depth.get(optimizer, 0) + 1
        self._depth[optimizer] = depth = depth if depth <= _hooked_levels(optimizer) else 1
        if depth > 1:
            return
        for group in groups:  # a schedule may have driven an argument out of its range
            check_ire_arguments(group, tensors=False)
        check_capture("IRE", groups, lambda _, p: [k for k in ("flat_mask",) if k not in targets.known_state(p)],
                      host_decay=True)  # fmt: skip
        ours = {param for group in groups for param in group["params"]}
        everywhere = {param for group in targets.groups for param in group["params"]}
        self._previous = {param: kept for param, kept in self._previous.items() if param in everywhere}
        beside = [p for group in targets.groups for p in group["params"] if p not in ours]
        self._creates_state = is_state_init_step(groups, optimizer.state, beside)
        for group in groups:
            track_max_lr(group)
        if not self._creates_state:
            # a closure may compute the gradients during the step
            masks.before_step(targets, lambda param: param.requires_grad)
            refresh_projectors("IRE", groups, masks.failed_projectors)
        moving = projected_parameters(groups, lambda param: param.requires_grad)
        projections("IRE", groups, moving)
        for group in groups:
            if on_device(group) and isinstance(group["curvature"], str):
                create_masks(targets, [(group, param) for param in group["params"] if param.grad is not None])
            if past_warmup(group) and projector_of(group) is None and not _is_zero(enhancement(group)):
                masked = [param for param in group["params"] if "flat_mask" in targets.known_state(param)]
                for param in masked:
                    mask = targets.known_state(param)["flat_mask"]
                    check_mask(mask, param)
                    follow_layout(mask, local_part(param))
                moving += masked
        started = {param: buffer_for(self._previous, param) for param in moving}
        if moving:
            torch._foreach_copy_(list(started.values()), list(map(local_part, moving)))
        # the starts of the other optimizers stay: a summary shows all of them
        others = everywhere - ours
        self.started = {param: kept for param, kept in self.started.items() if param in others} | started
        # the step may replace or clear the state
        known = {param: targets.known_state(param).get("flat_mask") for param in started}
        self._masks_of_step = {param: mask for param, mask in known.items() if mask is not None}

    @torch._disable_dynamo  # type: ignore[attr-defined]
    @torch.no_grad()
    def finish(self, optimizer: Optimizer, groups: Sequence[ForeignGroup], targets: Targets) -> None:
        """Amplifies the displacement of the step, and counts it; called after each step.

        Args:
            optimizer: The optimizer that has stepped.
            groups: Its groups.
            targets: The groups of all optimizers of the handle.
        """
        depth = self._depth.get(optimizer, 1) - 1
        self._depth[optimizer] = max(depth, 0)
        if depth != 0:  # an inner level; or an outer one whose count was that of a step that raised
            return
        found_inf = getattr(optimizer, "found_inf", None)
        with DeferredInterrupts():
            for group in groups:
                for param in group["params"]:
                    if self._creates_state and param.grad is not None:
                        ensure_saved_entry(group, param, optimizer.state[param])
                if projector_of(group) is None:
                    self._amplify(group, found_inf)
            projected = projections("IRE", groups, self.started)
            if projected and not (found_inf is not None and bool(found_inf)):  # the host waits for projectors alone
                amplify_projected(projected, self.started)
            if not self._creates_state:
                advance(groups)

    def _amplify(self, group: ForeignGroup, found_inf: Tensor | None) -> None:
        kappa, decay = enhancement(group), unamplified_decay(group)
        if decay and found_inf is not None:
            kappa = torch.where(found_inf != 0, 0.0, kappa)  # a skipped step has no decay to take out
        calls: dict[Any, list[Tensor]] = {}
        for param in group["params"]:
            if param in self.started and not (decay and param.grad is None):
                part = local_part(param)
                as_before = part.stride() == self.started[param].stride()  # dense, and in the order of the mask
                kind = (part.device, part.dtype) if as_before else id(param)
                calls.setdefault(kind, []).append(param)
        for params in calls.values():
            parts = list(map(local_part, params))
            pairs = zip(parts, params, strict=True)
            dense = [laid_out_like(part, self.started[param]) for part, param in pairs]
            if on_device(group) and isinstance(kappa, Tensor):
                kappa = to_device(parts[0].device, kappa)
            in_place = isinstance(kappa, Tensor) and kappa.device == parts[0].device
            functions_of(group).displacement_flat_(
                dense,
                [self.started[p] for p in params],
                [self._masks_of_step[p] for p in params],
                kappa=0.0 if in_place else float(kappa),
                decay=decay,
                kappa_tensor=kappa.detach().reshape(()) if isinstance(kappa, Tensor) and in_place else None,
            )
            for part, result in zip(parts, dense, strict=True):
                if part is not result:
                    part.copy_(result)


def _is_zero(kappa: float | Tensor) -> bool:
    return not isinstance(kappa, Tensor) and kappa == 0.0


def _hooked_levels(optimizer: Optimizer) -> int:
    """How many classes of an optimizer run its step hooks around their own ``step``."""
    return sum(getattr(vars(cls).get("step"), "hooked", False) for cls in type(optimizer).__mro__)
