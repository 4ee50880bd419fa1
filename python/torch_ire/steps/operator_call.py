"""The operator call of some tensor lists: their state, and the scalars of the step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from torch_ire.layouts import laid_out_like, to_device
from torch_ire.steps.schedule import enhancement, on_device
from torch_ire.steps.tensor_lists import TensorLists
from torch_ire.steps.update_rules import UpdateRule, functions_of


def operator_call(
    lists: TensorLists,
    rule: UpdateRule,
    start: Mapping[Tensor, Tensor],
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> Callable[[], None]:
    """The operator call of a step, with all arguments bound.

    Args:
        lists: The tensors.
        rule: The update rule of their group.
        start: theta of the parameters that a perturbation has moved; empty if the parameters stand at theta.
        grad_scale: The loss scale of the gradients.
        found_inf: The skip flag.
    """
    if start:
        pairs = zip(lists.params_of_group, lists.params, strict=True)
        lists.restore_from = [laid_out_like(start[param], part) for param, part in pairs]
    scalars = _scalars(lists.group, lists.params[0].device, {"grad_scale": grad_scale, "found_inf": found_inf})
    return functools.partial(
        rule.step, functions_of(lists.group), lists, {**scalars, "rounding_keys": lists.rounding_keys()}
    )


def _scalars(group: Mapping[str, Any], device: torch.device, of_amp: Mapping[str, Tensor | None]) -> dict[str, Any]:
    """Learning rate, kappa and AMP scalars, each as a float or on the device of the lists."""
    scalars: dict[str, Any] = {}
    for name, value in (("lr", group["lr"]), ("kappa", enhancement(group))):
        if isinstance(value, Tensor) and (value.device == device or on_device(group)):
            value = to_device(device, value)
            number = value if value.dtype in (torch.float32, torch.float64) else value.float()
            scalars[name], scalars[f"{name}_tensor"] = 0.0, number.detach().reshape(())
        else:
            scalars[name] = float(value)
    for name, tensor in of_amp.items():
        scalars[name] = None if tensor is None else to_device(device, tensor)
    return scalars
