"""The only gather of the optimizers: the tensor lists of a step, checked and kept for the next one."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_ire.packed_mask import num_bytes
from torch_ire.packed_state import is_packable
from torch_ire.sharding import are_plain, local_part, local_part_like
from torch_ire.steps.schedule import Group, on_device
from torch_ire.steps.state_layout import state_dtype
from torch_ire.steps.tensor_lists import TensorLists, dense_gradient
from torch_ire.steps.update_rules import UpdateRule, state_keys

RuleOf = Callable[[Mapping[str, Any]], UpdateRule]


@torch.no_grad()
def create_state(groups: Sequence[Group], state: Mapping[Tensor, dict[str, Any]], rule_of: RuleOf) -> None:
    """Creates the state that a step needs for every parameter with a mask.

    A mask without moments would look like complete state to the base optimizer that loads it.
    """
    for group in groups:
        masked = [(i, p, local_part(p)) for i, p in enumerate(group["params"]) if "flat_mask" in state.get(p, {})]
        _plan(group, 0, rule_of(group), masked, state)


@dataclass
class _GroupPlan:
    """The lists of a group, and the tensors and keys that they were built from."""

    first: int  # position of the first parameter in the optimizer
    params: list[Tensor]
    resting: list[Tensor]  # without a gradient
    keys: dict[torch.dtype, tuple[str, ...]]
    lists: list[TensorLists]
    # per lists: dtype, number of state keys of all entries, addresses of parameters and state, strides of parameters
    dtypes: list[torch.dtype]
    sizes: list[int]
    addresses: list[list[int]]
    strides: list[list[tuple[int, ...]]]
    # per lists: ids of the state tensors by key, and lengths of the packed tensors; the tensors belong to the state
    columns: list[dict[str, list[int]]]
    packed: list[dict[str, int]]

    @classmethod
    def of(
        cls, group: Group, first: int, keys: dict[torch.dtype, tuple[str, ...]], lists: list[TensorLists]
    ) -> _GroupPlan:
        stepping = {id(param) for some in lists for param in some.params_of_group}
        return cls(
            first,
            list(group["params"]),
            [param for param in group["params"] if id(param) not in stepping],
            keys,
            lists,
            [some.dtype for some in lists],
            [sum(map(len, some.entries)) for some in lists],
            [_addresses(some) for some in lists],
            [list(map(Tensor.stride, some.params)) for some in lists],
            [{key: list(map(id, column)) for key, column in some.columns.items()} for some in lists],
            [{key: tensor.numel() for key, tensor in some.packed.items()} for some in lists],
        )

    def take_gradients(self, group: Group, first: int, rule: UpdateRule) -> bool:
        """Reads the present gradients into the lists; ``False`` if the lists no longer describe the group."""
        params = group["params"]
        if first != self.first or any(some.group is not group for some in self.lists):
            return False
        if len(params) != len(self.params) or not all(map(operator.is_, params, self.params)):
            return False
        if not all(map(operator.is_, map(operator.attrgetter("grad"), self.resting), itertools.repeat(None))):
            return False
        if any(state_keys(rule, group, dtype) != keys for dtype, keys in self.keys.items()):
            return False
        return all(map(self._take, range(len(self.lists))))

    def _take(self, i: int) -> bool:
        lists, strides = self.lists[i], self.strides[i]
        if lists.copies or sum(map(len, lists.entries)) != self.sizes[i]:
            return False
        params = lists.params_of_group
        if lists.params is not params and not all(map(operator.is_, map(local_part, params), lists.params)):
            return False
        if set(map(operator.attrgetter("dtype"), params)) != {self.dtypes[i]}:
            return False
        if list(map(Tensor.stride, lists.params)) != strides:
            return False
        for key, ids in self.columns[i].items():
            column: list[Any] = list(map(dict.get, lists.entries, itertools.repeat(key)))
            if lists.params is not params:
                column = list(map(local_part, column))
            if list(map(id, column)) != ids:
                return False
            lists.columns[key] = column
        if _addresses(lists) != self.addresses[i]:
            return False
        for key, length in self.packed[i].items():
            first = lists.columns[key][0]
            lists.packed[key] = first.as_strided((length,), (1,), first.storage_offset())
        grads = list(map(operator.attrgetter("grad"), params))
        if any(map(operator.is_, grads, itertools.repeat(None))):
            return False
        try:
            if not are_plain(params):
                grads = [local_part_like(g, p) for g, p in zip(grads, params, strict=True)]
            if list(map(Tensor.stride, grads)) != strides:
                return False
        except RuntimeError:  # a sparse gradient has no strides; the full check raises the error
            return False
        lists.grads = grads
        return True


def _addresses(lists: TensorLists) -> list[int]:
    return list(map(Tensor.data_ptr, itertools.chain(lists.params, *lists.columns.values())))


class StepPlan:
    """Gathers the tensors of a step and keeps the lists for the next one.

    It looks at every tensor at every step: identity, presence, memory and strides. Lists that still describe their
    group are reused; others are checked in full and built anew. All errors come before the first write.
    """

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
        firsts = list(_firsts(groups))
        same_state = len(state) == len(self._entries) and all(map(operator.is_, state.values(), self._entries))
        kept = {}
        for position, group in enumerate(groups):
            plan = self._plans.get(position)
            if same_state and plan is not None and plan.take_gradients(group, firsts[position], rule_of(group)):
                kept[position] = plan
        if len(kept) < len(groups) or sum(len(plan.lists) for plan in kept.values()) > 1:
            # one call checks its own lists before its first write; the first of several would write before the others
            for plan in kept.values():
                for lists in plan.lists:
                    lists.check_gradients(owner)
        if len(kept) < len(groups):
            found = {
                position: _examined(owner, enumerate(group["params"], firsts[position]), state, rule_of(group))
                for position, group in enumerate(groups)
                if position not in kept
            }
            for position, members in found.items():
                group = groups[position]
                kept[position] = _plan(group, firsts[position], rule_of(group), members, state)
            self._plans = kept
            self._entries = list(state.values())
        return [lists for position in range(len(groups)) for lists in kept[position].lists]

    def release(self) -> None:
        """Drops the gradients, and the copies of parameters with gaps in memory, which no later step reads."""
        for position, plan in list(self._plans.items()):
            for lists in plan.lists:
                lists.release()
            if any(lists.copies for lists in plan.lists):
                del self._plans[position]

    def forget(self) -> None:
        """Drops all lists, which would keep replaced state alive until the next step."""
        self._plans.clear()
        self._entries.clear()


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
    return _plan(group, 0, rule, _examined(owner, members, state, rule), state).lists


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
            continue  # of another half type: replaced by a new one
        got = (local.dtype, tuple(local.shape), local.device)
        if got != expected:
            words = [", ".join(map(str, some)) for some in (expected, got)]
            raise RuntimeError(f"{where}: expected {words[0]}, got {words[1]}")
    missing = [key for key in rule.moment_keys if key not in entry]
    if 0 < len(missing) < len(rule.moment_keys):
        raise RuntimeError(f"{owner}: state of params[{index}] has no {', '.join(missing)} beside the other moments")


def _plan(
    group: Group,
    first: int,
    rule: UpdateRule,
    members: Sequence[tuple[int, Tensor, Tensor]],
    state: Mapping[Tensor, dict[str, Any]],
) -> _GroupPlan:
    by_kind: dict[tuple[torch.device, torch.dtype, bool], TensorLists] = {}
    keys: dict[torch.dtype, tuple[str, ...]] = {}
    for index, param, grad in members:
        part = local_part(param)
        # a call takes all of its state packed, or none
        kind = (part.device, param.dtype, is_packable(part) or on_device(group))
        needed = keys.setdefault(param.dtype, state_keys(rule, group, param.dtype))
        # SGD without momentum has no state, and gets no empty entry either
        entry = state[param] if needed or param in state else {}
        by_kind.setdefault(kind, TensorLists(group)).add(index, param, grad, entry)
    lists = list(by_kind.values())
    for some in lists:
        some.collect_state(keys[some.dtype], repack=len(members) == len(group["params"]))
        if not some.copies and are_plain(some.params_of_group):
            some.params = some.params_of_group
    return _GroupPlan.of(group, first, keys, lists)
