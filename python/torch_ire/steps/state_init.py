"""The no-op step that checkpoint tools use to create optimizer state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_ire.masks.estimates import ensure_average
from torch_ire.packed_mask import empty_mask
from torch_ire.sharding import add_over_ranks, are_plain, local_part, shard_group_of
from torch_ire.steps.compiled_step import capturing
from torch_ire.steps.tensor_lists import TensorLists


def is_state_init_step(
    groups: Sequence[Mapping[str, Any]], state: Mapping[Any, Any], beside: Iterable[Tensor] = ()
) -> bool:
    """Detects the no-op step that checkpoint tools use to create optimizer state.

    In such a step no parameter has state, and every learning rate and gradient is 0. It leaves the parameters alone,
    refreshes no mask and does not advance the schedule. The first step of a warm-up that starts at 0 is a step of
    Algorithm 1: its gradients are not zero. A learning rate in device memory is not read. For sharded parameters all
    ranks decide together, which sends one number per shard group, when every learning rate is 0.

    Args:
        groups: The groups of one optimizer.
        state: Its state before the step.
        beside: Parameters of other optimizers in the same training step. If one has a gradient, the step counts.
    """
    if capturing() or not all(_is_zero(group.get("lr")) for group in groups):
        return False
    params = [*(param for group in groups for param in group["params"]), *beside]
    if are_plain(params):
        return not any(state.values()) and not any(map(_has_gradient, params))
    # a rank may hold no element of any parameter, zeros alone, or never a gradient: all ranks decide alike
    shard_groups = list(dict.fromkeys(map(shard_group_of, params)))
    device = local_part(params[0]).device
    one, nothing = (torch.full((), value, dtype=torch.int64, device=device) for value in (1, 0))
    here = [(shard_group_of(param), one) for param in params if state.get(param) or _has_gradient(param)]
    return not bool(add_over_ranks([(None, nothing), *here], shard_groups, floating=False))


def ensure_saved_state(lists: Sequence[TensorLists], state: Mapping[Tensor, dict[str, Any]]) -> None:
    """Creates all state that a group ever saves, for checkpoint tools that take it from a no-op step."""
    for some in lists:
        for param in some.params_of_group:
            ensure_saved_entry(some.group, param, state[param])


def ensure_saved_entry(group: Mapping[str, Any], param: Tensor, state: dict[str, Any]) -> None:
    """As :func:`ensure_saved_state`, for one parameter."""
    if isinstance(group["curvature"], str):
        state.setdefault("flat_mask", empty_mask(local_part(param)))
        if group["curvature_beta"] > 0:
            ensure_average(param, state)


def _is_zero(lr: Any) -> bool:
    if isinstance(lr, Tensor) and (lr.device.type != "cpu" or torch.compiler.is_compiling()):
        return False
    return isinstance(lr, (int, float, Tensor)) and float(lr) == 0.0


def _has_gradient(param: Tensor) -> bool:
    """Whether the local gradient of a parameter has an element that is not zero."""
    grad = param.grad
    return grad is not None and (grad.layout is not torch.strided or grad.is_meta or bool(local_part(grad).any()))
