"""IRE with an exact projector instead of a mask: theta <- theta + kappa P (theta - previous) after the base step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from torch_ire.steps.arguments import Projector
from torch_ire.steps.schedule import Group, enhancement, is_due, note_refresh, step_number, unamplified_decay

# in groups of this library, and in those of foreign optimizers
_CURVATURES = ("curvature", "ire_curvature")


def projector_of(group: Mapping[str, Any]) -> Projector | None:
    """The projector of a group, or ``None`` if its curvature is one of the names."""
    curvature = group["curvature"]
    return None if isinstance(curvature, str) else curvature


def refresh_projectors(owner: str, groups: Iterable[Group], failed: set[int]) -> None:
    """Refreshes once every projector that is due and has an operator.

    A refresh that fails does not end the run: it warns once, the projector keeps its last basis, and the next due step
    tries again.

    Args:
        owner: Name for messages.
        groups: The groups of the optimizer.
        failed: ids of the projectors whose last refresh failed; each has warned. Updated.
    """
    refreshed: list[Projector] = []
    for group in groups:
        projector = projector_of(group)
        if projector is None or not is_due(group):
            continue
        if getattr(projector, "refreshable", True) and not any(projector is other for other in refreshed):
            refreshed.append(projector)
            try:
                projector.refresh()
                failed.discard(id(projector))
            except Exception as error:
                if id(projector) not in failed:
                    warnings.warn(
                        f"{owner}: the refresh of a projector failed, so it keeps its last basis: {error}",
                        RuntimeWarning,
                        stacklevel=2,
                    )
                failed.add(id(projector))
        note_refresh(group, step_number(group))


def projected_parameters(groups: Iterable[Mapping[str, Any]], stepping: Callable[[Tensor], bool]) -> list[Tensor]:
    """The parameters that take the coming step and whose displacement a projector amplifies."""
    return [
        param
        for group in groups
        if projector_of(group) is not None and step_number(group) >= group["warmup_steps"]
        for param in group["params"]
        if stepping(param)
    ]


def projections(
    owner: str, groups: Iterable[Group], params: Iterable[Tensor]
) -> list[tuple[Projector, dict[str, Any]]]:
    """Every projector of a step with the arguments of its ``amplify_``, except the positions before the step.

    Args:
        owner: Name for messages.
        groups: The groups of the optimizer.
        params: The parameters that take part.

    Raises:
        RuntimeError: The groups of one projector disagree on kappa or on the decay that is not amplified.
    """
    taking_part = {id(param) for param in params}
    calls: dict[int, tuple[Projector, dict[str, Any]]] = {}
    for group in groups:
        projector = projector_of(group)
        if projector is None:
            continue
        decay = unamplified_decay(group)
        # a parameter without a gradient has no decay to leave out
        members = [p for p in group["params"] if id(p) in taking_part and not (decay and p.grad is None)]
        if not members:
            continue
        scalars = {"kappa": float(enhancement(group)), "decay": decay}
        _, call = calls.setdefault(id(projector), (projector, {**scalars, "params": []}))
        if any(call[name] != value for name, value in scalars.items()):
            raise RuntimeError(f"{owner}: the groups of one projector need one kappa, learning rate and weight decay")
        call["params"] += members
    return list(calls.values())


def amplify_projected(calls: Iterable[tuple[Projector, dict[str, Any]]], previous: Mapping[Tensor, Tensor]) -> None:
    """Adds kappa P Delta for every projector.

    Args:
        calls: As :func:`projections` returns them.
        previous: The parameters before the step.
    """
    for projector, call in calls:
        params, kappa, decay = call["params"], call["kappa"], call["decay"]
        extra = {"decay": decay} if decay else {}  # a Projector need not know the argument
        projector.amplify_(params, [previous[param] for param in params], kappa, **extra)


def without_projectors(state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state dict whose groups name their projector: the object stays with the optimizer."""
    groups = [
        {**group, **{key: "projector" for key in _CURVATURES if isinstance(group.get(key), Projector)}}
        for group in state_dict["param_groups"]
    ]
    return {**state_dict, "param_groups": groups}


def with_curvatures(groups: Sequence[Mapping[str, Any]], curvatures: Sequence[Any]) -> list[dict[str, Any]]:
    """Loaded groups that name a projector, with the curvature of the groups that they replace."""
    return [
        {**group, "curvature": curvature} if group["curvature"] == "projector" else dict(group)
        for group, curvature in zip(groups, curvatures, strict=True)
    ]
