"""The present effect of IRE in plain numbers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_ire.packed_mask import count_flat, follow_layout, unpack
from torch_ire.sharding import local_part, shard_group_of

# The parts of a base displacement that IRE amplifies and leaves alone, up to one common factor.
Direction = tuple[Tensor, Tensor | float]


@torch.no_grad()
def summarize(
    groups: Sequence[Mapping[str, Any]],
    kappas: Sequence[float],
    state: Mapping[Tensor, dict[str, Any]],
    thresholds: Mapping[tuple[Hashable, float], Tensor],
    direction_of: Callable[[Mapping[str, Any], Tensor, Mapping[str, Any]], Direction | None],
    over_mesh: bool,
) -> dict[str, Any]:
    """See :meth:`AdmIRE.ire_summary`.

    Args:
        groups: The parameter groups.
        kappas: The effective kappa of each group.
        state: State by parameter.
        thresholds: Thresholds of the last refresh by pool and gamma.
        direction_of: Returns the base displacement of a local part from its group, parameter and local state.
        over_mesh: Whether to sum over the ranks of sharded parameters.
    """
    names: list[str] = []
    params: list[Tensor] = []
    rows = []
    for g, (group, kappa) in enumerate(zip(groups, kappas, strict=True)):
        names += group.get("param_names") or [f"{g}.{i}" for i in range(len(group["params"]))]
        for param in group["params"]:
            entry = {key: local_part(value) for key, value in state.get(param, {}).items()}
            params.append(param)
            rows.append(_row(kappa, group, param, entry, direction_of))
    table = torch.tensor(rows, dtype=torch.float64, device="cpu").reshape(-1, 6)
    for shard_group in dict.fromkeys(map(shard_group_of, params)) if over_mesh else ():
        if shard_group is not None:
            chosen = [i for i, param in enumerate(params) if shard_group_of(param) == shard_group]
            table[chosen] = shard_group.add_in_order(table[chosen])
    _, flat, total, whole, added, unknown = table.sum(0).tolist()
    return {
        "flat_share": flat / total if total else 0.0,
        "flat_share_by_parameter": {
            name: row[1] / max(row[2], 1.0) for name, row in zip(names, table.tolist(), strict=True) if row[0]
        },
        "threshold": {_label(key, thresholds, groups): float(value) for key, value in thresholds.items()},
        "kappa_eff": list(kappas),
        "displacement_share": None if unknown else (added / whole if whole else 0.0),
    }


def _row(
    kappa: float,
    group: Mapping[str, Any],
    param: Tensor,
    entry: Mapping[str, Any],
    direction_of: Callable[[Mapping[str, Any], Tensor, Mapping[str, Any]], Direction | None],
) -> tuple[float, ...]:
    """Six numbers of one parameter.

    1 if it has a mask, its flat coordinates, all its coordinates, the squared displacement, the squared displacement
    that IRE adds, and 1 if the last two are unknown.
    """
    mask = entry.get("flat_mask")
    if mask is None:
        return (0.0,) * 6
    part = local_part(param)
    counts = (1.0, float(count_flat(mask)), float(part.numel()))
    direction = direction_of(group, param, entry)
    if direction is None:
        return (*counts, 0.0, 0.0, 1.0)
    amplified, rest = direction
    extra = kappa * amplified.double() * unpack(follow_layout(mask, part), part)
    return (*counts, float((amplified + rest + extra).square().sum()), float(extra.square().sum()), 0.0)


def _label(
    key: tuple[Hashable, float], keys: Iterable[tuple[Hashable, float]], groups: Sequence[Mapping[str, Any]]
) -> str:
    """The pool, and the first group with this gamma if the pool has several.

    Gamma is not part of the name, because it may follow a schedule.
    """
    pool, gamma = key
    name = ".".join(map(str, pool)) if isinstance(pool, tuple) else str(pool)
    if sum(other == pool for other, _ in keys) == 1:
        return name
    return f"{name}, group {next((i for i, group in enumerate(groups) if group['gamma'] == gamma), gamma)}"
