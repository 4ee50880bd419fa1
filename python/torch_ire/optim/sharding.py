"""Parameters that are spread over ranks: what of a ``DTensor`` lies here, where, and who has the rest.

The optimizers work on local parts throughout: elementwise operators see the rank's own shard, and the few numbers that
belong to all ranks together (counts of a ranking, the norm of SAM) are added up over the mesh dimensions on which a
parameter is sharded. A plain tensor is its own local part, and is the same on every rank.
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
    """Whether none of the tensors can be a ``DTensor``; faster than a look at each."""
    return _PLAIN.issuperset(map(type, tensors))


def local_part(tensor: Tensor) -> Tensor:
    """The rank's own part of a tensor, always the same object: all of a plain one, the shard of a ``DTensor``."""
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
    """The part of a gradient or product that belongs to the rank's part of its parameter.

    A ``DTensor`` that lies otherwise, such as the partial sums that sequence parallelism leaves, is redistributed
    first, as torch's own optimizers do it.
    """
    if is_dtensor(tensor) != is_dtensor(param):
        kinds = [f"{type(t).__name__}" for t in (param, tensor)]
        raise RuntimeError(f"expected a gradient of its parameter's kind, {kinds[0]}, got {kinds[1]}")
    if is_dtensor(param) and not lies_like(tensor, param):
        tensor = tensor.redistribute(param.device_mesh, param.placements)  # type: ignore[attr-defined]
    return local_part(tensor)


def lies_like(tensor: Tensor, param: Any) -> bool:
    """Whether two ``DTensor`` s have their elements in the same places."""
    ours: Any = tensor
    mesh, others = ours.device_mesh, param.device_mesh
    # usually one object; to compare two takes longer
    return bool(ours.placements == param.placements and (mesh is others or mesh == others))


def wrapped_like(part: Tensor, like: Tensor) -> Tensor:
    """The tensor of which ``part`` is the local part, in the shape, mesh and placements of ``like``."""
    if not is_dtensor(like):
        return part
    from torch.distributed.tensor import DTensor

    spread: Any = like
    mesh, placements = spread.device_mesh, spread.placements
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())


def note_mutation(params: Sequence[Tensor]) -> None:
    """Tells autograd that the local parts of these parameters have been written; plain ones have been noted already."""
    if not are_plain(params) and not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version([param for param in params if is_dtensor(param)])


def check_placements(owner: str, group: Mapping[str, Any]) -> None:
    """Raises ``TypeError`` for a ``DTensor`` of which no rank has the value, or that a projector would have to mix."""
    for index, param in enumerate(group["params"]):
        if not is_dtensor(param):
            continue
        if any(placement.is_partial() for placement in param.placements):
            raise TypeError(
                f"{owner}: params[{index}] is a DTensor with placements {param.placements}, a sum that has not been "
                "made; redistribute it to Shard or Replicate first"
            )
        if not isinstance(group["curvature"], str):
            raise TypeError(
                f"{owner}: params[{index}] is a DTensor; an exact projector mixes the coordinates of a parameter and "
                "works on plain tensors, under DDP say; take curvature='fisher' for sharded parameters"
            )


# -- who has the rest ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """The mesh dimensions over which the coordinates of some parameters are spread, each held once."""

    mesh: Any  # torch.distributed.DeviceMesh
    dims: tuple[int, ...]

    def add_up(self, counts: Tensor) -> Tensor:
        """The sum of integers over the ranks, exact and hence the same everywhere; one collective a dimension."""
        return functools.reduce(self._all_reduce, self.dims, counts.to(self.mesh.device_type)).to(counts.device)

    def _all_reduce(self, counts: Tensor, dim: int) -> Tensor:
        torch.distributed.all_reduce(counts, group=self.mesh.get_group(dim))
        return counts

    def add_in_order(self, numbers: Tensor) -> Tensor:
        """The sum of floating point numbers over the ranks, added in their order: the same bits on every rank."""
        return functools.reduce(self._gather_and_add, self.dims, numbers.to(self.mesh.device_type)).to(numbers.device)

    def _gather_and_add(self, numbers: Tensor, dim: int) -> Tensor:
        parts = [torch.empty_like(numbers) for _ in range(self.mesh.size(dim))]
        torch.distributed.all_gather(parts, numbers, group=self.mesh.get_group(dim))
        return functools.reduce(torch.add, parts)


def spread_of(param: Tensor) -> Spread | None:
    """Over which mesh dimensions a parameter is sharded; ``None`` where every rank that has it has all of it."""
    if not is_dtensor(param):
        return None
    spread: Any = param
    mesh = spread.device_mesh
    if mesh.get_coordinate() is None:
        return None  # this rank has no part in it
    dims = [i for i, placement in enumerate(spread.placements) if not placement.is_replicate() and mesh.size(i) > 1]
    return Spread(mesh, tuple(dims)) if dims else None


def add_over_ranks(
    parts: Sequence[tuple[Spread | None, Tensor]], spreads: Iterable[Spread | None], floating: bool
) -> Tensor:
    """Adds up, over all ranks, numbers that belong to parameters here; those of unsharded parameters count once.

    Args:
        parts: Numbers of one shape and dtype, with the spread of the parameters that they come from.
        spreads: All spreads that may occur, whether this rank has parts of them or not: every rank takes part in one
            collective for each, in the order in which they come.
        floating: Whether the sum depends on its order.
    """
    zero = torch.zeros_like(parts[0][1])
    total = zero.clone()
    for spread in dict.fromkeys(spreads):
        here = functools.reduce(torch.add, [part.to(zero.device) for owner, part in parts if owner == spread], zero)
        if spread is not None:
            here = spread.add_in_order(here.clone()) if floating else spread.add_up(here.clone())
        total += here
    return total


# -- where it lies ---------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def _indices(mesh: Any, placements: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[Sequence[int], ...]:
    """Along each dimension of a tensor, which of its global indices this rank has, in increasing order."""
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        return tuple(range(0) for _ in shape)
    found: list[Sequence[int]] = [range(size) for size in shape]
    for i, placement in enumerate(placements):
        if placement.is_replicate() or placement.is_partial():
            continue
        dim = placement.dim
        along = torch.tensor(list(found[dim]), dtype=torch.int64).view(
            [-1 if d == dim else 1 for d in range(len(shape))]
        )
        # what distributes tensors distributes their indices, strided shards of two-dimensional parallelism included
        shards, _ = placement._split_tensor(along, mesh.size(i), with_padding=False, contiguous=False)
        mine = shards[coordinate[i]].flatten().tolist()
        is_run = bool(mine) and mine[-1] - mine[0] + 1 == len(mine)
        found[dim] = range(mine[0], mine[-1] + 1) if is_run else mine
    return tuple(found)


def local_indices(param: Tensor) -> tuple[Sequence[int], ...]:
    """Which global indices of each dimension the local part of a parameter has."""
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
    """The local part of a parameter's coordinates of a plain tensor in its global shape; no communication."""
    for dim, mine in enumerate(local_indices(param)):
        if isinstance(mine, range):
            full = full.narrow(dim, mine.start if mine else 0, len(mine))
        else:
            full = full.index_select(dim, torch.tensor(mine, dtype=torch.int64, device=full.device))
    return full


def first_coordinate(param: Tensor) -> int:
    """The global position, row-major, of the first coordinate of the local part; it tells shards apart."""
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
    """Random numbers that are the same function of the global coordinate however a parameter is sharded.

    Args:
        param: Plain or ``DTensor``.
        random: ``random(begin, count)`` returns ``count`` numbers on the parameter's device for the coordinates from
            ``begin`` on, the same at each call; ``begin`` is a multiple of 2¹⁸, and blocks cover the whole parameter.

    Yields:
        A range of the local coordinates, and their numbers. A plain parameter counts its coordinates in memory order, a
        sharded one row-major, which is the same for contiguous tensors.

    Cost: the blocks in which the rank has a coordinate: its own share along the first dimension, up to all of them
    where another dimension is sharded.
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
