"""IRE inside the step hooks of foreign optimizers.

An :class:`Attachment` is what the hooks of the optimizers share; :class:`torch_ire.IRE` is the handle that users hold.
The optimizers own the attachment, which refers to them weakly, so that reference counting frees all three.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from torch_ire.interrupts import DeferredInterrupts
from torch_ire.layouts import laid_out_like, to_device
from torch_ire.optim import checkpoint
from torch_ire.optim.foreign_groups import ForeignGroup, check_group, check_mask, pack_loaded
from torch_ire.optim.mask_engine import MaskEngine, Targets, create_masks
from torch_ire.optim.state_init import ensure_saved_state, is_state_init_step
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
from torch_ire.steps.schedule import (
    advance,
    enhancement,
    join_schedule,
    on_device,
    past_warmup,
    place_schedule,
    plain_counters,
    track_max_lr,
    unamplified_decay,
)
from torch_ire.steps.update_rules import functions_of

#: key of the attachment in ``Optimizer.defaults``, which copies and pickles take along
KEY = "torch_ire"
STATE_KEYS = ("flat_mask", "hessian_diag", "hessian_diag_updates")
_PROCESS_OPTIONS = ("ire_capturable",)
# in the first group of a state dict: masks of parameters without optimizer state, by number
_PENDING = "ire_pending"
_copies_attach: list[Any] = []


class Attachment:
    """Arguments, masks and hooks of IRE, shared by the optimizers of one handle.

    Args:
        defaults: The IRE arguments under their plain names, with the counters.
        capturable: Whether the steps may be captured in a CUDA graph.
    """

    def __init__(self, defaults: Mapping[str, Any], capturable: bool) -> None:
        self.masks = MaskEngine()
        #: the handle that users hold, while there is one
        self.handle: weakref.ref[Any] | None = None
        self._names = frozenset(key for key in defaults if not key.startswith("ire_"))
        self._defaults = {key if key.startswith("ire_") else f"ire_{key}": value for key, value in defaults.items()}
        if capturable:
            self._defaults["ire_capturable"] = True
        # estimates of parameters without optimizer state: most optimizers take any state for a complete one
        self._pending: dict[Tensor, dict[str, Any]] = {}
        self._optimizers: list[weakref.ref[Optimizer]] = []
        self._begin()

    def _begin(self) -> None:
        self._hooks: weakref.WeakKeyDictionary[Optimizer, list[Any]] = weakref.WeakKeyDictionary()
        self._previous: dict[Tensor, Tensor] = {}
        #: the parameters of the last step of each optimizer, with where it started
        self.started: dict[Tensor, Tensor] = {}
        self._masks_of_step: dict[Tensor, Tensor] = {}
        self._depth: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._creates_state = False
        self._loading: checkpoint.Loaded | None = None
        if not _copies_attach:  # torch copies no hooks: copies attach at their first step
            _copies_attach.append(register_optimizer_step_pre_hook(_attach_copy))

    def __getstate__(self) -> dict[str, Any]:
        labels = self.masks.label_generator
        kept = {key: self.__dict__[key] for key in ("_names", "_defaults", "_pending")}
        position = labels.state_dict() if labels.used else None
        return {**kept, "optimizers": self.optimizers(), "labels": position}

    def __setstate__(self, state: dict[str, Any]) -> None:
        optimizers, labels = state.pop("optimizers"), state.pop("labels")
        self.__dict__.update(state)
        self.masks, self.handle = MaskEngine(), None
        if labels is not None:
            self.masks.label_generator.load_state_dict(labels)
        self._optimizers = [weakref.ref(optimizer) for optimizer in optimizers]
        self._begin()

    # -- optimizers --------------------------------------------------------------------------------------------------

    def optimizers(self) -> list[Optimizer]:
        """The optimizers that are alive."""
        return [optimizer for optimizer in (reference() for reference in self._optimizers) if optimizer is not None]

    def check(self, optimizer: Any) -> None:
        """Raises ``TypeError`` or ``ValueError`` if IRE cannot be attached to an optimizer."""
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"IRE is attached to torch.optim.Optimizer objects, got {type(optimizer).__name__}")
        if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
            raise TypeError(f"{type(optimizer).__name__} has not called torch.optim.Optimizer.__init__")
        if KEY in optimizer.defaults:
            raise ValueError(f"this {type(optimizer).__name__} has an IRE handle already; detach() that first")
        for group in optimizer.param_groups:
            check_group(type(optimizer), ForeignGroup({**self._defaults, **group}, self._names))

    def attach(self, optimizer: Optimizer) -> None:
        """Registers the hooks, and adopts the groups and masks that are there."""
        if optimizer in self._hooks:
            return
        if not any(reference() is optimizer for reference in self._optimizers):
            self._optimizers.append(weakref.ref(optimizer))
        optimizer.defaults[KEY] = self
        self.complete(optimizer)
        for group in optimizer.param_groups:
            for param in group["params"]:
                pack_loaded(optimizer.state.get(param, {}), param)
        self._hooks[optimizer] = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            optimizer.register_state_dict_pre_hook(self._before_state_dict),
            optimizer.register_state_dict_post_hook(self._after_state_dict),
            optimizer.register_load_state_dict_pre_hook(self._before_load),
            optimizer.register_load_state_dict_post_hook(self._after_load, prepend=True),
        ]

    def detach(self) -> None:
        """Removes hooks, arguments and masks."""
        for optimizer in self.optimizers():
            for hook in self._hooks.pop(optimizer, ()):
                hook.remove()
            optimizer.defaults.pop(KEY, None)
            for group in optimizer.param_groups:
                for key in (KEY, *self._defaults, *_PROCESS_OPTIONS):
                    group.pop(key, None)
                for param in group["params"]:
                    for key in STATE_KEYS:
                        optimizer.state.get(param, {}).pop(key, None)
        self._optimizers, self._pending, self._previous, self.started = [], {}, {}, {}

    def complete(self, optimizer: Optimizer) -> None:
        """Gives new groups their arguments and their place in the schedule, ."""
        for position, group in enumerate(optimizer.param_groups):
            group.pop(KEY, None)  # copied from the defaults
            if all(key in group for key in self._defaults):
                continue
            whole = {**self._defaults, **group}
            check_group(type(optimizer), ForeignGroup(whole, self._names))
            first = self.optimizers()[0].param_groups[0]
            if "ire_step" not in group and "ire_step" in first:
                join_schedule(ForeignGroup(whole, self._names), {**first, **plain_counters(first)})
            group.update(whole)
            place_schedule([ForeignGroup(g, self._names) for g in optimizer.param_groups[: position + 1]])

    def groups_of(self, optimizer: Optimizer) -> list[ForeignGroup]:
        """The groups of one optimizer, complete."""
        self.complete(optimizer)
        return [ForeignGroup(group, self._names) for group in optimizer.param_groups]

    def targets(self) -> Targets:
        """The groups of all optimizers, which share one ranking, and their state."""
        optimizers = self.optimizers()
        owners = {p: optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}

        def state_of(param: Tensor) -> dict[str, Any]:
            state: dict[str, Any] | None = owners[param].state.get(param)
            return state if state else self._pending.setdefault(param, {})

        def known_state(param: Tensor) -> Mapping[str, Any]:
            return owners[param].state.get(param) or self._pending.get(param, {})

        groups = [group for optimizer in optimizers for group in self.groups_of(optimizer)]
        return Targets("IRE", groups, state_of, known_state)

    # -- hooks -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # a step() that calls super().step() runs the hooks at both levels; a step that raised has run no post hook
        depth = self._depth.get(optimizer, 0) + 1
        self._depth[optimizer] = depth = depth if depth <= _hooked_levels(optimizer) else 1
        if depth > 1:
            return
        self._loading = None  # of a load that torch has rejected
        groups, targets = self.groups_of(optimizer), self.targets()
        for group in groups:  # a schedule may have driven an argument out of its range
            check_ire_arguments(group)
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
            self.masks.before_step(targets, lambda param: param.requires_grad)
            refresh_projectors("IRE", groups, self.masks.failed_projectors)
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

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth[optimizer] = self._depth.get(optimizer, 1) - 1
        if self._depth[optimizer] > 0:
            return
        groups, targets = self.groups_of(optimizer), self.targets()
        found_inf = getattr(optimizer, "found_inf", None)
        with DeferredInterrupts():
            for group in groups:
                for param in group["params"]:
                    if self._pending.get(param) and (param.grad is not None or optimizer.state.get(param)):
                        optimizer.state[param].update(self._pending.pop(param))
                    if self._creates_state and param.grad is not None:
                        ensure_saved_state(group, param, targets.state_of(param))
                if projector_of(group) is None:
                    self._amplify(group, found_inf)
            if not (found_inf is not None and bool(found_inf)):
                amplify_projected(projections("IRE", groups, self.started), self.started)
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

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def _before_state_dict(self, optimizer: Optimizer) -> None:
        """Drops the masks of parameters that have left their groups, which torch has no number for."""
        params = {param for group in optimizer.param_groups for param in group["params"]}
        for param in [key for key in optimizer.state if isinstance(key, Tensor) and key not in params]:
            entry = optimizer.state[param]
            for key in STATE_KEYS:
                entry.pop(key, None)
            if not entry:
                del optimizer.state[param]

    def _after_state_dict(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        groups = self.groups_of(optimizer)
        params = [param for group in groups for param in group["params"]]
        pending = {i: self._pending[param] for i, param in enumerate(params) if self._pending.get(param)}
        plain = [{k: v for k, v in group.items() if k != KEY} for group in state_dict["param_groups"]]
        whole = {**state_dict, "state": {**state_dict["state"], **pending}, "param_groups": plain}
        result = checkpoint.saved(whole, params, groups, self.masks.label_generator)
        if pending:  # in the state it would look complete to an optimizer without IRE
            result["param_groups"][0][_PENDING] = {i: result["state"].pop(i) for i in pending}
        return result

    def _before_load(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        self._loading = None
        if len(state_dict["param_groups"]) != len(optimizer.param_groups):
            return state_dict  # torch raises before it changes anything
        self.complete(optimizer)
        self._waiting = dict(state_dict["param_groups"][0].get(_PENDING, {})) if state_dict["param_groups"] else {}
        state_dict = {**state_dict, "state": {**state_dict["state"], **self._waiting}}
        groups = checkpoint.completed_groups(state_dict, optimizer.param_groups, _PROCESS_OPTIONS)
        for group, ours in zip(groups, optimizer.param_groups, strict=True):
            group.pop(KEY, None)
            group.pop(_PENDING, None)
            if group["ire_curvature"] == "projector":
                group["ire_curvature"] = ours["ire_curvature"]
            check_group(type(optimizer), ForeignGroup({**group, "params": ours["params"]}, self._names))
            if not isinstance(group["ire_curvature"], str):
                group["ire_curvature"] = "projector"  # torch copies what it loads
        whole = {**state_dict, "param_groups": groups}
        self._loading = checkpoint.read(whole, optimizer.param_groups, STATE_KEYS, "IRE")
        self._curvatures = [group["ire_curvature"] for group in optimizer.param_groups]
        return self._loading.for_torch

    def _after_load(self, optimizer: Optimizer) -> None:
        if self._loading is None:
            return
        params = [param for group in optimizer.param_groups for param in group["params"]]
        waiting = {params[i] for i in self._waiting}
        for param, tensors in self._loading.tensors.items():
            self._pending.pop(param, None)
            if param in waiting:
                optimizer.state.pop(param, None)
                self._pending[param] = dict(tensors)
            else:
                optimizer.state[param].update(tensors)
        for group, curvature in zip(optimizer.param_groups, self._curvatures, strict=True):
            if group["ire_curvature"] == "projector":
                group["ire_curvature"] = curvature
        self._loading = None
        groups = self.groups_of(optimizer)
        place_schedule(groups)
        checkpoint.take_label_position(groups, self.masks.label_generator)
        self.masks.thresholds.clear()


def _attach_copy(optimizer: Optimizer, *_: Any) -> None:
    """Attaches IRE to a copied or unpickled optimizer, which torch leaves without hooks."""
    attachment_of(optimizer)


def attachment_of(optimizer: Any) -> Attachment | None:
    """The attachment of an optimizer, or ``None``; a copy is attached first."""
    attachment = getattr(optimizer, "__dict__", {}).get("defaults", {}).get(KEY)
    # a wrapper may share the defaults of the optimizer inside it
    if not isinstance(attachment, Attachment) or not any(optimizer is other for other in attachment.optimizers()):
        return None
    attachment.attach(optimizer)
    return attachment


def _is_zero(kappa: float | Tensor) -> bool:
    return not isinstance(kappa, Tensor) and kappa == 0.0


def _hooked_levels(optimizer: Optimizer) -> int:
    """How many classes of an optimizer run its step hooks around their own ``step``."""
    return sum(getattr(vars(cls).get("step"), "hooked", False) for cls in type(optimizer).__mro__)
