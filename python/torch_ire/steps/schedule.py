"""The IRE schedule of a parameter group: its step counter, its refreshes, and the kappa of a step.

Three numbers of a group change from step to step: ``ire_step``, ``ire_mask_step`` and ``ire_max_lr``. They are plain
numbers on the host. A capturable group, whose step is compiled or replayed from a CUDA graph, keeps ``ire_step`` in a
tensor on its device, shared by all groups at the same step; ``ire_mask_step`` in a tensor in host memory, which only
refreshes write; and ``ire_max_lr`` on the device of a tensor learning rate. State dicts always hold plain numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_ire.sharding import local_part

Group = MutableMapping[str, Any]

# Steps counted so far, the step of the last refresh (-1: none), and the largest learning rate so far. The last two
# hold the position of the label generator in a state dict (offset 0: unused); they are group keys because checkpoint
# tools load only the keys that the groups of a fresh optimizer have.
COUNTERS: dict[str, Any] = {
    "ire_step": 0,
    "ire_mask_step": -1,
    "ire_max_lr": 0.0,
    "ire_label_seed": 0,
    "ire_label_offset": 0,
}
# Curvatures whose mask step() refreshes itself: they need no gradient but the training one.
SELF_REFRESHING = ("second_moment", "random")


# -- counters --------------------------------------------------------------------------------------------------------


def on_device(group: Mapping[str, Any]) -> bool:
    """Whether the group counts its steps in a tensor."""
    return isinstance(group["ire_step"], Tensor)


def step_number(group: Mapping[str, Any]) -> int:
    """The number of the coming step; reads the device for a capturable group."""
    return int(group["ire_step"])


def place_schedule(groups: Sequence[Group]) -> None:
    """Moves the counters of capturable groups into tensors, and those of all other groups into plain numbers.

    Existing tensors stay, since a captured graph holds their addresses. Groups at the same step share one counter.
    """
    counters: dict[int, Tensor] = {}
    for group in groups:
        if not group.get("ire_capturable", group.get("capturable")):
            group.update(plain_counters(group))
            continue
        if not on_device(group):
            number = int(group["ire_step"])
            if number not in counters:
                params = group["params"]
                device = local_part(params[0]).device if params else None
                counters[number] = torch.full((), number, dtype=torch.int64, device=device)
            group["ire_step"] = counters[number]
        else:
            counters.setdefault(step_number(group), group["ire_step"])
        if not isinstance(group["ire_mask_step"], Tensor):
            group["ire_mask_step"] = torch.tensor(group["ire_mask_step"], dtype=torch.int64, device="cpu")
        lr = group.get("lr")
        if group["kappa_follows_lr"] and isinstance(lr, Tensor) and not isinstance(group["ire_max_lr"], Tensor):
            # a vector, since Dynamo loses writes to a float64 number in host memory
            group["ire_max_lr"] = torch.full((1,), group["ire_max_lr"], dtype=lr.dtype, device=lr.device)


def plain_counters(group: Mapping[str, Any]) -> dict[str, Any]:
    """The counters of a group that are tensors, as plain numbers."""
    kinds: dict[str, type] = {"ire_step": int, "ire_mask_step": int, "ire_max_lr": float}
    return {key: kind(group[key]) for key, kind in kinds.items() if isinstance(group.get(key), Tensor)}


def join_schedule(group: Group, first: Group) -> None:
    """Moves a new group to the step of the existing ones; the largest learning rate is the group's own."""
    group["ire_step"], group["ire_mask_step"] = first["ire_step"], int(first["ire_mask_step"])
    place_schedule([first, group] if on_device(first) else [group])


def advance(groups: Iterable[Group]) -> None:
    """Counts one step, on the device if the counter is there."""
    counters: list[Tensor] = []
    for group in groups:
        if not on_device(group):
            group["ire_step"] += 1
        elif not any(group["ire_step"] is counter for counter in counters):
            counters.append(group["ire_step"])
    for counter in counters:
        counter.add_(1)


# -- refreshes -------------------------------------------------------------------------------------------------------


def refreshes_itself(group: Mapping[str, Any]) -> bool:
    """Whether ``step()`` refreshes the group's mask or projector without a call of ``update_mask()``."""
    return not isinstance(group["curvature"], str) or group["curvature"] in SELF_REFRESHING


def asks_for_refresh(group: Mapping[str, Any]) -> bool:
    """Whether ``update_mask()`` refreshes the group's mask; a capturable step cannot branch, so it refreshes none."""
    return not refreshes_itself(group) or (isinstance(group["curvature"], str) and on_device(group))


def refresh_step(group: Mapping[str, Any], number: int | None = None) -> int:
    """The step that a refresh made now belongs to.

    It is the coming step, or the last one for a capturable "second_moment" mask, which is ranked after its step.

    Args:
        group: The group.
        number: Its ``ire_step``, if already read.
    """
    number = step_number(group) if number is None else number
    return number - (on_device(group) and group["curvature"] == "second_moment")


def is_due(group: Mapping[str, Any], number: int | None = None) -> bool:
    """Whether step ``t`` is one of ``T_w, T_w + K, T_w + 2K, ...`` (Algorithm 1) and still lacks its refresh.

    Args:
        group: The group.
        number: Its ``ire_step``, if already read.
    """
    step = refresh_step(group, number)
    since = step - int(group["warmup_steps"])
    return since >= 0 and since % int(group["mask_interval"]) == 0 and int(group["ire_mask_step"]) != step


def note_refresh(group: Group, step: int) -> None:
    """Records that the refresh of ``step`` has been made."""
    if isinstance(group["ire_mask_step"], Tensor):
        group["ire_mask_step"].fill_(step)
    else:
        group["ire_mask_step"] = step


# -- kappa -----------------------------------------------------------------------------------------------------------


def past_warmup(group: Mapping[str, Any]) -> bool:
    """Whether the coming step may be amplified; always true if the device decides, see :func:`enhancement`."""
    return on_device(group) or bool(group["ire_step"] >= group["warmup_steps"])


def track_max_lr(group: Group) -> None:
    """Keeps the largest learning rate of a group whose kappa follows it; called once per step."""
    if not group["kappa_follows_lr"]:
        return
    lr: float | Tensor = group["lr"]
    seen: float | Tensor = group["ire_max_lr"]
    if not isinstance(lr, Tensor):
        group["ire_max_lr"] = max(float(seen), lr)
    elif isinstance(seen, Tensor) and (seen.device, seen.dtype) == (lr.device, lr.dtype):
        # in place: a captured step replays with this memory
        seen.copy_(torch.maximum(seen, lr.detach().reshape(seen.shape)))
    else:
        start = torch.as_tensor(seen, dtype=lr.dtype, device=lr.device)
        group["ire_max_lr"] = torch.maximum(start, lr.detach().reshape(()))


def enhancement(group: Mapping[str, Any]) -> float | Tensor:
    """The kappa of the coming step: kappa, times ``lr / max lr seen`` if it follows the learning rate.

    A tensor learning rate gives a tensor, without a device synchronization, and so does the warm-up of a capturable
    step, which the device ends.
    """
    kappa: float | Tensor = group["kappa"]
    if on_device(group) and group["warmup_steps"] != 0:
        kappa = (group["ire_step"] >= group["warmup_steps"]).to(torch.float64) * kappa
    if not group["kappa_follows_lr"]:
        return kappa
    lr: float | Tensor = group["lr"]
    if isinstance(lr, Tensor):
        seen = torch.as_tensor(group["ire_max_lr"], dtype=lr.dtype, device=lr.device).reshape(lr.shape)
        largest = torch.maximum(seen, lr)
        return kappa * torch.where(largest > 0, lr / largest, torch.ones_like(lr))
    highest = max(float(group["ire_max_lr"]), lr)
    return kappa * (lr / highest) if highest > 0 else kappa


def unamplified_decay(group: Mapping[str, Any]) -> float:
    """``lr weight_decay`` if the decoupled decay of the base step is not amplified, else 0."""
    return 0.0 if group["amplify_weight_decay"] else float(group["lr"]) * float(group.get("weight_decay", 0.0))
