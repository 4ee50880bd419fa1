"""Steps inside the backward pass are those of one optimizer over all parameters, to the bit."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import torch_ire
from optimizer_cases import CASES, IdleProjector, loss_of, small_model, train, values
from optimizer_cases import batch as batch_of

STEPS = 25
BASES = {case.name: case for case in CASES if case.name in ("AdmIRE", "SGDIRE", "SGDIRE-plain")}


def run(model: nn.Module, opt: torch_ire.StepInBackward, steps: range, labels: torch_ire.LabelGenerator) -> None:
    curvature = opt.param_groups[0]["curvature"]
    for step in steps:
        if opt.mask_due():
            if curvature == "fisher":
                with opt.paused():
                    x = batch_of(step)[0].to(next(model.parameters()).dtype)
                    torch_ire.sampled_cross_entropy(model(x), generator=labels).backward()
                opt.update_mask()
            else:
                opt.update_mask(loss_of(model, step) if curvature == "hutchinson" else None)
        loss_of(model, step).backward()
        assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"curvature_beta": 0.9, "warmup_steps": 4, "mask_interval": 3},
        {"curvature": "hutchinson"},
        {"curvature": "random", "capturable": True},
        {"ranking": "parameter"},
        {"rounding": "stochastic", "seed": 5},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", BASES)
def test_steps_equal_those_of_the_ordinary_optimizer_to_the_bit(name, overrides):
    case = BASES[name]
    dtype = torch.bfloat16 if "rounding" in overrides else torch.float32
    model, other = small_model(dtype=dtype), small_model(dtype=dtype)
    opt = torch_ire.StepInBackward(model.parameters(), lambda params: case(params, **overrides))
    run(model, opt, range(STEPS), torch_ire.LabelGenerator(seed=7))
    ordinary = case(other.parameters(), **{**overrides, "capturable": False})
    train(other, ordinary, range(STEPS))
    for p, q in zip(values(model), values(other), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("curvature", ["second_moment", "random"])
def test_masks_that_the_step_refreshes_equal_those_of_the_ordinary_optimizer(curvature):
    model, other = small_model(), small_model()
    make = BASES["AdmIRE"]
    opt = torch_ire.StepInBackward(model.parameters(), lambda params: make(params, curvature=curvature))
    run(model, opt, range(STEPS), torch_ire.LabelGenerator(seed=7))
    train(other, make(other.parameters(), curvature=curvature), range(STEPS))
    for p, q in zip(values(model), values(other), strict=True):
        assert torch.equal(p, q)


def test_a_resumed_run_continues_and_detach_leaves_gradients():
    model, other = small_model(), small_model()
    labels = torch_ire.LabelGenerator(seed=7)
    opt = torch_ire.StepInBackward(model.parameters(), lambda params: torch_ire.AdmIRE(params, lr=0.02))
    run(model, opt, range(13), labels)
    assert len(opt.param_groups) == 1
    other.load_state_dict(model.state_dict())
    resumed = torch_ire.StepInBackward(other.parameters(), lambda params: torch_ire.AdmIRE(params, lr=0.02))
    resumed.load_state_dict(opt.state_dict())
    again = torch_ire.LabelGenerator(seed=7)
    again.load_state_dict(labels.state_dict())
    run(model, opt, range(13, STEPS), labels)
    run(other, resumed, range(13, STEPS), again)
    for p, q in zip(values(model), values(other), strict=True):
        assert torch.equal(p, q)
    resumed.detach()
    loss_of(other, 0).backward()
    assert all(p.grad is not None for p in other.parameters())
    for p, q in zip(values(model), values(other), strict=True):
        assert torch.equal(p, q)


def test_a_zero_gradient_at_the_start_of_a_warm_up_counts_as_a_step():
    """As of the first matrix of a low-rank adapter, whose second one starts at zero."""

    def model_at_start() -> nn.Module:
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(8, 2, bias=False), nn.Linear(2, 3, bias=False))
        nn.init.zeros_(model[1].weight)
        return model

    def make(params):
        return torch_ire.SGDIRE(params, lr=0.0, warmup_steps=2, mask_interval=3)

    model, other = model_at_start(), model_at_start()
    opt, ordinary = torch_ire.StepInBackward(model.parameters(), make), make(other.parameters())
    labels, others_labels = torch_ire.LabelGenerator(seed=7), torch_ire.LabelGenerator(seed=7)
    x, y = torch.randn(5, 8), torch.tensor([0, 1, 2, 0, 1])
    for step in range(6):
        for group in [*opt.param_groups, *ordinary.param_groups]:
            group["lr"] = 0.1 * step
        assert opt.mask_due() == ordinary.mask_due()
        if opt.mask_due():
            with opt.paused():
                torch_ire.sampled_cross_entropy(model(x), generator=labels).backward()
            torch_ire.sampled_cross_entropy(other(x), generator=others_labels).backward()
            opt.update_mask()
            ordinary.update_mask()
        nn.functional.cross_entropy(model(x), y).backward()
        nn.functional.cross_entropy(other(x), y).backward()
        ordinary.step()
        ordinary.zero_grad()
    assert [group["ire_step"] for group in opt.param_groups] == [6]
    for p, q in zip(values(model), values(other), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("overrides", [{}, {"curvature": "random", "capturable": True, "seed": 5}], ids=str)
def test_a_copy_steps_its_own_model(copied, overrides):
    model = small_model()
    labels = torch_ire.LabelGenerator(seed=7)
    opt = torch_ire.StepInBackward(model.parameters(), lambda params: torch_ire.AdmIRE(params, lr=0.02, **overrides))
    run(model, opt, range(13), labels)
    other, twin = copied((model, opt))
    again = torch_ire.LabelGenerator(seed=7)
    again.load_state_dict(labels.state_dict())
    before = values(model)
    run(other, twin, range(13, STEPS), again)
    for p, q in zip(before, values(model), strict=True):
        assert torch.equal(p, q)
    run(model, opt, range(13, STEPS), labels)
    for p, q, start in zip(values(model), values(other), before, strict=True):
        assert torch.equal(p, q)
        assert not torch.equal(p, start)
    opt.detach()
    other, _ = copied((model, opt))
    loss_of(other, 0).backward()
    assert all(p.grad is not None for p in other.parameters())


def test_frozen_parameters_stay():
    model = small_model()
    first = next(model.parameters())
    first.requires_grad_(False)
    start = first.clone()
    opt = torch_ire.StepInBackward(model.parameters(), lambda params: torch_ire.AdmIRE(params))
    run(model, opt, range(2), torch_ire.LabelGenerator(seed=7))
    assert torch.equal(first, start)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: torch_ire.SAMIRE(p), TypeError, "for AdmIRE and SGDIRE, got SAMIRE"),
        (lambda p: torch.optim.SGD(p), TypeError, "for AdmIRE and SGDIRE, got SGD"),
        (lambda p: torch_ire.SGDIRE(p, curvature=IdleProjector()), ValueError, "mixes parameters"),
        (lambda p: torch_ire.SGDIRE(p, skip_nonfinite=True), ValueError, "all gradients before the step"),
    ],
)
def test_methods_that_need_all_gradients_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        torch_ire.StepInBackward(small_model().parameters(), make)


def test_a_refresh_without_gradients_and_a_state_dict_of_another_model_raise():
    model = small_model()
    opt = torch_ire.StepInBackward(model.parameters(), lambda params: torch_ire.AdmIRE(params))
    loss_of(model, 0).backward()  # not paused: the gradients are gone
    with pytest.raises(RuntimeError, match="no parameter has a gradient"):
        opt.update_mask()
    other = torch_ire.AdmIRE([torch.nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match="doesn't match the size"):
        opt.load_state_dict(other.state_dict())
