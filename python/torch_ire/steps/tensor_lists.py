"""The tensors of a step: parameters, gradients and one list per state key for each group, device and dtype."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torch_ire.counter_rng import as_int64, mix64
from torch_ire.layouts import is_dense, laid_out_like
from torch_ire.packed_mask import empty_mask, follow_layout, note_layout, num_bytes
from torch_ire.packed_state import is_packable, packed_mask_views, packed_numel, packed_views, segment_numel
from torch_ire.sharding import (
    first_coordinate,
    is_whole,
    local_part,
    local_part_like,
    mark_local_writes,
    wrapped_like,
)
from torch_ire.steps.schedule import Group, on_device
from torch_ire.steps.state_layout import state_dtype

# State without the parameter's shape; a plain tensor for a ``DTensor`` parameter too.
_PLAIN = ("step", "flat_mask")


def indexed_parameters(groups: Iterable[Group]) -> Iterator[tuple[int, Group, Tensor]]:
    """All parameters with their position in the optimizer, which is the same on every replica and after a resume."""
    index = 0
    for group in groups:
        for param in group["params"]:
            yield index, group, param
            index += 1


def dense_gradient(param: Tensor, owner: str) -> Tensor | None:
    """The local part of ``param.grad``, or ``None``; raises ``RuntimeError`` if it does not fit its parameter."""
    grad = param.grad
    if grad is None:
        return None
    if grad.layout != torch.strided:
        raise RuntimeError(f"{owner} does not support sparse gradients")
    if grad.dtype != param.dtype:  # torch allows it through `param.grad_dtype`
        raise RuntimeError(f"{owner} expects gradients of the parameter's dtype {param.dtype}, got {grad.dtype}")
    part, local = local_part(param), local_part_like(grad, param)
    if any(size > 1 and stride == 0 for size, stride in zip(part.shape, part.stride(), strict=True)):
        raise RuntimeError(
            f"{owner} expected parameters that do not overlap themselves, got shape {tuple(part.shape)} with strides "
            f"{part.stride()}"
        )
    if local.shape != part.shape:
        raise RuntimeError(
            f"{owner} expects gradients of the parameter's shape {tuple(part.shape)}, got {tuple(local.shape)}"
        )
    if local.device != part.device:
        raise RuntimeError(f"{owner} expects gradients on the parameter's device {part.device}, got {local.device}")
    return local


@dataclass
class TensorLists:
    """The parameters of one group, device and dtype that one operator call updates, with their state.

    Sharded parameters are listed by their local parts; their state stays in ``DTensor`` s.
    """

    group: Group
    # the parameters, their positions in the optimizer and their state
    params_of_group: list[Tensor] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    entries: list[dict[str, Any]] = field(default_factory=list)
    # local and dense: parameters with gaps in memory step through a copy, see `copies`
    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    restore_from: list[Tensor] = field(default_factory=list)
    copies: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    # local state tensors by key; and one packed tensor per key that holds them all, if every key has one
    columns: dict[str, list[Tensor]] = field(default_factory=dict)
    packed: dict[str, Tensor] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters."""
        return self.params[0].dtype

    @property
    def is_packed(self) -> bool:
        """Whether :meth:`column` returns packed tensors."""
        return bool(self.packed)

    def add(self, index: int, param: Tensor, grad: Tensor, entry: dict[str, Any]) -> None:
        """Appends a parameter with its local gradient; ``index`` is its position in the optimizer."""
        part = local_part(param)
        if not is_dense(part):
            dense = torch.empty_like(part).copy_(part)
            self.copies.append((part, dense))
            part = dense
        self.params_of_group.append(param)
        self.params.append(part)
        self.grads.append(laid_out_like(grad, part))
        self.indices.append(index)
        self.entries.append(entry)

    def column(self, key: str) -> list[Tensor]:
        """One state tensor per parameter, in the parameter's layout, or the packed tensor of all."""
        return [self.packed[key]] if self.packed else self.columns[key]

    def flat_masks(self) -> list[Tensor]:
        """The masks as :meth:`column` returns state; empty before the end of the warm-up and without any mask."""
        if "flat_mask" not in self.columns or not (
            on_device(self.group) or self.group["ire_step"] >= self.group["warmup_steps"]
        ):
            return []
        return self.column("flat_mask")

    def rounding_keys(self) -> list[int]:
        """One key per bfloat16 parameter for stochastic rounding, none for every other.

        Shards of a parameter have keys of their own, the same on every rank that holds the same shard.
        """
        if self.group["rounding"] != "stochastic" or self.dtype != torch.bfloat16:
            return []
        keys = [mix64(self.group["seed"], index) for index in self.indices]
        return [
            as_int64(key if is_whole(param) else mix64(key, first_coordinate(param)))
            for key, param in zip(keys, self.params_of_group, strict=True)
        ]

    def check_gradients(self, owner: str) -> None:
        """Raises ``RuntimeError`` for a gradient that the operator would refuse."""
        shape, dtype, device = map(operator.attrgetter, ("shape", "dtype", "device"))
        if not (
            set(map(dtype, self.grads)) == {self.dtype}
            and set(map(device, self.grads)) == {self.params[0].device}
            and all(map(operator.eq, map(shape, self.grads), map(shape, self.params)))
        ):
            for param in self.params_of_group:  # raises in words
                dense_gradient(param, owner)

    def finish(self) -> None:
        """Copies dense copies back, and advances the versions of sharded parameters."""
        for part, dense in self.copies:
            part.copy_(dense)
        mark_local_writes(self.params_of_group)

    def release(self) -> None:
        """Drops the gradients and the state, which the lists would keep alive between steps."""
        self.grads, self.restore_from = [], []
        self.columns, self.packed = {}, {}

    # -- building ----------------------------------------------------------------------------------------------------

    def collect_state(self, keys: Sequence[str], *, repack: bool) -> None:
        """Creates missing state, and fills the columns.

        Args:
            keys: The state that the step needs.
            repack: Whether to pack state that lies apart, as that of copies does.
        """
        created: list[dict[str, Any]] = [{} for _ in self.entries]
        for key in keys:
            self._create(key, created)
        for entry, new in zip(self.entries, created, strict=True):
            entry.update(new)  # all keys of a parameter at once
        for key in keys:
            self.columns[key] = [self._laid_out(key, i) for i in range(len(self.params))]
        masks: list[Any] = [entry.get("flat_mask") for entry in self.entries]
        for mask, part in zip(masks, self.params, strict=True):
            if mask is not None:
                follow_layout(mask, part)
        if any(mask is not None for mask in masks):
            pairs = zip(self.params, masks, strict=True)
            self.columns["flat_mask"] = [empty_mask(part) if mask is None else mask for part, mask in pairs]
        if len(self.params) > 1 and is_packable(self.params[0]) and not on_device(self.group):
            packed = {key: _packed_tensor(key, column, self.params) for key, column in self.columns.items()}
            if (
                repack
                and len({mask is None for mask in masks}) == 1
                and any(tensor is None for tensor in packed.values())
            ):
                packed = {key: self._repacked(key) for key in packed}
            if all(tensor is not None for tensor in packed.values()):
                self.packed = {key: tensor for key, tensor in packed.items() if tensor is not None}

    def _repacked(self, key: str) -> Tensor | None:
        """Moves one state tensor of every parameter into a packed tensor."""
        column = new_state(key, self.params, self.columns[key][0].dtype, packed=True)
        for i, (tensor, old) in enumerate(zip(column, self.columns[key], strict=True)):
            tensor.copy_(old)
            if key == "flat_mask":
                note_layout(tensor, self.params[i])
            self.entries[i][key] = tensor if key in _PLAIN else wrapped_like(tensor, self.params_of_group[i])
        self.columns[key] = column
        return _packed_tensor(key, column, self.params)

    def _create(self, key: str, created: list[dict[str, Any]]) -> None:
        """Creates a state tensor for each parameter that lacks it, as views of one packed tensor.

        A capturable group gets one allocation each: a captured graph holds the addresses of its state, and a compiler
        handles views of one tensor badly.
        """
        dtype = state_dtype(key, self.dtype)
        entries = enumerate(self.entries)
        # a compensation of another half type cannot be used
        missing = [i for i, e in entries if key not in e or (key == "compensation" and e[key].dtype != dtype)]
        parts = [self.params[i] for i in missing]
        for i, tensor in zip(missing, new_state(key, parts, dtype, packed=not on_device(self.group)), strict=True):
            if key == "master_param":
                tensor.copy_(self.params[i])
            elif key == "step" and "momentum_buffer" in self.entries[i]:
                tensor += 1  # from torch.optim.SGD, which does not count: this is not the first step
            created[i][key] = tensor if key in _PLAIN else wrapped_like(tensor, self.params_of_group[i])

    def _laid_out(self, key: str, i: int) -> Tensor:
        tensor = local_part(self.entries[i][key])
        if key in _PLAIN or tensor.stride() == self.params[i].stride():
            return tensor
        tensor = laid_out_like(tensor, self.params[i])
        self.entries[i][key] = wrapped_like(tensor, self.entries[i][key])
        return tensor


def new_state(key: str, parts: Sequence[Tensor], dtype: torch.dtype, *, packed: bool) -> list[Tensor]:
    """Zeros for one state key of some parameters of one dtype and device.

    Args:
        key: "step", "flat_mask", or the key of a tensor in the parameter's shape.
        parts: Local parts of the parameters, dense.
        dtype: The dtype of the new tensors.
        packed: Whether they are views of one packed tensor, see :mod:`torch_ire.packed_state`, or one allocation each.

    Returns:
        One tensor per parameter, in its layout.
    """
    if not parts:
        return []
    small = [part for part in parts if is_packable(part)] if packed else []
    views = iter(_packed_zeros(key, small, dtype) if len(small) > 1 else ())
    return [next(views) if len(small) > 1 and is_packable(part) else _zeros(key, part, dtype) for part in parts]


def _zeros(key: str, part: Tensor, dtype: torch.dtype) -> Tensor:
    if key == "step":
        return torch.zeros((), dtype=dtype, device=part.device)
    if key == "flat_mask":
        return empty_mask(part)
    return torch.zeros_like(part, dtype=dtype, memory_format=torch.preserve_format)


def _packed_zeros(key: str, parts: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    device = parts[0].device
    if key == "step":
        return list(torch.zeros(len(parts), dtype=dtype, device=device).unbind())
    sizes = [num_bytes(part.numel()) if key == "flat_mask" else part.numel() for part in parts]
    flat = torch.zeros(packed_numel(sizes, dtype.itemsize), dtype=dtype, device=device)
    return packed_mask_views(flat, parts) if key == "flat_mask" else packed_views(flat, parts)


def _packed_tensor(key: str, column: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor | None:
    """The packed tensor that has a column's tensors as its segments; ``None`` if there is none."""
    first = column[0]
    storage, itemsize = first.untyped_storage(), first.element_size()
    offset = first.storage_offset()
    for tensor, part in zip(column, parts, strict=True):
        if tensor.storage_offset() != offset or tensor.dtype != first.dtype:
            return None
        if tensor.untyped_storage().data_ptr() != storage.data_ptr():
            return None
        size = num_bytes(part.numel()) if key == "flat_mask" else part.numel()
        offset += 1 if key == "step" else segment_numel(size, itemsize)
    if offset * itemsize > storage.nbytes():
        return None
    length = offset - first.storage_offset()
    return torch.empty(0, dtype=first.dtype, device=first.device).set_(storage, first.storage_offset(), (length,), (1,))
