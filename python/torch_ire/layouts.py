"""Memory layout, working precision and device of tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill a range of memory without gaps or overlaps, in any order of the dimensions."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def laid_out_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor itself if it has the strides of ``like``, otherwise a copy with those strides."""
    return tensor if tensor.stride() == like.stride() else torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)


def to_device(device: torch.device, tensor: Tensor) -> Tensor:
    """The tensor on a device; the host waits only for copies to the CPU."""
    return tensor.to(device, non_blocking=device.type != "cpu")


def opmath_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of moments and curvature: float64 for float64 parameters, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32
