"""State dicts that people can read and other tools can reshard: bool masks in the parameter's shape, plain counters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_ire.masks.estimates import ensure_average
from torch_ire.packed_mask import follow_layout, unpack
from torch_ire.packed_state import unpacked
from torch_ire.sampled_loss import LabelGenerator
from torch_ire.sharding import local_part, wrapped_like
from torch_ire.steps.projected import without_projectors
from torch_ire.steps.schedule import plain_counters


def saved(
    state_dict: dict[str, Any],
    params: Sequence[Tensor],
    groups: Iterable[Mapping[str, Any]],
    labels: LabelGenerator,
) -> dict[str, Any]:
    """The state dict as a checkpoint holds it: readable masks, plain counters, the position of the labels.

    A ``DTensor`` parameter has a ``DTensor`` mask. A parameter with state but without a mask or an average so far gets
    an empty one, so that a state dict has the same keys at every step: checkpoint tools load only the keys of a fresh
    optimizer. ``capturable`` describes the process, not the run, so it is saved as ``False``.

    Args:
        state_dict: As ``torch.optim.Optimizer.state_dict`` returns it; its dicts are not changed.
        params: The parameters in the order of the groups.
        groups: The groups.
        labels: The generator whose position to save. Its draws mix in the rank, so one position serves all ranks.
    """
    group_of = [group for group in groups for _ in group["params"]]
    state = {
        key: _readable(entry, params[key], group_of[key]) if isinstance(key, int) and key < len(params) else entry
        for key, entry in state_dict["state"].items()
    }
    position = {f"ire_label_{key}": value for key, value in labels.state_dict().items()} if labels.used else {}
    saved_groups = []
    for group in state_dict["param_groups"]:
        plain = {"capturable": False} if "capturable" in group else {}
        saved_groups.append({**group, **plain_counters(group), **position, **plain})
    return without_projectors({**state_dict, "state": state, "param_groups": saved_groups})


def apart(value: Any) -> Any:
    """State without shared memory: ``pickle`` saves all of the memory with each tensor in it."""
    if isinstance(value, dict):
        copied = value.copy()  # the state is a defaultdict
        copied.update((key, apart(inner)) for key, inner in value.items())
        return copied
    if not isinstance(value, Tensor):
        return value
    part = local_part(value)
    alone = unpacked(part)
    return value if alone is part else wrapped_like(alone, value)


def _readable(entry: Mapping[str, Any], param: Tensor, group: Mapping[str, Any]) -> dict[str, Any]:
    entry = {key: value if key == "flat_mask" else apart(value) for key, value in entry.items()}
    packed = entry.get("flat_mask")
    if packed is None and not isinstance(group["curvature"], str):
        return dict(entry)  # a projector needs neither
    part = local_part(param)
    flags = torch.zeros_like(part, dtype=torch.bool) if packed is None else unpack(follow_layout(packed, part), part)
    readable = {**entry, "flat_mask": wrapped_like(flags, param)}
    if group["curvature_beta"] > 0:
        ensure_average(param, readable)
    return readable
