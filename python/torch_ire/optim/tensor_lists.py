"""The tensors of a step: one list per state key for each group, device and dtype, kept from step to step.

:class:`StepPlan` is the only gather of the optimizers. It looks at every tensor at every step: identity, presence,
memory and strides. Lists that still describe their group are reused; others are checked in full and built anew. All
errors come before the first write.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torch_ire.counter_rng import as_int64, mix64
from torch_ire.layouts import is_dense, laid_out_like
from torch_ire.optim.schedule import Group, on_device
from torch_ire.optim.update_rules import UpdateRule, state_dtype, state_keys
from torch_ire.packed_mask import empty_mask, num_bytes
from torch_ire.packed_state import packed_mask_views, packed_numel, packed_views, segment_numel
from torch_ire.sharding import (
    are_plain,
    first_coordinate,
    is_whole,
    local_part,
    local_part_like,
    mark_local_writes,
    wrapped_like,
)

# State that is no tensor in the parameter's shape, and plain beside a ``DTensor`` too.
_PLAIN = ("step", "flat_mask")

RuleOf = Callable[[Mapping[str, Any]], UpdateRule]


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
    # local state tensors by key, and the packed tensor that holds all of a key's, if every key has one
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
        for param in self.params_of_group:
            dense_gradient(param, owner)

    def finish(self) -> None:
        """Copies dense copies back, and advances the versions of sharded parameters."""
        for part, dense in self.copies:
            part.copy_(dense)
        mark_local_writes(self.params_of_group)

    def release(self) -> None:
        """Drops the gradients, which the lists would keep alive between steps."""
        self.grads, self.restore_from = [], []

    # -- building ----------------------------------------------------------------------------------------------------

    def collect_state(self, keys: Sequence[str]) -> None:
        """Creates the state that is missing, and lists all of it."""
        for key in keys:
            self._create(key)
            self.columns[key] = [self._laid_out(key, i) for i in range(len(self.params))]
        masks = [entry.get("flat_mask") for entry in self.entries]
        if any(mask is not None for mask in masks):
            pairs = zip(self.params, masks, strict=True)
            self.columns["flat_mask"] = [empty_mask(part) if mask is None else mask for part, mask in pairs]
        if len(self.params) > 1 and self.columns:
            packed = {key: _packed_tensor(key, column, self.params) for key, column in self.columns.items()}
            if all(tensor is not None for tensor in packed.values()):
                self.packed = {key: tensor for key, tensor in packed.items() if tensor is not None}

    def _create(self, key: str) -> None:
        """Makes a state tensor for the parameters that lack it; views of one packed tensor unless addresses must last.

        A captured graph holds the addresses of its state, and a compiler handles views of one tensor badly.
        """
        dtype = state_dtype(key, self.dtype)
        entries = enumerate(self.entries)
        # a compensation of another half type is of no use
        missing = [i for i, e in entries if key not in e or (key == "compensation" and e[key].dtype != dtype)]
        parts = [self.params[i] for i in missing]
        for i, tensor in zip(missing, new_state(key, parts, dtype, packed=not on_device(self.group)), strict=True):
            if key == "master_param":
                tensor.copy_(self.params[i])
            elif key == "step" and "momentum_buffer" in self.entries[i]:
                tensor += 1  # from torch.optim.SGD, which does not count: this is not the first step
            self.entries[i][key] = tensor if key in _PLAIN else wrapped_like(tensor, self.params_of_group[i])

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
        dtype: Of the new tensors.
        packed: Views of one packed tensor, see :mod:`torch_ire.packed_state`, instead of one allocation each.

    Returns:
        One tensor per parameter, in its layout.
    """
    if not parts:
        return []
    device = parts[0].device
    if not packed or len(parts) == 1:
        if key == "step":
            return [torch.zeros((), dtype=dtype, device=device) for _ in parts]
        if key == "flat_mask":
            return [empty_mask(part) for part in parts]
        return [torch.zeros_like(part, dtype=dtype, memory_format=torch.preserve_format) for part in parts]
    if key == "step":
        return list(torch.zeros(len(parts), dtype=dtype, device=device).unbind())
    sizes = [num_bytes(part.numel()) if key == "flat_mask" else part.numel() for part in parts]
    flat = torch.zeros(packed_numel(sizes, dtype.itemsize), dtype=dtype, device=device)
    return packed_mask_views(flat, parts) if key == "flat_mask" else packed_views(flat, parts)


def _packed_tensor(key: str, column: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor | None:
    """The packed tensor whose segments a column's tensors are, if they are."""
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


# -- the plan --------------------------------------------------------------------------------------------------------


def create_state(groups: Sequence[Group], state: Mapping[Tensor, dict[str, Any]], rule_of: RuleOf) -> None:
    """Creates the state that a step needs for every parameter with a mask.

    A mask without moments would look like complete state to the base optimizer that loads it.
    """
    for group in groups:
        masked = [(i, p, local_part(p)) for i, p in enumerate(group["params"]) if "flat_mask" in state.get(p, {})]
        _plan(group, rule_of(group), masked, state)


@dataclass
class _GroupPlan:
    """The lists of a group, and what they were built from."""

    params: list[Tensor]
    resting: list[Tensor]  # without a gradient
    keys: dict[torch.dtype, tuple[str, ...]]
    lists: list[TensorLists]
    # per lists: number of state keys of all entries, addresses of parameters and state, strides of the parameters
    sizes: list[int]
    addresses: list[list[int]]
    strides: list[list[tuple[int, ...]]]

    @classmethod
    def of(cls, group: Group, keys: dict[torch.dtype, tuple[str, ...]], lists: list[TensorLists]) -> _GroupPlan:
        stepping = {id(param) for some in lists for param in some.params_of_group}
        return cls(
            list(group["params"]),
            [param for param in group["params"] if id(param) not in stepping],
            keys,
            lists,
            [sum(map(len, some.entries)) for some in lists],
            [_addresses(some) for some in lists],
            [list(map(Tensor.stride, some.params)) for some in lists],
        )

    def take_gradients(self, group: Group, rule: UpdateRule) -> bool:
        """Reads the present gradients into the lists; ``False`` if the lists no longer describe the group."""
        params = group["params"]
        if len(params) != len(self.params) or not all(map(operator.is_, params, self.params)):
            return False
        if not all(map(operator.is_, map(operator.attrgetter("grad"), self.resting), itertools.repeat(None))):
            return False
        if any(state_keys(rule, group, dtype) != keys for dtype, keys in self.keys.items()):
            return False
        return all(map(self._take, self.lists, self.sizes, self.addresses, self.strides))

    def _take(self, lists: TensorLists, size: int, addresses: list[int], strides: list[tuple[int, ...]]) -> bool:
        if lists.copies or sum(map(len, lists.entries)) != size:
            return False
        for key, column in lists.columns.items():
            kept = map(dict.get, lists.entries, itertools.repeat(key))
            if are_plain(column) and lists.params is lists.params_of_group:
                if not all(map(operator.is_, kept, column)):
                    return False
            elif not all(a is not None and local_part(a) is b for a, b in zip(kept, column, strict=True)):
                return False
        if _addresses(lists) != addresses:
            return False
        grads = list(map(operator.attrgetter("grad"), lists.params_of_group))
        if any(map(operator.is_, grads, itertools.repeat(None))):
            return False
        try:
            if not are_plain(lists.params_of_group):
                grads = [local_part_like(g, p) for g, p in zip(grads, lists.params_of_group, strict=True)]
            if list(map(Tensor.stride, grads)) != strides:
                return False
        except RuntimeError:  # a sparse gradient has no strides; the full look says so
            return False
        lists.grads = grads
        return True


def _addresses(lists: TensorLists) -> list[int]:
    return list(map(Tensor.data_ptr, itertools.chain(lists.params, *lists.columns.values())))


class StepPlan:
    """Gathers the tensors of a step and keeps the lists for the next one."""

    def __init__(self) -> None:
        self._plans: dict[int, _GroupPlan] = {}
        self._entries: list[Any] = []

    def gather(
        self,
        owner: str,
        groups: Sequence[Group],
        state: Mapping[Tensor, dict[str, Any]],
        rule_of: RuleOf,
    ) -> list[TensorLists]:
        """The lists of all parameters with a gradient.

        Args:
            owner: Name for messages.
            groups: The parameter groups.
            state: The optimizer's state; missing state is created.
            rule_of: The update rule of a group.

        Raises:
            RuntimeError: A gradient or a state tensor does not fit its parameter. Nothing has been changed then.
        """
        same_state = len(state) == len(self._entries) and all(map(operator.is_, state.values(), self._entries))
        kept = {}
        for position, group in enumerate(groups):
            plan = self._plans.get(position)
            if same_state and plan is not None and plan.take_gradients(group, rule_of(group)):
                kept[position] = plan
        if len(kept) < len(groups) or sum(len(plan.lists) for plan in kept.values()) > 1:
            # one call checks its own lists before its first write; the first of several would write before the others
            for plan in kept.values():
                for lists in plan.lists:
                    lists.check_gradients(owner)
        if len(kept) < len(groups):
            found = {
                position: _examined(owner, enumerate(group["params"], first), state, rule_of(group))
                for first, (position, group) in zip(_firsts(groups), enumerate(groups), strict=True)
                if position not in kept
            }
            for position, members in found.items():
                kept[position] = _plan(groups[position], rule_of(groups[position]), members, state)
            self._plans = kept
            self._entries = list(state.values())
        return [lists for position in range(len(groups)) for lists in kept[position].lists]


def _firsts(groups: Sequence[Group]) -> Iterator[int]:
    return itertools.accumulate((len(group["params"]) for group in groups[:-1]), initial=0)


def plan_group(
    owner: str,
    group: Group,
    members: Iterable[tuple[int, Tensor]],
    state: Mapping[Tensor, dict[str, Any]],
    rule: UpdateRule,
) -> list[TensorLists]:
    """The lists of some parameters of a group, gathered for this step alone.

    Args:
        owner: Name for messages.
        group: The group.
        members: Positions in the optimizer, and parameters.
        state: The optimizer's state; missing state is created.
        rule: The update rule of the group.

    Raises:
        RuntimeError: A gradient or a state tensor does not fit its parameter. Nothing has been changed then.
    """
    return _plan(group, rule, _examined(owner, members, state, rule), state).lists


def _examined(
    owner: str, members: Iterable[tuple[int, Tensor]], state: Mapping[Tensor, dict[str, Any]], rule: UpdateRule
) -> list[tuple[int, Tensor, Tensor]]:
    """Position, parameter and local gradient of every parameter with a gradient, checked with its present state.

    Raises:
        RuntimeError: A gradient or a state tensor does not fit its parameter.
    """
    found = []
    for index, param in members:
        grad = dense_gradient(param, owner)
        if grad is not None:
            _check_entry(owner, index, param, state.get(param, {}), rule)
            found.append((index, param, grad))
    return found


def _check_entry(owner: str, index: int, param: Tensor, entry: Mapping[str, Any], rule: UpdateRule) -> None:
    part = local_part(param)
    for key, value in entry.items():
        if key not in ("step", "flat_mask", "compensation", "master_param", *rule.moment_keys):
            continue
        where = f"{owner}: state of params[{index}]: {key}"
        if not isinstance(value, Tensor):
            raise RuntimeError(f"{where}: expected a tensor, got {type(value).__name__}")
        local = local_part(value)
        expected: tuple[Any, ...] = (state_dtype(key, param.dtype), tuple(part.shape), part.device)
        if key == "step":
            expected = (torch.float32, tuple(value.shape) if value.numel() == 1 else (), value.device)
            expected = (*expected[:2], value.device if value.device.type == "cpu" else part.device)
        elif key == "flat_mask":
            expected = (torch.uint8, (num_bytes(part.numel()),), part.device)
        elif key == "compensation" and value.dtype != param.dtype:
            continue  # of another half type: made anew
        got = (local.dtype, tuple(local.shape), local.device)
        if got != expected:
            words = [", ".join(map(str, some)) for some in (expected, got)]
            raise RuntimeError(f"{where}: expected {words[0]}, got {words[1]}")
    missing = [key for key in rule.moment_keys if key not in entry]
    if 0 < len(missing) < len(rule.moment_keys):
        raise RuntimeError(f"{owner}: state of params[{index}] has no {', '.join(missing)}, but the other moments")


def _plan(
    group: Group, rule: UpdateRule, members: Sequence[tuple[int, Tensor, Tensor]], state: Mapping[Tensor, dict[str, Any]]
) -> _GroupPlan:
    by_kind: dict[tuple[torch.device, torch.dtype], TensorLists] = {}
    keys: dict[torch.dtype, tuple[str, ...]] = {}
    for index, param, grad in members:
        kind = (local_part(param).device, param.dtype)
        needed = keys.setdefault(param.dtype, state_keys(rule, group, param.dtype))
        # SGD without momentum has no state, and gets no empty entry either
        entry = state[param] if needed or param in state else {}
        by_kind.setdefault(kind, TensorLists(group)).add(index, param, grad, entry)
    lists = list(by_kind.values())
    for some in lists:
        some.collect_state(keys[some.dtype])
        if not some.copies and are_plain(some.params_of_group):
            some.params = some.params_of_group
    return _GroupPlan.of(group, keys, lists)
