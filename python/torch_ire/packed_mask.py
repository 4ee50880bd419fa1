"""The flat mask: one bit per coordinate in memory, a bool tensor of the parameter's shape in checkpoints.

Coordinate ``i`` of a dense tensor, in memory order, is bit ``i % 8`` of byte ``i // 8``. Unused bits of the last byte
are 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


def memory_order(tensor: Tensor) -> Tensor:
    """A flat view of a dense tensor, in the order of its memory."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))


def num_bytes(numel: int) -> int:
    """Bytes of the mask for ``numel`` coordinates."""
    return (numel + 7) // 8


def empty_mask(like: Tensor) -> Tensor:
    """A mask for the coordinates of ``like``, none of them flat."""
    return torch.zeros(num_bytes(like.numel()), dtype=torch.uint8, device=like.device)


def pack(flags: Tensor) -> Tensor:
    """Packs a dense bool tensor into bits, in memory order.

    Args:
        flags: bool, any shape, dense.

    Returns:
        uint8 of shape (ceil(numel / 8),).
    """
    padded = torch.zeros(num_bytes(flags.numel()) * 8, dtype=torch.uint8, device=flags.device)
    padded[: flags.numel()] = memory_order(flags)
    shifts = torch.arange(8, dtype=torch.uint8, device=flags.device)
    return (padded.view(-1, 8) << shifts).sum(1, dtype=torch.uint8)


def unpack(flat_mask: Tensor, like: Tensor) -> Tensor:
    """Unpacks bits into a bool tensor; the inverse of :func:`pack`.

    Args:
        flat_mask: uint8 of shape (ceil(numel / 8),).
        like: The dense tensor that the mask belongs to.

    Returns:
        bool with the shape and strides of ``like``.
    """
    shifts = torch.arange(8, dtype=torch.uint8, device=flat_mask.device)
    bits = (flat_mask.unsqueeze(1) >> shifts) & 1
    out = torch.empty_like(like, dtype=torch.bool)
    memory_order(out).copy_(bits.flatten()[: like.numel()])
    return out


def follow_layout(flat_mask: Tensor, like: Tensor) -> Tensor:
    """Repacks a mask in place if the memory order of its parameter has changed since the mask was packed.

    ``model.to(memory_format=torch.channels_last)`` changes that order. The mask stores it as an attribute.

    Args:
        flat_mask: uint8 of shape (ceil(numel / 8),).
        like: The parameter. One with gaps in memory has the order of a dense copy.

    Returns:
        The mask.
    """
    now = torch.empty_like(like, device="meta").stride()
    before = flat_mask.__dict__.get("memory_strides", now)
    if before != now:
        flags = unpack(flat_mask, torch.empty_strided(like.shape, before, dtype=torch.bool, device=like.device))
        flat_mask.copy_(pack(torch.empty_strided(like.shape, now, dtype=torch.bool, device=like.device).copy_(flags)))
    return note_layout(flat_mask, like)


def note_layout(flat_mask: Tensor, like: Tensor) -> Tensor:
    """Records the present memory order of the parameter in its mask, which has just been written; returns the mask."""
    flat_mask.memory_strides = torch.empty_like(like, device="meta").stride()  # type: ignore[attr-defined]
    return flat_mask


def count_flat(flat_mask: Tensor) -> Tensor:
    """The number of set bits, int64, shape (), on the device of the mask."""
    pairs = flat_mask - ((flat_mask >> 1) & 0x55)
    nibbles = (pairs & 0x33) + ((pairs >> 2) & 0x33)
    return ((nibbles + (nibbles >> 4)) & 0x0F).sum(dtype=torch.int64)
