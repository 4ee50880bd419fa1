"""What IRE does at present, in plain numbers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_ire.optim.arguments import enhancement
from torch_ire.optim.device_schedule import past_warmup
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
) -> dict[str, Any]:
    """See :meth:`IREOptimizer.ire_summary`; ``direction_of`` gives a parameter's base displacement."""
    shares: dict[str, float] = {}
    flat = total = 0
    whole = added = 0.0
    complete = True
    kappas = []
    for g, group in enumerate(groups):
        kappa = float(enhancement(group)) if past_warmup(group) else 0.0
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
            amplified, rest = direction
            extra = kappa * amplified.double() * unpack(mask, param)
            whole += float((amplified + rest + extra).square().sum())
            added += float(extra.square().sum())
    return {
        "flat_share": flat / total if total else 0.0,
        "flat_share_by_parameter": shares,
        "threshold": {_label(key): float(value) for key, value in thresholds.items()},
        "kappa_eff": kappas,
        "displacement_share": (added / whole if whole else 0.0) if complete else None,
    }


def present_direction(
    rule: UpdateRule, group: Mapping[str, Any], param: Tensor, state: Mapping[str, Any]
) -> Direction | None:
    """The direction of the base optimizer's displacement in its present state, or ``None`` where it is not at hand."""
    theta = param.detach()
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
    if buffer is not None and (param.grad is None or not group["nesterov"]):
        return buffer, 0.0
    if param.grad is None:
        return None
    gradient = (-param.grad if group["maximize"] else param.grad) + group["weight_decay"] * theta
    return (gradient if buffer is None else gradient + group["momentum"] * buffer), 0.0


def _label(key: tuple[Hashable, float]) -> str:
    pool, gamma = key
    name = ".".join(map(str, pool)) if isinstance(pool, tuple) else str(pool)
    return f"{name}, gamma={gamma:g}"
