"""L2 norm over a list of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_ire.reference.arithmetic import opmath


def global_norm(tensors: Sequence[Tensor], weights: Sequence[Tensor] = ()) -> Tensor:
    r"""The L2 norm of all tensors together, or of their products with weights.

    .. math::
        \Big( \sum_i \sum_j (w_{ij} x_{ij})^2 \Big)^{1/2}, \qquad w = 1 \text{ where no weights are given}

    Args:
        tensors: float32, float64, bfloat16 or float16, dense (any dense strides), one dtype and device.
        weights: Tensors of the same dtypes, shapes and strides. Empty: all one.

    Returns:
        A 0-dimensional tensor on the device of the tensors; float64 for float64 tensors, else float32. 0 on the CPU for
        an empty list.

    Raises:
        RuntimeError: The list of weights has the wrong length, or a tensor the wrong device, dtype, shape or strides.

    Cost: one read of the tensors and weights; 8 bytes of workspace per 8192 coordinates.
    Determinism: squares and sums in float64, added in an order that depends only on the sizes: the same bits for any
        number of threads. A norm of float32 tensors is exact to half a unit in the last place and overflows only if
        the true norm does.

    Example:
        >>> import torch
        >>> from torch_ire import ops
        >>> ops.global_norm([torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])])
        tensor(5.)
    """
    if not tensors:
        return torch.zeros(())
    total = torch.zeros((), dtype=torch.float64, device=tensors[0].device)
    for i, tensor in enumerate(tensors):
        x = tensor.detach().double()
        total += (x * weights[i].detach().double() if weights else x).square().sum()
    return total.sqrt().to(opmath(tensors[0]).dtype)


def meta(tensors: Sequence[Tensor], *_: object) -> Tensor:
    """The result without its value, for compilers and meta tensors."""
    return tensors[0].new_empty((), dtype=torch.float64 if tensors[0].dtype == torch.float64 else torch.float32)


__all__ = ["global_norm"]
