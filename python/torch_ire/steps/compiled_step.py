"""Steps in graphs: the step that ``torch.compile`` traces, and the checks of a CUDA graph capture.

Dynamo runs ``_init_group`` of an optimizer as plain Python while it traces, guards all values that the method reads,
and makes the lists that it fills inputs of the graph, each at a fixed address. So the trace creates state, not the
graph.

A step of an optimizer that is not capturable counts on the host, so every step looks new to a compiler; it stays
outside the graph, as the fused steps of ``torch.optim`` do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from torch_ire import _native
from torch_ire.layouts import is_dense, opmath_dtype
from torch_ire.sharding import are_plain
from torch_ire.steps.operator_call import operator_call
from torch_ire.steps.schedule import advance, on_device, track_max_lr
from torch_ire.steps.step_plan import plan_group
from torch_ire.steps.tensor_lists import TensorLists
from torch_ire.steps.update_rules import functions_of, state_keys

# The optimizers below are IREOptimizer and SAMIRE, which import this module.

# -- CUDA graphs -----------------------------------------------------------------------------------------------------


def capturing() -> bool:
    """Whether the current stream records a CUDA graph."""
    return not torch.compiler.is_compiling() and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def check_capture(
    owner: str,
    groups: Iterable[Mapping[str, Any]],
    missing_state: Callable[[Mapping[str, Any], Tensor], list[str]],
    *,
    host_decay: bool = False,
) -> None:
    """Raises ``RuntimeError`` for values that a CUDA graph under capture would freeze; otherwise it costs nothing.

    Args:
        owner: Name for messages.
        groups: The groups of the step.
        missing_state: Returns the state keys that a step would have to create for a parameter of a group.
        host_decay: Whether the host computes a weight decay that is not amplified.
    """
    if not capturing():
        return
    for group in groups:
        if not on_device(group):
            raise RuntimeError(f"{owner}: captured in a CUDA graph without capturable=True at its construction")
        if not isinstance(group["curvature"], str):
            raise RuntimeError(f"{owner}: a step with an exact projector can't be captured in a CUDA graph")
        lr, highest = group.get("lr"), group["ire_max_lr"]
        for name, value in (("lr", lr), ("kappa", group["kappa"])):
            if isinstance(value, Tensor) and value.device.type == "cpu" and group["ire_step"].device.type != "cpu":
                raise RuntimeError(
                    f"{owner}: {name} is a tensor in host memory, which a CUDA graph can't follow; put it on "
                    f"{group['ire_step'].device}"
                )
        if group["kappa_follows_lr"] and isinstance(lr, Tensor) and not isinstance(highest, Tensor):
            raise RuntimeError(f"{owner}: the learning rate has become a tensor; take one step before the capture")
        if host_decay and isinstance(lr, Tensor) and not group["amplify_weight_decay"] and group.get("weight_decay", 0):
            raise RuntimeError(f"{owner}: amplify_weight_decay=False reads a tensor learning rate on the host")
        for param in group["params"]:
            missing = missing_state(group, param) if param.grad is not None else []
            if missing:
                raise RuntimeError(
                    f"{owner}: a parameter has no {', '.join(missing)} yet, and a CUDA graph would create it in every "
                    "replay; take one step before the capture"
                )


# -- torch.compile ---------------------------------------------------------------------------------------------------


def is_traceable(groups: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a compiler can take the step into its graph.

    The groups are capturable, none has a projector, a sharded parameter or ``skip_nonfinite``, and the operators are
    native: compilers cannot functionalize the reference.
    """
    return _native.module is not None and all(
        on_device(group)
        and isinstance(group["curvature"], str)
        and group["implementation"] != "reference"
        and not group["skip_nonfinite"]
        and are_plain(group["params"])
        for group in groups
    )


def outside_graph(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function outside the graph."""
    torch._dynamo.graph_break(
        msg="torch_ire: only a capturable optimizer steps in a graph, with native operators and without a projector, "
        "sharded parameters or draws on the host"
    )
    return _call(function, *args)


@torch._disable_dynamo  # type: ignore[attr-defined]
def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def _keys_of(optimizer: Any, group: Mapping[str, Any]) -> list[str]:
    """The state that any parameter of a group needs."""
    dtypes = dict.fromkeys(param.dtype for param in group["params"])
    return list(dict.fromkeys(key for dtype in dtypes for key in state_keys(optimizer._rule(group), group, dtype)))


def fill_lists(
    optimizer: Any,
    group: dict[str, Any],
    params: list[Tensor],
    grads: list[Tensor],
    places: list[tuple[int, bool]],
    backups: list[Tensor],
    *state: list[Tensor],
) -> None:
    """Fills the lists of a step and creates missing state; plain Python that runs while Dynamo traces.

    Args:
        optimizer: The optimizer of the group.
        group: An element of ``param_groups``.
        params: Gets the parameters with a gradient.
        grads: Gets the gradients.
        places: Gets the position of each in the optimizer, and whether its gradient has its strides.
        backups: Gets the memory of the backups, if the optimizer perturbs.
        *state: Get the state, one list per key of :func:`_keys_of`; the parameter itself if its dtype lacks the key.
    """
    first = 0
    for other in optimizer.param_groups:
        if other is group:
            break
        first += len(other["params"])
    owner, rule = type(optimizer).__name__, optimizer._rule(group)
    for lists in plan_group(owner, group, enumerate(group["params"], first), optimizer.state, rule):
        for index, param, entry in zip(lists.indices, lists.params_of_group, lists.entries, strict=True):
            params.append(param)
            grads.append(param.grad)  # type: ignore[arg-type]
            layout = param if is_dense(param) else torch.empty_like(param)
            places.append((index, param.grad.stride() == layout.stride()))  # type: ignore[union-attr]
            backup = optimizer._backup_of(param)
            if backup is not None:
                backups.append(backup)
            for key, column in zip(_keys_of(optimizer, group), state, strict=True):
                column.append(entry.get(key, param))


def _lists_in_graph(optimizer: Any, group: dict[str, Any], restored: bool) -> Iterator[TensorLists]:
    """The lists of a group, by device and dtype, under a compiler.

    Args:
        optimizer: The optimizer of the group.
        group: Must be ``param_groups[i]``, so that Dynamo can guard it.
        restored: Whether the step starts from the backups of a perturbation.
    """
    keys = _keys_of(optimizer, group)
    params: list[Tensor] = []
    grads: list[Tensor] = []
    places: list[tuple[int, bool]] = []
    backups: list[Tensor] = []
    tensors: list[list[Tensor]] = [[] for _ in keys]
    optimizer._init_group(group, params, grads, places, backups, *tensors)
    found: dict[tuple[torch.device, torch.dtype], TensorLists] = {}
    for i, param in enumerate(params):
        kind = (param.device, param.dtype)
        if kind not in found:
            found[kind] = TensorLists(group)
            found[kind].columns = {key: [] for key in keys}
        lists = found[kind]
        index, same_strides = places[i]
        dense = param
        if not is_dense(param):
            dense = torch.empty_like(param).copy_(param)
            lists.copies.append((param, dense))
        lists.params_of_group.append(param)
        lists.params.append(dense)
        lists.grads.append(grads[i] if same_strides else torch.empty_like(dense).copy_(grads[i]))
        lists.indices.append(index)
        if restored:
            lists.restore_from.append(backups[i])
        for key, column in zip(keys, tensors, strict=True):
            lists.columns[key].append(column[i])
    yield from found.values()


def step_in_graph(optimizer: Any, found_inf: Tensor | None, restored: bool) -> None:
    """One step under a compiler, with the same operators and arguments as the ordinary step."""
    for group in optimizer.param_groups:
        track_max_lr(group)
        for lists in _lists_in_graph(optimizer, group, restored):
            scale = getattr(optimizer, "grad_scale", None)
            operator_call(lists, optimizer._rule(group), {}, scale, found_inf)()
    advance(optimizer.param_groups)


def norm_over(calls: Sequence[tuple[ModuleType, list[Tensor], list[Tensor]]]) -> Tensor:
    """One norm over several lists of tensors, each with its operators and weights; on one device."""
    norms: list[Tensor] = [functions.global_norm(tensors, weights) for functions, tensors, weights in calls]
    if len(norms) == 1:
        return norms[0]
    squares = [norm.to(norms[0].device, torch.float64).square() for norm in norms]
    return functools.reduce(torch.add, squares).sqrt()


def is_traceable_perturbation(groups: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a compiler can trace the passes of SAM: all trainable parameters must have a gradient."""
    return is_traceable(groups) and all(
        group["perturbation"] == "gradient" and all((p.grad is not None) == p.requires_grad for p in group["params"])
        for group in groups
    )


def perturb_in_graph(optimizer: Any) -> None:
    """The first pass of SAM under a compiler."""
    found = [lists for group in optimizer.param_groups for lists in _lists_in_graph(optimizer, group, True)]
    calls: dict[Any, tuple[ModuleType, list[Tensor], list[Tensor]]] = {}
    for lists in found:
        group, param = lists.group, lists.params[0]
        key = (param.device, param.dtype, group["adaptive"], group["implementation"])
        _, tensors, weights = calls.setdefault(key, (functions_of(group), [], []))
        tensors += lists.grads
        weights += lists.params if group["adaptive"] else []
    norm = norm_over(list(calls.values()))
    for lists in found:
        group, param = lists.group, lists.params[0]
        functions_of(group).sam_perturb_(
            lists.params,
            lists.grads,
            lists.restore_from,
            norm.to(param.device, opmath_dtype(param.dtype)),
            rho=group["rho"],
            adaptive=group["adaptive"],
        )
        lists.finish()
    optimizer._perturbation.in_graph.update(moved=True, norm=norm)


def return_in_graph(optimizer: Any, found_inf: Tensor | None) -> None:
    """The second pass of SAM under a compiler: back to theta, and the step from there."""
    in_graph = optimizer._perturbation.in_graph
    if found_inf is not None:
        found_inf = torch.maximum(found_inf, (~in_graph["norm"].isfinite()).to(found_inf))
    step_in_graph(optimizer, found_inf, restored=True)
    in_graph.update(moved=False, norm=None)
