"""The state of IRE as a flat dictionary of plain numbers under stable names, for TensorBoard and other loggers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch_ire.mask_pass import ire_of
from torch_ire.optim import IRE, StepInBackward
from torch_ire.optim.ire_optimizer import IREOptimizer

if TYPE_CHECKING:
    from torch_ire.curvature.sharpness_tracker import SharpnessTracker

__all__ = ["log_summary", "scalars"]


def scalars(
    handle: Any = None,
    *,
    tracker: SharpnessTracker | None = None,
    by_layer: bool = True,
    over_mesh: bool = False,
) -> dict[str, float]:
    r"""The numbers of ``ire_summary()`` and of the last sharpness measurement, flat and under stable names.

    .. math::
        \text{ire/displacement\_share} = \frac{\lVert \kappa\, n \odot \Delta \rVert^2}
        {\lVert (1 + \kappa n) \odot \Delta \rVert^2}

    Args:
        handle: Anything that :func:`torch_ire.refresh_mask` takes: an optimizer of this library, one that ``IRE(...)``
            is attached to, that handle, or a trainer's wrapper of one; ``None``: sharpness alone.
        tracker: Adds the numbers of its last record.
        by_layer: Whether to add the flat share of each layer.
        over_mesh: As in ``ire_summary``: all ranks have to call then.

    Returns:
        ``ire/flat_share``, ``ire/threshold`` (``ire/threshold/<ranking>`` if there are several), ``ire/kappa_eff``
        (``ire/kappa_eff/<group>`` if the groups differ), ``ire/displacement_share``, ``ire/flat_share/<layer>`` (the
        parameter's name without its last part; for unnamed parameters the number of their group), ``ire/sharpness``,
        ``ire/sharpness_limit`` and ``ire/trace``. Numbers that are unknown or not finite are left out.

    Raises:
        TypeError: ``handle`` has no IRE.
        RuntimeError: The handle has been detached.

    Cost: that of ``ire_summary()``: one read of masks and moments, a few tensors of the size of the largest parameter,
    and one synchronisation with the device per parameter. Call it every few tens of steps.

    Example:
        >>> import torch, torch_ire
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        >>> opt = torch_ire.AdmIRE(model.named_parameters(), kappa=2.0, gamma=1.0)
        >>> torch_ire.sampled_cross_entropy(model(torch.randn(8, 4))).backward()
        >>> opt.update_mask()
        >>> numbers = torch_ire.scalars(opt)
        >>> numbers["ire/flat_share"], numbers["ire/flat_share/0"], numbers["ire/kappa_eff"]
        (1.0, 1.0, 2.0)

    References:
        Wang et al., arXiv:2405.20763, Eq. (5) and Algorithm 1.
        Cohen et al., "Gradient descent on neural networks typically occurs at the edge of stability", ICLR 2021.
    """
    found: dict[str, float] = {}
    if handle is not None:
        ire: Any = ire_of(handle)
        summary = ire.ire_summary(over_mesh=over_mesh)
        found["ire/flat_share"] = summary["flat_share"]
        found |= _one_or_all("ire/threshold", summary["threshold"])
        kappas = {str(i): kappa for i, kappa in enumerate(summary["kappa_eff"])}
        found |= {"ire/kappa_eff": kappas["0"]} if len(set(kappas.values())) == 1 else _all("ire/kappa_eff", kappas)
        if summary["displacement_share"] is not None:
            found["ire/displacement_share"] = summary["displacement_share"]
        if by_layer:
            found |= _all("ire/flat_share", _shares_by_layer(ire, summary["flat_share_by_parameter"]))
    if tracker is not None and tracker.history:
        last = tracker.history[-1]
        found |= {"ire/sharpness": last.lambda_max, "ire/sharpness_limit": last.limit, "ire/trace": last.trace}
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def log_summary(
    handle: Any,
    logger: Any,
    step: int,
    *,
    tracker: SharpnessTracker | None = None,
    by_layer: bool = True,
    over_mesh: bool = False,
) -> dict[str, float]:
    """Sends :func:`scalars` to a logger.

    Args:
        handle: As in :func:`scalars`.
        logger: A TensorBoard ``SummaryWriter`` (``add_scalar``), a Lightning logger (``log_metrics``), a run of Weights
            and Biases or an Accelerator (``log``), or a function of the dictionary and the step; ``None``: no logger.
        step: The training step.
        tracker: As in :func:`scalars`.
        by_layer: As in :func:`scalars`.
        over_mesh: As in :func:`scalars`; the other ranks pass ``logger=None``.

    Returns:
        The dictionary.

    Raises:
        TypeError: The logger is of none of these kinds, or ``handle`` has no IRE.

    Cost: that of :func:`scalars`.

    Example:
        >>> import torch, torch_ire
        >>> opt = torch_ire.AdmIRE([torch.nn.Parameter(torch.ones(2))], kappa=1.0)
        >>> _ = torch_ire.log_summary(opt, lambda numbers, step: print(step, numbers["ire/kappa_eff"]), step=3)
        3 1.0

    References:
        Wang et al., arXiv:2405.20763, Algorithm 1.
    """
    numbers = scalars(handle, tracker=tracker, by_layer=by_layer, over_mesh=over_mesh)
    if logger is None:
        return numbers
    if callable(getattr(logger, "add_scalar", None)):
        for name, value in numbers.items():
            logger.add_scalar(name, value, step)
    elif callable(getattr(logger, "log_metrics", None)):
        logger.log_metrics(numbers, step=step)
    elif callable(getattr(logger, "log", None)):
        logger.log(numbers, step=step)
    elif callable(logger):
        logger(numbers, step)
    else:
        raise TypeError(
            f"log_summary: expected a logger with add_scalar, log_metrics or log, or a function, got "
            f"{type(logger).__name__}"
        )
    return numbers


def _all(name: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{name}/{key}": value for key, value in values.items()}


def _one_or_all(name: str, values: Mapping[str, float]) -> dict[str, float]:
    return dict.fromkeys([name], *values.values()) if len(values) == 1 else _all(name, values)


def _shares_by_layer(handle: IREOptimizer | IRE | StepInBackward, shares: Mapping[str, float]) -> dict[str, float]:
    """The flat share of each layer: the mean over its parameters, weighted by their sizes."""
    groups = handle._targets().groups
    flat: dict[str, float] = defaultdict(float)
    total: dict[str, int] = defaultdict(int)
    for g, group in enumerate(groups):
        names = group.get("param_names") or [f"{g}.{i}" for i in range(len(group["params"]))]
        for name, param in zip(names, group["params"], strict=True):
            if name in shares:
                layer = name.rpartition(".")[0] or name
                flat[layer] += shares[name] * param.numel()
                total[layer] += param.numel()
    return {layer: flat[layer] / max(number, 1) for layer, number in total.items()}
