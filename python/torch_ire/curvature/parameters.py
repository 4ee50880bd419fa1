"""The map between a list of parameters and one flat vector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_ire.dtensors import is_dtensor

__all__ = ["FlatLayout", "gathered", "named_tensors", "scattered_like"]


def named_tensors(params: Iterable[Tensor] | Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Parameters by name, from a list, a dict or `module.named_parameters()`; unnamed ones get their position.

    Raises:
        ValueError: if the list is empty, or a tensor is complex, not floating, sparse or listed twice.
    """
    items: list[tuple[str, Tensor]] = []
    source: Iterable[Tensor | tuple[str, Tensor]] = list(params.items()) if isinstance(params, Mapping) else params
    for index, entry in enumerate(source):
        named = isinstance(entry, tuple) and len(entry) == 2
        name, tensor = (str(entry[0]), entry[1]) if named else (str(index), entry)
        if not isinstance(tensor, Tensor):
            raise TypeError(f"params[{name}]: expected a tensor, got {type(tensor).__name__}")
        if not tensor.dtype.is_floating_point:
            raise ValueError(f"params[{name}]: expected a real floating dtype, got {tensor.dtype}")
        if tensor.layout != torch.strided:
            raise ValueError(f"params[{name}]: expected a strided tensor, got layout {tensor.layout}")
        items.append((name, tensor))
    if not items:
        raise ValueError("params: expected at least one parameter, got none")
    if len({id(tensor) for _, tensor in items}) != len(items):
        raise ValueError("params: a parameter is listed twice; the curvature of a shared parameter counts once")
    return dict(items)


def gathered(tensor: Tensor) -> Tensor:
    """The full tensor; gathers a `DTensor` from all ranks."""
    if not is_dtensor(tensor):
        return tensor
    whole: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return whole


def scattered_like(value: Tensor, param: Tensor) -> Tensor:
    """Local shard of a replicated value, for a sharded parameter. No communication."""
    if not is_dtensor(param) or is_dtensor(value):
        return value
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = param
    return distribute_tensor(value, sharded.device_mesh, sharded.placements, src_data_rank=None)


class FlatLayout:
    """Position of each parameter in the flat vector, and the dtype and device of that vector.

    The flat vector is on the first parameter's device; its dtype is float64 if any parameter's is, else float32.
    Coordinates follow the order of the list and, within a parameter, the row-major order of its indices.

    Args:
        tensors: the parameters; they may differ in device and dtype. `flatten` gathers a `DTensor`: all ranks must call
            it, and each holds flat vectors of all coordinates.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.shapes = [t.shape for t in tensors]
        self.numels = [t.numel() for t in tensors]
        self.dtypes = [t.dtype for t in tensors]
        self.devices = [t.device for t in tensors]
        self.size = sum(self.numels)
        self.dtype = torch.float64 if torch.float64 in self.dtypes else torch.float32
        self.device = tensors[0].device

    def flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        """One (p,) vector from one tensor per parameter."""
        if [t.shape for t in tensors] != self.shapes:
            raise ValueError(f"flatten: expected shapes {self.shapes}, got {[t.shape for t in tensors]}")
        return torch.cat([gathered(t.detach()).reshape(-1).to(device=self.device, dtype=self.dtype) for t in tensors])

    def unflatten(self, vector: Tensor) -> list[Tensor]:
        """The (p,) vector split into the parameters' shapes, dtypes and devices."""
        pieces = torch.split(vector, self.numels)
        return [
            piece.to(device=device, dtype=dtype).view(shape)
            for piece, shape, dtype, device in zip(pieces, self.shapes, self.dtypes, self.devices, strict=True)
        ]
