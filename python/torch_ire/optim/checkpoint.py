"""State dicts: what torch's own conventions leave open for optimizers whose state has dtypes of its own.

``torch.optim.Optimizer.load_state_dict`` casts every state tensor but ``step`` to the parameter's dtype, which would
ruin packed masks and the float32 moments of half-precision parameters. The functions here take those tensors out of the
way of that cast and put them where they belong, and turn masks into what a checkpoint should hold: bool tensors in the
parameter's shape, which people can read and other tools can reshard.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from torch_ire.dtensors import is_dtensor
from torch_ire.optim.estimates import ensure_average
from torch_ire.optim.sharding import lies_like, local_part, part_of_full, wrapped_like
from torch_ire.optim.update_rules import opmath_dtype
from torch_ire.packed_mask import pack, unpack
from torch_ire.sampled_loss import default_label_generator

_SCALARS = ("step", "hessian_diag_updates")


def with_readable_masks(
    state_dict: dict[str, Any], params: Iterable[Tensor], groups: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """The state dict with every packed ``flat_mask`` replaced by a bool tensor of its parameter's shape.

    A ``DTensor`` parameter has a ``DTensor`` mask. A parameter with state but without a mask or an estimate so far gets
    an empty one, so that a state dict has the same keys at every step: checkpointing tools load what they find in that
    of a fresh optimizer.

    Args:
        state_dict: As ``torch.optim.Optimizer.state_dict`` returns it; its dicts are not changed.
        params: The parameters in the order of the groups.
        groups: The groups.
    """
    params = list(params)
    group_of = [group for group in groups for _ in group["params"]]
    state = {key: _readable(entry, params[key], group_of[key]) for key, entry in state_dict["state"].items()}
    return {**state_dict, "state": state}


def _readable(entry: Mapping[str, Any], param: Tensor, group: Mapping[str, Any]) -> dict[str, Any]:
    packed = entry.get("flat_mask")
    if packed is None and not isinstance(group["curvature"], str):
        return dict(entry)  # a projector needs neither
    part = local_part(param)
    flags = torch.zeros_like(part, dtype=torch.bool) if packed is None else unpack(packed, part)
    readable = {**entry, "flat_mask": wrapped_like(flags, param)}
    if group["curvature_beta"] > 0:
        ensure_average(param, readable)
    return readable


def with_label_generator(state_dict: dict[str, Any]) -> dict[str, Any]:
    """The state dict with the position of the default label generator, so that model and optimizer make a whole resume.

    A training loop that passes no generator of its own need not know that there is one. The rank is mixed in at the
    draw, so one position serves all ranks, however many there will be.
    """
    if not default_label_generator.used:
        return state_dict  # its seed is still to be taken from torch's
    position = {f"ire_label_{key}": value for key, value in default_label_generator.state_dict().items()}
    return {**state_dict, "param_groups": [{**group, **position} for group in state_dict["param_groups"]]}


def take_label_generator(groups: Iterable[dict[str, Any]]) -> None:
    """Sets the default label generator to where a loaded checkpoint had it, and takes that note out of the groups."""
    for group in groups:
        seed, offset = (int(group.get(f"ire_label_{key}", 0)) for key in ("seed", "offset"))
        group |= {"ire_label_seed": 0, "ire_label_offset": 0}
        if offset > 0:
            default_label_generator.load_state_dict({"seed": seed, "offset": offset})


def check_state(
    state_dict: Mapping[str, Any], params: list[Tensor], owner: str, keys: Iterable[str] | None = None
) -> None:
    """Raises ``ValueError`` where a tensor of a state dict can't belong to its parameter, before anything is changed.

    ``keys`` are the state tensors that have their parameter's shape; by default all but the counters.
    """
    keys = None if keys is None else set(keys)
    for position, entry in _by_position(state_dict).items():
        if position >= len(params):
            continue  # torch says what is wrong with the groups
        param = params[position]
        for key, value in entry.items():
            shaped = isinstance(value, Tensor) and key not in _SCALARS and (keys is None or key in keys)
            if shaped and value.shape != param.shape:
                raise ValueError(
                    f"{owner}.load_state_dict: state[{position}][{key!r}]: expected shape {tuple(param.shape)} of the "
                    f"parameter, got {tuple(value.shape)}"
                )


def without_tensors(state_dict: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """The state dict without the state tensors that have a dtype of their own; its dicts are not changed."""
    keys = set(keys)
    state = {i: {k: v for k, v in entry.items() if k not in keys} for i, entry in state_dict["state"].items()}
    return {**state_dict, "state": state}


def restored_tensors(
    state_dict: Mapping[str, Any], params: list[Tensor], keys: Iterable[str]
) -> dict[Tensor, dict[str, Tensor]]:
    """The tensors that :func:`without_tensors` left out, copied to each parameter's device in their declared dtypes."""
    keys = set(keys)
    restored: dict[Tensor, dict[str, Tensor]] = {}
    for position, entry in _by_position(state_dict).items():
        param = params[position]
        restored[param] = {
            key: _declared(key, entry[key], param) for key in keys & entry.keys() if entry[key] is not None
        }
    return restored


def _by_position(state_dict: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    # ids of a state dict are positions in its own groups
    ids = [i for group in state_dict["param_groups"] for i in group["params"]]
    return {position: state_dict["state"][i] for position, i in enumerate(ids) if i in state_dict["state"]}


def _declared(key: str, value: Any, param: Tensor) -> Tensor:
    if key in _SCALARS:
        device = param.device if key == "step" else torch.device("cpu")
        return torch.as_tensor(value, dtype=torch.float32).to(device).clone()
    part = local_part(param)
    here = _local_value(value, param)
    if key == "flat_mask":
        flags = torch.empty_like(part, dtype=torch.bool)
        return pack(flags.copy_(here))
    # the parameter's layout, so that the elements of state and parameter meet in memory
    dtype = param.dtype if key == "compensation" else opmath_dtype(param.dtype)
    out = torch.empty_like(part, dtype=dtype, memory_format=torch.preserve_format)
    return wrapped_like(out.copy_(here), param)


def _local_value(value: Tensor, param: Tensor) -> Tensor:
    """The local part of a loaded tensor, which may be whole, sharded as the parameter is, or sharded otherwise."""
    if not is_dtensor(value):
        return part_of_full(value, param)
    if is_dtensor(param) and lies_like(value, param):
        return local_part(value)
    return part_of_full(value.full_tensor(), param)  # type: ignore[attr-defined]


def completed_groups(
    saved: Iterable[Mapping[str, Any]], current: Iterable[Mapping[str, Any]], state_dict: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Saved groups with what they lack (a checkpoint of the base optimizer: the IRE arguments) from the current ones.

    Where both have the names of their parameters, in whatever order, state follows the names. The schedule goes on from
    the base optimizer's step count where there is one.
    """
    completed = []
    for old, new in zip(saved, current, strict=False):
        group = {**{k: v for k, v in new.items() if k != "params"}, **_in_order_of(old, new)}
        if "ire_step" not in old:
            steps = [state_dict["state"][i].get("step", 0) for i in old["params"] if i in state_dict["state"]]
            group["ire_step"] = max((int(step) for step in steps), default=0)
            group["ire_mask_step"] = -1
        completed.append(group)
    return completed


def _in_order_of(saved: Mapping[str, Any], current: Mapping[str, Any]) -> Mapping[str, Any]:
    """A saved group with its parameters in the order of the current one, if they go by the same names."""
    names, ours = saved.get("param_names"), current.get("param_names")
    if not names or not ours or names == ours or sorted(names) != sorted(ours):
        return saved
    ids = dict(zip(names, saved["params"], strict=True))
    return {**saved, "params": [ids[name] for name in ours], "param_names": list(ours)}


__all__ = [
    "check_state",
    "completed_groups",
    "restored_tensors",
    "take_label_generator",
    "with_label_generator",
    "with_readable_masks",
    "without_tensors",
]
