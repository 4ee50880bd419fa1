"""An exception at any point of a step leaves theta of before, theta of after, or a state that says how to go on."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_ire
from every_optimizer import AROUND, EVERY, FOREIGN, IRE_ARGUMENTS, OWN, Run, Subject, assert_equal, name_of, same_bits
from interruptions import interrupted_after, interrupted_at, number_of_points
from optimizer_cases import loss_of, small_model

# points of each call that a test looks at, out of one to four thousand
POINTS = 40
SAM = [subject for subject in OWN if subject.is_sam]
# the reference is a loop over parameters in Python, without a copy of what it writes
ATOMIC = [subject for subject in OWN if not subject.is_sam and "native" in subject.name]


def equal(ours: list[Tensor], others: list[Tensor]) -> bool:
    return all(same_bits(p.detach(), q.detach()) for p, q in zip(ours, others, strict=True))


def points_of(call: Callable[[], Any], key: str) -> list[int]:
    total = number_of_points(call)
    return sorted(random.Random(key).sample(range(1, total + 1), min(total, POINTS)))


def by_closure(run: Run, number: int) -> Callable[[], Any]:
    return lambda: run.optimizer.step(run.closure(number))


def by_first_step(run: Run, number: int) -> Callable[[], Any]:
    run.backward(number)
    return run.optimizer.first_step


def by_second_step(run: Run, number: int) -> Callable[[], Any]:
    run.backward(number)
    run.optimizer.first_step()
    run.backward(number)
    return run.optimizer.second_step


def by_context(run: Run, number: int) -> Callable[[], Any]:
    """The two passes without the step, which is a plain one then."""
    run.backward(number)

    def both_passes() -> None:
        with run.optimizer.perturbed():
            run.backward(number)

    return both_passes


def by_step(run: Run, number: int) -> Callable[[], Any]:
    run.backward(number)
    return run.optimizer.step


WAYS = [by_closure, by_first_step, by_second_step, by_context]


def completed(subject: Subject, after: int, way: Callable[[Run, int], Callable[[], Any]], **overrides: Any) -> Run:
    """The run in which nothing is interrupted."""
    run = Run(subject, **overrides)
    run.train(range(after))
    way(run, after)()
    return run


@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("subject", SAM, ids=name_of)
def test_a_sam_step_interrupted_anywhere_can_return_to_theta(subject, way, after):
    """Where ``is_perturbed`` says so, ``second_step()`` without gradients returns; elsewhere theta is there already."""
    complete = completed(subject, after, way)
    counted = Run(subject)
    counted.train(range(after))
    for point in points_of(way(counted, after), f"{subject.name} {way.__name__} {after}"):
        run = Run(subject)
        run.train(range(after))
        theta = run.theta()
        place = interrupted_at(point, way(run, after))
        if run.optimizer.is_perturbed:
            assert way is not by_closure, f"{place}: step(closure) ended away from theta"
            run.optimizer.zero_grad()
            run.optimizer.second_step()
            assert equal(run.params, theta), f"{place}: second_step() without gradients did not return to theta"
        else:
            # a step outside a perturbation takes one operator call per group
            whole = [slice(0, 2), slice(2, 4)] if way is by_context else [slice(0, 4)]
            for part in whole:
                is_old = equal(run.params[part], theta[part])
                assert is_old or equal(run.params[part], complete.params[part]), f"{place}: neither before nor after"
        assert not run.optimizer.is_perturbed
        run.train(range(after, after + 2))
        assert all(param.isfinite().all() for param in run.params), place


@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("subject", ATOMIC, ids=name_of)
def test_each_group_steps_as_a_whole(subject, groups, after):
    """And state goes with its parameters: no moment is ahead of them or behind."""
    complete = completed(subject, after, by_step, groups=groups)
    counted = Run(subject, groups=groups)
    counted.train(range(after))
    for point in points_of(by_step(counted, after), f"{subject.name} {groups} {after}"):
        run, before = Run(subject, groups=groups), Run(subject, groups=groups)
        run.train(range(after))
        before.train(range(after))
        place = interrupted_at(point, by_step(run, after))
        for ours, old, new in zip(*(r.optimizer.param_groups for r in (run, before, complete)), strict=True):
            is_new = equal(ours["params"], new["params"])
            assert is_new or equal(ours["params"], old["params"]), f"{place}: neither before nor after"
            expected, source = (complete, new) if is_new else (before, old)
            for p, q in zip(ours["params"], source["params"], strict=True):
                kept = expected.optimizer.state.get(q, {})
                for key in ("exp_avg", "exp_avg_sq", "momentum_buffer"):
                    if key in kept:
                        assert same_bits(run.optimizer.state[p][key], kept[key]), f"{place}: {key}"
        run.train(range(after + 1, after + 3))


@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("implementation", ["native", "reference"])
@pytest.mark.parametrize(("cls", "arguments"), FOREIGN, ids=lambda item: getattr(item, "__name__", ""))
def test_around_a_foreign_optimizer_each_parameter_has_a_value_of_some_step(cls, arguments, implementation, after):
    """Its value of before, that of its own step, or the amplified one; and the step after starts from there."""

    def make() -> tuple[list[nn.Parameter], Callable[[int], Any], list[list[Tensor]]]:
        params = list((model := small_model()).parameters())
        optimizer = cls([{"params": params[:2]}, {"params": params[2:]}], **arguments)
        of_its_own: list[list[Tensor]] = []
        optimizer.register_step_post_hook(
            lambda *_: of_its_own.append([param.detach().clone() for param in params])
        )  # runs before the hook of IRE
        torch_ire.IRE(optimizer, **IRE_ARGUMENTS, implementation=implementation)

        def step(number: int) -> Callable[[], Any]:
            optimizer.zero_grad()
            loss_of(model, number).backward()
            return optimizer.step

        for number in range(after):
            step(number)()
        return params, step, of_its_own

    complete, step, of_its_own = make()
    step(after)()
    _, counted, _ = make()
    for point in points_of(counted(after), f"{cls.__name__} {implementation} {after}"):
        params, step, _ = make()
        theta = [param.detach().clone() for param in params]
        place = interrupted_at(point, step(after))
        for i, p in enumerate(params):
            values = (theta[i], of_its_own[-1][i], complete[i].detach())
            assert any(same_bits(p.detach(), value) for value in values), f"{place}: parameter {i}"
        step(after + 1)()


def masks_of(run: Run) -> list[Tensor | None]:
    state = run.optimizer.state_dict()["state"]
    return [state.get(i, {}).get("flat_mask") for i in range(len(run.params))]


@pytest.mark.parametrize("curvature_beta", [0.0, 0.5])
@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize("subject", [s for s in EVERY if "native" in s.name], ids=name_of)
def test_an_interrupted_refresh_is_due_until_all_masks_are_new(subject, after, curvature_beta):
    arguments = {"curvature": "fisher", "curvature_beta": curvature_beta}

    def make() -> Run:
        run = Run(subject, **arguments)
        for number in range(after):
            if run.handle.mask_due():
                run.backward(100 + number)
                run.handle.update_mask()
            run.train(range(number, number + 1))
        run.backward(100 + after)
        return run

    complete, counted = make(), make()
    assert complete.handle.mask_due()
    complete.handle.update_mask()
    for point in points_of(counted.handle.update_mask, f"{subject.name} {after}"):
        run = make()
        theta = run.theta()
        place = interrupted_at(point, run.handle.update_mask)
        assert_equal(run.params, theta)
        if not run.handle.mask_due():
            for i, (mask, new) in enumerate(zip(masks_of(run), masks_of(complete), strict=True)):
                assert same_bits(mask, new), f"{place}: mask {i} is that of before, and no refresh is due"
        run.train(range(after, after + 1))


class WideSam:
    """A SAM step with a closure at parameters so large that most of the time is spent in the operators."""

    def __init__(self, base: str, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.params = [nn.Parameter(torch.randn(400, 500, generator=generator)) for _ in range(4)]
        groups = [{"params": self.params[:2]}, {"params": self.params[2:]}]
        self.optimizer = torch_ire.SAMIRE(groups, lr=0.1, base=base, rho=0.5, kappa=2.0, curvature="random")

    def closure(self) -> Tensor:
        for param in self.params:
            param.grad = param.detach() * 0.1
        return torch.zeros(())

    def step(self) -> float:
        """Takes a step; returns the seconds that it took."""
        start = time.perf_counter()
        self.optimizer.step(self.closure)
        return time.perf_counter() - start


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_signals_at_random_times_leave_theta(base, after):
    """Each trial starts from other values, so that memory which is used again does not happen to hold theta."""
    chance = random.Random(f"{base} {after}")
    for trial in range(80):
        run, complete = WideSam(base, trial), WideSam(base, trial)
        for _ in range(after):
            run.step()
            complete.step()
        theta = [param.detach().clone() for param in run.params]
        interrupted_after(chance.uniform(1e-5, complete.step()), run.step)
        assert not run.optimizer.is_perturbed
        is_theta = equal(run.params, theta)
        assert is_theta or equal(run.params, complete.params), f"trial {trial}: neither before nor after the step"


@pytest.mark.parametrize("subject", SAM, ids=name_of)
@pytest.mark.parametrize("operator", ["sam_perturb_", "fused_sgd_flat_", "fused_adamw_flat_"])
def test_an_operator_that_fails_in_a_step_with_a_closure_leaves_theta(subject, operator):
    """Before it runs and after it has run, at the first step and at a later one, and in either group."""
    for after in (0, 2):
        for failing_call in (1, 2):
            for runs_first in (False, True):
                run = Run(subject)
                run.train(range(after))
                theta = run.theta()
                calls = [0]
                with pytest.MonkeyPatch.context() as patch:
                    for module in (torch_ire.ops, torch_ire.reference):
                        patch.setattr(module, operator, _failing(module, operator, calls, failing_call, runs_first))
                    try:
                        run.optimizer.step(run.closure(after))
                    except MemoryError:
                        assert_equal(run.params, theta)
                    else:
                        assert calls[0] < failing_call
                assert not run.optimizer.is_perturbed


def _failing(module: Any, name: str, calls: list[int], failing_call: int, runs_first: bool) -> Callable[..., None]:
    real = getattr(module, name)

    def call(*args: Any, **kwargs: Any) -> None:
        calls[0] += 1
        if calls[0] != failing_call or runs_first:
            real(*args, **kwargs)
        if calls[0] == failing_call:
            raise MemoryError

    return call


@pytest.mark.parametrize("subject", AROUND, ids=name_of)
def test_a_foreign_step_that_raises_is_not_amplified_later(subject):
    """The displacement of a step that raised is no part of the next one's."""
    run, twin = Run(subject), Run(subject)
    for each in (run, twin):
        each.train(range(3))

    def raises() -> Tensor:
        raise ValueError("from the closure")

    run.backward(3)
    with pytest.raises(ValueError, match="from the closure"):
        run.optimizer.step(raises)
    for each in (run, twin):
        with torch.no_grad():
            for param in each.params:
                param.mul_(0.5)
        each.train(range(3, 6))
    assert_equal(run.params, twin.params)
