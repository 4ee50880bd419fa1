"""One step of an optimizer of this library: gather and check, refresh, write.

``optimizer`` is an ``IREOptimizer`` throughout, which imports this module.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_ire import _native, reference
from torch_ire.interrupts import DeferredInterrupts, run_all
from torch_ire.sharding import local_part
from torch_ire.steps.arguments import check_ire_arguments
from torch_ire.steps.compiled_step import check_capture, is_traceable, outside_graph, step_in_graph
from torch_ire.steps.operator_call import operator_call
from torch_ire.steps.projected import amplify_projected, projected_parameters, projections, refresh_projectors
from torch_ire.steps.schedule import advance, track_max_lr
from torch_ire.steps.skipped_steps import any_of, nonfinite_flag
from torch_ire.steps.state_init import ensure_saved_state, is_state_init_step
from torch_ire.steps.tensor_lists import TensorLists
from torch_ire.steps.update_rules import functions_of, state_keys


def take_step(
    optimizer: Any,
    start: Mapping[Tensor, Tensor],
    found_inf: Tensor | None,
    first: Sequence[Callable[[], Any]] = (),
    last: Sequence[Callable[[], Any]] = (),
) -> None:
    """Takes a step. All checks come before the first write, and the writes are one uninterrupted block.

    Args:
        optimizer: The optimizer.
        start: theta of the parameters that a perturbation has moved; empty: the parameters stand at theta.
        found_inf: The skip flag of a ``GradScaler``, if any.
        first: Calls at the beginning of the block.
        last: Calls after the operators, in the same block.

    Raises:
        RuntimeError: A gradient or a state tensor does not fit its parameter. Nothing has been changed then.
        ValueError: A schedule has driven an argument out of its range. Nothing has been changed then.
    """
    groups = optimizer.param_groups
    if torch.compiler.is_compiling():
        if is_traceable(groups):
            step_in_graph(optimizer, found_inf, restored=False)
        else:
            outside_graph(take_step, optimizer, start, found_inf, first, last)
        return
    creates_state = is_state_init_step(groups, optimizer.state)
    try:
        lists = _gather(optimizer, refresh=not creates_state)
        previous = {p: start.get(p, p) for p in projected_parameters(groups, has_gradient)}
        projected = projections(type(optimizer).__name__, groups, previous)
        if not creates_state:
            found_inf = any_of([found_inf, nonfinite_flag(functions_of, lists, groups)])
        previous = {p: p.clone() if theta is p else theta for p, theta in previous.items()}
        scale = getattr(optimizer, "grad_scale", None)
        calls = [operator_call(some, optimizer._rule(some.group), start, scale, found_inf) for some in lists]
        with DeferredInterrupts():
            with _undone_on_error(_reference_parameters(lists)):
                run_all([*first, *calls])
            if projected and not (found_inf is not None and bool(found_inf)):
                with _undone_on_error(previous):
                    amplify_projected(projected, previous)
            run_all(last)
            optimizer._report["skipped"] = None if found_inf is None else found_inf != 0
            if creates_state:
                ensure_saved_state(lists, optimizer.state)
            else:
                for group in groups:
                    track_max_lr(group)
                optimizer._masks.after_step(optimizer._targets(), may_have_skipped=found_inf is not None)
                advance(groups)
    finally:
        optimizer._plan.release()


def _gather(optimizer: Any, *, refresh: bool) -> list[TensorLists]:
    """The checked tensor lists of the step; with ``refresh``, after the refreshes that precede a step."""
    name, groups = type(optimizer).__name__, optimizer.param_groups
    for group in groups:  # a schedule may have driven an argument out of its range
        optimizer._rule(group).check(group)
        check_ire_arguments(group, tensors=False)
    check_capture(name, groups, functools.partial(_missing_state, optimizer))
    _graph_capture_check(optimizer)
    lists: list[TensorLists] = optimizer._plan.gather(name, groups, optimizer.state, optimizer._rule)
    if refresh:
        refresh_projectors(name, groups, optimizer._masks.failed_projectors)
        if optimizer._masks.before_step(optimizer._targets(), has_gradient):  # new masks are new state
            lists = optimizer._plan.gather(name, groups, optimizer.state, optimizer._rule)
    return lists


def _missing_state(optimizer: Any, group: Mapping[str, Any], param: Tensor) -> list[str]:
    entry = optimizer.state.get(param, {})
    return [key for key in state_keys(optimizer._rule(group), group, param.dtype) if key not in entry]


def has_gradient(param: Tensor) -> bool:
    """Whether a parameter takes the step."""
    return param.grad is not None


def _reference_parameters(lists: Sequence[TensorLists]) -> dict[Tensor, Tensor]:
    """Copies of the parameters that a reference operator writes; a native one writes all of its lists or nothing."""
    lists = [some for some in lists if functions_of(some.group) is reference or _native.module is None]
    return {param: param.clone() for some in lists for param in some.params}


@contextlib.contextmanager
def _undone_on_error(before: Mapping[Tensor, Tensor]) -> Iterator[None]:
    """Context that restores parameters if an exception leaves it."""
    try:
        yield
    except BaseException:
        run_all([functools.partial(local_part(param).copy_, theta) for param, theta in before.items()])
        raise


def _graph_capture_check(optimizer: torch.optim.Optimizer) -> None:
    """Runs torch's check that a captured step is capturable; its name depends on the torch version."""
    check = getattr(optimizer, "_accelerator_graph_capture_health_check", None)
    (check or optimizer._cuda_graph_capture_health_check)()
