"""What is kept beside bfloat16 and float16 parameters, whose rounding would lose small steps.

Full-precision parameters lose nothing: in a group with them nothing is kept for them, whatever ``rounding`` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torch_ire.counter_rng import as_int64, mix64
from torch_ire.optim.batches import Batch
from torch_ire.optim.sharding import first_coordinate, is_whole, local_part, wrapped_like

# ``rounding`` -> the state tensor that it keeps, in the parameter's shape
_KEPT = {"kahan": "compensation", "master": "master_param"}
KEPT_KEYS = tuple(_KEPT.values())


def kept_keys(group: Mapping[str, Any], dtype: torch.dtype) -> tuple[str, ...]:
    """The state tensor that a group keeps beside parameters of a dtype, if any."""
    key = _KEPT.get(group["rounding"])
    return (key,) if key is not None and dtype in (torch.bfloat16, torch.float16) else ()


def prepare_kept(group: Mapping[str, Any], param: Tensor, state: dict[str, Any]) -> None:
    """Makes the tensor that a parameter lacks: nothing has been rounded away, the copy is the parameter."""
    part = local_part(param)
    for key in kept_keys(group, param.dtype):
        if key == "master_param" and key not in state:
            copy = part.detach().to(torch.float32, memory_format=torch.preserve_format)
            state[key] = wrapped_like(copy, param)
        elif key == "compensation" and (key not in state or state[key].dtype != param.dtype):
            state[key] = wrapped_like(torch.zeros_like(part, memory_format=torch.preserve_format), param)


def kept_lists(batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
    """``compensations`` and ``master_params`` of a step; one of them is empty, or both are."""
    kept = kept_keys(batch.group, batch.params[0].dtype)
    compensations, masters = (batch.moments(key) if key in kept else [] for key in KEPT_KEYS)
    return compensations, masters


def rounding_keys(batch: Batch) -> list[int]:
    """One key a parameter for stochastic rounding (of bfloat16 alone), none for every other.

    Shards of a parameter have keys of their own, the same on every rank that has the same shard.
    """
    if batch.group["rounding"] != "stochastic" or batch.params[0].dtype != torch.bfloat16:
        return []
    keys = [mix64(batch.group["seed"], index) for index in batch.indices]
    return [
        as_int64(key if is_whole(param) else mix64(key, first_coordinate(param)))
        for key, param in zip(keys, batch.owners, strict=True)
    ]
