"""From scores to masks: Eq. (5) with one ranking over all parameters, over a group, or over each parameter.

Everything here works on (parameter, score, mask) triples and serves the optimizers as well as ``IRE(...)``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from torch_ire.counter_rng import as_int64, mix64
from torch_ire.optim.exact_threshold import exact_threshold, on_device
from torch_ire.packed_mask import num_bytes, pack


@dataclass
class Ranked:
    """One parameter in a ranking."""

    index: int  # position in the optimizer
    group: Mapping[str, Any]
    group_index: int
    score: Tensor  # in the layout of the parameter
    flat_mask: Tensor  # packed, to be written
    due: bool  # whether the mask is written, or the parameter only takes part in the ranking

    def pool(self) -> Hashable:
        """The ranking that the parameter belongs to."""
        ranking = self.group["ranking"]
        return {"global": "global", "group": ("group", self.group_index), "parameter": ("parameter", self.index)}[
            ranking
        ]


def refresh_masks(
    functions: ModuleType, ranked: Iterable[Ranked], score: str, thresholds: dict[tuple[Hashable, float], Tensor]
) -> None:
    """Writes the masks of all due parameters.

    Args:
        functions: :mod:`torch_ire.ops` or :mod:`torch_ire.reference`.
        ranked: The parameters with an estimate.
        score: What of a score tensor is ranked: "abs" or "square".
        thresholds: The thresholds of the last refresh by pool and gamma, as hints; updated.

    Cost: between one and two reads of the scores for the exact threshold (3 where the ranking goes over several dtypes
        or devices, 6 with scores in float64 among them), one more for the bits.
    """
    pools: dict[Hashable, list[Ranked]] = defaultdict(list)
    for item in ranked:
        pools[item.pool()].append(item)
    for pool, members in pools.items():
        scores = [item.score for item in members]
        for gamma in sorted({item.group["gamma"] for item in members if item.due}):
            threshold = _threshold(functions, scores, gamma, score, thresholds.get((pool, gamma)))
            thresholds[pool, gamma] = threshold
            for device, dtype in dict.fromkeys((item.score.device, item.score.dtype) for item in members):
                chosen = [
                    item
                    for item in members
                    if item.due
                    and item.group["gamma"] == gamma
                    and (item.score.device, item.score.dtype) == (device, dtype)
                ]
                functions.flat_mask_(
                    [item.flat_mask for item in chosen],
                    [item.score for item in chosen],
                    on_device(threshold, device),
                    score=score,
                )


def _threshold(
    functions: ModuleType, scores: Sequence[Tensor], gamma: float, score: str, hint: Tensor | None
) -> Tensor:
    if len({(s.device, s.dtype) for s in scores}) > 1:
        return exact_threshold(functions, scores, gamma, score=score)
    k = round(gamma * sum(s.numel() for s in scores))
    if k == 0:
        return torch.full((), -torch.inf, device=scores[0].device)
    if hint is not None and hint.device != scores[0].device:
        hint = None
    return functions.kth_value(scores, k, score=score, hint=hint)  # type: ignore[no-any-return]


def draw_random_mask(flat_mask: Tensor, numel: int, gamma: float, key: int) -> None:
    """Fills a mask with independent bits of probability gamma: the control that any claim about IRE has to beat.

    Args:
        flat_mask: Packed mask, written in place.
        numel: Coordinates of the parameter.
        gamma: Expected share of flat coordinates.
        key: Seed; the same key gives the same mask on every replica with the same kind of device.

    Cost: 1 MiB of workspace.
    """
    chunk = 1 << 18
    generator = torch.Generator(flat_mask.device)
    for begin in range(0, numel, chunk):
        count = min(chunk, numel - begin)
        generator.manual_seed(as_int64(mix64(key, begin)) & 0x7FFFFFFFFFFFFFFF)
        flags = torch.rand(count, generator=generator, device=flat_mask.device) < gamma
        flat_mask[begin // 8 : begin // 8 + num_bytes(count)] = pack(flags)
