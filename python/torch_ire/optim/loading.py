"""Loads state dicts into optimizers whose state has dtypes of its own.

``torch.optim.Optimizer.load_state_dict`` casts every state tensor but ``step`` to the parameter's dtype, which would
ruin packed masks and the float32 moments of half-precision parameters. :func:`read` takes those tensors out of the
state dict, and checks and converts all of them before torch changes anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_ire.dtensors import is_dtensor
from torch_ire.layouts import is_dense
from torch_ire.packed_mask import follow_layout, num_bytes, pack
from torch_ire.sampled_loss import LabelGenerator
from torch_ire.sharding import local_part, part_of_full, same_placement, wrapped_like
from torch_ire.steps.projected import with_curvatures
from torch_ire.steps.schedule import COUNTERS
from torch_ire.steps.state_layout import ROUNDING_STATE_KEYS, state_dtype
from torch_ire.steps.tensor_lists import new_state

_SCALARS = ("step", "hessian_diag_updates")
# State tensors whose dtype differs from torch's rule, the dtype of the parameter.
DECLARED = ("step", "flat_mask", "hessian_diag", "hessian_diag_updates", *ROUNDING_STATE_KEYS)
# Group keys that loading keeps: they describe this process and this class, not the saved run.
_PROCESS_OPTIONS = ("capturable", "decoupled_weight_decay")


@dataclass(frozen=True)
class Loaded:
    """A state dict that has been checked and converted."""

    #: without the converted tensors, for ``torch.optim.Optimizer.load_state_dict``
    for_torch: dict[str, Any]
    #: converted state per parameter, on its device and in its layout
    tensors: dict[Tensor, dict[str, Tensor]]


def read(
    state_dict: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
    keys: Iterable[str],
    owner: str,
    required: Mapping[int, Sequence[str]] | None = None,
) -> Loaded:
    """Checks a state dict and converts its tensors; changes nothing.

    Args:
        state_dict: With groups as :func:`completed_groups` returns them.
        groups: The groups that it is loaded into.
        keys: The state tensors to convert.
        owner: Name for messages.
        required: Per group, the keys that an entry has either all or none of.

    Raises:
        ValueError: A value does not fit its parameter.
    """
    keys = tuple(dict.fromkeys(keys))
    entries = _by_position(state_dict)
    tensors: dict[Tensor, dict[str, Tensor]] = {}
    position = 0
    for number, group in enumerate(groups):
        members = {}
        for param in group["params"]:
            if position in entries:
                _check_entry(owner, position, entries[position], param, keys, (required or {}).get(number, ()))
                members[param] = entries[position]
            position += 1
        for key in keys:
            _convert(key, members, tensors, packed=not group.get("capturable", group.get("ire_capturable")))
    for group in state_dict["param_groups"]:
        _check_counters(owner, group)
    ids = {i for group in state_dict["param_groups"] for i in group["params"]}
    state = {
        i: {k: v for k, v in entry.items() if k not in keys} if i in ids else entry
        for i, entry in state_dict["state"].items()
    }
    return Loaded({**state_dict, "state": state}, tensors)


def _check_entry(
    owner: str, position: int, entry: Mapping[str, Any], param: Tensor, keys: Sequence[str], required: Sequence[str]
) -> None:
    where = f"{owner}.load_state_dict: state[{position}]"
    for key in keys:
        value = entry.get(key)
        if value is None:
            continue
        if key in _SCALARS:
            number = value if isinstance(value, Tensor) else _as_number(value)
            if number is None or (isinstance(number, Tensor) and (number.numel() != 1 or number.is_meta)):
                raise ValueError(f"{where}[{key!r}]: expected one number, got {_described(value)}")
            continue
        if not isinstance(value, Tensor) or value.is_meta or value.layout is not torch.strided:
            raise ValueError(f"{where}[{key!r}]: expected a dense tensor with values, got {_described(value)}")
        bits = (num_bytes(local_part(param).numel()),)
        if value.shape != param.shape and not (_is_packed(key, value) and value.shape == bits):
            raise ValueError(
                f"{where}[{key!r}]: expected shape {tuple(param.shape)} of the parameter, got {tuple(value.shape)}"
            )
    present = [key for key in required if entry.get(key) is not None]
    if present and len(present) < len(required):
        missing = ", ".join(key for key in required if key not in present)
        raise ValueError(f"{where}: {missing} is missing beside {', '.join(present)}")


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}, {value.layout}, on {value.device}"
    return f"{type(value).__name__} {value!r:.40}"


def _as_number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _check_counters(owner: str, group: Mapping[str, Any]) -> None:
    for key, least in {"ire_step": 0, "ire_mask_step": -1, "ire_max_lr": 0, "ire_label_offset": 0}.items():
        value = group.get(key, COUNTERS[key])
        value = float(value) if isinstance(value, Tensor) and value.numel() == 1 and not value.is_meta else value
        number = _as_number(value)
        if number is None or number < least:
            raise ValueError(f"{owner}.load_state_dict: {key}: expected a number of at least {least}, got {value!r}")
    if not isinstance(group.get("ire_label_seed", 0), int):
        raise ValueError(
            f"{owner}.load_state_dict: ire_label_seed: expected an integer, got {group['ire_label_seed']!r}"
        )


def _is_packed(key: str, value: Tensor) -> bool:
    return key == "flat_mask" and value.dtype == torch.uint8 and value.dim() == 1


def _convert(
    key: str, entries: Mapping[Tensor, Mapping[str, Any]], tensors: dict[Tensor, dict[str, Tensor]], *, packed: bool
) -> None:
    """Copies one state tensor of a group's parameters to their devices, in its declared dtype."""
    kinds: dict[Any, list[Tensor]] = {}
    for param, entry in entries.items():
        if entry.get(key) is not None:
            kinds.setdefault((local_part(param).device, param.dtype), []).append(param)
    for (_, dtype), params in kinds.items():
        parts = [part if is_dense(part) else torch.empty_like(part) for part in map(local_part, params)]
        if key == "hessian_diag_updates":
            fresh = [torch.zeros((), dtype=torch.float32, device="cpu") for _ in parts]
        else:
            fresh = new_state(key, parts, state_dtype(key, dtype), packed=packed)
        for param, part, tensor in zip(params, parts, fresh, strict=True):
            value = entries[param][key]
            if key in _SCALARS:
                number = value if isinstance(value, Tensor) else torch.tensor(float(value), device="cpu")
                tensor.copy_(number.reshape(()))
            elif key == "flat_mask":
                tensor.copy_(value if _is_packed(key, value) else _packed_bits(value, param, part))
                follow_layout(tensor, part)
            else:
                tensor.copy_(_local_value(value, param))
                tensor = wrapped_like(tensor, param)
            tensors.setdefault(param, {})[key] = tensor


def _packed_bits(value: Tensor, param: Tensor, part: Tensor) -> Tensor:
    flags = torch.empty_like(part, dtype=torch.bool)
    return pack(flags.copy_(_local_value(value, param)))


def _by_position(state_dict: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    # ids of a state dict are positions in its own groups
    ids = [i for group in state_dict["param_groups"] for i in group["params"]]
    return {position: state_dict["state"][i] for position, i in enumerate(ids) if i in state_dict["state"]}


def _local_value(value: Tensor, param: Tensor) -> Tensor:
    """The local part of a loaded tensor: a plain one, or a ``DTensor`` in the parameter's or other placements."""
    if not is_dtensor(value):
        return part_of_full(value, param)
    if is_dtensor(param) and same_placement(value, param):
        return local_part(value)
    return part_of_full(value.full_tensor(), param)  # type: ignore[attr-defined]


def completed_groups(
    state_dict: Mapping[str, Any], current: Sequence[Mapping[str, Any]], process_options: Iterable[str]
) -> list[dict[str, Any]]:
    """Saved groups; keys that a checkpoint of the base optimizer lacks come from the current groups.

    State follows the names of the parameters if both have them, in any order. The schedule continues from the base
    optimizer's step count if there is one.

    Args:
        state_dict: The state dict.
        current: The groups that it is loaded into.
        process_options: Keys that describe how this process runs the step, which stay as they are.
    """
    completed = []
    for old, new in zip(state_dict["param_groups"], current, strict=True):
        group = {**{k: v for k, v in new.items() if k != "params"}, **_in_order_of(old, new)}
        if "ire_step" not in old:
            entries = [state_dict["state"][i] for i in old["params"] if i in state_dict["state"]]
            steps = [entry.get("step", 0) for entry in entries]
            plain = [s for s in steps if _as_number(s) is not None or (isinstance(s, Tensor) and s.numel() == 1)]
            group["ire_step"] = max((int(s) for s in plain if not getattr(s, "is_meta", False)), default=0)
            group["ire_mask_step"] = -1
        for key in process_options:
            group.pop(key, None)
            group.update({key: new[key]} if key in new else {})
        completed.append(group)
    return completed


def _in_order_of(old: Mapping[str, Any], current: Mapping[str, Any]) -> Mapping[str, Any]:
    """A saved group with its parameters in the order of the current one, if both have the same names."""
    names, ours = old.get("param_names"), current.get("param_names")
    if not names or not ours or names == ours or sorted(names) != sorted(ours):
        return old
    ids = dict(zip(names, old["params"], strict=True))
    return {**old, "params": [ids[name] for name in ours], "param_names": list(ours)}


def take_label_position(groups: Iterable[Any], labels: LabelGenerator) -> None:
    """Moves a label generator to the position of a loaded checkpoint, and removes the position from the groups.

    A checkpoint from before the first draw has no position: the generator starts over from its seed.
    """
    if labels.used:
        labels.manual_seed(labels.state_dict()["seed"])
    for group in groups:
        seed, offset = (int(group.get(f"ire_label_{key}", 0)) for key in ("seed", "offset"))
        group.update({"ire_label_seed": 0, "ire_label_offset": 0})
        if offset > 0:
            labels.load_state_dict({"seed": seed, "offset": offset})


def load(optimizer: Any, state_dict: Mapping[str, Any], load_by_torch: Callable[[dict[str, Any]], None]) -> None:
    """Loads a state dict into an optimizer of this library; see :meth:`AdmIRE.load_state_dict`.

    Args:
        optimizer: An ``IREOptimizer``, which imports this module.
        state_dict: The state dict.
        load_by_torch: ``torch.optim.Optimizer.load_state_dict`` of the optimizer, which runs the hooks of users.
    """
    curvatures = [group["curvature"] for group in optimizer.param_groups]
    found: list[Loaded] = []

    def take_out(_: torch.optim.Optimizer, loaded: dict[str, Any]) -> dict[str, Any]:
        if len(loaded["param_groups"]) != len(optimizer.param_groups):
            return loaded  # torch raises before it changes anything
        groups = completed_groups(loaded, optimizer.param_groups, _PROCESS_OPTIONS)
        whole = with_curvatures(groups, curvatures)
        for group in whole:
            optimizer._check_group(group)
        rules = [optimizer._rule(group) for group in whole]
        keys = (*DECLARED, *(key for rule in rules for key in rule.moment_keys))
        required = {i: ("step", *rule.moment_keys) for i, rule in enumerate(rules) if len(rule.moment_keys) > 1}
        ours = {**loaded, "param_groups": groups}
        found.append(read(ours, optimizer.param_groups, keys, type(optimizer).__name__, required))
        return found[0].for_torch

    def put_back(_: torch.optim.Optimizer) -> None:
        for param, tensors in found[0].tensors.items():
            optimizer.state[param].update(tensors)
        # after torch has copied the groups: a projector stays the same object
        for group, curvature in zip(optimizer.param_groups, curvatures, strict=True):
            if group["curvature"] == "projector":
                group["curvature"] = curvature

    before = optimizer.register_load_state_dict_pre_hook(take_out)
    after = optimizer.register_load_state_dict_post_hook(put_back, prepend=True)
    try:
        load_by_torch(dict(state_dict))
    finally:
        before.remove()
        after.remove()
    take_label_position(optimizer.param_groups, optimizer.label_generator)
    optimizer._masks.thresholds.clear()
    optimizer._plan.forget()
