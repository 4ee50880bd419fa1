"""One exact threshold over scores of several dtypes, on several devices, in several processes.

Each pass counts one digit of the scores' keys, from the top down. Counts are summed over dtypes, devices and processes,
so every process finds the same threshold after one message of 16 KiB per digit. No scores are concatenated or
converted, and the host reads nothing back.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from torch_ire.layouts import to_device

_DIGIT_BITS = 11
_DIGITS = 1 << _DIGIT_BITS
# Bits below each digit, from the top, for keys of 32 and of 64 bits: whole digits from bit 0 on.
_SHIFTS = {torch.float32: (22, 11, 0), torch.float64: (55, 44, 33, 22, 11, 0)}

Reduce = Callable[[Tensor], Tensor]


def needs_float64(dtypes: Sequence[torch.dtype], score: str) -> bool:
    """Whether a ranking over tensors of these dtypes needs keys of 64 bits; squares are always float32."""
    return score != "square" and torch.float64 in dtypes


def exact_threshold(
    functions: ModuleType,
    scores: Sequence[Tensor],
    gamma: float,
    *,
    score: str,
    reduce: Reduce | None = None,
    shards: Sequence[tuple[Sequence[Tensor], Reduce]] = (),
    wide: bool | None = None,
    device: torch.device | None = None,
) -> Tensor:
    r"""The k-th smallest score over all tensors of all processes; k = round(gamma N) for N coordinates.

    Args:
        functions: :mod:`torch_ire.ops` or :mod:`torch_ire.reference`.
        scores: The tensors of this process, float32, float64, bfloat16 or float16, dense, on any devices. May be empty.
        gamma: Share of the coordinates that are flat, in [0, 1].
        score: The function to rank: "value" x, "abs" \|x\|, "square" x² rounded to float32.
        reduce: Sums an int64 vector over all processes, in place or not, and returns it. Every process calls it the
            same number of times. ``None``: this process is the only one.
        shards: Further tensors, with sums over other sets of processes.
        wide: Whether to rank in float64, to which all scores convert exactly; the same in all processes. ``None``: if a
            tensor of this process needs it.
        device: The device that sums counts. ``None``: the device of the first tensor, or the CPU.

    Returns:
        A 0-dimensional tensor on ``device``, float64 for a ``wide`` ranking, else float32; -inf for k = 0, NaN if the
        k-th smallest score is NaN.

    Cost: 3 reads of the scores, 6 if ``wide``; as many messages of 16 KiB.
    Determinism: the k-th smallest is unique.
    """
    lists: list[tuple[Sequence[Tensor], Reduce | None]] = [(scores, reduce), *shards]
    tensors = [tensor for some, _ in lists for tensor in some]
    if device is None:
        device = tensors[0].device if tensors else torch.device("cpu")
    if wide is None:
        wide = needs_float64([tensor.dtype for tensor in tensors], score)
    dtype = torch.float64 if wide else torch.float32
    prefix = torch.zeros((), dtype=torch.int64, device=device)
    k = rank = prefix
    for place, shift in enumerate(_SHIFTS[dtype]):
        message = torch.zeros(_DIGITS + 1, dtype=torch.int64, device=device)
        for some, sum_of in lists:
            counts = _counts(functions, some, prefix, {"shift": shift, "score": score, "wide": wide})
            message += counts if sum_of is None else sum_of(counts)
        if place == 0:
            k = rank = (gamma * message[_DIGITS].double()).round().to(torch.int64)
        digit, rank = _digit_of_rank(message[:_DIGITS], rank)
        prefix = digit - _DIGITS // 2 if place == 0 else prefix * _DIGITS + digit
    return torch.where(k > 0, _from_key(prefix, dtype), -torch.inf)


def _counts(functions: ModuleType, scores: Sequence[Tensor], prefix: Tensor, digit: Mapping[str, Any]) -> Tensor:
    """The counts of a digit of the scores, followed by the number of coordinates."""
    counts = torch.zeros(_DIGITS + 1, dtype=torch.int64, device=prefix.device)
    counts[_DIGITS] = sum(tensor.numel() for tensor in scores)
    prefixes = {device: to_device(device, prefix) for device in {tensor.device for tensor in scores}}
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for tensor in scores:
        groups[tensor.device, tensor.dtype].append(tensor)
    for (device, _), tensors in groups.items():
        counts[:_DIGITS] += to_device(prefix.device, functions.score_histogram(tensors, prefixes[device], **digit))
    return counts


def _digit_of_rank(counts: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """The digit whose cumulative count reaches a rank (from 1), and the rank among the keys with this digit."""
    up_to = counts.cumsum(0)
    digit = (up_to < rank).sum()
    below = torch.where(up_to < rank, counts, 0).sum()
    return digit, rank - below


def _from_key(key: Tensor, dtype: torch.dtype) -> Tensor:
    # the inverse of the keys of score_histogram; the largest key belongs to NaN, and its bits are a NaN
    integer = torch.int64 if dtype == torch.float64 else torch.int32
    bits = torch.where(key < 0, torch.iinfo(integer).min - key, key)
    return bits.to(integer).view(dtype)
