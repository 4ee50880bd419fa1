"""The arguments that IRE adds to an optimizer, and their checks. They live in the parameter groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from torch_ire.steps.schedule import COUNTERS, refreshes_itself

CurvatureName = Literal["fisher", "second_moment", "hutchinson", "random"]
Ranking = Literal["global", "group", "parameter"]
Rounding = Literal["nearest", "stochastic", "kahan", "master"]
Implementation = Literal["native", "reference"]

_CHOICES: dict[str, Sequence[Any]] = {
    "curvature": ("fisher", "second_moment", "hutchinson", "random"),
    "ranking": ("global", "group", "parameter"),
    "rounding": ("nearest", "stochastic", "kahan", "master"),
    "skip_nonfinite": (False, True),
    "implementation": (None, "native", "reference"),
}


@runtime_checkable
class Projector(Protocol):
    """The interface of an exact projector in ``curvature=``, such as :class:`torch_ire.curvature.FlatProjector`.

    ``amplify_`` gets all parameters that the step moved, because a projector mixes coordinates.
    """

    def refresh(self) -> Any:
        """Follows the curvature to the present parameters; called when a mask would be refreshed.

        An exception leaves the last basis in place: the step warns once and goes on with that basis.
        """

    def amplify_(self, params: Sequence[Tensor], previous: Sequence[Tensor], kappa: float) -> None:
        """Adds ``kappa P (params - previous)`` to the parameters; called after the base step, without gradients."""


def ire_defaults(
    *,
    kappa: float | Tensor,
    gamma: float,
    warmup_steps: int,
    mask_interval: int,
    curvature: CurvatureName | Projector,
    curvature_beta: float,
    kappa_follows_lr: bool,
    amplify_weight_decay: bool,
    ranking: Ranking,
    seed: int,
    implementation: Implementation | None,
) -> dict[str, Any]:
    """The IRE part of an optimizer's defaults, counters included."""
    return {**locals(), **COUNTERS}


def check_ire_arguments(group: Mapping[str, Any], *, tensors: bool = True) -> None:
    """Raises ``ValueError`` for the first IRE argument of a group that is out of its range.

    Args:
        group: The group.
        tensors: Whether to read tensors, which may synchronize with the device.
    """
    kappa = group["kappa"]
    if isinstance(kappa, Tensor) and kappa.numel() != 1:
        raise ValueError("Tensor kappa must be 1-element")
    if (tensors or not isinstance(kappa, Tensor)) and not kappa >= 0.0:
        raise ValueError(f"Invalid kappa value: {kappa}")
    if not 0.0 <= group["gamma"] <= 1.0:
        raise ValueError(f"Invalid gamma value: {group['gamma']}")
    for name, least in (("warmup_steps", 0), ("mask_interval", 1)):
        if not (isinstance(group[name], int) and group[name] >= least):
            raise ValueError(f"Invalid {name} value: {group[name]}")
    if not isinstance(group["seed"], int):
        raise ValueError(f"Invalid seed value: {group['seed']}")
    if not 0.0 <= group["curvature_beta"] < 1.0:
        raise ValueError(f"Invalid curvature_beta value: {group['curvature_beta']}")
    if group["curvature_beta"] > 0.0 and refreshes_itself(group):
        kind = group["curvature"]
        raise ValueError(f"curvature_beta averages the estimates of refreshes; curvature={kind!r} has none")
    for name, choices in _CHOICES.items():
        if name == "curvature" and all(callable(getattr(group[name], part, None)) for part in ("refresh", "amplify_")):
            continue  # an exact projector
        if name in group and not any(group[name] is choice or group[name] == choice for choice in choices):
            known = ", ".join(repr(choice) for choice in choices)
            raise ValueError(f"Invalid {name} value: {group[name]!r} (expected one of {known})")
