"""Parameter groups of foreign optimizers: IRE's arguments under names of their own, and their checks."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from torch_ire.packed_mask import num_bytes, pack
from torch_ire.sharding import check_placements, local_part
from torch_ire.steps.arguments import check_ire_arguments

# Optimizers of torch.optim, and Lion, whose weight decay multiplies the parameter by 1 - lr weight_decay.
_DECOUPLED = {"AdamW", "Adafactor", "Muon", "Lion"}


class ForeignGroup(MutableMapping[str, Any]):
    """A group of a foreign optimizer that shows IRE's arguments under their plain names.

    They are kept as ``ire_kappa``, ``ire_gamma``, ...: the optimizer may have arguments named ``kappa`` or ``gamma``.
    """

    def __init__(self, group: dict[str, Any], names: frozenset[str]) -> None:
        self._group, self._names = group, names

    def _key(self, key: str) -> str:
        return f"ire_{key}" if key in self._names else key

    def __getitem__(self, key: str) -> Any:
        return self._group[self._key(key)]

    def __setitem__(self, key: str, value: Any) -> None:
        self._group[self._key(key)] = value

    def __delitem__(self, key: str) -> None:
        del self._group[self._key(key)]

    def __iter__(self) -> Iterator[str]:
        return (key.removeprefix("ire_") if key.removeprefix("ire_") in self._names else key for key in self._group)

    def __len__(self) -> int:
        return len(self._group)


def check_group(owner: type[Optimizer], group: ForeignGroup) -> None:
    """Raises ``ValueError`` or ``TypeError`` for an argument or a parameter that IRE does not support."""
    check_ire_arguments(group)
    check_placements("IRE", group)
    if any(param.is_complex() for param in group["params"]):
        raise TypeError("IRE does not support complex parameters")
    if group["curvature"] == "second_moment":
        raise ValueError("curvature='second_moment' is for AdmIRE and SAMIRE(base='adamw'), whose moments it ranks")
    if group["kappa_follows_lr"] and group.get("lr") is None:
        raise ValueError(f"kappa_follows_lr=True needs lr in the parameter groups, which {owner.__name__} lacks")
    if group["amplify_weight_decay"] or group.get("weight_decay", 0) == 0:
        return
    if group.get("lr") is None or not (
        group.get("decoupled_weight_decay") or any(base.__name__ in _DECOUPLED for base in owner.__mro__)
    ):
        raise ValueError(
            "amplify_weight_decay=False needs lr in the parameter groups and a decoupled weight decay; that of "
            f"{owner.__name__} is part of the gradient, or it has no lr"
        )


def check_mask(mask: Any, param: Tensor) -> None:
    """Raises ``RuntimeError`` for a mask that is not packed bits of its parameter."""
    expected = (num_bytes(local_part(param).numel()),)
    if not isinstance(mask, Tensor) or mask.dtype != torch.uint8 or tuple(mask.shape) != expected:
        got = f"{mask.dtype}, {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise RuntimeError(f"IRE: flat_mask of a parameter: expected torch.uint8, {expected}, got {got}")


def pack_loaded(state: dict[str, Any], param: Tensor) -> None:
    """Packs a mask that torch loaded before IRE was attached, in the parameter's shape and dtype."""
    mask = state.get("flat_mask")
    if isinstance(mask, Tensor) and mask.shape == param.shape and mask.dtype != torch.uint8:
        part = local_part(param)
        state["flat_mask"] = pack(torch.empty_like(part, dtype=torch.bool).copy_(local_part(mask) != 0))
