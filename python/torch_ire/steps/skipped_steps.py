"""Device-side skip flag for non-finite gradients.

The operators take the flag as ``found_inf``: if it is not 0 they change nothing except parameters that a SAM
perturbation has moved. The host never reads it, so host counters advance on skipped steps too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from torch_ire.layouts import to_device
from torch_ire.sharding import ShardGroup, add_over_ranks, are_plain, local_part, shard_group_of
from torch_ire.steps.tensor_lists import TensorLists


def nonfinite_flag(
    functions_of: Callable[[Mapping[str, Any]], ModuleType],
    lists: Iterable[TensorLists],
    groups: Sequence[Mapping[str, Any]],
) -> Tensor | None:
    """1 if any rank has a non-finite gradient in a group with ``skip_nonfinite``, else 0; ``None`` without such groups.

    Args:
        functions_of: The operators of a group.
        lists: The tensor lists of a step.
        groups: All groups, in the same order on every rank.

    Cost: one read of the gradients, and one message of one number per shard group. Replicas have equal gradients and
    send nothing.
    """
    asking = [group for group in groups if group["skip_nonfinite"]]
    if not asking:
        return None
    flags: list[tuple[ShardGroup | None, Tensor]] = []
    for some in lists:
        if some.group["skip_nonfinite"] and are_plain(some.params_of_group):
            flags.append((None, functions_of(some.group).found_nonfinite(some.grads)))
        elif some.group["skip_nonfinite"]:
            shards: dict[ShardGroup | None, list[Tensor]] = {}
            for param, grad in zip(some.params_of_group, some.grads, strict=True):
                shards.setdefault(shard_group_of(param), []).append(grad)
            flags += [(key, functions_of(some.group).found_nonfinite(grads)) for key, grads in shards.items()]
    return _over_all_ranks(flags, [param for group in asking for param in group["params"]])


def _over_all_ranks(flags: Sequence[tuple[ShardGroup | None, Tensor]], params: Sequence[Tensor]) -> Tensor:
    """1 if any flag of any rank is set, else 0; every rank calls it with the parameters in the same order."""
    shard_groups = [None] if are_plain(params) else list(dict.fromkeys(map(shard_group_of, params)))
    if shard_groups == [None] and len(flags) == 1:
        return flags[0][1]
    nothing = torch.zeros((), device=local_part(params[0]).device if params else None, dtype=torch.float32)
    total = add_over_ranks([(None, nothing), *flags], shard_groups, floating=False)
    return (total != 0).to(torch.float32)


def any_of(flags: Iterable[Tensor | None]) -> Tensor | None:
    """Whether one of several numbers is not 0, on the device of the first; ``None`` if there is none."""
    present = [flag for flag in flags if flag is not None]
    return functools.reduce(lambda a, b: torch.maximum(a, to_device(a.device, b).to(a)), present) if present else None
