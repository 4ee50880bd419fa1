"""Tests a list of tensors for infinities and NaN."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def found_nonfinite(tensors: Sequence[Tensor]) -> Tensor:
    r"""Returns 1 if any element of any tensor is infinite or NaN, else 0.

    .. math:: \max_{i, j} \, [\, x_{ij} \notin \mathbb{R} \,]

    No sum or square is formed that could overflow: every finite number counts as finite.

    Args:
        tensors: float32, float64, bfloat16 or float16, dense (any dense strides), one dtype and device.

    Returns:
        A 0-dimensional float32 tensor on the device of the tensors, for the ``found_inf`` of the steps. 0 on the CPU
        for an empty list.

    Raises:
        RuntimeError: A tensor has the wrong device or dtype, or gaps in memory.

    Cost: one read of the tensors; no workspace, no synchronisation.
    Determinism: exact.

    Example:
        >>> import torch
        >>> from torch_ire import ops
        >>> ops.found_nonfinite([torch.tensor([3e38]), torch.tensor([1.0, torch.nan])])
        tensor(1.)

    References:
        IEEE 754-2019, section 3.4: the encoding by which infinities and NaNs exceed every other magnitude.
    """
    if not tensors:
        return torch.zeros(())
    found = torch.zeros((), device=tensors[0].device)
    for tensor in tensors:
        found = torch.maximum(found, (~tensor.detach().isfinite()).any().to(found))
    return found


def meta(tensors: Sequence[Tensor]) -> Tensor:
    """The result without its value, for compilers and meta tensors."""
    return tensors[0].new_empty((), dtype=torch.float32)


__all__ = ["found_nonfinite"]
