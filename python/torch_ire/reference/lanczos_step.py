"""One Lanczos step with full reorthogonalization, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def lanczos_step_(basis: Tensor, product: Tensor, *, count: int) -> Tensor:
    """See :func:`torch_ire.ops.lanczos_step_`, which this mirrors."""
    rows = basis[:count].to(product.dtype)
    total = torch.zeros(count, dtype=torch.float64, device=basis.device)
    for _ in range(2):
        overlaps = rows @ product
        product -= rows.T @ overlaps
        total += overlaps
    norm = torch.linalg.vector_norm(product, dtype=torch.float64)
    if count < len(basis):
        basis[count] = product / norm
    return torch.cat([total, norm.reshape(1)])


__all__ = ["lanczos_step_"]
