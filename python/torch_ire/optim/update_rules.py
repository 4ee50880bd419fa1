"""The base optimizers as data: arguments, state and the one operator that makes the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from torch_ire import ops, reference
from torch_ire.optim.batches import Batch
from torch_ire.optim.rounding import kept_keys, kept_lists, prepare_kept
from torch_ire.optim.sharding import local_part, wrapped_like


def functions_of(group: Mapping[str, Any]) -> ModuleType:
    """The operators that a group asks for; :mod:`torch_ire.ops` falls back to the reference by itself."""
    return reference if group.get("implementation") == "reference" else ops


def opmath_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of moments and curvature: float64 for float64 parameters, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def zeros_for(param: Tensor) -> Tensor:
    """A moment of zeros in the layout of the parameter, and in its shards."""
    part = local_part(param)
    zeros = torch.zeros_like(part, dtype=opmath_dtype(param.dtype), memory_format=torch.preserve_format)
    return wrapped_like(zeros, param)


def new_step(param: Tensor) -> Tensor:
    """A step counter; a tensor on the device, so that a captured graph can advance it."""
    return torch.zeros((), dtype=torch.float32, device=param.device)


@dataclass(frozen=True)
class UpdateRule:
    """A base optimizer."""

    name: str
    # arguments beyond lr, weight_decay and maximize
    defaults: Mapping[str, Any]
    check: Callable[[Mapping[str, Any]], None]
    # state tensors in the parameter's shape and opmath dtype; `step`, `flat_mask` and what rounding keeps come on top
    moment_keys: tuple[str, ...]
    # the state that a step of this group needs of parameters of a dtype
    state_keys: Callable[[Mapping[str, Any], torch.dtype], tuple[str, ...]]
    # brings the state of a parameter up to what a step of this group needs
    prepare: Callable[[Mapping[str, Any], Tensor, dict[str, Any]], None]
    step: Callable[[ModuleType, Batch, list[Tensor], Mapping[str, Any]], None]


def check_base_arguments(group: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` in the words of ``torch.optim`` for what both base optimizers take."""
    lr = group["lr"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError("Tensor lr must be 1-element")
    if not lr >= 0.0:
        raise ValueError(f"Invalid learning rate: {lr}")
    if not group["weight_decay"] >= 0.0:
        raise ValueError(f"Invalid weight_decay value: {group['weight_decay']}")


def _check_adamw(group: Mapping[str, Any]) -> None:
    if not group["eps"] >= 0.0:
        raise ValueError(f"Invalid epsilon value: {group['eps']}")
    for i, beta in enumerate(group["betas"]):
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"Invalid beta parameter at index {i}: {beta}")
    if group.get("amsgrad"):
        raise ValueError("amsgrad is not supported: its running maximum has no counterpart in IRE")


def _prepare_adamw(group: Mapping[str, Any], param: Tensor, state: dict[str, Any]) -> None:
    if "exp_avg" not in state:
        state["step"] = new_step(param)
        state["exp_avg"] = zeros_for(param)
        state["exp_avg_sq"] = zeros_for(param)
    prepare_kept(group, param, state)


def _step_adamw(functions: ModuleType, batch: Batch, flat_masks: list[Tensor], scalars: Mapping[str, Any]) -> None:
    group = batch.group
    beta1, beta2 = group["betas"]
    functions.fused_adamw_flat_(
        batch.params,
        batch.grads,
        batch.moments("exp_avg"),
        batch.moments("exp_avg_sq"),
        [state["step"] for state in batch.states],
        flat_masks,
        batch.restore_from,
        *kept_lists(batch),
        beta1=float(beta1),
        beta2=float(beta2),
        eps=group["eps"],
        weight_decay=group["weight_decay"],
        amplify_weight_decay=group["amplify_weight_decay"],
        maximize=group["maximize"],
        **scalars,
    )


ADAMW = UpdateRule(
    name="adamw",
    defaults={"betas": (0.9, 0.999), "eps": 1e-8},
    check=_check_adamw,
    moment_keys=("exp_avg", "exp_avg_sq"),
    state_keys=lambda group, dtype: ("step", "exp_avg", "exp_avg_sq", *kept_keys(group, dtype)),
    prepare=_prepare_adamw,
    step=_step_adamw,
)


def _check_sgd(group: Mapping[str, Any]) -> None:
    if not group["momentum"] >= 0.0:
        raise ValueError(f"Invalid momentum value: {group['momentum']}")
    if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
        raise ValueError("Nesterov momentum requires a momentum and zero dampening")
    if not group["amplify_weight_decay"] and group["weight_decay"] != 0:
        raise ValueError(
            "amplify_weight_decay=False needs a decoupled weight decay; the L2 decay of SGD is part of the gradient "
            "and of its momentum"
        )
    if group["curvature"] == "second_moment":
        raise ValueError("curvature='second_moment' ranks Adam's second moment, which SGD does not have")


def _counts_steps(group: Mapping[str, Any]) -> bool:
    # torch.optim.SGD keeps no step; ours does where the update depends on it
    return bool((group["momentum"] != 0 and group["dampening"] != 0) or group["rounding"] == "stochastic")


def _prepare_sgd(group: Mapping[str, Any], param: Tensor, state: dict[str, Any]) -> None:
    if _counts_steps(group) and "step" not in state:
        state["step"] = new_step(param)
        if "momentum_buffer" in state:  # from an optimizer that did not count: not the first step
            state["step"] += 1
    if group["momentum"] != 0 and "momentum_buffer" not in state:
        state["momentum_buffer"] = zeros_for(param)
    prepare_kept(group, param, state)


def _step_sgd(functions: ModuleType, batch: Batch, flat_masks: list[Tensor], scalars: Mapping[str, Any]) -> None:
    group = batch.group
    functions.fused_sgd_flat_(
        batch.params,
        batch.grads,
        batch.moments("momentum_buffer") if group["momentum"] != 0 else [],
        [state["step"] for state in batch.states] if _counts_steps(group) else [],
        flat_masks,
        batch.restore_from,
        *kept_lists(batch),
        momentum=group["momentum"],
        dampening=group["dampening"],
        weight_decay=group["weight_decay"],
        nesterov=group["nesterov"],
        maximize=group["maximize"],
        **scalars,
    )


SGD = UpdateRule(
    name="sgd",
    defaults={"momentum": 0.0, "dampening": 0.0, "nesterov": False},
    check=_check_sgd,
    moment_keys=("momentum_buffer",),
    state_keys=lambda group, dtype: (
        ("step",) * _counts_steps(group) + ("momentum_buffer",) * (group["momentum"] != 0) + kept_keys(group, dtype)
    ),
    prepare=_prepare_sgd,
    step=_step_sgd,
)

RULES = {rule.name: rule for rule in (ADAMW, SGD)}
