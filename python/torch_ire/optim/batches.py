"""From parameters to lists that an operator takes: one device, one dtype, dense tensors of equal strides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torch_ire.dtensors import is_dtensor
from torch_ire.optim.sharding import (
    are_plain,
    lies_like,
    local_part,
    local_part_like,
    note_mutation,
    wrapped_like,
)
from torch_ire.packed_mask import empty_mask


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill a stretch of memory without gaps or overlaps, in whatever order."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def laid_out_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor itself if its elements lie in memory as those of ``like`` do, else a copy for which they do."""
    return tensor if tensor.stride() == like.stride() else torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)


def moved_to(device: torch.device, tensor: Tensor) -> Tensor:
    """The tensor on a device; the host waits only where it is the host that will read it."""
    return tensor.to(device, non_blocking=device.type != "cpu")


def buffer_for(buffers: dict[Tensor, Tensor], param: Tensor) -> Tensor:
    """Memory for a copy of a parameter's local part, kept from step to step; anew where ``model.to`` changed it."""
    kept = buffers.get(param)
    part = local_part(param)
    fits = (
        kept is not None
        and (kept.shape, kept.dtype, kept.device) == (part.shape, part.dtype, part.device)
        and (kept.stride() == part.stride() or not is_dense(part))
    )
    if kept is None or not fits:
        kept = buffers[param] = torch.empty_like(part)
    return kept


def dense_gradient(param: Tensor, owner: str) -> Tensor | None:
    """The local part of ``param.grad``; ``None`` where there is none, an error if it is sparse or of another dtype."""
    grad = param.grad
    if grad is None:
        return None
    if grad.layout != torch.strided:
        raise RuntimeError(f"{owner} does not support sparse gradients")
    if grad.dtype != param.dtype:  # which torch allows where `param.grad_dtype` says so
        raise RuntimeError(f"{owner} expects gradients of the parameter's dtype {param.dtype}, got {grad.dtype}")
    return local_part_like(grad, param)


@dataclass
class Batch:
    """Parameters of one group, device and dtype that take a step together, with everything the step needs of them.

    Of sharded parameters it holds the local parts; their state stays in ``DTensor`` s.
    An optimistic batch is a whole group put together without a look at each tensor; its operator checks them all.
    """

    group: dict[str, Any]
    optimistic: bool = False
    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    # the parameters themselves, of which `params` are the local parts
    owners: list[Tensor] = field(default_factory=list)
    restore_from: list[Tensor] = field(default_factory=list)
    # parameters with gaps in memory step through a dense copy: (parameter, copy)
    copies: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @classmethod
    def of_whole_group(
        cls, group: dict[str, Any], first: int, states: Mapping[Tensor, dict[str, Any]], keys: Sequence[str]
    ) -> Batch | None:
        """The whole group as one batch, or ``None`` where a gradient or a state tensor is missing or special.

        Whether the tensors share a device, a dtype and a layout is left to the operator, which looks at them anyway.
        """
        params = group["params"]
        grads = [param.grad for param in params]
        if any(grad is None or grad.layout is not torch.strided for grad in grads):
            return None
        batch = cls(group, True, params, grads, [states[param] for param in params])
        batch.owners = params
        if not are_plain(params):
            for param, grad in zip(params, grads, strict=True):
                if is_dtensor(param) != is_dtensor(grad) or (is_dtensor(param) and not lies_like(grad, param)):
                    return None
            batch.params, batch.grads = list(map(local_part, params)), list(map(local_part, grads))
        if not all(map(set(keys).issubset, batch.states)):
            return None
        batch.indices = list(range(first, first + len(params)))
        return batch

    def add(self, index: int, param: Tensor, grad: Tensor, state: dict[str, Any], laid_out: bool | None = None) -> None:
        """Appends one parameter with its local gradient; ``index`` counts the parameters of the optimizer.

        ``laid_out`` says whether the gradient lies in memory as the parameter does, where that is known; Dynamo can't
        always compare the strides of a gradient that is a view.
        """
        self.owners.append(param)
        param = local_part(param)
        if not is_dense(param):
            dense = torch.empty_like(param).copy_(param)
            self.copies.append((param, dense))
            param = dense
        self.params.append(param)
        if laid_out is None:
            grad = laid_out_like(grad, param)
        elif not laid_out:
            grad = torch.empty_like(param).copy_(grad)
        self.grads.append(grad)
        self.states.append(state)
        self.indices.append(index)

    def moments(self, key: str) -> list[Tensor]:
        """One state tensor of every parameter, in the parameter's layout."""
        if self.optimistic:
            tensors = [state[key] for state in self.states]
            return tensors if self.owners is self.params else list(map(local_part, tensors))
        tensors = []
        for param, state in zip(self.params, self.states, strict=True):
            tensor = local_part(state[key])
            if tensor.stride() != param.stride():
                tensor = laid_out_like(tensor, param)
                state[key] = wrapped_like(tensor, state[key])
            tensors.append(tensor)
        return tensors

    def flat_masks(self) -> list[Tensor]:
        """The packed masks; empty if no parameter of the batch has one."""
        masks = [state.get("flat_mask") for state in self.states]
        if all(mask is None for mask in masks):
            return []
        return [empty_mask(p) if mask is None else mask for p, mask in zip(self.params, masks, strict=True)]

    def is_whole_group(self) -> bool:
        """Whether the operator takes the group's parameters, gradients and state just as they are."""
        group_params = self.group["params"]
        return len(self.params) == len(group_params) and all(
            ours is local_part(theirs) and grad is local_part(theirs.grad)
            for ours, grad, theirs in zip(self.params, self.grads, group_params, strict=True)
        )

    def write_back(self) -> None:
        """Brings the results of dense copies home, and tells autograd of sharded parameters that they have changed."""
        for param, dense in self.copies:
            param.copy_(dense)
        if not torch.compiler.is_compiling() and self.owners is not self.params:  # Dynamo of 2.10 can't compare lists
            note_mutation(self.owners)


def indexed_parameters(groups: Iterable[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any], Tensor]]:
    """All parameters with their position in the optimizer, which is the same on every replica and after a resume."""
    index = 0
    for group in groups:
        for param in group["params"]:
            yield index, group, param
            index += 1
