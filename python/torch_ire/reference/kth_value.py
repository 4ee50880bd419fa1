"""Exact selection over a list of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_ire.reference.arithmetic import memory_order, score_of


def kth_value(tensors: Sequence[Tensor], k: int, *, score: str = "value", hint: Tensor | None = None) -> Tensor:
    r"""The k-th smallest score over all tensors together, exactly, without concatenating anything.

    NaN is greatest, whatever its sign, and -0 equals +0, as in :func:`torch.kthvalue`.

    A sample of the coordinates brackets the answer; one pass counts what lies below the bracket and gathers the few
    that lie inside, among which the answer is selected. Where it was not inside, or more were than there is room for,
    further passes narrow the range of keys by a factor of 2048 each. On CUDA a second, larger sample tightens the
    bracket of a long list.

    Args:
        tensors: float32, float64, bfloat16 or float16, dense (any dense strides), one dtype and device. Read only.
        k: Which one, from 1 (the smallest) to the number of elements.
        score: What is ranked: ``"value"`` x, ``"abs"`` \|x\|, ``"square"`` x² rounded to float32 (a float64 x is
            rounded first).
        hint: A guess at the answer, one number, such as the threshold of the last refresh. It changes the time only:
            near the answer it saves some, elsewhere it is ignored.

    Returns:
        A 0-dimensional tensor on the device of the tensors, of their dtype; float32 for ``"square"``.

    Raises:
        RuntimeError: The list is empty, ``k`` or ``score`` out of its range, or a tensor has the wrong device, dtype or
            strides.

    Cost: about one read of the tensors; two on the CPU from some 9·10⁷ coordinates on, and on CUDA where heavy ties
        hold the answer; on CUDA up to an eighth of a read more from 2·10⁷ coordinates on. 3.25 MiB of workspace.
    Determinism: the k-th smallest is unique; no thread count or hint changes it.

    Example:
        >>> import torch
        >>> from torch_ire import ops
        >>> ops.kth_value([torch.tensor([3.0, -1.0]), torch.tensor([[2.0]])], 2, score="square")
        tensor(4.)

    References:
        Floyd and Rivest, "Expected time bounds for selection", Communications of the ACM 18 (1975): a sample that
            brackets the answer.
    """
    del hint  # it only changes the time
    if not tensors:
        raise RuntimeError("torch_ire::kth_value: tensors: expected at least one tensor, got an empty list")
    scores = torch.cat([score_of(memory_order(tensor), score) for tensor in tensors])
    return scores.sort().values[k - 1].to(torch.float32 if score == "square" else tensors[0].dtype)


def meta(tensors: Sequence[Tensor], *_: object, score: str = "value", **__: object) -> Tensor:
    """The result without its value, for compilers and meta tensors."""
    return tensors[0].new_empty((), dtype=torch.float32 if score == "square" else tensors[0].dtype)


__all__ = ["kth_value"]
