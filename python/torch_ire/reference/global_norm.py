"""L2 norm over a list, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_ire.reference.arithmetic import opmath


def global_norm(tensors: Sequence[Tensor], weights: Sequence[Tensor] = ()) -> Tensor:
    """See :func:`torch_ire.ops.global_norm`, which this mirrors."""
    if not tensors:
        return torch.zeros(())
    total = torch.zeros((), dtype=torch.float64, device=tensors[0].device)
    for i, tensor in enumerate(tensors):
        x = tensor.detach().double()
        total += (x * weights[i].detach().double() if weights else x).square().sum()
    return total.sqrt().to(opmath(tensors[0]).dtype)


__all__ = ["global_norm"]
