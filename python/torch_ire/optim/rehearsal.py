"""The step that is none: how checkpointing tools have a fresh optimizer create its state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_ire.optim.arguments import moves_nothing
from torch_ire.optim.sharding import add_over_ranks, are_plain, local_part, spread_of


def is_rehearsal(
    groups: Sequence[Mapping[str, Any]], state: Mapping[Tensor, Mapping[str, Any]], beside: Iterable[Tensor] = ()
) -> bool:
    """Whether a step is a rehearsal: no parameter has state yet, every learning rate is 0, and so is every gradient.

    It leaves the parameters alone, refreshes no mask and does not advance the schedule. The first step of a warm-up
    that starts at 0 is a step: its gradients are not zero, and Algorithm 1 counts it. They are looked at in that case
    alone; of sharded parameters all ranks look together, which sends one number for each way to shard.

    Args:
        groups: The groups of one optimizer.
        state: Its state before the step.
        beside: Parameters of other optimizers in the same training step: where they have gradients, it is one.
    """
    if not moves_nothing(groups):
        return False
    params = [*(param for group in groups for param in group["params"]), *beside]
    if are_plain(params):
        return not any(state.values()) and not any(map(_has_gradient, params))
    # a rank may have no element of any parameter, zeros alone, or never a gradient: all of them decide, and all alike
    spreads = list(dict.fromkeys(map(spread_of, params)))
    device = local_part(params[0]).device
    one, nothing = (torch.full((), value, dtype=torch.int64, device=device) for value in (1, 0))
    here = [(spread_of(param), one) for param in params if state.get(param) or _has_gradient(param)]
    return not bool(add_over_ranks([(None, nothing), *here], spreads, floating=False))


def _has_gradient(param: Tensor) -> bool:
    """Whether any of the gradient of a parameter that lies here is not zero."""
    grad = param.grad
    return grad is not None and (grad.layout is not torch.strided or bool(local_part(grad).any()))
