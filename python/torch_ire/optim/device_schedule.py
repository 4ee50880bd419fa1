"""The schedule in tensors: what ``capturable=True`` keeps, so that a replayed or compiled step advances it itself.

Three numbers of a group change from step to step: ``ire_step``, ``ire_mask_step`` and ``ire_max_lr``. On the host they
are plain numbers. A capturable group has ``ire_step`` on its device, where the step adds to it, one tensor for all
groups of an optimizer; ``ire_mask_step`` in host memory, where only refreshes write it; and ``ire_max_lr`` beside a
tensor learning rate. State dicts have plain numbers either way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_ire.optim.sharding import local_part
from torch_ire.packed_mask import empty_mask


def on_device(group: Mapping[str, Any]) -> bool:
    """Whether the group counts its steps in a tensor."""
    return isinstance(group["ire_step"], Tensor)


def step_number(group: Mapping[str, Any]) -> int:
    """The number of the coming step; of a capturable group, one read from the device."""
    return int(group["ire_step"])


def place_schedule(groups: Sequence[dict[str, Any]]) -> None:
    """Puts the counters of capturable groups into tensors, and those of all others into plain numbers.

    Tensors that are there stay: a captured graph has their addresses. Groups at the same step share one counter.
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
                device = params[0].device if params else None
                counters[number] = torch.full((), number, dtype=torch.int64, device=device)
            group["ire_step"] = counters[number]
        else:
            counters.setdefault(step_number(group), group["ire_step"])
        if not isinstance(group["ire_mask_step"], Tensor):
            group["ire_mask_step"] = torch.tensor(group["ire_mask_step"], dtype=torch.int64, device="cpu")
        lr = group["lr"]
        if group["kappa_follows_lr"] and isinstance(lr, Tensor) and not isinstance(group["ire_max_lr"], Tensor):
            # a vector, since Dynamo loses what is written to a float64 number in host memory
            group["ire_max_lr"] = torch.full((1,), group["ire_max_lr"], dtype=lr.dtype, device=lr.device)


def plain_counters(group: Mapping[str, Any]) -> dict[str, Any]:
    """The counters of a group as plain numbers; those that it has."""
    kinds: dict[str, type] = {"ire_step": int, "ire_mask_step": int, "ire_max_lr": float}
    return {key: kind(group[key]) for key, kind in kinds.items() if isinstance(group.get(key), Tensor)}


def with_plain_counters(state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state dict whose groups have plain numbers for counters; its dicts are not changed."""
    groups = [{**group, **plain_counters(group)} for group in state_dict["param_groups"]]
    return {**state_dict, "param_groups": groups}


def advance(groups: Iterable[dict[str, Any]]) -> None:
    """Counts one step, on the device where the counter is there."""
    counters: list[Tensor] = []
    for group in groups:
        if not on_device(group):
            group["ire_step"] += 1
        elif not any(group["ire_step"] is counter for counter in counters):
            counters.append(group["ire_step"])
    for counter in counters:
        counter.add_(1)


def note_refresh(group: dict[str, Any], step: int) -> None:
    """Keeps that the refresh of ``step`` has been made."""
    if isinstance(group["ire_mask_step"], Tensor):
        group["ire_mask_step"].fill_(step)
    else:
        group["ire_mask_step"] = step


def past_warmup(group: Mapping[str, Any]) -> bool:
    """Whether the coming step may be amplified; always so where the device decides, see :func:`gated`."""
    return on_device(group) or bool(group["ire_step"] >= group["warmup_steps"])


def gated(group: Mapping[str, Any], kappa: float | Tensor) -> float | Tensor:
    """Kappa, or 0 before the end of the warm-up, decided on the device where the counter is there."""
    if not on_device(group) or group["warmup_steps"] == 0:
        return kappa
    gate: Tensor = (group["ire_step"] >= group["warmup_steps"]).to(torch.float64)
    return gate * kappa


def ensure_mask(group: Mapping[str, Any], param: Tensor, state: dict[str, Any]) -> None:
    """Gives a parameter of a capturable group its mask, empty at first, so that the address is there to be captured."""
    if on_device(group) and isinstance(group["curvature"], str) and "flat_mask" not in state:
        state["flat_mask"] = empty_mask(local_part(param))


def capturing() -> bool:
    """Whether the current stream records a CUDA graph."""
    return not torch.compiler.is_compiling() and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def check_capture(owner: str, groups: Iterable[Mapping[str, Any]], *, host_decay: bool = False) -> None:
    """Raises ``RuntimeError`` for what a CUDA graph under capture would freeze; elsewhere it costs next to nothing.

    Args:
        owner: Name for messages.
        groups: The groups of the step.
        host_decay: Whether a weight decay that is not amplified is computed on the host.
    """
    if not capturing():
        return
    for group in groups:
        if not on_device(group):
            raise RuntimeError(f"{owner}: captured in a CUDA graph without capturable=True at its construction")
        if not isinstance(group["curvature"], str):
            raise RuntimeError(f"{owner}: a step with an exact projector can't be captured in a CUDA graph")
        for name in ("lr", "kappa"):
            value = group[name]
            if isinstance(value, Tensor) and value.device.type == "cpu" and group["ire_step"].device.type != "cpu":
                raise RuntimeError(
                    f"{owner}: {name} is a tensor in host memory, which a CUDA graph can't follow; put it on "
                    f"{group['ire_step'].device}"
                )
        lr, highest = group["lr"], group["ire_max_lr"]
        if group["kappa_follows_lr"] and isinstance(lr, Tensor) and not isinstance(highest, Tensor):
            raise RuntimeError(f"{owner}: the learning rate has become a tensor; take one step before the capture")
        if host_decay and isinstance(lr, Tensor) and not group["amplify_weight_decay"] and group.get("weight_decay", 0):
            raise RuntimeError(f"{owner}: amplify_weight_decay=False reads a tensor learning rate on the host")


def check_captured_state(owner: str, state: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Raises ``RuntimeError`` where a step under capture would have to make a parameter's state first."""
    missing = [key for key in keys if key not in state]
    if missing and capturing():
        raise RuntimeError(
            f"{owner}: a parameter has no {', '.join(missing)} yet, and a CUDA graph would make it anew in every "
            "replay; take one step before the capture"
        )
