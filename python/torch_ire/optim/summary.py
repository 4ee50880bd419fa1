"""What IRE does at present, in plain numbers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_ire.optim.arguments import enhancement
from torch_ire.optim.device_schedule import past_warmup
from torch_ire.optim.sharding import local_part, local_part_like, spread_of
from torch_ire.optim.update_rules import UpdateRule
from torch_ire.packed_mask import count_flat, unpack

# What of a base displacement IRE amplifies, and what it leaves as it is, both up to one factor.
Direction = tuple[Tensor, Tensor | float]


@torch.no_grad()
def summarize(
    groups: Sequence[Mapping[str, Any]],
    state: Mapping[Tensor, dict[str, Any]],
    thresholds: Mapping[tuple[Hashable, float], Tensor],
    direction_of: Callable[[Mapping[str, Any], Tensor, Mapping[str, Any]], Direction | None],
    over_mesh: bool,
) -> dict[str, Any]:
    """See :meth:`IREOptimizer.ire_summary`; ``direction_of`` gives the base displacement of a local part."""
    kappas = [float(enhancement(group)) if past_warmup(group) else 0.0 for group in groups]
    names: list[str] = []
    params: list[Tensor] = []
    rows = []
    for g, (group, kappa) in enumerate(zip(groups, kappas, strict=True)):
        names += group.get("param_names") or [f"{g}.{i}" for i in range(len(group["params"]))]
        for param in group["params"]:
            entry = {key: local_part(value) for key, value in state.get(param, {}).items()}
            params.append(param)
            rows.append(_row(kappa, group, param, entry, direction_of))
    table = torch.tensor(rows, dtype=torch.float64)
    for spread in dict.fromkeys(map(spread_of, params)) if over_mesh else ():
        if spread is not None:
            chosen = [i for i, param in enumerate(params) if spread_of(param) == spread]
            table[chosen] = spread.add_in_order(table[chosen])
    _, flat, total, whole, added, unknown = table.sum(0).tolist()
    return {
        "flat_share": flat / total if total else 0.0,
        "flat_share_by_parameter": {
            name: row[1] / max(row[2], 1.0) for name, row in zip(names, table.tolist(), strict=True) if row[0]
        },
        "threshold": {_label(key): float(value) for key, value in thresholds.items()},
        "kappa_eff": kappas,
        "displacement_share": None if unknown else (added / whole if whole else 0.0),
    }


def _row(
    kappa: float,
    group: Mapping[str, Any],
    param: Tensor,
    entry: Mapping[str, Any],
    direction_of: Callable[[Mapping[str, Any], Tensor, Mapping[str, Any]], Direction | None],
) -> tuple[float, ...]:
    """What a parameter adds to a summary.

    Whether there is a mask, the number of flat coordinates, of all; the squared displacement with what IRE adds, what
    it adds alone, and whether these two are unknown.
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
    extra = kappa * amplified.double() * unpack(mask, part)
    return (*counts, float((amplified + rest + extra).square().sum()), float(extra.square().sum()), 0.0)


def present_direction(
    rule: UpdateRule, group: Mapping[str, Any], param: Tensor, state: Mapping[str, Any]
) -> Direction | None:
    """The direction of the base optimizer's displacement in its present state, or ``None`` where it is not at hand.

    Of a sharded parameter it is the local part; ``state`` holds local parts.
    """
    theta = local_part(param).detach()
    grad = None if param.grad is None else local_part_like(param.grad, param)
    if rule.name == "adamw":
        if "exp_avg" not in state:
            return None
        t = max(float(state["step"]), 1.0)
        beta1, beta2 = group["betas"]
        denominator: Tensor = (state["exp_avg_sq"] / (1 - beta2**t)).sqrt() + group["eps"]
        adaptive: Tensor = state["exp_avg"] / (denominator * (1 - beta1**t))
        decay = group["weight_decay"] * theta
        return (adaptive + decay, 0.0) if group["amplify_weight_decay"] else (adaptive, decay)
    buffer = state.get("momentum_buffer") if group["momentum"] != 0 else None
    if buffer is not None and (grad is None or not group["nesterov"]):
        return buffer, 0.0
    if grad is None:
        return None
    gradient = (-grad if group["maximize"] else grad) + group["weight_decay"] * theta
    return (gradient if buffer is None else gradient + group["momentum"] * buffer), 0.0


def _label(key: tuple[Hashable, float]) -> str:
    pool, gamma = key
    name = ".".join(map(str, pool)) if isinstance(pool, tuple) else str(pool)
    return f"{name}, gamma={gamma:g}"
