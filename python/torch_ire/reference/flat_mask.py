"""The mask of flat coordinates from scores and a threshold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_ire.reference.arithmetic import pack, score_of
from torch_ire.reference.kth_value import kth_value


def flat_mask_(
    flat_masks: Sequence[Tensor],
    scores: Sequence[Tensor],
    threshold: Tensor,
    *,
    score: str = "value",
    k: int | None = None,
) -> None:
    r"""Marks as flat the coordinates whose score is finite and at most the threshold.

    .. math::
        n_i = 1 \text{ if } |s_i| < \infty \text{ and } s_i \le \tau, \text{ else } 0

    Ties with the threshold are all flat. A NaN threshold, like +inf, makes every finite score flat: it is what a
    ranking returns that ran out of finite scores. A threshold of -inf makes nothing flat.

    Args:
        flat_masks: Packed masks to write, uint8 of ``ceil(numel / 8)``: bit ``i % 8`` of byte ``i // 8`` is coordinate
            ``i`` in memory order; the unused bits of the last byte become 0.
        scores: What is ranked; float32, float64, bfloat16 or float16, dense (any dense strides), one dtype and device.
            Read only.
        threshold: One number of any of the four dtypes, on the device of the scores; usually the result of
            :func:`kth_value`. With ``k`` it is written: its dtype is that of the scores, float32 for ``"square"``.
        score: What of the tensors is compared: ``"value"`` x, ``"abs"`` \|x\|, ``"square"`` x² rounded to float32 (a
            float64 x is rounded first).
        k: From 1 to the number of elements, or ``None``: compare with ``threshold`` as it is.

    Raises:
        RuntimeError: ``score`` is none of these, ``k`` out of its range, a list has the wrong length, or a tensor the
            wrong device, dtype, shape or strides; nothing has been changed then.

    Cost: 4 + 1/8 bytes per float32 coordinate; no workspace. With ``k`` the cost and the workspace of :func:`kth_value`
        and, on the CPU, 1/8 byte per coordinate; another read for ``"value"``, and where the answer is tied with the
        end of the sample's bracket.
    Determinism: elementwise and exact, the same on every device.

    Example:
        >>> import torch
        >>> from torch_ire import ops
        >>> mask = torch.empty(1, dtype=torch.uint8)
        >>> ops.flat_mask_([mask], [torch.tensor([1.0, -3.0, 2.0])], torch.tensor(4.0), score="square")
        >>> mask  # coordinates 0 and 2
        tensor([5], dtype=torch.uint8)
        >>> threshold = torch.tensor(0.0)
        >>> ops.flat_mask_([mask], [torch.tensor([1.0, -3.0, 2.0])], threshold, score="square", k=1)
        >>> mask, threshold
        (tensor([1], dtype=torch.uint8), tensor(1.))

    References:
        Wang et al., "Improving Generalization and Convergence by Enhancing Implicit Regularization", arXiv:2405.20763,
            Eq. (5).
    """
    if k is not None:
        threshold.copy_(kth_value(scores, k, score=score))
    limit = threshold.detach().double().reshape(())
    limit = torch.where(limit.isnan(), torch.inf, limit)
    for flat_mask, tensor in zip(flat_masks, scores, strict=True):
        ranked = score_of(tensor.detach(), score)
        flat_mask.copy_(pack(ranked.isfinite() & (ranked.double() <= limit)))


__all__ = ["flat_mask_"]
