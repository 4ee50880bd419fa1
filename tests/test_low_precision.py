"""bfloat16 and float16 parameters: what rounding takes from small steps, and what Kahan and master copies keep."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import torch_ire
from optimizer_cases import CASES, IDS, loss_of, small_model, train, values
from step_lists import Lists, clones
from torch_ire import ops, reference

HALF = (torch.bfloat16, torch.float16)
KEPT = {"kahan": "compensation", "master": "master_param"}
SCALARS = {
    "fused_adamw_flat_": {"lr": 0.03, "beta1": 0.8, "beta2": 0.9, "eps": 1e-4, "weight_decay": 0.3, "kappa": 2.5},
    "fused_sgd_flat_": {
        "lr": 0.2, "momentum": 0.9, "dampening": 0.25, "weight_decay": 0.3, "nesterov": False, "kappa": 2.5,
    },
}  # fmt: skip


class Step:
    """The lists of one operator: parameters, gradients, moments, steps, masks, backups, and what rounding keeps."""

    def __init__(self, operator: str, dtype: torch.dtype, device: torch.device) -> None:
        self.operator = operator
        lists = Lists(dtype, device)
        moments = [lists.normal(torch.float32)]
        if operator == "fused_adamw_flat_":
            moments.append(lists.squares())
        self.lists = [lists.normal(), lists.normal(), *moments, lists.steps(4.0), lists.masks(), [], [], []]

    def keep(self, rounding: str) -> Step:
        params = self.lists[0]
        if rounding == "kahan":
            self.lists[-2] = [torch.zeros_like(p) for p in params]
        elif rounding == "master":
            self.lists[-1] = [p.float() for p in params]
        return self

    def copy(self) -> Step:
        other = copy.copy(self)
        other.lists = clones(*self.lists)
        return other

    def run(self, functions: ModuleType = ops, **scalars: Any) -> Step:
        getattr(functions, self.operator)(*self.lists, **{**SCALARS[self.operator], **scalars})
        return self

    @property
    def params(self) -> list[Tensor]:
        return self.lists[0]

    def exact(self) -> list[Tensor]:
        """What the parameters stand for, in float64."""
        if self.lists[-2]:
            return [p.double() + c.double() for p, c in zip(self.params, self.lists[-2], strict=True)]
        return [w.double() for w in self.lists[-1]]


def assert_lists_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("operator", SCALARS)
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("rounding", KEPT)
@pytest.mark.parametrize("restored", [False, True])
def test_equals_the_reference(device, operator, dtype, rounding, restored):
    """Both keep more bits of theta than the parameter has, and these agree."""
    start = Step(operator, dtype, device).keep(rounding)
    if restored:
        start.lists[-3] = [(p * 1.5).to(dtype) for p in start.params]
    ours, theirs = start.copy(), start.copy()
    for _ in range(3):
        ours.run()
        theirs.run(reference)
        for ws in (ours, theirs):  # the next step starts where the last has ended
            ws.lists[-3] = []
    finest = 2.0**-17 if rounding == "master" or dtype == torch.float16 else 2.0**-14
    for a, b in zip(ours.exact(), theirs.exact(), strict=True):
        torch.testing.assert_close(a, b, rtol=finest, atol=4e-6)  # float32 terms of size 4, three steps
    for p, w in zip(ours.params, ours.exact(), strict=True):
        assert torch.equal(p, w.float().to(dtype)) or rounding == "kahan"


@pytest.mark.parametrize("operator", SCALARS)
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("rounding", KEPT)
def test_the_update_is_that_of_float32(device, operator, dtype, rounding):
    """One step from equal weights with equal gradients: theta is the float32 result, to what is kept of it."""
    kept = Step(operator, dtype, device).keep(rounding)
    full = kept.copy()
    full.lists[0], full.lists[1] = ([t.float() for t in tensors] for tensors in kept.lists[:2])
    full.lists[-2:] = [], []
    kept.run()
    full.run()
    for a, b in zip(kept.exact(), full.params, strict=True):
        if rounding == "master":
            torch.testing.assert_close(a.float(), b, rtol=2e-6, atol=1e-6)
        else:
            unit = torch.finfo(dtype).eps
            torch.testing.assert_close(a.float(), b, rtol=unit**2, atol=2.0**-24)
    for p, b in zip(kept.params, full.params, strict=True):
        torch.testing.assert_close(p.float(), b, rtol=torch.finfo(dtype).eps, atol=2.0**-24)


@pytest.mark.parametrize("operator", SCALARS)
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("rounding", KEPT)
def test_a_parameter_that_was_written_since_is_where_the_step_starts(device, operator, dtype, rounding):
    """Averages or a checkpoint copied into every other weight: those start afresh, the others go on.

    A step of length zero shows where it starts.
    """
    run = Step(operator, dtype, device).keep(rounding).run()
    before = run.exact()
    everyother = [torch.arange(p.numel(), device=device).view(p.shape) % 2 == 0 for p in run.params]
    for p, written in zip(run.params, everyother, strict=True):
        p.copy_(torch.where(written, p * 2.0**-5, p))
    written_to = [p.double() for p in run.params]
    run.run(lr=0.0)
    for p, now, old, new, written in zip(run.params, run.exact(), before, written_to, everyother, strict=True):
        assert torch.equal(now[~written], old[~written])
        if rounding == "master":
            assert torch.equal(p.double(), new)
            assert torch.equal(now[written], new[written])
        else:  # what is left of the old compensation where it might belong to the new weight
            unit = torch.finfo(dtype).eps * new.abs() + torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
            assert ((now - new).abs() <= unit)[written].all()


@pytest.mark.parametrize("operator", SCALARS)
@pytest.mark.parametrize("rounding", KEPT)
def test_an_overflow_changes_nothing_but_what_is_restored(device, operator, rounding):
    run = Step(operator, torch.bfloat16, device).keep(rounding).run()
    run.lists[-3] = [p + 1 for p in run.params]
    before = run.copy()
    run.run(found_inf=torch.tensor(1.0, device=device))
    assert_lists_equal(run.params, before.lists[-3])
    for ours, theirs in zip(run.lists[1:], before.lists[1:], strict=True):
        assert_lists_equal(ours, theirs)


@pytest.mark.parametrize("operator", SCALARS)
@pytest.mark.parametrize("rounding", KEPT)
def test_not_finite_weights_stay_what_they_are(device, operator, rounding):
    """No NaN appears where there was an infinity, and a float16 weight that overflows comes back with its copy."""
    run = Step(operator, torch.float16, device)
    for p in run.params:
        p.fill_(65504.0)
    run.lists[1] = [torch.zeros_like(g) for g in run.lists[1]]
    run.lists[2] = [torch.zeros_like(m) for m in run.lists[2]]
    run.keep(rounding)
    for lr in (-1.0, -1.0, 3.0) if rounding == "master" else (-1.0, -1.0):
        run.run(lr=lr, weight_decay=0.01, kappa=0.0)  # up by decay alone, beyond what float16 holds, and back
    for p in run.params:
        assert not p.isnan().any()
        assert p.isinf().all() if rounding == "kahan" else p.isfinite().all()
    for c in run.lists[-2]:
        assert c.isfinite().all()


@pytest.mark.parametrize("operator", SCALARS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.lists[-2].pop(), "compensations: expected one tensor for each of the 9 params, got 8"),
        (
            lambda s: s.lists[-2].__setitem__(1, s.lists[-2][1].float()),
            r"compensations\[1\]: expected bfloat16, got fl",
        ),
        (
            lambda s: s.keep("master").lists[-1].__setitem__(0, s.params[0]),
            r"master_params\[0\]: expected float32, got",
        ),
        (
            lambda s: s.lists[-2].__setitem__(3, s.lists[-2][3].contiguous()),
            r"compensations\[3\]: expected shape \(7, 5",
        ),
        (lambda s: s.keep("master"), "compensations, master_params, rounding_keys: expected one of them at most"),
    ],
)
def test_messages_and_no_tensor_changed(operator, change, message):
    step = Step(operator, torch.bfloat16, torch.device("cpu")).keep("kahan")
    before = step.copy()
    change(step)
    with pytest.raises(RuntimeError, match=f"torch_ire::{operator}: {message}"):
        step.run()
    assert_lists_equal(step.params, before.params)


@pytest.mark.parametrize("operator", SCALARS)
@pytest.mark.parametrize("rounding", KEPT)
def test_full_precision_parameters_have_nothing_to_keep(operator, rounding):
    step = Step(operator, torch.float32, torch.device("cpu")).keep(rounding)
    with pytest.raises(RuntimeError, match="expected none for params of float32, which lose nothing, got 9"):
        step.run()


def follow(rounding: str, dtype: torch.dtype, make: Any) -> tuple[Tensor, Tensor, float]:
    """1000 steps far below the spacing of the dtype, beside the same steps in float64; and the weights before."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(512, generator=generator).abs().add(0.5).to(dtype)
    ours, exact = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.double())
    optimizers = [make([p], rounding=r) for p, r in ((ours, rounding), (exact, "nearest"))]
    for _ in range(1000):
        gradient = torch.randn(512, generator=generator).add(1.0).to(dtype)
        ours.grad, exact.grad = gradient, gradient.double()
        for optimizer in optimizers:
            optimizer.step()
    moved = (exact.detach() - start.double()).abs().mean()
    return (ours.detach().double() - exact.detach()).abs().mean() / moved, moved, torch.finfo(dtype).eps


@pytest.mark.parametrize("implementation", ["native", "reference"])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [("AdmIRE", {"lr": 1e-5, "weight_decay": 0.1}), ("SGDIRE", {"lr": 2e-6, "momentum": 0.9})],
)
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_thousand_small_steps_follow_float64(dtype, name, arguments, implementation):
    def make(params, rounding):
        cls = getattr(torch_ire, name)
        return cls(params, **arguments, kappa=0.0, rounding=rounding, implementation=implementation)

    error = {}
    for rounding in ("nearest", "kahan", "master"):
        share, moved, unit = follow(rounding, dtype, make)
        error[rounding] = float(share * moved)
    # rounding the exact weights costs a quarter of a unit of weights between 1/2 and 4 on average, one at most
    assert moved > unit
    assert error["kahan"] < unit
    assert error["master"] < unit
    assert error["nearest"] > 0.5 * moved


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("rounding", KEPT)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_what_is_kept_is_state_and_a_resume_is_bit_exact(case, rounding, dtype):
    arguments = {"rounding": rounding, "mask_interval": 3, "gamma": 0.6}
    whole, first, second = (small_model(dtype=dtype) for _ in range(3))
    labels = torch_ire.LabelGenerator(seed=5)
    train(whole, case(whole.parameters(), **arguments), range(7), labels=labels)
    labels = torch_ire.LabelGenerator(seed=5)
    optimizer = case(first.parameters(), **arguments)
    train(first, optimizer, range(4), labels=labels)
    state = optimizer.state_dict()
    for entry in state["state"].values():
        assert entry.keys() & set(KEPT.values()) == {KEPT[rounding]}
        assert entry[KEPT[rounding]].dtype == (dtype if rounding == "kahan" else torch.float32)
    second.load_state_dict(first.state_dict())
    optimizer = case(second.parameters(), **arguments)
    optimizer.load_state_dict(copy.deepcopy(state))
    for p in second.parameters():
        assert optimizer.state[p][KEPT[rounding]].dtype == (dtype if rounding == "kahan" else torch.float32)
    train(second, optimizer, range(4, 7), labels=labels)
    assert_lists_equal(values(whole), values(second))


@pytest.mark.parametrize("rounding", KEPT)
@pytest.mark.parametrize("name", ["AdmIRE", "SGDIRE"])
def test_a_checkpoint_without_them_makes_them_when_they_are_needed(name, rounding):
    case = next(c for c in CASES if c.name == name)
    model = small_model(dtype=torch.bfloat16)
    theirs = case.torch(model.parameters())
    loss_of(model, 0).backward()
    theirs.step()
    ours = case(model.parameters(), rounding=rounding, curvature="random", kappa=0.0)
    ours.load_state_dict(theirs.state_dict())
    assert not any(KEPT[rounding] in ours.state[p] for p in model.parameters())
    before = values(model)
    ours.step()
    for p, w in zip(model.parameters(), before, strict=True):
        assert not torch.equal(p, w)
        kept = ours.state[p][KEPT[rounding]]
        assert (kept if rounding == "master" else p.float() + 0.75 * kept).bfloat16().equal(p.detach())


@pytest.mark.parametrize("rounding", KEPT)
def test_a_mixed_model_keeps_what_its_half_precision_needs(rounding):
    model = small_model()
    model[0].bfloat16()
    optimizer = torch_ire.AdmIRE(model.parameters(), rounding=rounding, curvature="random")
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    for _ in range(2):
        optimizer.step()
    for p in model.parameters():
        assert (KEPT[rounding] in optimizer.state[p]) == (p.dtype == torch.bfloat16)
    model.bfloat16()  # from now on all of it
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert all(KEPT[rounding] in optimizer.state[p] for p in model.parameters())
    model.half()  # of another dtype, of which nothing has been rounded away yet
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.state[p][KEPT[rounding]].dtype == (torch.float16 if rounding == "kahan" else torch.float32)


@pytest.mark.parametrize("rounding", KEPT)
def test_weights_loaded_between_steps_are_the_weights(rounding):
    """As a loop that loads a model after it has made and used its optimizer."""
    model, other = small_model(dtype=torch.bfloat16), small_model(seed=4, dtype=torch.bfloat16)
    optimizer = torch_ire.SGDIRE(model.parameters(), lr=1e-3, rounding=rounding, curvature="random")
    train(model, optimizer, range(3))
    model.load_state_dict(other.state_dict())
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=2.0**-7, atol=0)


@pytest.mark.parametrize("rounding", KEPT)
@pytest.mark.parametrize("closure", [False, True])
def test_sam_starts_at_what_is_kept_and_comes_back_exactly(rounding, closure):
    """Perturbed by far more than a step moves, 300 steps add up to those that a float64 model makes."""
    start = torch.linspace(0.5, 2.0, 256).bfloat16()
    ours, exact = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.double())
    for p, r in ((ours, rounding), (exact, "nearest")):
        optimizer = torch_ire.SAMIRE([p], lr=1e-5, rho=0.5, kappa=1.0, gamma=1.0, curvature="random", rounding=r)

        def pass_(p=p, optimizer=optimizer):
            optimizer.zero_grad()
            p.grad = torch.ones_like(p)
            return 0.0

        for _ in range(300):
            if closure:
                optimizer.step(pass_)
            else:
                pass_()
                before = p.detach().clone()
                with optimizer.perturbed():
                    pass_()
                    assert not torch.equal(p.detach(), before)
                assert torch.equal(p.detach(), before)
                optimizer.step()
    torch.testing.assert_close(exact.detach(), start.double() - 300 * 2e-5)
    error = (ours.detach().double() - exact.detach()).abs()
    assert float((error / exact.detach()).max()) <= 2.0**-8
    assert not torch.equal(ours.detach(), start)


@pytest.mark.parametrize("rounding", KEPT)
def test_a_parameter_with_gaps_in_memory(rounding):
    storage = torch.ones(300, 2, dtype=torch.bfloat16)
    sliced, dense = torch.nn.Parameter(storage[:, 0]), torch.nn.Parameter(storage[:, 0].clone())
    for p in (sliced, dense):
        optimizer = torch_ire.AdmIRE([p], lr=1e-4, rounding=rounding, curvature="random", seed=3)
        for _ in range(50):
            p.grad = torch.ones_like(p)
            optimizer.step()
    assert torch.equal(sliced.detach(), dense.detach())
    assert torch.equal(storage[:, 1], torch.ones(300, dtype=torch.bfloat16))
    assert float(dense.detach().float().mean()) < 1 - 50 * 0.5e-4
