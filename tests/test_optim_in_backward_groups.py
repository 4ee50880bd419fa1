"""Groups that change between backward passes that step, and the life of the object that steps."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_ire


def started(*params: nn.Parameter, **arguments: Any) -> torch_ire.StepInBackward:
    arguments = {"lr": 0.1, "kappa": 0.0, "curvature": "random", **arguments}
    return torch_ire.StepInBackward(params, lambda params: torch_ire.SGDIRE(params, **arguments))


def moves(*params: nn.Parameter) -> list[float]:
    """The moves of parameters in one backward pass with gradients of 1."""
    before = [param.detach().clone() for param in params]
    loss: Tensor = torch.stack([param.sum() for param in params]).sum()
    loss.backward()
    return [float((param.detach() - old).mean()) for param, old in zip(params, before, strict=True)]


def zeros() -> nn.Parameter:
    return nn.Parameter(torch.zeros(3))


def test_a_group_that_joins_steps_at_its_own_learning_rate():
    first, late = zeros(), zeros()
    steps = started(first)
    steps.optimizer.add_param_group({"params": [late], "lr": 0.3})
    for _ in range(2):
        assert moves(first, late) == pytest.approx([-0.1, -0.3])
        assert (first.grad, late.grad) == (None, None)
    assert [group["ire_step"] for group in steps.param_groups] == [2, 2]


def test_a_parameter_steps_with_the_group_that_it_is_in_now():
    slow, fast = zeros(), zeros()
    steps = started(slow)
    steps.optimizer.add_param_group({"params": [fast], "lr": 0.3})
    assert moves(slow, fast) == pytest.approx([-0.1, -0.3])
    steps.param_groups.reverse()
    assert moves(slow, fast) == pytest.approx([-0.1, -0.3])


def test_a_parameter_that_has_left_its_group_keeps_its_gradient():
    stays, leaves = zeros(), zeros()
    steps = started(stays, leaves)
    moves(stays, leaves)
    steps.param_groups[0]["params"] = [stays]
    assert moves(stays, leaves) == pytest.approx([-0.1, 0.0])
    assert (stays.grad, leaves.grad.tolist()) == (None, [1.0] * 3)


def test_an_argument_that_a_schedule_drives_out_of_range_is_refused_before_the_first_step():
    param = zeros()
    steps = started(param)
    steps.param_groups[0]["kappa"] = -5.0
    with pytest.raises(ValueError, match=r"Invalid kappa value: -5\.0"):
        moves(param)
    assert param.tolist() == [0.0] * 3
    steps.param_groups[0]["kappa"], param.grad = 0.0, None
    assert moves(param) == pytest.approx([-0.1])
    assert steps.param_groups[0]["ire_step"] == 1


@pytest.mark.parametrize("model_lives", [False, True])
def test_it_goes_with_the_last_reference(model_lives):
    """The garbage collector does not look into hooks: it could not free a model that they hold."""
    param = zeros()
    steps = started(param, momentum=0.9)
    moves(param)
    optimizer, kept = weakref.ref(steps.optimizer), weakref.ref(param)
    gc.disable()
    try:
        del steps
        assert optimizer() is None
        if model_lives:
            assert moves(param) == [0.0]
            assert param.grad.tolist() == [1.0] * 3
        del param
        assert kept() is None
    finally:
        gc.enable()
