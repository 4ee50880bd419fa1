"""The step as ``torch.compile`` traces it: lists of tensors in, one operator a list, nothing that the host decides.

Dynamo runs ``_init_group`` of an optimizer as plain Python while it traces, guards what it reads, and takes the lists
that it fills for inputs of the graph, each at a fixed address. State is therefore made at the trace, not in the graph.

A step of an optimizer that is not capturable counts on the host, where each step is another one to a compiler; it stays
outside the graph, as the fused steps of ``torch.optim`` do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torch_ire import _native
from torch_ire.optim.arguments import note_learning_rate
from torch_ire.optim.batches import Batch, dense_gradient, is_dense
from torch_ire.optim.device_schedule import advance, ensure_mask, on_device
from torch_ire.optim.sharding import are_plain
from torch_ire.optim.update_rules import functions_of, opmath_dtype

if TYPE_CHECKING:
    from torch_ire.optim.ire_optimizer import IREOptimizer
    from torch_ire.optim.sam_ire import SAMIRE


def is_traceable(groups: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a compiler can take the step into its graph.

    The groups are capturable, none has a projector, a sharded parameter or ``skip_nonfinite``, and the operators are
    native: compilers can't make a functional program of the reference.
    """
    return _native.module is not None and all(
        on_device(group)
        and isinstance(group["curvature"], str)
        and group["implementation"] != "reference"
        and not group["skip_nonfinite"]
        and are_plain(group["params"])
        for group in groups
    )


def group_state_keys(optimizer: IREOptimizer, group: Mapping[str, Any]) -> list[str]:
    """The state that any parameter of a group needs."""
    dtypes = {param.dtype: param for param in group["params"]}
    return list(dict.fromkeys(key for param in dtypes.values() for key in optimizer._state_keys(group, param)))


def outside_graph(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function that a compiler is not to look into."""
    torch._dynamo.graph_break(
        msg="torch_ire: only a capturable optimizer steps in a graph, with native operators and without a projector, "
        "sharded parameters or draws on the host"
    )
    return _call(function, *args)


@torch._disable_dynamo  # type: ignore[attr-defined]
def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def fill_lists(
    optimizer: IREOptimizer,
    group: dict[str, Any],
    params: list[Tensor],
    grads: list[Tensor],
    places: list[tuple[int, bool]],
    backups: list[Tensor],
    *state: list[Tensor],
) -> None:
    """Fills the lists of a step, with the state made where it is missing; plain Python that runs while Dynamo traces.

    Args:
        optimizer: Of the group.
        group: An element of ``param_groups``.
        params: Gets the parameters with a gradient.
        grads: Gets the gradients.
        places: Gets the position of each in the optimizer, and whether its gradient lies in memory as it does.
        backups: Gets the memory of the backups, where the optimizer perturbs.
        *state: Get the state by key, in the order of :func:`group_state_keys`; anything where a dtype has none.
    """
    keys = group_state_keys(optimizer, group)
    first = optimizer.first_index
    for other in optimizer.param_groups:
        if other is group:
            break
        first += len(other["params"])
    for index, param in enumerate(group["params"], first):
        grad = dense_gradient(param, type(optimizer).__name__)
        if grad is None:
            continue
        entry = optimizer.state[param]
        optimizer._rule(group).prepare(group, param, entry)
        ensure_mask(group, param, entry)
        params.append(param)
        grads.append(grad)
        layout = param if is_dense(param) else torch.empty_like(param)
        places.append((index, grad.stride() == layout.stride()))
        backup = optimizer._backup_of(param)
        if backup is not None:
            backups.append(backup)
        for key, column in zip(keys, state, strict=True):
            column.append(entry.get(key, param))


def batches_in_graph(optimizer: IREOptimizer, group: dict[str, Any], restored: bool) -> Iterator[Batch]:
    """The parameters of a group with a gradient, by device and dtype, under a compiler.

    Args:
        optimizer: Of the group.
        group: An element of ``param_groups``, as indexed there: Dynamo knows it by its place.
        restored: Whether the step starts from the backups of a perturbation.
    """
    keys = group_state_keys(optimizer, group)
    params: list[Tensor] = []
    grads: list[Tensor] = []
    places: list[tuple[int, bool]] = []
    backups: list[Tensor] = []
    tensors: list[list[Tensor]] = [[] for _ in keys]
    optimizer._init_group(group, params, grads, places, backups, *tensors)
    batches: dict[tuple[torch.device, torch.dtype], Batch] = {}
    for i, param in enumerate(params):
        key = (param.device, param.dtype)
        if key not in batches:
            batches[key] = Batch(group)
        state = {name: column[i] for name, column in zip(keys, tensors, strict=True)}
        index, laid_out = places[i]
        batches[key].add(index, param, grads[i], state, laid_out)
        if restored:
            batches[key].restore_from.append(backups[i])
    yield from batches.values()


def step_in_graph(optimizer: IREOptimizer, found_inf: Tensor | None, restored: bool) -> None:
    """One step under a compiler; the same operators with the same arguments as the ordinary one."""
    for group in optimizer.param_groups:
        note_learning_rate(group)
        for batch in batches_in_graph(optimizer, group, restored):
            optimizer._step_batch(batch, found_inf)
    advance(optimizer.param_groups)


def norm_over(calls: Sequence[tuple[ModuleType, list[Tensor], list[Tensor]]]) -> Tensor:
    """One norm over several lists of tensors, each with the operators to use and its weights; on one device."""
    norms: list[Tensor] = [functions.global_norm(tensors, weights) for functions, tensors, weights in calls]
    if len(norms) == 1:
        return norms[0]
    squares = [norm.to(norms[0].device, torch.float64).square() for norm in norms]
    return functools.reduce(torch.add, squares).sqrt()


def is_traceable_perturbation(groups: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the passes of SAM can be traced: along gradients, which all trainable parameters have."""
    return is_traceable(groups) and all(
        group["perturbation"] == "gradient" and all((p.grad is not None) == p.requires_grad for p in group["params"])
        for group in groups
    )


def perturb_in_graph(optimizer: SAMIRE) -> None:
    """The first pass of SAM under a compiler."""
    batches = [batch for group in optimizer.param_groups for batch in batches_in_graph(optimizer, group, True)]
    calls: dict[Any, tuple[ModuleType, list[Tensor], list[Tensor]]] = {}
    for batch in batches:
        group, param = batch.group, batch.params[0]
        key = (param.device, param.dtype, group["adaptive"], group["implementation"])
        _, tensors, weights = calls.setdefault(key, (functions_of(group), [], []))
        tensors += batch.grads
        weights += batch.params if group["adaptive"] else []
    norm = norm_over(list(calls.values()))
    for batch in batches:
        group, param = batch.group, batch.params[0]
        functions_of(group).sam_perturb_(
            batch.params,
            batch.grads,
            batch.restore_from,
            norm.to(param.device, opmath_dtype(param.dtype)),
            rho=group["rho"],
            adaptive=group["adaptive"],
        )
        batch.write_back()
    optimizer._pass_in_graph.update(moved=True, norm=norm)


def return_in_graph(optimizer: SAMIRE, found_inf: Tensor | None) -> None:
    """The second pass of SAM under a compiler: back, and the step from there."""
    if found_inf is not None:
        found_inf = torch.maximum(found_inf, (~optimizer._pass_in_graph["norm"].isfinite()).to(found_inf))
    step_in_graph(optimizer, found_inf, restored=True)
    optimizer._pass_in_graph.update(moved=False, norm=None)
