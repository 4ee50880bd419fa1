"""Groups that are empty, go, or share a parameter."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

import torch_ire
from every_optimizer import EVERY, FOREIGN, OWN, Run, assert_equal, name_of


@pytest.mark.parametrize("subject", EVERY, ids=name_of)
def test_a_group_without_parameters_is_none(subject):
    run = Run(subject)
    run.optimizer, run.handle = subject.make([{"params": []}, {"params": run.params}, {"params": []}])
    twin = Run(subject, groups=1)
    for each in (run, twin):
        each.train(range(3))
    assert run.handle.ire_summary()["flat_share"] == twin.handle.ire_summary()["flat_share"]
    assert_equal(run.params, twin.params)
    run.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    torch_ire.scalars(run.handle)


@pytest.mark.parametrize("subject", EVERY, ids=name_of)
def test_an_optimizer_of_nothing_has_a_summary(subject):
    optimizer, handle = subject.make([{"params": []}])
    if not subject.is_sam:
        optimizer.step()
    handle.mask_due()
    summary = handle.ire_summary()
    assert summary["flat_share"] == 0.0
    assert summary["threshold"] == {}
    assert summary["flat_share_by_parameter"] == {}
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


@pytest.mark.parametrize("subject", EVERY, ids=name_of)
def test_the_parameters_of_a_removed_group_are_not_kept(subject):
    """Once the caller has let go of them and of their state, as with torch's optimizers."""
    run = Run(subject)
    run.train(range(3))
    group = run.optimizer.param_groups.pop()
    for param in group["params"]:
        run.optimizer.state.pop(param, None)
    kept = [weakref.ref(param) for param in group["params"]]
    del group, param
    run.params, run.model = run.params[:2], None
    for call in run.calls:
        for param in run.params:
            param.grad = torch.ones_like(param)
        getattr(run.optimizer, call)()
    run.handle.ire_summary()
    gc.collect()
    assert [ref() is None for ref in kept] == [True, True]


@pytest.mark.parametrize("subject", [s for s in OWN if s.is_sam], ids=name_of)
@pytest.mark.parametrize("has_gradient", [False, True])
def test_a_group_that_goes_between_two_passes_returns_to_theta(subject, has_gradient):
    run = Run(subject)
    run.train(range(2))
    theta = run.theta()
    run.backward(2)
    run.optimizer.first_step()
    run.optimizer.param_groups.pop()
    run.backward(2)
    if not has_gradient:
        for param in run.params:
            param.grad = None
    run.optimizer.second_step()
    assert_equal(run.params[2:], theta[2:])
    assert not run.optimizer.is_perturbed


@pytest.mark.parametrize(("cls", "arguments"), FOREIGN, ids=lambda item: getattr(item, "__name__", ""))
def test_a_parameter_of_two_optimizers_is_refused_by_one_handle(cls, arguments):
    """Its mask would have two places."""
    shared, own = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    first, second = cls([shared], **arguments), cls([own, shared], **arguments)
    with pytest.raises(ValueError, match=r"IRE.*parameter.*(two|more than one|several|both)"):
        torch_ire.IRE([first, second])
