"""Masks from scores: Eq. (5) with one ranking over all parameters, per group, or per parameter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from torch_ire.counter_rng import as_int64, mix64
from torch_ire.layouts import to_device
from torch_ire.masks.exact_threshold import exact_threshold, needs_float64
from torch_ire.packed_mask import num_bytes, pack
from torch_ire.sharding import ShardGroup, draw, drawn, is_whole, local_part, shard_group_of


@dataclass
class Ranked:
    """One parameter in a ranking."""

    index: int  # position in the optimizer
    group: Mapping[str, Any]
    group_index: int
    param: Tensor
    score: Tensor | None  # local, in the layout of the parameter; None: no estimate on this rank
    flat_mask: Tensor  # packed, to be written
    due: bool  # whether to write the mask; otherwise the parameter only takes part in the ranking

    def pool(self) -> Hashable:
        """The ranking that the parameter belongs to."""
        ranking = self.group["ranking"]
        return {"global": "global", "group": ("group", self.group_index), "parameter": ("parameter", self.index)}[
            ranking
        ]


def refresh_masks(
    functions: ModuleType, ranked: Iterable[Ranked], score: str, thresholds: dict[tuple[Hashable, float], Tensor]
) -> None:
    """Writes the masks of all due parameters that have an estimate.

    Args:
        functions: :mod:`torch_ire.ops` or :mod:`torch_ire.reference`.
        ranked: All parameters of the rankings, also those without an estimate: another rank may have one.
        score: The function of a score tensor that is ranked: "abs" or "square".
        thresholds: The thresholds of the last refresh by pool and gamma, as hints; updated. Entries whose gamma no
            parameter of the pool has are removed.

    Cost: one to two reads of the scores if one device and dtype hold them and all their masks are due. Otherwise as
        many for the exact threshold (3 for a ranking over several dtypes, devices or ranks, 6 with float64 scores among
        them), and one more for the bits. Over ranks, one message of 16 KiB per read and shard group.
    """
    pools: dict[Hashable, list[Ranked]] = defaultdict(list)
    for item in ranked:
        pools[item.pool()].append(item)
    for pool, members in pools.items():
        gammas = {item.group["gamma"] for item in members}
        for stale in [key for key in thresholds if key[0] == pool and key[1] not in gammas]:
            del thresholds[stale]
        # in the same order on every rank, with or without estimates: each shard group runs collectives
        shard_groups = [
            shard_group
            for shard_group in dict.fromkeys(shard_group_of(item.param) for item in members)
            if shard_group is not None
        ]
        estimated = [item for item in members if item.score is not None]
        if not estimated and not shard_groups:
            continue
        for gamma in sorted({item.group["gamma"] for item in (members if shard_groups else estimated) if item.due}):
            calls: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
            for item in estimated:
                if item.score is not None and item.due and item.group["gamma"] == gamma:
                    masks, scores = calls.setdefault((item.score.device, item.score.dtype), ([], []))
                    masks.append(item.flat_mask)
                    scores.append(item.score)
            hint = thresholds.get((pool, gamma))
            if shard_groups:
                threshold = _threshold_over_ranks(functions, members, shard_groups, gamma, score)
            elif len(calls) == 1 and len(scores) == len(estimated):
                # each score is ranked and marked: one read does both
                thresholds[pool, gamma] = _ranked_and_marked(functions, masks, scores, gamma, score, hint)
                continue
            else:
                ranked_scores = [item.score for item in estimated if item.score is not None]
                threshold = _threshold(functions, ranked_scores, gamma, score, hint)
            thresholds[pool, gamma] = threshold
            for (device, _), (masks, scores) in calls.items():
                functions.flat_mask_(masks, scores, to_device(device, threshold), score=score)


def _ranked_and_marked(
    functions: ModuleType,
    masks: Sequence[Tensor],
    scores: Sequence[Tensor],
    gamma: float,
    score: str,
    hint: Tensor | None,
) -> Tensor:
    """Writes the masks of scores of one device and dtype; returns the threshold."""
    dtype = torch.float32 if score == "square" else scores[0].dtype
    threshold = torch.full((), -torch.inf, dtype=dtype, device=scores[0].device)
    k = round(gamma * sum(s.numel() for s in scores))
    if k > 0 and hint is not None and hint.device == threshold.device:
        threshold.copy_(hint)
    functions.flat_mask_(masks, scores, threshold, score=score, k=k or None)
    return threshold


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


def _threshold_over_ranks(
    functions: ModuleType, members: Sequence[Ranked], shard_groups: Sequence[ShardGroup], gamma: float, score: str
) -> Tensor:
    def scores_of(shard_group: ShardGroup | None) -> list[Tensor]:
        return [item.score for item in members if item.score is not None and shard_group_of(item.param) == shard_group]

    return exact_threshold(
        functions,
        scores_of(None),
        gamma,
        score=score,
        shards=[(scores_of(shard_group), shard_group.add_up) for shard_group in shard_groups],
        # from the dtypes of parameters: a rank without an estimate knows them too
        wide=needs_float64([item.param.dtype for item in members], score),
        device=local_part(members[0].param).device,
    )


def draw_random_mask(flat_mask: Tensor, param: Tensor, gamma: float, key: int) -> None:
    """Fills a mask with independent random bits of probability gamma: the control for any claim about IRE.

    Args:
        flat_mask: Packed mask of the parameter's local part, written in place.
        param: The parameter.
        gamma: Expected share of flat coordinates.
        key: Seed; the same key gives the same mask on every replica with the same kind of device, and ranks get the
            shards of the mask that a single process would draw.

    Cost: 1 MiB of workspace; one byte per coordinate of a sharded parameter.
    """
    if flat_mask.is_meta:
        return
    generator = torch.Generator(flat_mask.device)

    def random(begin: int, count: int) -> Tensor:
        generator.manual_seed(as_int64(mix64(key, begin)) & 0x7FFFFFFFFFFFFFFF)
        return torch.rand(count, generator=generator, dtype=torch.float32, device=flat_mask.device) < gamma

    if not is_whole(param):
        flat_mask.copy_(pack(drawn(param, torch.bool, random)))
        return
    for where, flags in draw(param, random):
        flat_mask[where.start // 8 : where.start // 8 + num_bytes(where.stop - where.start)] = pack(flags)
