"""Averages over the replicas of a model, for backward passes that bypass ``DistributedDataParallel``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from torch_ire.dtensors import is_dtensor
from torch_ire.steps.tensor_lists import dense_gradient

# Bytes of gradients per collective: enough to use the bandwidth, little compared with the model.
_CHUNK = 1 << 25


def replicas(group: Any = None) -> int:
    """The number of processes in the group; 1 without ``torch.distributed``."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def all_replicas() -> Any:
    """The group of all processes; ``None`` if there is only one."""
    return dist.group.WORLD if replicas() > 1 else None


@torch.no_grad()
def average_gradients(params: Iterable[Tensor], group: Any = None) -> None:
    """Replaces every ``.grad`` by its mean over the replicas; a gradient that a replica lacks counts as zero.

    Args:
        params: The same parameters in the same order on every process. Gradients of DTensors are left alone: FSDP2 and
            tensor parallelism average them.
        group: The processes that hold a replica; ``None``: all.

    Cost: one all-reduce of the gradients, and one of a number per parameter that counts the replicas with a gradient.
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
    """The sum of a number over the replicas."""
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
