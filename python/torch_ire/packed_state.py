"""State of many parameters in one tensor: the layout that the step operators take with ``packed=True``.

A packed tensor is one-dimensional and contiguous. It holds one segment per parameter, in list order. Each segment
begins at a multiple of 64 bytes and holds its elements in the memory order of the parameter. The padding between
segments is never read or written. ``csrc/kernels/packed_layout.h`` is the same rule for the native operators.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from torch_ire.packed_mask import num_bytes

SEGMENT_BYTES = 64
#: Larger parameters are not packed: an entry of their state in a list costs little beside their arithmetic, and copies
#: of packed state, which :func:`unpacked` makes, stay small.
PACKED_NUMEL = 1 << 17


def is_packable(part: Tensor) -> bool:
    """Whether the state of a parameter is packed with that of others."""
    return part.numel() <= PACKED_NUMEL


def unpacked(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy if it is a segment: ``pickle`` would save all of the packed tensor with each one."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes and is_packable(tensor) else tensor


def segment_numel(numel: int, itemsize: int) -> int:
    """Elements that a segment of ``numel`` elements takes, padding included."""
    unit = SEGMENT_BYTES // itemsize
    return -(-numel // unit) * unit


def packed_numel(numels: Iterable[int], itemsize: int) -> int:
    """Length of a packed tensor.

    Args:
        numels: Elements per segment: those of each parameter, or the bytes of its mask.
        itemsize: Bytes per element: 1, 2, 4 or 8.

    Returns:
        The end of the last segment, rounded up to 64 bytes, in elements.
    """
    return sum(segment_numel(numel, itemsize) for numel in numels)


def packed_views(flat: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
    """The segments of a packed tensor as views with the shape and strides of each parameter.

    Args:
        flat: Packed tensor of any dtype, ``packed_numel([p.numel() for p in params], flat.element_size())`` elements.
        params: Dense tensors.

    Returns:
        One view per parameter.
    """
    views, offset = [], flat.storage_offset()
    for param in params:
        views.append(flat.as_strided(param.shape, param.stride(), offset))
        offset += segment_numel(param.numel(), flat.element_size())
    return views


def packed_mask_views(flat: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
    """The segments of packed masks, uint8 of shape ``(ceil(numel / 8),)`` per parameter, as views.

    Args:
        flat: uint8, ``packed_numel([ceil(p.numel() / 8) for p in params], 1)`` elements.
        params: The parameters whose coordinates the bits are.

    Returns:
        One view per parameter.
    """
    views, offset = [], 0
    for param in params:
        count = num_bytes(param.numel())
        views.append(flat.narrow(0, offset, count))
        offset += segment_numel(count, 1)
    return views
