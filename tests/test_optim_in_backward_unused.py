"""Steps inside the backward pass where a parameter is frozen, thawed or left out, against one optimizer over all."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torch_ire
from every_optimizer import assert_equal
from optimizer_cases import CASES, batch

BASES = {case.name: case for case in CASES if case.name in ("AdmIRE", "SGDIRE", "SGDIRE-plain")}
CURVATURES: dict[str, dict[str, Any]] = {
    "fisher": {"curvature": "fisher", "mask_interval": 3},
    "averaged fisher": {"curvature": "fisher", "curvature_beta": 0.5, "warmup_steps": 2, "mask_interval": 2},
    "hutchinson": {"curvature": "hutchinson", "mask_interval": 3},
    "random": {"curvature": "random", "mask_interval": 2},
    "kappa follows lr": {"curvature": "fisher", "mask_interval": 3, "kappa_follows_lr": True},
}
STEPS = 14


class Branches(nn.Module):
    """A trunk with two branches, of which a batch may use one."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.trunk, self.left, self.right = nn.Linear(8, 6), nn.Linear(6, 5), nn.Linear(6, 5)
        with torch.no_grad():
            for param in self.parameters():
                param.copy_(torch.randn(param.shape, generator=generator) * 0.5)

    def forward(self, x: Tensor, uses: str) -> Tensor:
        hidden = torch.tanh(self.trunk(x))
        return sum(getattr(self, name)(hidden) for name in uses.split("+"))


Schedule = Callable[[int, Branches], str]


def all_used(number: int, model: Branches) -> str:
    return "left+right"


def late_branch(number: int, model: Branches) -> str:
    """One branch is used from the sixth step on."""
    return "left" if number < 5 else "left+right"


def now_and_then(number: int, model: Branches) -> str:
    """One branch is left out at steps that do and that do not refresh."""
    return "left" if number in (1, 3, 4, 8, 9, 11) else "left+right"


def in_turns(number: int, model: Branches) -> str:
    return "left" if number % 2 else "right"


def thawed(number: int, model: Branches) -> str:
    """A branch that is frozen at construction trains from the sixth step on."""
    if number == 5:
        model.right.requires_grad_(True)
    return "left+right"


def frozen_for_a_while(number: int, model: Branches) -> str:
    if number in (3, 8):
        model.right.requires_grad_(number == 8)
    return "left+right"


def loss_of(model: Branches, number: int, uses: str) -> Tensor:
    x, y = batch(number)
    return F.cross_entropy(model(x, uses), y)


def refresh(handle: Any, model: Branches, number: int, uses: str, labels: torch_ire.LabelGenerator) -> None:
    curvature = handle.param_groups[0]["curvature"]
    if curvature == "hutchinson":
        handle.update_mask(loss_of(model, number, uses))
    elif curvature == "random":
        handle.update_mask()
    else:
        torch_ire.sampled_cross_entropy(model(batch(number)[0], uses), generator=labels).backward()
        handle.update_mask()


def set_learning_rate(handle: Any, number: int) -> None:
    for group in handle.param_groups:
        group["lr"] = 0.02 if number % 4 else 0.01


def by_one_optimizer(make: Callable[..., Any], schedule: Schedule, **overrides: Any) -> tuple[Branches, list[bool]]:
    model, labels, due = Branches(), torch_ire.LabelGenerator(seed=7), []
    model.right.requires_grad_(schedule is not thawed)
    optimizer = make(model.parameters(), **overrides)
    for number in range(STEPS):
        set_learning_rate(optimizer, number)
        uses = schedule(number, model)
        due.append(optimizer.mask_due())
        if due[-1]:
            refresh(optimizer, model, number, uses, labels)
        loss_of(model, number, uses).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, due


def step_in_backward(
    opt: torch_ire.StepInBackward,
    model: Branches,
    schedule: Schedule,
    numbers: range,
    labels: torch_ire.LabelGenerator,
) -> list[bool]:
    due = []
    for number in numbers:
        set_learning_rate(opt, number)
        uses = schedule(number, model)
        due.append(opt.mask_due())
        if due[-1]:
            with opt.paused():
                refresh(opt, model, number, uses, labels)
        loss_of(model, number, uses).backward()
        assert all(param.grad is None for param in model.parameters()), f"step {number}: a gradient is left"
    return due


@pytest.mark.parametrize(
    "schedule",
    [all_used, late_branch, now_and_then, in_turns, thawed, frozen_for_a_while],
    ids=lambda schedule: schedule.__name__,
)
@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("name", BASES)
def test_unused_parameters_step_as_in_the_ordinary_optimizer_to_the_bit(name, curvature, schedule):
    """And the refreshes are due at the same steps."""
    overrides = CURVATURES[curvature]
    # a refresh of its own would rank each parameter alone, so update_mask() draws here and there
    capturable = curvature == "random"
    model = Branches()
    model.right.requires_grad_(schedule is not thawed)
    opt = torch_ire.StepInBackward(
        model.parameters(), lambda params: BASES[name](params, **overrides, capturable=capturable)
    )
    due = step_in_backward(opt, model, schedule, range(STEPS), torch_ire.LabelGenerator(seed=7))
    other, theirs = by_one_optimizer(BASES[name], schedule, **overrides, capturable=capturable)
    assert due == theirs
    assert_equal(list(model.parameters()), list(other.parameters()))


@pytest.mark.parametrize("schedule", [late_branch, now_and_then, thawed], ids=lambda schedule: schedule.__name__)
@pytest.mark.parametrize("name", BASES)
def test_a_resumed_run_continues_identically(name, schedule):
    """Saved where some parameters have taken fewer steps than others."""
    overrides = CURVATURES["averaged fisher"]

    def started() -> tuple[Branches, torch_ire.StepInBackward]:
        model = Branches()
        model.right.requires_grad_(schedule is not thawed)
        return model, torch_ire.StepInBackward(model.parameters(), lambda params: BASES[name](params, **overrides))

    labels = torch_ire.LabelGenerator(seed=7)
    model, opt = started()
    step_in_backward(opt, model, schedule, range(4), labels)
    checkpoint = copy.deepcopy((model.state_dict(), opt.state_dict(), labels.state_dict()))
    step_in_backward(opt, model, schedule, range(4, STEPS), labels)
    resumed, opt = started()
    resumed.load_state_dict(checkpoint[0])
    opt.load_state_dict(checkpoint[1])
    labels.load_state_dict(checkpoint[2])
    step_in_backward(opt, resumed, schedule, range(4, STEPS), labels)
    assert_equal(list(resumed.parameters()), list(model.parameters()))


@pytest.mark.parametrize("name", BASES)
def test_a_thawed_parameter_steps_and_leaves_no_gradient(name):
    model = Branches()
    model.right.requires_grad_(False)
    opt = torch_ire.StepInBackward(model.parameters(), lambda params: BASES[name](params))
    loss_of(model, 0, "left+right").backward()
    model.right.requires_grad_(True)
    before = model.right.weight.detach().clone()
    loss_of(model, 1, "left+right").backward()
    assert model.right.weight.grad is None
    assert not torch.equal(model.right.weight.detach(), before)
    opt.detach()
    loss_of(model, 2, "left+right").backward()
    assert model.right.weight.grad is not None


def test_ire_of_serves_refresh_mask():
    """The call of one line, and the summary that callbacks log."""
    model, other = Branches(), Branches()
    opt = torch_ire.StepInBackward(
        model.parameters(), lambda params: torch_ire.AdmIRE(params, lr=0.02, curvature="fisher", mask_interval=2)
    )
    ordinary = torch_ire.AdmIRE(other.parameters(), lr=0.02, curvature="fisher", mask_interval=2)
    handle = torch_ire.ire_of(opt)
    assert handle.mask_due()

    def forward(network: nn.Module, inputs: tuple[Tensor, Tensor]) -> Tensor:
        return network(inputs[0], "left+right")

    labels, theirs = torch_ire.LabelGenerator(seed=3), torch_ire.LabelGenerator(seed=3)
    for number in range(5):
        refreshed = torch_ire.refresh_mask(opt, model, batch(number), forward=forward, generator=labels)
        expected = torch_ire.refresh_mask(ordinary, other, batch(number), forward=forward, generator=theirs)
        assert refreshed == expected == (number % 2 == 0)
        loss_of(model, number, "left+right").backward()
        loss_of(other, number, "left+right").backward()
        ordinary.step()
        ordinary.zero_grad()
    assert_equal(list(model.parameters()), list(other.parameters()))
    ours, summary = handle.ire_summary(), ordinary.ire_summary()
    assert ours["flat_share"] == summary["flat_share"]
    assert torch_ire.scalars(opt)["ire/flat_share"] == summary["flat_share"]
