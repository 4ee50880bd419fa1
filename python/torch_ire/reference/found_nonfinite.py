"""Whether anything in a list is infinite or NaN, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def found_nonfinite(tensors: Sequence[Tensor]) -> Tensor:
    """See :func:`torch_ire.ops.found_nonfinite`, which this mirrors."""
    if not tensors:
        return torch.zeros(())
    found = torch.zeros((), device=tensors[0].device)
    for tensor in tensors:
        found = torch.maximum(found, (~tensor.detach().isfinite()).any().to(found))
    return found


__all__ = ["found_nonfinite"]
