"""Compares replicas: one fingerprint per tensor, over the ranks that hold the same part of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_ire.counter_rng import as_int64, mix64
from torch_ire.dtensors import is_dtensor
from torch_ire.sampled_loss import LabelGenerator
from torch_ire.sharding import local_part

# Elements hashed at once: 8 MiB of integers.
_CHUNK = 1 << 20
_SAME_WIDTH = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_NUMBERS = ("ire_step", "ire_mask_step", "lr", "kappa", "gamma")


def check_replicas(
    owner: str,
    groups: Sequence[Mapping[str, Any]],
    state: Mapping[Tensor, Mapping[str, Any]],
    keys: Iterable[str],
    labels: LabelGenerator,
    process_group: torch.distributed.ProcessGroup | None,
) -> None:
    """See :meth:`AdmIRE.check_replicas`; ``keys`` name the state tensors to compare."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    with torch.no_grad():
        names: list[str] = []
        prints: list[Tensor] = []
        owners: list[Tensor | None] = []
        device = next((local_part(p).device for group in groups for p in group["params"]), torch.device("cpu"))
        for name, param, number in _fingerprints(groups, state, tuple(keys), labels, device):
            names.append(name)
            owners.append(param)
            prints.append(number)
        differs = _differs(torch.stack(prints), owners, process_group)
        first = differs.nonzero().min() if differs.any() else torch.tensor(len(names), device=device)
        # ranks compare the shards that they share; then all ranks get the result
        torch.distributed.all_reduce(first, op=torch.distributed.ReduceOp.MIN, group=process_group)
    if int(first) < len(names):
        raise RuntimeError(f"{owner}.check_replicas(): the replicas differ, first in {names[int(first)]}")


def _fingerprints(
    groups: Sequence[Mapping[str, Any]],
    state: Mapping[Tensor, Mapping[str, Any]],
    keys: tuple[str, ...],
    labels: LabelGenerator,
    device: torch.device,
) -> Iterable[tuple[str, Tensor | None, Tensor]]:
    """Name, parameter and fingerprint per tensor; the same names in the same order on every rank."""

    def of_number(value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64, device=device).view(torch.int64)

    for g, group in enumerate(groups):
        for key in _NUMBERS:
            value = group.get(key) or 0
            yield f"group {g}: {key}", None, of_number(float(value))
        names = group.get("param_names") or [f"{g}.{i}" for i in range(len(group["params"]))]
        for name, param in zip(names, group["params"], strict=True):
            yield f"{name}: parameter", param, fingerprint(local_part(param)).to(device)
            for key in keys:
                tensor = state.get(param, {}).get(key)
                # a missing tensor has a value of its own
                number = of_number(-1.0) if tensor is None else fingerprint(local_part(tensor)).to(device)
                yield f"{name}: {key}", param, number
    position = labels.state_dict() if labels.used else {"seed": 0, "offset": 0}
    for key, value in position.items():
        number = torch.tensor(as_int64(mix64(value)), dtype=torch.int64, device=device)
        yield f"label_generator: {key}", None, number


def fingerprint(tensor: Tensor) -> Tensor:
    """The sum of the bits of every element times an odd number that depends on its position, modulo 2⁶⁴.

    It always detects a change of one element, and almost certainly any other change.

    Returns:
        int64, shape (), on the device of the tensor.
    """
    rows = tensor.detach().reshape(-1)
    bits = rows.view(_SAME_WIDTH[rows.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=rows.device)
    for begin in range(0, bits.numel(), _CHUNK):
        some = bits[begin : begin + _CHUNK].to(torch.int64)
        place = torch.arange(begin, begin + some.numel(), device=rows.device)
        total += (some * (place * -7046029254386353131 | 1)).sum()
    return total


def _differs(
    prints: Tensor, owners: Sequence[Tensor | None], process_group: torch.distributed.ProcessGroup | None
) -> Tensor:
    """Marks the fingerprints that differ between ranks with the same shard; bool."""
    # the maximum of x, and the maximum of its complement, which is the complement of the minimum of x
    both = torch.stack([prints, ~prints])
    meshes = [_replicated_over(owner) for owner in owners]
    out = torch.zeros_like(prints, dtype=torch.bool)
    for mesh, dims in dict.fromkeys(meshes):
        chosen = [i for i, other in enumerate(meshes) if other == (mesh, dims)]
        largest = both[:, chosen].contiguous()
        if mesh is None:
            torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX, group=process_group)
        else:
            largest = largest.to(mesh.device_type)
            for dim in dims:
                torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX, group=mesh.get_group(dim))
            largest = largest.to(prints.device)
        out[chosen] = largest[0] != ~largest[1]
    return out


def _replicated_over(owner: Tensor | None) -> tuple[Any, tuple[int, ...]]:
    """The mesh, and its dimensions whose ranks have the same part of a parameter; no mesh: all ranks of the group."""
    if owner is None or not is_dtensor(owner):
        return None, ()
    shard_group: Any = owner
    if shard_group.device_mesh.get_coordinate() is None:
        return shard_group.device_mesh, ()
    mesh = shard_group.device_mesh
    return mesh, tuple(i for i, p in enumerate(shard_group.placements) if p.is_replicate() and mesh.size(i) > 1)
