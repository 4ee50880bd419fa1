"""Averages over the replicas of a model, for the backward passes that ``DistributedDataParallel`` does not see."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from torch_ire.dtensors import is_dtensor
from torch_ire.optim.batches import dense_gradient

# Bytes of gradients in one collective: large enough for the wire, small beside the model.
_CHUNK = 1 << 25


def replicas(group: Any = None) -> int:
    """The number of processes in the group, 1 without ``torch.distributed``."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def all_replicas() -> Any:
    """The group of all processes, ``None`` where there is one."""
    return dist.group.WORLD if replicas() > 1 else None


@torch.no_grad()
def average_gradients(params: Iterable[Tensor], group: Any = None) -> None:
    """Replaces every ``.grad`` by its mean over the replicas; one that a replica lacks counts as zero there.

    Args:
        params: The same parameters in the same order on every process. DTensors are left to who sharded them.
        group: The processes that hold a replica; ``None``: all.

    Cost: one all-reduce of the gradients, and of one number a parameter, which say who has a gradient at all.
    """
    count = replicas(group)
    if count == 1:
        return
    lists: dict[Any, list[Tensor]] = {}
    for param in params:
        if param.requires_grad and not is_dtensor(param):
            lists.setdefault((param.device, param.dtype), []).append(param)
    for (device, _), members in lists.items():
        holders = torch.tensor([param.grad is not None for param in members], dtype=torch.float32, device=device)
        dist.all_reduce(holders, group=group)
        held = [param for param, number in zip(members, holders.tolist(), strict=True) if number > 0]
        for chunk in _chunks(held):
            grads = [dense_gradient(param, "refresh_mask") for param in chunk]
            pieces = [p.new_zeros(p.numel()) if g is None else g.reshape(-1) for p, g in zip(chunk, grads, strict=True)]
            flat = torch.cat(pieces).div_(count)
            dist.all_reduce(flat, group=group)
            for param, mean in zip(chunk, torch.split(flat, [param.numel() for param in chunk]), strict=True):
                param.grad = mean.view(param.shape)


def total_over_replicas(number: Tensor, group: Any = None) -> float:
    """The sum of one number over the replicas."""
    if replicas(group) > 1:
        number = number.to(torch.float64, copy=True)
        dist.all_reduce(number, group=group)
    return float(number)


def _chunks(params: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    chunk: list[Tensor] = []
    size = 0
    for param in params:
        if chunk and size + param.nbytes > _CHUNK:
            yield chunk
            chunk, size = [], 0
        chunk.append(param)
        size += param.nbytes
    if chunk:
        yield chunk
