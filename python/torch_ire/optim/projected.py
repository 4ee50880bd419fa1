"""IRE with an exact projector in place of a mask: theta <- theta + kappa P (theta - previous) after the base step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from torch_ire.optim.arguments import Projector, enhancement, is_due, unamplified_decay
from torch_ire.optim.device_schedule import note_refresh, step_number


def projector_of(group: Mapping[str, Any]) -> Projector | None:
    """The projector of a group, or ``None`` where its curvature is one of the names."""
    curvature = group["curvature"]
    return None if isinstance(curvature, str) else curvature


def refresh_projectors(groups: Iterable[dict[str, Any]]) -> None:
    """Refreshes every projector that is due, once, if it knows where to take products from."""
    refreshed: list[Projector] = []
    for group in groups:
        projector = projector_of(group)
        if projector is None or not is_due(group):
            continue
        if getattr(projector, "refreshable", True) and not any(projector is other for other in refreshed):
            projector.refresh()
            refreshed.append(projector)
        note_refresh(group, step_number(group))


def projected_parameters(groups: Iterable[Mapping[str, Any]]) -> list[Tensor]:
    """The parameters whose displacement a projector will amplify in the coming step."""
    return [
        param
        for group in groups
        if projector_of(group) is not None and step_number(group) >= group["warmup_steps"]
        for param in group["params"]
    ]


def amplify_projected(
    owner: str, groups: Iterable[dict[str, Any]], previous: Mapping[Tensor, Tensor], found_inf: Tensor | None
) -> None:
    """Adds kappa P Delta for every projector of the groups.

    Args:
        owner: Name for messages.
        groups: The groups of the optimizer that stepped.
        previous: The parameters that may have moved, with where the step started.
        found_inf: Where it is not 0, there was no step.

    Raises:
        RuntimeError: The groups of one projector disagree on kappa or on what of the weight decay is amplified.
    """
    calls: dict[int, tuple[Projector, set[tuple[float, float]], list[Tensor]]] = {}
    for group in groups:
        projector = projector_of(group)
        decay = unamplified_decay(group)
        # without a gradient there was no decay to be left out
        params = [p for p in group["params"] if p in previous and (p.grad is not None or not decay)]
        if projector is None or not params:
            continue
        _, scalars, members = calls.setdefault(id(projector), (projector, set(), []))
        scalars.add((float(enhancement(group)), decay))
        members += params
    if calls and found_inf is not None and bool(found_inf):
        return
    for projector, scalars, members in calls.values():
        if len(scalars) > 1:
            raise RuntimeError(f"{owner}: the groups of one projector need one kappa, learning rate and decay")
        ((kappa, decay),) = scalars
        extra = {"decay": decay} if decay else {}
        projector.amplify_(members, [previous[param] for param in members], kappa, **extra)


def without_projectors(state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state dict holds tensors and plain values: a projector is named in it, and stays with the one who made it."""
    groups = [
        group if isinstance(group.get("curvature", ""), str) else {**group, "curvature": "projector"}
        for group in state_dict["param_groups"]
    ]
    return {**state_dict, "param_groups": groups}


def with_curvatures(groups: Sequence[dict[str, Any]], curvatures: Sequence[Any]) -> list[dict[str, Any]]:
    """Loaded groups that name a projector, with what the groups that they replace have as their curvature."""
    return [
        {**group, "curvature": curvature} if group["curvature"] == "projector" else group
        for group, curvature in zip(groups, curvatures, strict=True)
    ]
