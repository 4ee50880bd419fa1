"""What IRE does at present, in plain numbers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_ire.optim.arguments import enhancement
from torch_ire.optim.update_rules import UpdateRule
from torch_ire.packed_mask import count_flat, unpack


@torch.no_grad()
def summarize(
    groups: Sequence[Mapping[str, Any]],
    state: Mapping[Tensor, dict[str, Any]],
    thresholds: Mapping[tuple[Hashable, float], Tensor],
    direction_of: Callable[[Mapping[str, Any], Tensor, Mapping[str, Any]], Tensor | None],
) -> dict[str, Any]:
    """See :meth:`IREOptimizer.ire_summary`; ``direction_of`` gives a parameter's base displacement up to a factor."""
    shares: dict[str, float] = {}
    flat = total = 0
    base = added = 0.0
    complete = True
    kappas = []
    for g, group in enumerate(groups):
        kappa = float(enhancement(group)) if group["ire_step"] >= group["warmup_steps"] else 0.0
        kappas.append(kappa)
        names = group.get("param_names") or [f"{g}.{i}" for i in range(len(group["params"]))]
        for name, param in zip(names, group["params"], strict=True):
            entry = state.get(param, {})
            mask = entry.get("flat_mask")
            if mask is None:
                continue
            count = int(count_flat(mask))
            shares[name] = count / max(param.numel(), 1)
            flat += count
            total += param.numel()
            direction = direction_of(group, param, entry)
            if direction is None:
                complete = False
                continue
            squares = direction.double().square()
            flat_squares = float(squares[unpack(mask, param)].sum())
            base += float(squares.sum()) - flat_squares
            base += (1 + kappa) ** 2 * flat_squares
            added += kappa**2 * flat_squares
    return {
        "flat_share": flat / total if total else 0.0,
        "flat_share_by_parameter": shares,
        "threshold": {_label(key): float(value) for key, value in thresholds.items()},
        "kappa_eff": kappas,
        "displacement_share": (added / base if base else 0.0) if complete else None,
    }


def present_direction(
    rule: UpdateRule, group: Mapping[str, Any], param: Tensor, state: Mapping[str, Any]
) -> Tensor | None:
    """The direction of the base optimizer's displacement in its present state, or ``None`` where it is not at hand."""
    theta = param.detach()
    if rule.name == "adamw":
        if "exp_avg" not in state:
            return None
        t = max(float(state["step"]), 1.0)
        beta1, beta2 = group["betas"]
        denominator: Tensor = (state["exp_avg_sq"] / (1 - beta2**t)).sqrt() + group["eps"]
        decay = group["weight_decay"] if group["amplify_weight_decay"] else 0.0
        direction: Tensor = state["exp_avg"] / (denominator * (1 - beta1**t)) + decay * theta
        return direction
    if group["momentum"] != 0:
        return state.get("momentum_buffer")
    return None if param.grad is None else param.grad + group["weight_decay"] * theta


def _label(key: tuple[Hashable, float]) -> str:
    pool, gamma = key
    name = ".".join(map(str, pool)) if isinstance(pool, tuple) else str(pool)
    return f"{name}, gamma={gamma:g}"
