"""Steps that call steps, and contexts inside contexts: each displacement is amplified once, each step counted once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_ire
from every_optimizer import FOREIGN, IRE_ARGUMENTS, OWN, Run, assert_equal, name_of
from optimizer_cases import loss_of, small_model

SAM = [subject for subject in OWN if subject.is_sam]


def train(optimizer: torch.optim.Optimizer, model: nn.Module, steps: int) -> None:
    for number in range(steps):
        optimizer.zero_grad()
        loss_of(model, number).backward()
        optimizer.step()


def steps_of(optimizer: torch.optim.Optimizer) -> list[int]:
    return [int(group["ire_step"]) for group in optimizer.param_groups]


class Wrapper(torch.optim.Optimizer):
    """An optimizer around another one, with its groups and its state."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        super().__init__(inner.param_groups, inner.defaults)
        self.inner, self.param_groups, self.state = inner, inner.param_groups, inner.state

    def step(self, closure: Any = None) -> None:
        self.inner.step(closure)


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize(("cls", "arguments"), FOREIGN, ids=lambda item: getattr(item, "__name__", ""))
def test_a_subclass_that_calls_the_step_of_its_base_is_amplified_once(cls, arguments, levels):
    """torch runs the hooks of a step around both methods once the base class has been used by itself."""

    class Derived(cls):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    class TwiceDerived(Derived):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    model, other = small_model(), small_model()
    plain = cls(other.parameters(), **arguments)
    torch_ire.IRE(plain, **IRE_ARGUMENTS)
    train(plain, other, 5)
    if levels == 2:
        Derived(small_model().parameters(), **arguments)
    derived = (Derived if levels == 1 else TwiceDerived)(model.parameters(), **arguments)
    torch_ire.IRE(derived, **IRE_ARGUMENTS)
    train(derived, model, 5)
    assert steps_of(derived) == steps_of(plain) == [5]
    assert_equal(list(model.parameters()), list(other.parameters()))


@pytest.mark.parametrize("attached", ["wrapper", "inner"])
@pytest.mark.parametrize(("cls", "arguments"), FOREIGN, ids=lambda item: getattr(item, "__name__", ""))
def test_a_wrapper_of_an_optimizer_is_amplified_once(cls, arguments, attached):
    model, other = small_model(), small_model()
    plain = cls(other.parameters(), **arguments)
    torch_ire.IRE(plain, **IRE_ARGUMENTS)
    train(plain, other, 5)
    inner = cls(model.parameters(), **arguments)
    wrapper = Wrapper(inner)
    torch_ire.IRE(wrapper if attached == "wrapper" else inner, **IRE_ARGUMENTS)
    train(wrapper, model, 5)
    assert steps_of(wrapper) == [5]
    assert_equal(list(model.parameters()), list(other.parameters()))


def counted(run: Run, number: int, calls: list[int]) -> Callable[[], Tensor]:
    closure = run.closure(number)

    def counting() -> Tensor:
        calls[0] += 1
        return closure()

    return counting


@pytest.mark.parametrize("subject", SAM, ids=name_of)
def test_a_step_inside_perturbed_is_that_after_it(subject):
    """And the step that follows is a whole one, with a perturbation of its own."""
    run, twin = Run(subject), Run(subject)
    for each in (run, twin):
        each.backward(0)
        with each.optimizer.perturbed():
            each.backward(0)
            if each is run:
                each.optimizer.step()
        if each is twin:
            each.optimizer.step()
    assert_equal(run.params, twin.params)
    ours, theirs = [0], [0]
    run.optimizer.step(counted(run, 1, ours))
    twin.optimizer.step(counted(twin, 1, theirs))
    assert ours == theirs == [1 if subject.name.startswith("average") else 2]
    assert_equal(run.params, twin.params)


@pytest.mark.parametrize("subject", SAM, ids=name_of)
def test_a_perturbation_without_a_step_leaves_nothing_behind(subject):
    """As where a loop finds that the loss is not finite and goes on to the next batch."""
    run, twin = Run(subject), Run(subject)
    run.backward(0)
    with run.optimizer.perturbed():
        run.backward(0)
    assert_equal(run.params, twin.params)
    run.optimizer.zero_grad()
    ours, theirs = [0], [0]
    run.optimizer.step(counted(run, 1, ours))
    twin.optimizer.step(counted(twin, 1, theirs))
    assert ours == theirs == [1 if subject.name.startswith("average") else 2]
    assert_equal(run.params, twin.params)


@pytest.mark.parametrize("subject", SAM, ids=name_of)
def test_an_exception_inside_perturbed_leaves_theta_and_nothing_else(subject):
    run, twin = Run(subject), Run(subject)
    for each in (run, twin):
        each.train(range(2))
    run.backward(2)
    with pytest.raises(ZeroDivisionError), run.optimizer.perturbed():  # noqa: PT012
        run.backward(2)
        raise ZeroDivisionError
    assert not run.optimizer.is_perturbed
    assert_equal(run.params, twin.params)
    for each in (run, twin):
        each.optimizer.step(each.closure(2))
    assert_equal(run.params, twin.params)


def test_a_pause_within_a_pause_does_not_end_it():
    model = small_model()
    opt = torch_ire.StepInBackward(model.parameters(), lambda params: torch_ire.AdmIRE(params))
    before = [param.detach().clone() for param in model.parameters()]
    with opt.paused():
        with opt.paused():
            pass
        loss_of(model, 0).backward()
    assert all(param.grad is not None for param in model.parameters())
    assert_equal(list(model.parameters()), before)


def test_an_exception_between_two_levels_of_a_step_is_over_with_the_next_step():
    """A subclass evaluates its closure before it calls the step of its base class, and the closure fails."""

    class Derived(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            if closure is not None:
                closure()
            return super().step()

    def fails() -> None:
        raise ZeroDivisionError

    torch.optim.SGD([nn.Parameter(torch.zeros(1))])  # from now on torch runs the hooks around both methods
    param = nn.Parameter(torch.zeros(4))
    optimizer = Derived([param], lr=0.1)
    torch_ire.IRE(optimizer, kappa=2.0, gamma=1.0, curvature="random")
    param.grad = torch.ones(4)
    with pytest.raises(ZeroDivisionError):
        optimizer.step(fails)
    moves = []
    for _ in range(3):
        before = param.detach().clone()
        optimizer.step()
        moves.append(float((param.detach() - before).mean()))
    assert moves == [pytest.approx(-0.3)] * 3
    assert steps_of(optimizer) == [3]
