"""One Lanczos step with full reorthogonalization, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["lanczos_step_"]


def lanczos_step_(basis: Tensor, product: Tensor, *, count: int) -> Tensor:
    """See :func:`torch_ire.ops.lanczos_step_`, which this mirrors."""
    rows = basis[:count]
    coefficients = torch.zeros(count, dtype=torch.float64, device=basis.device)
    for _ in range(2):  # twice is enough (Parlett, The Symmetric Eigenvalue Problem, section 6.9)
        overlap = rows @ product
        product.addmv_(rows.T, overlap, alpha=-1.0)
        coefficients += overlap.to(torch.float64)
    norm = torch.linalg.vector_norm(product, dtype=torch.float64)
    if count < len(basis):
        torch.div(product, norm.to(product.dtype), out=basis[count])
    return torch.cat([coefficients, norm.reshape(1)])
