"""Conventions of ``torch.optim`` at which a checkpoint or an argument crosses from torch to this library or back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torch_ire
from optimizer_cases import loss_of, small_model, values

ARGUMENTS = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.3}
Make = Callable[..., torch.optim.Optimizer]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for number in steps:
        optimizer.zero_grad()
        loss_of(model, number).backward()
        if isinstance(optimizer, torch_ire.SAMIRE):
            optimizer.first_step()  # by rho = 0
        optimizer.step()


def admire(params: Any, **arguments: Any) -> torch.optim.Optimizer:
    return torch_ire.AdmIRE(params, **ARGUMENTS, kappa=0.0, **arguments)


def samire(params: Any, **arguments: Any) -> torch.optim.Optimizer:
    return torch_ire.SAMIRE(params, base="adamw", rho=0.0, **ARGUMENTS, kappa=0.0, **arguments)


def adam(params: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, **ARGUMENTS)


def adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, **ARGUMENTS)


def along(*chain: Make) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Trains three steps with each optimizer of a chain, each of which starts from the checkpoint of the one before."""
    model, checkpoint = small_model(), None
    for position, make in enumerate(chain):
        optimizer = make(model.parameters())
        if checkpoint is not None:
            optimizer.load_state_dict(checkpoint)
        train(model, optimizer, range(3 * position, 3 * position + 3))
        checkpoint = copy.deepcopy(optimizer.state_dict())
    return model, optimizer


@pytest.mark.parametrize("ours", [admire, samire], ids=["AdmIRE", "SAMIRE"])
@pytest.mark.parametrize(
    "chain",
    [
        ("ours", adam), ("ours", adamw), (adam, "ours"), (adamw, "ours"), (adam, "ours", adam), (adamw, "ours", adam),
        (adam, "ours", adamw), ("ours", adam, "ours"), ("ours", adamw, "ours"),
    ],
    ids=lambda chain: "-".join(part if isinstance(part, str) else part.__name__ for part in chain),
)  # fmt: skip
def test_weight_decay_after_a_load_from_or_into_adam_is_that_of_adamw(ours, chain):
    """``decoupled_weight_decay`` of a checkpoint says how Adam goes on; AdamW decouples whatever it says."""
    model, _ = along(*(ours if part == "ours" else part for part in chain))
    expected, _ = along(*(adamw if part == "ours" else part for part in chain))
    for p, q in zip(values(model), values(expected), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ours", [admire, samire], ids=["AdmIRE", "SAMIRE"])
@pytest.mark.parametrize("theirs", [adam, adamw])
def test_a_decay_that_is_not_amplified_stays_decoupled_after_a_load(ours, theirs):
    expected_model, checkpoint = small_model(), copy.deepcopy(along(theirs)[1].state_dict())
    expected = ours(expected_model.parameters())
    expected.load_state_dict(checkpoint)
    model = small_model()
    optimizer = ours(model.parameters(), amplify_weight_decay=False)
    optimizer.load_state_dict(checkpoint)
    train(expected_model, expected, range(3))
    train(model, optimizer, range(3))
    for p, q in zip(values(model), values(expected_model), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


SGD_ROWS = [
    {}, {"weight_decay": 0.1}, {"maximize": True}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}
]  # fmt: skip


@pytest.mark.parametrize("implementation", ["native", "reference"])
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("arguments", SGD_ROWS, ids=str)
def test_sgd_leaves_the_keys_of_torch(arguments, steps, implementation):
    """Without momentum and before a mask there is no state at all, of no parameter."""
    model, other = small_model(), small_model()
    ours = torch_ire.SGDIRE(model.parameters(), lr=0.1, curvature="fisher", implementation=implementation, **arguments)
    theirs = torch.optim.SGD(other.parameters(), lr=0.1, **arguments)
    train(model, ours, range(steps))
    train(other, theirs, range(steps))
    kept = [set(ours.state[p]) if p in ours.state else None for p in model.parameters()]
    expected = [set(theirs.state[p]) if p in theirs.state else None for p in other.parameters()]
    assert kept == expected
    assert set(ours.state_dict()["state"]) == set(theirs.state_dict()["state"])
    ours.zero_grad()
    ours.ire_summary()
    assert len(ours.state) == len(theirs.state)


@pytest.mark.parametrize("make", [torch_ire.SGDIRE, torch_ire.SAMIRE], ids=["SGDIRE", "SAMIRE"])
def test_sgd_without_momentum_keeps_only_a_mask(make):
    model = small_model()
    optimizer = make(model.parameters(), lr=0.1, curvature="fisher", mask_interval=1)
    for number in range(2):
        loss_of(model, number).backward()
        optimizer.update_mask()
        train(model, optimizer, range(number, number + 1))
    assert [set(optimizer.state[p]) for p in model.parameters()] == [{"flat_mask"}] * 4


def test_parameters_without_a_gradient_have_no_state():
    for make in (torch_ire.AdmIRE, torch_ire.SGDIRE, torch_ire.SAMIRE):
        model = small_model()
        optimizer = make(model.parameters(), lr=0.1, curvature="fisher")
        first, *_, last = model.parameters()
        last.requires_grad_(False)
        first.requires_grad_(False)
        for number in range(2):
            loss_of(model, number).backward()
            if optimizer.mask_due():
                optimizer.update_mask()
            train(model, optimizer, range(number, number + 1))
        assert first not in optimizer.state, make.__name__
        assert last not in optimizer.state, make.__name__


MAKES = [torch_ire.AdmIRE, lambda params, **a: torch_ire.SAMIRE(params, base="adamw", **a)]


@pytest.mark.parametrize("make", MAKES, ids=["AdmIRE", "SAMIRE"])
@pytest.mark.parametrize("betas", [(0.8, torch.tensor(0.95)), (torch.tensor(0.8), 0.95)], ids=["second", "first"])
def test_one_beta_of_two_as_a_tensor_is_refused(make, betas):
    """As torch refuses it."""
    params = [nn.Parameter(torch.ones(3))]
    with pytest.raises(ValueError, match="betas"):
        torch.optim.AdamW(params, betas=betas)
    with pytest.raises(ValueError, match="betas"):
        make(params, betas=betas)
    optimizer = make(params)
    with pytest.raises(ValueError, match="betas"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "betas": betas})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("make", MAKES, ids=["AdmIRE", "SAMIRE"])
@pytest.mark.parametrize("implementation", ["native", "reference"])
def test_both_betas_as_tensors_are_refused_or_step_correctly(make, implementation):
    """Right: they are read at each step, and come through a checkpoint."""
    betas = (torch.tensor(0.8, dtype=torch.float64), torch.tensor(0.95, dtype=torch.float64))
    model, other = small_model(), small_model()
    arguments = {"lr": 0.02, "curvature": "random", "implementation": implementation}
    try:
        optimizer = make(model.parameters(), betas=betas, **arguments)
    except (ValueError, TypeError) as error:
        assert "beta" in str(error)  # noqa: PT017
        return
    expected = make(other.parameters(), betas=(0.8, 0.95), **arguments)
    train(model, optimizer, range(3))
    train(other, expected, range(3))
    betas[0].fill_(0.5)
    expected.param_groups[0]["betas"] = (0.5, 0.95)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, range(3, 6))
    train(other, expected, range(3, 6))
    for p, q in zip(values(model), values(other), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("make", MAKES, ids=["AdmIRE", "SAMIRE"])
@pytest.mark.parametrize(
    "betas", [(0.9,), (0.9, 0.9, 0.9), (), 0.9, (0.9, "0.9"), (torch.ones(2), torch.ones(2))], ids=str
)
def test_betas_that_are_no_pair_of_numbers_are_refused(make, betas):
    with pytest.raises((ValueError, TypeError), match="beta"):
        make([nn.Parameter(torch.ones(3))], betas=betas)
