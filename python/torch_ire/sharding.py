"""Sharded parameters: the local part of a ``DTensor``, its position in the whole, and the ranks that hold the rest.

The optimizers work on local parts: elementwise operators see the rank's own shard, and the few numbers that belong to
all ranks (counts of a ranking, the norm of SAM) are summed over the mesh dimensions that shard a parameter. A plain
tensor is its own local part, and is the same on every rank.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_ire.dtensors import is_dtensor
from torch_ire.packed_mask import memory_order

_PLAIN = frozenset({Tensor, torch.nn.Parameter})
# Random numbers come in blocks of coordinates, each with a seed of its own; a multiple of 8, the coordinates of a byte.
_BLOCK = 1 << 18


def are_plain(tensors: Iterable[Tensor]) -> bool:
    """Whether no tensor can be a ``DTensor``; faster than testing each."""
    return _PLAIN.issuperset(map(type, tensors))


def local_part(tensor: Tensor) -> Tensor:
    """The rank's own part of a tensor: a plain tensor itself, the shard of a ``DTensor``. Always the same object."""
    if type(tensor) in _PLAIN or not is_dtensor(tensor):
        return tensor
    # to_local() makes a new view of a parameter at each call, and of a detached tensor not
    whole: Any = tensor
    part: Tensor = whole._local_tensor
    return part if type(part) is Tensor else _arrived(part)


def _arrived(part: Tensor) -> Tensor:
    wait = getattr(part, "wait", None)  # of an AsyncCollectiveTensor: still on its way
    return wait() if callable(wait) else part


def local_part_like(tensor: Tensor, param: Tensor) -> Tensor:
    """The local part of a gradient or product, in the placement of its parameter.

    A ``DTensor`` in another placement, such as the partial sums of sequence parallelism, is redistributed first, as in
    torch's own optimizers.
    """
    if is_dtensor(tensor) != is_dtensor(param):
        kinds = [f"{type(t).__name__}" for t in (param, tensor)]
        raise RuntimeError(f"expected a gradient of its parameter's kind, {kinds[0]}, got {kinds[1]}")
    if is_dtensor(param) and not same_placement(tensor, param):
        tensor = tensor.redistribute(param.device_mesh, param.placements)  # type: ignore[attr-defined]
    return local_part(tensor)


def same_placement(tensor: Tensor, param: Any) -> bool:
    """Whether two ``DTensor`` s have the same mesh and placements."""
    ours: Any = tensor
    mesh, others = ours.device_mesh, param.device_mesh
    # usually one object; comparing two takes longer
    return bool(ours.placements == param.placements and (mesh is others or mesh == others))


def wrapped_like(part: Tensor, like: Tensor) -> Tensor:
    """Wraps a local part in the shape, mesh and placements of ``like``; a plain ``like`` returns it unchanged."""
    if not is_dtensor(like):
        return part
    from torch.distributed.tensor import DTensor

    spread: Any = like
    mesh, placements = spread.device_mesh, spread.placements
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())


def mark_local_writes(params: Sequence[Tensor]) -> None:
    """Advances the version of ``DTensor`` s whose local parts an operator wrote; it advanced plain tensors itself."""
    if not are_plain(params) and not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version([param for param in params if is_dtensor(param)])


def check_placements(owner: str, group: Mapping[str, Any]) -> None:
    """Raises ``TypeError`` for a ``DTensor`` with partial placements, or whose coordinates a projector would mix."""
    for index, param in enumerate(group["params"]):
        if not is_dtensor(param):
            continue
        if any(placement.is_partial() for placement in param.placements):
            raise TypeError(
                f"{owner}: params[{index}] is a DTensor with the partial placements {param.placements}; "
                "redistribute it to Shard or Replicate first"
            )
        if not isinstance(group["curvature"], str):
            raise TypeError(
                f"{owner}: params[{index}] is a DTensor; an exact projector mixes the coordinates of a parameter and "
                "works on plain tensors, under DDP say; take curvature='fisher' for sharded parameters"
            )


# -- the ranks that hold the rest -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShardGroup:
    """The mesh dimensions that shard some parameters."""

    mesh: Any  # torch.distributed.DeviceMesh
    dims: tuple[int, ...]

    def add_up(self, counts: Tensor) -> Tensor:
        """The exact sum of integers over the ranks; one all-reduce per mesh dimension."""
        return functools.reduce(self._all_reduce, self.dims, counts.to(self.mesh.device_type)).to(counts.device)

    def _all_reduce(self, counts: Tensor, dim: int) -> Tensor:
        torch.distributed.all_reduce(counts, group=self.mesh.get_group(dim))
        return counts

    def add_in_order(self, numbers: Tensor) -> Tensor:
        """The sum of floating point numbers in the order of the ranks: the same bits on every rank."""
        return functools.reduce(self._gather_and_add, self.dims, numbers.to(self.mesh.device_type)).to(numbers.device)

    def _gather_and_add(self, numbers: Tensor, dim: int) -> Tensor:
        parts = [torch.empty_like(numbers) for _ in range(self.mesh.size(dim))]
        torch.distributed.all_gather(parts, numbers, group=self.mesh.get_group(dim))
        return functools.reduce(torch.add, parts)


def shard_group_of(param: Tensor) -> ShardGroup | None:
    """The mesh dimensions that shard a parameter; ``None`` if the parameter is replicated."""
    if not is_dtensor(param):
        return None
    spread: Any = param
    mesh = spread.device_mesh
    if mesh.get_coordinate() is None:
        return None  # this rank is outside the mesh
    dims = [i for i, placement in enumerate(spread.placements) if not placement.is_replicate() and mesh.size(i) > 1]
    return ShardGroup(mesh, tuple(dims)) if dims else None


def add_over_ranks(
    parts: Sequence[tuple[ShardGroup | None, Tensor]], shard_groups: Iterable[ShardGroup | None], floating: bool
) -> Tensor:
    """Sums numbers of local parameters over all ranks; numbers of replicated parameters count once.

    Args:
        parts: Numbers of one shape and dtype, each with the shard group of its parameters.
        shard_groups: All shard groups of the parameters, in the same order on every rank: each takes one collective,
            also on a rank without numbers for it.
        floating: Whether the sum depends on its order.
    """
    zero = torch.zeros_like(parts[0][1])
    total = zero.clone()
    for shard_group in dict.fromkeys(shard_groups):
        here = functools.reduce(
            torch.add, [part.to(zero.device) for owner, part in parts if owner == shard_group], zero
        )
        if shard_group is not None:
            here = shard_group.add_in_order(here.clone()) if floating else shard_group.add_up(here.clone())
        total += here
    return total


# -- positions of local coordinates -----------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def _indices(mesh: Any, placements: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[Sequence[int], ...]:
    """The global indices of this rank along each dimension of a tensor, in increasing order."""
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        return tuple(range(0) for _ in shape)
    found: list[Sequence[int]] = [range(size) for size in shape]
    for i, placement in enumerate(placements):
        if placement.is_replicate() or placement.is_partial():
            continue
        dim = placement.dim
        along = torch.tensor(list(found[dim]), dtype=torch.int64, device="cpu").view(
            [-1 if d == dim else 1 for d in range(len(shape))]
        )
        # splitting the indices as a tensor covers the strided shards of two-dimensional parallelism too
        shards, _ = placement._split_tensor(along, mesh.size(i), with_padding=False, contiguous=False)
        mine = shards[coordinate[i]].flatten().tolist()
        is_run = bool(mine) and mine[-1] - mine[0] + 1 == len(mine)
        found[dim] = range(mine[0], mine[-1] + 1) if is_run else mine
    return tuple(found)


def local_indices(param: Tensor) -> tuple[Sequence[int], ...]:
    """The global indices of the local part of a parameter, per dimension."""
    if not is_dtensor(param):
        return tuple(range(size) for size in param.shape)
    spread: Any = param
    indices = _indices(spread.device_mesh, tuple(spread.placements), tuple(param.shape))
    part = tuple(local_part(param).shape)
    if math.prod(part) != math.prod(map(len, indices)) or (part and 0 not in part and part != tuple(map(len, indices))):
        raise RuntimeError(
            f"a DTensor of shape {tuple(param.shape)} with placements {spread.placements} has a local part of shape "
            f"{part}, expected {tuple(map(len, indices))}"
        )
    return indices


def is_whole(param: Tensor) -> bool:
    """Whether this rank has all coordinates of a parameter."""
    return local_part(param).numel() == param.numel()


def part_of_full(full: Tensor, param: Tensor) -> Tensor:
    """Local shard of a replicated value. No communication."""
    for dim, mine in enumerate(local_indices(param)):
        if isinstance(mine, range):
            full = full.narrow(dim, mine.start if mine else 0, len(mine))
        else:
            full = full.index_select(dim, torch.tensor(mine, dtype=torch.int64, device=full.device))
    return full


def first_coordinate(param: Tensor) -> int:
    """The global row-major position of the first local coordinate; it distinguishes shards."""
    indices = local_indices(param)
    if not all(indices):
        return 0
    return sum(mine[0] * inner for mine, inner in zip(indices, _inner(param.shape), strict=True))


def _inner(shape: Sequence[int]) -> list[int]:
    return [math.prod(shape[d + 1 :]) for d in range(len(shape))]


@dataclass(frozen=True)
class _Region:
    """The local part of a parameter, row-major, among the row-major coordinates of the whole."""

    shape: tuple[int, ...]
    indices: tuple[Sequence[int], ...]

    def number_below(self, position: int) -> int:
        """How many coordinates lie here whose global position is smaller; local order follows the global one."""
        below = 0
        here = _inner([len(mine) for mine in self.indices])
        for mine, inner, stride in zip(self.indices, here, _inner(self.shape), strict=True):
            digit, position = divmod(position, stride)
            smaller = bisect.bisect_left(mine, digit)
            below += smaller * inner
            if smaller == len(mine) or mine[smaller] != digit:
                break
        return below

    def positions(self, begin: int, end: int, device: torch.device) -> Tensor:
        """The global positions of local coordinates begin ... end - 1; int64."""
        local = torch.arange(begin, end, device=device)
        out = torch.zeros_like(local)
        here = _inner([len(mine) for mine in self.indices])
        for mine, inner, stride in zip(self.indices, here, _inner(self.shape), strict=True):
            digit = (local // inner) % len(mine)
            if isinstance(mine, range):
                out += (digit + mine.start) * stride
            else:
                out += torch.tensor(mine, device=device)[digit] * stride
        return out


def draw(param: Tensor, random: Callable[[int, int], Tensor]) -> Iterator[tuple[slice, Tensor]]:
    """Draws random numbers that depend on the global coordinate alone, however a parameter is sharded.

    Args:
        param: Plain or ``DTensor``.
        random: ``random(begin, count)`` returns ``count`` numbers on the parameter's device for the coordinates from
            ``begin`` on, the same at each call; ``begin`` is a multiple of 2¹⁸.

    Yields:
        A range of the local coordinates, and their numbers. A plain parameter counts its coordinates in memory order, a
        sharded one row-major, which is the same for contiguous tensors.

    Cost: the blocks that contain a local coordinate: the rank's share for shards of the first dimension, up to all
    blocks for shards of another one.
    """
    total = param.numel()
    region = None if is_whole(param) else _Region(tuple(param.shape), local_indices(param))
    for begin in range(0, total, _BLOCK):
        count = min(_BLOCK, total - begin)
        if region is None:
            yield slice(begin, begin + count), random(begin, count)
            continue
        first, last = region.number_below(begin), region.number_below(begin + count)
        if last > first:
            numbers = random(begin, count)
            where = region.positions(first, last, numbers.device) - begin
            yield slice(first, last), numbers[where]


def drawn(param: Tensor, dtype: torch.dtype, random: Callable[[int, int], Tensor]) -> Tensor:
    """The local part of a tensor of random numbers, in the layout of the parameter's local part; see :func:`draw`."""
    part = local_part(param)
    if is_whole(param):
        out = torch.empty_like(part, dtype=dtype)  # dense, in memory order
        flat = memory_order(out)
        for where, numbers in draw(param, random):
            flat[where] = numbers
        return out
    rows = torch.empty(part.numel(), dtype=dtype, device=part.device)
    for where, numbers in draw(param, random):
        rows[where] = numbers
    return torch.empty_like(part, dtype=dtype).copy_(rows.view(part.shape))
