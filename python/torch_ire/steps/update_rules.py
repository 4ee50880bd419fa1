"""The base optimizers as data: arguments, state, and the operator that takes the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torch_ire import ops, reference
from torch_ire.layouts import opmath_dtype
from torch_ire.sharding import local_part, local_part_like
from torch_ire.steps.schedule import on_device
from torch_ire.summary import Direction

if TYPE_CHECKING:
    from torch_ire.steps.tensor_lists import TensorLists

# ``rounding`` -> its state tensor per bfloat16 or float16 parameter. Other parameters need none.
_ROUNDING_STATE = {"kahan": "compensation", "master": "master_param"}
ROUNDING_STATE_KEYS = tuple(_ROUNDING_STATE.values())


def functions_of(group: Mapping[str, Any]) -> ModuleType:
    """The operators of a group; :mod:`torch_ire.ops` falls back to the reference itself."""
    return reference if group.get("implementation") == "reference" else ops


def rounding_state_keys(group: Mapping[str, Any], dtype: torch.dtype) -> tuple[str, ...]:
    """The key of the rounding state for parameters of a dtype, if the group has one."""
    key = _ROUNDING_STATE.get(group["rounding"])
    return (key,) if key is not None and dtype in (torch.bfloat16, torch.float16) else ()


def state_dtype(key: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype of a state tensor for parameters of ``dtype``; "flat_mask" is packed bits."""
    if key == "flat_mask":
        return torch.uint8
    if key in ("step", "master_param", "hessian_diag_updates"):
        return torch.float32
    return dtype if key == "compensation" else opmath_dtype(dtype)


@dataclass(frozen=True)
class UpdateRule:
    """A base optimizer."""

    name: str
    # arguments beyond lr, weight_decay and maximize
    defaults: Mapping[str, Any]
    check: Callable[[Mapping[str, Any]], None]
    # state tensors in the parameter's shape and opmath dtype, in addition to `step`, `flat_mask` and the rounding state
    moment_keys: tuple[str, ...]
    # the state that a step of this group needs per parameter of a dtype
    state_keys: Callable[[Mapping[str, Any], torch.dtype], tuple[str, ...]]
    step: Callable[[ModuleType, TensorLists, Mapping[str, Any]], None]
    direction: Callable[[Mapping[str, Any], Tensor, Tensor | None, Mapping[str, Any]], Direction | None]


def state_keys(rule: UpdateRule, group: Mapping[str, Any], dtype: torch.dtype) -> tuple[str, ...]:
    """The state that a step of a group needs per parameter; the step of a capturable group creates no mask."""
    mask = ("flat_mask",) * (on_device(group) and isinstance(group["curvature"], str))
    return (*rule.state_keys(group, dtype), *mask)


def check_base_arguments(group: Mapping[str, Any]) -> None:
    """Raises ``ValueError``, worded as in ``torch.optim``, for the arguments that all base optimizers share."""
    lr = group["lr"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError("Tensor lr must be 1-element")
    if not lr >= 0.0:
        raise ValueError(f"Invalid learning rate: {lr}")
    if not group["weight_decay"] >= 0.0:
        raise ValueError(f"Invalid weight_decay value: {group['weight_decay']}")


def kept_lists(lists: TensorLists) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """``compensations`` and ``master_params`` of a step; at least one of them is empty."""
    kept = rounding_state_keys(lists.group, lists.dtype)
    compensations, masters = (lists.column(key) if key in kept else [] for key in ROUNDING_STATE_KEYS)
    return compensations, masters


def present_direction(
    rule: UpdateRule, group: Mapping[str, Any], param: Tensor, state: Mapping[str, Any]
) -> Direction | None:
    """The direction of the base optimizer's displacement in its present state; ``None`` if it is not known.

    It is the local part of a sharded parameter; ``state`` holds local parts.
    """
    grad = None if param.grad is None else local_part_like(param.grad, param)
    return rule.direction(group, local_part(param).detach(), grad, state)


# -- AdamW -----------------------------------------------------------------------------------------------------------


def _check_adamw(group: Mapping[str, Any]) -> None:
    if not group["eps"] >= 0.0:
        raise ValueError(f"Invalid epsilon value: {group['eps']}")
    betas = group["betas"]
    numbers = isinstance(betas, Sequence) and all(isinstance(beta, (int, float, Tensor)) for beta in betas)
    if not numbers or len(betas) != 2:
        raise ValueError(f"Invalid betas value: {betas} (expected two numbers)")
    if isinstance(betas[0], Tensor) != isinstance(betas[1], Tensor):
        raise ValueError("betas must be either both floats or both Tensors")
    for i, beta in enumerate(betas):
        if isinstance(beta, Tensor) and beta.numel() != 1:
            raise ValueError(f"Tensor betas[{i}] must be 1-element")
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"Invalid beta parameter at index {i}: {beta}")
    if group.get("amsgrad"):
        raise ValueError("amsgrad is not supported: IRE has no counterpart to its running maximum")


def _step_adamw(functions: ModuleType, lists: TensorLists, scalars: Mapping[str, Any]) -> None:
    group = lists.group
    beta1, beta2 = group["betas"]
    functions.fused_adamw_flat_(
        lists.params,
        lists.grads,
        lists.column("exp_avg"),
        lists.column("exp_avg_sq"),
        lists.column("step"),
        lists.flat_masks(),
        lists.restore_from,
        *kept_lists(lists),
        beta1=float(beta1),
        beta2=float(beta2),
        eps=group["eps"],
        weight_decay=group["weight_decay"],
        amplify_weight_decay=group["amplify_weight_decay"],
        maximize=group["maximize"],
        packed=lists.is_packed,
        **scalars,
    )
    lists.finish()


def _direction_adamw(
    group: Mapping[str, Any], theta: Tensor, _: Tensor | None, state: Mapping[str, Any]
) -> Direction | None:
    if "exp_avg" not in state:
        return None
    t = max(float(state["step"]), 1.0)
    beta1, beta2 = group["betas"]
    denominator: Tensor = (state["exp_avg_sq"] / (1 - beta2**t)).sqrt() + group["eps"]
    adaptive: Tensor = state["exp_avg"] / (denominator * (1 - beta1**t))
    decay = group["weight_decay"] * theta
    return (adaptive + decay, 0.0) if group["amplify_weight_decay"] else (adaptive, decay)


ADAMW = UpdateRule(
    name="adamw",
    defaults={"betas": (0.9, 0.999), "eps": 1e-8},
    check=_check_adamw,
    moment_keys=("exp_avg", "exp_avg_sq"),
    state_keys=lambda group, dtype: ("step", "exp_avg", "exp_avg_sq", *rounding_state_keys(group, dtype)),
    step=_step_adamw,
    direction=_direction_adamw,
)


# -- SGD -------------------------------------------------------------------------------------------------------------


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
    # torch.optim.SGD keeps no step; ours does if the update depends on it
    return bool((group["momentum"] != 0 and group["dampening"] != 0) or group["rounding"] == "stochastic")


def _step_sgd(functions: ModuleType, lists: TensorLists, scalars: Mapping[str, Any]) -> None:
    group = lists.group
    functions.fused_sgd_flat_(
        lists.params,
        lists.grads,
        lists.column("momentum_buffer") if group["momentum"] != 0 else [],
        lists.column("step") if _counts_steps(group) else [],
        lists.flat_masks(),
        lists.restore_from,
        *kept_lists(lists),
        momentum=group["momentum"],
        dampening=group["dampening"],
        weight_decay=group["weight_decay"],
        nesterov=group["nesterov"],
        maximize=group["maximize"],
        packed=lists.is_packed,
        **scalars,
    )
    lists.finish()


def _direction_sgd(
    group: Mapping[str, Any], theta: Tensor, grad: Tensor | None, state: Mapping[str, Any]
) -> Direction | None:
    buffer = state.get("momentum_buffer") if group["momentum"] != 0 else None
    if buffer is not None and (grad is None or not group["nesterov"]):
        return buffer, 0.0
    if grad is None:
        return None
    gradient = (-grad if group["maximize"] else grad) + group["weight_decay"] * theta
    return (gradient if buffer is None else gradient + group["momentum"] * buffer), 0.0


SGD = UpdateRule(
    name="sgd",
    defaults={"momentum": 0.0, "dampening": 0.0, "nesterov": False},
    check=_check_sgd,
    moment_keys=("momentum_buffer",),
    state_keys=lambda group, dtype: (
        ("step",) * _counts_steps(group)
        + ("momentum_buffer",) * (group["momentum"] != 0)
        + rounding_state_keys(group, dtype)
    ),
    step=_step_sgd,
    direction=_direction_sgd,
)

RULES = {rule.name: rule for rule in (ADAMW, SGD)}
