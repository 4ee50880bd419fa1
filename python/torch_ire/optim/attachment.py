"""IRE inside the step hooks of foreign optimizers.

An :class:`Attachment` is what the hooks of the optimizers share; :class:`torch_ire.IRE` is the handle that users hold.
The optimizers own the attachment, which refers to them weakly, so that reference counting frees all three.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from torch_ire.optim.amplification import Amplification
from torch_ire.optim.foreign_groups import ForeignGroup, check_group, pack_loaded
from torch_ire.optim.loading import Loaded, completed_groups, read, take_label_position
from torch_ire.optim.mask_engine import MaskEngine, Targets
from torch_ire.optim.saving import saved
from torch_ire.steps.schedule import (
    join_schedule,
    place_schedule,
    plain_counters,
)

#: key of the attachment in ``Optimizer.defaults``, which copies and pickles take along
KEY = "torch_ire"
STATE_KEYS = ("flat_mask", "hessian_diag", "hessian_diag_updates")
_PROCESS_OPTIONS = ("ire_capturable",)
# in the first group of a state dict: masks of parameters without optimizer state, by number
_PENDING = "ire_pending"


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
        self.amplification = Amplification()
        self._loading: Loaded | None = None

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
        for optimizer in optimizers:
            if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
                # torch restores the rest later, and keeps these hooks, which it does not copy
                Optimizer.__setstate__(optimizer, {"defaults": {}})
            self._register(optimizer)

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
        self._register(optimizer)

    def _register(self, optimizer: Optimizer) -> None:
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
        self._optimizers, self._pending, self.amplification = [], {}, Amplification()

    def complete(self, optimizer: Optimizer) -> None:
        """Gives new groups their arguments and their place in the schedule."""
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
        for param in [param for param in self._pending if param not in owners]:
            del self._pending[param]

        def state_of(param: Tensor) -> dict[str, Any]:
            state: dict[str, Any] | None = owners[param].state.get(param)
            return state if state else self._pending.setdefault(param, {})

        def known_state(param: Tensor) -> Mapping[str, Any]:
            return owners[param].state.get(param) or self._pending.get(param, {})

        groups = [group for optimizer in optimizers for group in self.groups_of(optimizer)]
        return Targets("IRE", groups, state_of, known_state)

    # -- hooks -------------------------------------------------------------------------------------------------------

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._loading = None  # of a load that torch has rejected
        self.amplification.begin(optimizer, self.groups_of(optimizer), self.targets(), self.masks)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            for param in group["params"]:
                if self._pending.get(param) and (param.grad is not None or optimizer.state.get(param)):
                    optimizer.state[param].update(self._pending.pop(param))
        self.amplification.finish(optimizer, self.groups_of(optimizer), self.targets())

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
        state = {**state_dict["state"], **pending}
        if not any(optimizer.state.values()) and any(group["ire_step"] > 0 for group in groups):
            # of an optimizer without state: the same keys at every step, see saved()
            state = {**{i: {} for i in range(len(params))}, **state}
        whole = {**state_dict, "state": state, "param_groups": plain}
        result = saved(whole, params, groups, self.masks.label_generator)
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
        groups = completed_groups(state_dict, optimizer.param_groups, _PROCESS_OPTIONS)
        for group, ours in zip(groups, optimizer.param_groups, strict=True):
            group.pop(KEY, None)
            group.pop(_PENDING, None)
            if group["ire_curvature"] == "projector":
                group["ire_curvature"] = ours["ire_curvature"]
            check_group(type(optimizer), ForeignGroup({**group, "params": ours["params"]}, self._names))
            if not isinstance(group["ire_curvature"], str):
                group["ire_curvature"] = "projector"  # torch copies what it loads
        whole = {**state_dict, "param_groups": groups}
        self._loading = read(whole, optimizer.param_groups, STATE_KEYS, "IRE")
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
        take_label_position(groups, self.masks.label_generator)
        self.masks.thresholds.clear()


def attachment_of(optimizer: Any) -> Attachment | None:
    """The attachment of an optimizer, or ``None``."""
    attachment = getattr(optimizer, "__dict__", {}).get("defaults", {}).get(KEY)
    # a wrapper may share the defaults of the optimizer inside it
    if not isinstance(attachment, Attachment) or not any(optimizer is other for other in attachment.optimizers()):
        return None
    return attachment
