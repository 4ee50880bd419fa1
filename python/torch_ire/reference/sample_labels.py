"""One label a row from softmax(logits), by a cumulative sum in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_ire.reference.arithmetic import mix64, opmath, uniform_open


def sample_labels(logits: Tensor, *, seed: int, offset: int) -> tuple[Tensor, Tensor]:
    """See :func:`torch_ire.ops.sample_labels`, which this mirrors."""
    x = logits.detach().double()
    key = mix64(seed, offset)
    rows = x.shape[:-1]
    uniform = [uniform_open(mix64(key, row)) for row in range(rows.numel())]
    u = torch.tensor(uniform, dtype=torch.float64, device=x.device).reshape(rows)
    largest = x.amax(-1, keepdim=True)
    # among infinite logits all are equal and nothing else has any weight
    weights = torch.where(largest == torch.inf, (x == torch.inf).double(), (x - largest).exp())
    cumulative = weights.cumsum(-1)
    total = cumulative[..., -1]
    target = torch.minimum(u * total, total.nextafter(torch.zeros_like(total)))
    labels = (cumulative > target.unsqueeze(-1)).int().argmax(-1)
    drawable = (largest.squeeze(-1) > -torch.inf) & ~x.isnan().any(-1)
    return labels.where(drawable, -1), x.logsumexp(-1).to(opmath(logits).dtype)


__all__ = ["sample_labels"]
