"""The arguments that IRE adds to an optimizer, their checks, and the schedule that they define.

They live in the parameter groups, one value a group, beside the arguments of the base optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from torch_ire.optim.device_schedule import capturing, gated, on_device, place_schedule, step_number

CurvatureName = Literal["fisher", "second_moment", "hutchinson", "random"]
Ranking = Literal["global", "group", "parameter"]
Rounding = Literal["nearest", "stochastic", "kahan", "master"]
Implementation = Literal["native", "reference"]

CHOICES: dict[str, Sequence[Any]] = {
    "curvature": ("fisher", "second_moment", "hutchinson", "random"),
    "ranking": ("global", "group", "parameter"),
    "rounding": ("nearest", "stochastic", "kahan", "master"),
    "skip_nonfinite": (False, True),
    "implementation": (None, "native", "reference"),
}

# Curvatures whose mask step() refreshes by itself: they need no gradient but the training one.
SELF_REFRESHING = ("second_moment", "random")


@runtime_checkable
class Projector(Protocol):
    """What ``curvature=`` takes beside the names: :class:`torch_ire.curvature.FlatProjector`, or anything like it.

    ``amplify_`` gets all parameters of the optimizer that moved, since a projector mixes coordinates.
    """

    def refresh(self) -> Any:
        """Follows the curvature to the present parameters; called where a mask would be refreshed."""

    def amplify_(self, params: Sequence[Tensor], previous: Sequence[Tensor], kappa: float) -> None:
        """Adds ``kappa P (params - previous)`` to the parameters; called after the base step, without gradients."""


# What a group counts: steps of the schedule, the step of its last refresh (-1: none), and the largest learning rate
# so far. The last two are places in a state dict for the position of the default label generator (offset 0: not used);
# they are here because checkpointing tools load what a group of a fresh optimizer has.
COUNTERS: dict[str, Any] = {
    "ire_step": 0,
    "ire_mask_step": -1,
    "ire_max_lr": 0.0,
    "ire_label_seed": 0,
    "ire_label_offset": 0,
}


def ire_defaults(
    *,
    kappa: float | Tensor,
    gamma: float,
    warmup_steps: int,
    mask_interval: int,
    curvature: CurvatureName | Projector,
    curvature_beta: float,
    kappa_follows_lr: bool,
    amplify_weight_decay: bool,
    ranking: Ranking,
    seed: int,
    implementation: Implementation | None,
) -> dict[str, Any]:
    """The IRE part of an optimizer's defaults, counters included."""
    return {**locals(), **COUNTERS}


def check_ire_arguments(group: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` for the first IRE argument of a group that is out of its range."""
    kappa = group["kappa"]
    if isinstance(kappa, Tensor) and kappa.numel() != 1:
        raise ValueError("Tensor kappa must be 1-element")
    if not kappa >= 0.0:
        raise ValueError(f"Invalid kappa value: {kappa}")
    if not 0.0 <= group["gamma"] <= 1.0:
        raise ValueError(f"Invalid gamma value: {group['gamma']}")
    if not (isinstance(group["warmup_steps"], int) and group["warmup_steps"] >= 0):
        raise ValueError(f"Invalid warmup_steps value: {group['warmup_steps']}")
    if not (isinstance(group["mask_interval"], int) and group["mask_interval"] >= 1):
        raise ValueError(f"Invalid mask_interval value: {group['mask_interval']}")
    if not isinstance(group["seed"], int):
        raise ValueError(f"Invalid seed value: {group['seed']}")
    if not 0.0 <= group["curvature_beta"] < 1.0:
        raise ValueError(f"Invalid curvature_beta value: {group['curvature_beta']}")
    if group["curvature_beta"] > 0.0 and refreshes_itself(group):
        kind = group["curvature"]
        raise ValueError(f"curvature_beta is for gradients drawn at a refresh, not for curvature={kind!r}")
    for name, choices in CHOICES.items():
        if name == "curvature" and all(callable(getattr(group[name], part, None)) for part in ("refresh", "amplify_")):
            continue  # an exact projector
        if name in group and not any(group[name] is choice or group[name] == choice for choice in choices):
            known = ", ".join(repr(choice) for choice in choices)
            raise ValueError(f"Invalid {name} value: {group[name]!r} (expected one of {known})")


def refreshes_itself(group: Mapping[str, Any]) -> bool:
    """Whether ``step()`` refreshes the group's mask or projector, and ``update_mask()`` is not called."""
    return not isinstance(group["curvature"], str) or group["curvature"] in SELF_REFRESHING


def asks_for_refresh(group: Mapping[str, Any]) -> bool:
    """Whether the group's mask is refreshed by ``update_mask()``; a capturable step, which can't branch, does none."""
    return not refreshes_itself(group) or (isinstance(group["curvature"], str) and on_device(group))


def refresh_step(group: Mapping[str, Any], number: int | None = None) -> int:
    """The step whose refresh comes now: the coming one, or the last one where its own second moment is ranked after it.

    Args:
        group: The group.
        number: Its ``ire_step`` where that is known; else it is read.
    """
    number = step_number(group) if number is None else number
    return number - (on_device(group) and group["curvature"] == "second_moment")


def is_due(group: Mapping[str, Any], number: int | None = None) -> bool:
    """Whether step ``t`` is one of ``T_w, T_w + K, T_w + 2K, ...`` (Algorithm 1) and its refresh has not been made.

    Args:
        group: The group.
        number: Its ``ire_step`` where that is known; else it is read.
    """
    step = refresh_step(group, number)
    since = step - int(group["warmup_steps"])
    return since >= 0 and since % int(group["mask_interval"]) == 0 and int(group["ire_mask_step"]) != step


def join_schedule(group: dict[str, Any], first: dict[str, Any]) -> None:
    """Brings a new group to the step of those that there are; the largest learning rate seen is a group's own."""
    group["ire_step"], group["ire_mask_step"] = first["ire_step"], int(first["ire_mask_step"])
    place_schedule([first, group] if on_device(first) else [group])


def note_learning_rate(group: dict[str, Any]) -> None:
    """Keeps the largest learning rate, where kappa follows it; called once a step."""
    lr: float | Tensor = group["lr"]
    seen: float | Tensor = group["ire_max_lr"]
    if not group["kappa_follows_lr"]:
        return
    if not isinstance(lr, Tensor):
        group["ire_max_lr"] = max(float(seen), lr)
    elif isinstance(seen, Tensor) and (seen.device, seen.dtype) == (lr.device, lr.dtype):
        # in place: a captured step replays with this memory
        seen.copy_(torch.maximum(seen, lr.detach().reshape(seen.shape)))
    else:
        start = torch.as_tensor(seen, dtype=lr.dtype, device=lr.device)
        group["ire_max_lr"] = torch.maximum(start, lr.detach().reshape(()))


def enhancement(group: Mapping[str, Any]) -> float | Tensor:
    """kappa_eff of a step: kappa, times ``lr / max lr seen`` where it follows the learning rate.

    A tensor learning rate gives a tensor, without a device synchronisation, and so does a warm-up of a capturable step.
    """
    kappa: float | Tensor = gated(group, group["kappa"])
    lr: float | Tensor = group["lr"]
    if not group["kappa_follows_lr"]:
        return kappa
    if isinstance(lr, Tensor):
        seen = torch.as_tensor(group["ire_max_lr"], dtype=lr.dtype, device=lr.device).reshape(lr.shape)
        largest = torch.maximum(seen, lr)
        return kappa * torch.where(largest > 0, lr / largest, torch.ones_like(lr))
    highest = max(float(group["ire_max_lr"]), lr)
    return kappa * (lr / highest) if highest > 0 else kappa


def unamplified_decay(group: Mapping[str, Any]) -> float:
    """The decay, lr weight_decay, where the decoupled one of the base step is not amplified, else 0."""
    return 0.0 if group["amplify_weight_decay"] else float(group["lr"]) * float(group.get("weight_decay", 0.0))


def moves_nothing(groups: Sequence[Mapping[str, Any]]) -> bool:
    """Whether every learning rate is 0, as in the rehearsal step by which checkpointing tools create optimizer state.

    Such a step leaves the parameters alone, so it does not advance the schedule either. A learning rate in device
    memory is not read, nor is any tensor by a step that a compiler traces; one that a CUDA graph records is no
    rehearsal.
    """

    def is_zero(lr: float | Tensor) -> bool:
        if isinstance(lr, Tensor) and (lr.device.type != "cpu" or torch.compiler.is_compiling()):
            return False
        return float(lr) == 0.0

    return not capturing() and all(is_zero(group["lr"]) for group in groups)
