"""Draws labels from a model's own predictions."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_ire.reference.arithmetic import mix64, opmath, uniform_open


def sample_labels(logits: Tensor, *, seed: int, offset: int) -> tuple[Tensor, Tensor]:
    r"""Draws one label per row from softmax(logits) and computes the row's logsumexp in the same read.

    .. math::
        y = \min \Big\{ c : \sum_{j \le c} e^{x_j} > u \sum_j e^{x_j} \Big\}, \qquad u \in (0, 1)

    Args:
        logits: (..., C); float32, float64, bfloat16 or float16, any strides. Read only.
        seed: First half of the key; 64 bits.
        offset: Second half: a counter of the calls with this seed.

    Returns:
        The labels, int64 of shape (...), and the logsumexp of each row, float64 for float64 logits, else float32.
        A logit of -inf is never drawn. Rows with a logit of +inf draw evenly among those, with logsumexp +inf. Rows
        that hold a NaN, or nothing but -inf, have label -1, with logsumexp NaN and -inf.

    Raises:
        RuntimeError: ``logits`` has the wrong dtype or layout, or no class.

    Cost: one read of the logits and a second one of 1024 classes per row; 12 bytes per row and 1024 classes for the
        rows being processed.
    Determinism: the random number of a row is a function of seed, offset and the row's number, and sums have a fixed
        order: the same labels for any number of threads and any strides. On other devices a label may differ where
        u falls within rounding (1e-6) of the border between two classes.

    Example:
        >>> import torch
        >>> from torch_ire import ops
        >>> logits = torch.tensor([[0.0, -torch.inf], [-torch.inf, 2.0]])
        >>> ops.sample_labels(logits, seed=1, offset=0)
        (tensor([0, 1]), tensor([0., 2.]))

    References:
        Wang et al., "Improving Generalization and Convergence by Enhancing Implicit Regularization", arXiv:2405.20763,
            Eq. (6): labels from the model's own softmax.
    """
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


def meta(logits: Tensor, **_: object) -> tuple[Tensor, Tensor]:
    """The result without its value, for compilers and meta tensors."""
    rows = logits.shape[:-1]
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return logits.new_empty(rows, dtype=torch.int64), logits.new_empty(rows, dtype=wide)


__all__ = ["sample_labels"]
