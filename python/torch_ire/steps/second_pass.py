"""The second pass of a SAM step: the base step from theta with the gradients at theta + e."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from torch_ire.layouts import is_dense, laid_out_like
from torch_ire.sharding import local_part
from torch_ire.steps.perturbation import Perturbation
from torch_ire.steps.step import take_step


def check_perturbed_gradients(owner: str, params: Iterable[Tensor]) -> None:
    """Raises ``RuntimeError`` if a closure has left no gradient at the perturbed parameters."""
    if all(param.grad is None for param in params):
        raise RuntimeError(
            f"{owner}.step(closure): the closure left no gradient at the perturbed parameters; it has to call "
            "backward() each time. If a trainer passes a closure that computes nothing (Lightning's manual "
            "optimization), call first_step() and second_step()"
        )


def _as_laid_out_now(theta: Tensor, param: Tensor) -> Tensor:
    """A backup in the present layout of its parameter, whose memory format may have changed since the first pass."""
    part = local_part(param)
    return laid_out_like(theta, part) if theta.shape == part.shape and is_dense(part) else theta


def step_from_theta(optimizer: Any, state: Perturbation) -> None:
    """Takes the base step from theta with the present gradients; a plain base step if nothing is perturbed.

    Args:
        optimizer: A ``SAMIRE``, which imports this module.
        state: Its perturbation.
    """
    params = [param for group in optimizer.param_groups for param in group["params"]]
    found_inf = state.found_inf(optimizer, getattr(optimizer, "found_inf", None))
    start = {param: _as_laid_out_now(theta, param) for param, theta in state.moved.items()}
    stepping = {param for param in params if param.grad is not None}
    if state.is_active:  # a parameter with a gradient in the second pass only has not moved, and starts where it is
        start |= {param: local_part(param).clone() for param in stepping if param not in start}
    # parameters that take no step, without a gradient or no longer in a group, return to theta
    back = [functools.partial(local_part(p).copy_, theta) for p, theta in start.items() if p not in stepping]
    try:
        take_step(optimizer, start, found_inf, first=[state.begin_step, *back], last=[state.forget])
    except BaseException:
        if state.is_stepping:
            state.restore()
        raise
