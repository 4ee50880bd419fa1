"""The k-th smallest score over a list, by concatenating and sorting in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_ire.reference.arithmetic import memory_order, score_of


def kth_value(tensors: Sequence[Tensor], k: int, *, score: str = "value", hint: Tensor | None = None) -> Tensor:
    """See :func:`torch_ire.ops.kth_value`, which this mirrors."""
    del hint  # it only changes the time
    scores = torch.cat([score_of(memory_order(tensor), score) for tensor in tensors])
    return scores.sort().values[k - 1].to(torch.float32 if score == "square" else tensors[0].dtype)


__all__ = ["kth_value"]
