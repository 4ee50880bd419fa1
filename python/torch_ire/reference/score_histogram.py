"""Counts digits of ordered scores, for exact rankings over several lists."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_ire.reference.arithmetic import memory_order, score_of


def score_histogram(
    tensors: Sequence[Tensor], prefix: Tensor, *, shift: int, score: str = "value", wide: bool = False
) -> Tensor:
    r"""Counts each digit at one place of the scores' keys, among the keys that agree in all higher places.

    A key is a signed integer in the order of the scores: the bits of a float, negated if the sign is set, so that
    -0 equals +0 and NaN, of either sign, is greatest. With arithmetic shifts and 11 bits per digit,

    .. math::
        c_b = \#\{\, i : (x_i \gg s) \gg 11 = p,\ (x_i \gg s) \bmod 2^{11} = b \,\}, \qquad
        c_b = \#\{\, i : (x_i \gg s) + 1024 = b \,\} \text{ at the top, where } s + 11 \ge B

    for keys x of B bits. Counting from the top down and narrowing ``prefix`` to the digit that holds the rank finds the
    exact k-th smallest. Counts of several lists, dtypes, devices or processes add up, which values of
    :func:`kth_value` do not.

    Args:
        tensors: float32, float64, bfloat16 or float16, dense (any dense strides), one dtype and device. Read only. May
            be empty: no key occurs.
        prefix: One int64 number on the device of the tensors: the signed value of the bits above the digit. Ignored at
            the top. It is read on the device.
        shift: Bits below the digit, from 0 to B - 1.
        score: What is ranked: ``"value"`` x, ``"abs"`` \|x\|, ``"square"`` x² rounded to float32 (a float64 x is
            rounded first).
        wide: Keys of B = 64 bits, those of float64, to which the scores of all dtypes convert exactly. Otherwise B = 32
            and the keys are those of float32, unless the scores are float64.

    Returns:
        int64 of shape (2048,) on the device of ``prefix``.

    Raises:
        RuntimeError: ``prefix``, ``shift`` or ``score`` is invalid, or a tensor has the wrong device, dtype or strides.

    Cost: one read of the tensors; CUDA: no workspace, CPU: 64 KiB per thread.
    Determinism: exact; CPU and CUDA agree.

    Example:
        >>> import torch
        >>> from torch_ire import ops
        >>> x = [torch.tensor([1.0, -1.0]), torch.tensor([[1.5]])]
        >>> counts = ops.score_histogram(x, torch.tensor(0), shift=22)
        >>> [(b - 1024, int(counts[b])) for b in counts.nonzero().flatten().tolist()]
        [(-254, 1), (254, 1), (255, 1)]

    References:
        Alabi, Blanchard, Gordon and Steinbach, "Fast k-selection algorithms for graphics processing units", ACM Journal
            of Experimental Algorithmics 17 (2012): selection by digits.
    """
    counts = torch.zeros(2048, dtype=torch.int64, device=prefix.device)
    for tensor in tensors:
        scores = score_of(memory_order(tensor), score)
        scores = scores.double() if wide else scores
        digits = _ordered_keys(scores) >> shift
        top = shift + 11 >= 8 * scores.element_size()
        buckets = digits + 1024 if top else (digits & 2047)[(digits >> 11) == prefix]
        counts += torch.bincount(buckets, minlength=2048)
    return counts


def meta(_: Sequence[Tensor], prefix: Tensor, **__: object) -> Tensor:
    """The result without its value, for compilers and meta tensors."""
    return prefix.new_empty((2048,), dtype=torch.int64)


def _ordered_keys(scores: Tensor) -> Tensor:
    # sign and magnitude to two's complement; the magnitude of a NaN is made the largest, its sign dropped
    of_scores = torch.int64 if scores.dtype == torch.float64 else torch.int32
    bits = scores.view(of_scores).to(torch.int64)
    magnitude = bits & torch.iinfo(of_scores).max
    keys = torch.where(bits < 0, -magnitude, magnitude)
    return torch.where(scores.isnan(), torch.iinfo(of_scores).max, keys)


__all__ = ["score_histogram"]
