"""The checks that torch makes of its own optimizers, made of ours: errors, groups, hooks and schedulers."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable

import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.testing._internal.common_optimizers import OptimizerErrorEnum

from tolerances import assert_within_ulps
from torch_optimizer_infos import ENTRIES, OWN, Entry, assert_same, copies, loss_of, take_steps

SEVERAL_GROUPS = [entry for entry in ENTRIES if entry.info.supports_param_groups]


def each(entries: list[Entry]):
    return pytest.mark.parametrize("entry", entries, ids=[entry.name for entry in entries])


def raised_by(call: Callable[[], object]) -> tuple[type[BaseException] | None, str]:
    """Kind and message of the error of a call, or of its first warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            call()
        except (Exception, Warning) as error:
            return type(error), str(error)
    return None, ""


# -- errors ------------------------------------------------------------------------------------------------------------


@each(OWN)
def test_bad_arguments_get_the_errors_of_torch(entry):
    """All that torch's table lists, but those about arguments that the package does not have."""
    checked = 0
    for error in entry.info.optim_error_inputs_func("cpu", torch.float32):
        given = error.optimizer_error_input
        if given.kwargs.keys() & {"foreach", "fused", "differentiable", "amsgrad"}:
            continue
        assert error.error_on == OptimizerErrorEnum.CONSTRUCTION_ERROR
        params = given.params if given.params is not None else entry.parameters()
        kind, message = raised_by(lambda params=params, given=given: entry.make(params, **given.kwargs))
        assert kind is not None, f"{given.desc}: accepted"
        assert issubclass(kind, error.error_type), f"{given.desc}: {kind.__name__}: {message}"
        assert re.search(error.error_regex, message), f"{given.desc}: {message}"
        checked += 1
    assert checked >= 7


GROUPS = {
    "a list": lambda p: [p],
    "a set": lambda p: {"params": {p}},
    "no parameters": lambda p: {"lr": 0.1},
    "a number": lambda p: {"params": 3.0},
    "a list of numbers": lambda p: {"params": [3.0]},
    "a result": lambda p: {"params": [p * 2]},
    "twice in a group": lambda p: {"params": [p, p]},
    "named": lambda p: {"params": [("weight", p)]},
}


@pytest.mark.parametrize("group", GROUPS.values(), ids=list(GROUPS))
@each(SEVERAL_GROUPS)
def test_a_bad_group_gets_the_error_of_torch(entry, group):
    p = torch.nn.Parameter(torch.ones(2, 2))
    params = entry.parameters()
    ours, theirs = entry.make(params), entry.base(copies(params))
    expected = raised_by(lambda: theirs.add_param_group(group(p)))
    assert raised_by(lambda: ours.add_param_group(group(p))) == expected
    assert len(ours.param_groups) == len(theirs.param_groups)
    take_steps(entry, ours, params, 1)


@each(SEVERAL_GROUPS)
def test_a_parameter_of_another_group_is_refused(entry):
    params = entry.parameters()
    optimizer = entry.make(params)
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        optimizer.add_param_group({"params": [params[0]]})
    assert len(optimizer.param_groups) == 1


@each(ENTRIES)
def test_a_state_dict_of_another_model_is_refused(entry):
    params = entry.parameters()
    optimizer = entry.make(params)
    take_steps(entry, optimizer, params, 2)
    saved = optimizer.state_dict()
    fewer, more = copy.deepcopy(saved), copy.deepcopy(saved)
    fewer["param_groups"][0]["params"].pop()
    more["param_groups"].append(copy.deepcopy(more["param_groups"][0]))
    for bad, message in (
        (fewer, "doesn't match the size of optimizer's group"),
        (more, "different number of parameter"),
    ):
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(bad)
        assert_same(optimizer.state_dict(), saved)


# -- groups ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argument", ["lr", "weight_decay"])
@each(OWN)
def test_groups_have_arguments_of_their_own(entry, argument):
    values = (0.1, 0.01)
    ours = entry.parameters()
    theirs = copies(ours)

    def groups(params):
        return [{"params": params[:2], argument: values[0]}, {"params": params[2:], argument: values[1]}]

    a, b = entry.make(groups(ours)), entry.base(groups(theirs))
    assert [group[argument] for group in a.param_groups] == list(values)
    take_steps(entry, a, ours, 4)
    take_steps(entry, b, theirs, 4)
    for p, q in zip(ours, theirs, strict=True):
        assert_within_ulps(p.detach(), q.detach(), 60, scale=torch.full_like(p, 3.0))


@pytest.mark.parametrize("set_to_none", [True, False])
@each(ENTRIES)
def test_zero_grad(entry, set_to_none):
    params = entry.parameters()
    optimizer = entry.make(params)
    loss_of(params).backward()
    optimizer.zero_grad(set_to_none)
    assert all((p.grad is None) if set_to_none else not p.grad.any() for p in params)


# -- hooks -------------------------------------------------------------------------------------------------------------


@each(ENTRIES)
def test_step_hooks_run_in_the_order_of_torch(entry):
    """Global ones around those of the optimizer, each in the order of its registration."""
    params = entry.parameters()
    optimizer = entry.make(params)
    calls: list[str] = []

    def noting(name):
        def hook(o, args, kwargs):
            assert o is optimizer
            calls.append(name)

        return hook

    handles = [
        optimizer.register_step_pre_hook(noting("pre")),
        optimizer.register_step_pre_hook(noting("pre 2")),
        optimizer.register_step_post_hook(noting("post")),
        optimizer.register_step_post_hook(noting("post 2")),
        register_optimizer_step_pre_hook(noting("global pre")),
        register_optimizer_step_post_hook(noting("global post")),
    ]
    take_steps(entry, optimizer, params, 1)
    for handle in handles:
        handle.remove()
    take_steps(entry, optimizer, params, 1)
    assert calls == ["global pre", "pre", "pre 2", "post", "post 2", "global post"]


@each(ENTRIES)
def test_a_step_hook_sees_the_weights_before_and_after(entry):
    """After the step is after the amplification, also for hooks that were there before IRE was attached."""
    params = entry.parameters()
    optimizer = entry.make(params, kappa=0.5)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(copies(params)))
    optimizer.register_step_post_hook(lambda *_: seen.append(copies(params)))
    start = copies(params)
    take_steps(entry, optimizer, params, 1)
    assert_same(seen, [start, copies(params)])


@each(OWN)
def test_a_step_hook_may_replace_the_arguments(entry):
    params = entry.parameters()
    optimizer = entry.make(params)
    called = []

    def closure():
        called.append("ours")
        optimizer.zero_grad()
        loss = loss_of(params)
        loss.backward()
        return loss

    optimizer.register_step_pre_hook(lambda o, args, kwargs: ((o, closure), {}))
    assert isinstance(optimizer.step(), torch.Tensor)
    assert set(called) == {"ours"}
    optimizer.register_step_pre_hook(lambda o, args, kwargs: "nonsense")
    with pytest.raises(RuntimeError, match=r"must return None or a tuple of \(new_args, new_kwargs\)"):
        optimizer.step()


@each(ENTRIES)
def test_state_dict_hooks_see_the_whole_and_may_replace_it(entry):
    params = entry.parameters()
    optimizer = entry.make(params, kappa=0.5)
    take_steps(entry, optimizer, params, 2)
    plain = optimizer.state_dict()
    calls = []
    optimizer.register_state_dict_pre_hook(lambda o: calls.append("pre"))
    optimizer.register_state_dict_post_hook(lambda o, sd: calls.append("post"))
    optimizer.register_state_dict_post_hook(lambda o, sd: {**sd, "more": 1})
    assert_same(optimizer.state_dict(), {**plain, "more": 1})
    assert calls == ["pre", "post"]


@each(ENTRIES)
def test_load_hooks_see_the_whole_and_may_replace_it(entry):
    params = entry.parameters()
    optimizer = entry.make(params, kappa=0.5)
    take_steps(entry, optimizer, params, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    take_steps(entry, optimizer, params, 2)
    # IRE around an optimizer takes its own out of the way of torch's cast before later hooks see it
    taken = {"flat_mask"} if entry.is_attached else set()
    whole = {i: {k: v for k, v in kept.items() if k not in taken} for i, kept in saved["state"].items()}
    seen = []

    def before(o, state_dict):
        assert o is optimizer
        seen.append({i: {k: v for k, v in kept.items() if k not in taken} for i, kept in state_dict["state"].items()})
        groups = [{**group, "lr": 0.125} for group in state_dict["param_groups"]]
        return {**state_dict, "param_groups": groups}

    def after(o):
        seen.append(copy.deepcopy(o.state_dict()["state"]))
        seen.append([float(group["lr"]) for group in o.param_groups])

    optimizer.register_load_state_dict_pre_hook(before)
    optimizer.register_load_state_dict_post_hook(after)
    optimizer.load_state_dict(saved)
    assert_same(seen, [whole, saved["state"], [0.125]])


@each(ENTRIES)
def test_a_step_has_the_name_of_torch_in_a_profile(entry):
    params = entry.parameters()
    optimizer = entry.make(params)
    with torch.profiler.profile() as profile:
        take_steps(entry, optimizer, params, 1)
    assert f"Optimizer.step#{type(optimizer).__name__}.step" in {event.key for event in profile.key_averages()}


# -- schedulers --------------------------------------------------------------------------------------------------------

SCHEDULERS: dict[str, Callable] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.9**t),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.95),
    "StepLR": lambda o: lr_scheduler.StepLR(o, step_size=2, gamma=0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, milestones=[1, 4], gamma=0.5),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, factor=0.5, total_iters=3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, start_factor=0.25, total_iters=4),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, gamma=0.8),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=5, power=1.5),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=3),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, base_lr=0.001, max_lr=0.02, step_size_up=3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.02, total_steps=10),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, factor=0.1, total_iters=2), lr_scheduler.ExponentialLR(o, gamma=0.9)]
    ),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, factor=0.1, total_iters=2), lr_scheduler.ExponentialLR(o, gamma=0.9)], [3]
    ),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, swa_lr=0.05, anneal_epochs=3),
}


def test_every_scheduler_of_torch_is_in_the_table():
    named = {name for name in lr_scheduler.__all__ if name not in ("LRScheduler", "_LRScheduler")}
    assert named == SCHEDULERS.keys() - {"SWALR"}


@pytest.mark.parametrize("tensor_lr", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@each(OWN)
def test_schedulers_do_what_they_do_to_the_optimizer_of_torch(entry, scheduler, tensor_lr):
    arguments = {"momentum": 0.9} if entry.base is torch.optim.SGD else {}
    ours = entry.parameters(dtype=torch.float64)
    theirs = copies(ours)
    runs = []
    for make, params in ((entry.make, ours), (entry.base, theirs)):
        optimizer = make(params, lr=torch.tensor(0.02, dtype=torch.float64) if tensor_lr else 0.02, **arguments)
        plan = SCHEDULERS[scheduler](optimizer)
        seen = []
        for step in range(8):
            take_steps(entry, optimizer, params, 1)
            plan.step(1.0 + step) if scheduler == "ReduceLROnPlateau" else plan.step()
            (group,) = optimizer.param_groups
            assert isinstance(group["lr"], torch.Tensor) == tensor_lr
            seen.append((float(group["lr"]), group.get("momentum"), group.get("betas")))
        runs.append(seen)
    assert runs[0] == runs[1]
    assert len({lr for lr, *_ in runs[0]}) > 1
    for p, q in zip(ours, theirs, strict=True):
        assert_within_ulps(p.detach(), q.detach(), 200, scale=torch.full_like(p, 3.0))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@each(OWN)
def test_a_run_with_a_scheduler_resumes(entry, scheduler):
    arguments = {"momentum": 0.9} if entry.base is torch.optim.SGD else {}

    def step(optimizer, plan, params, number):
        for _ in range(number):
            take_steps(entry, optimizer, params, 1)
            plan.step(1.0) if scheduler == "ReduceLROnPlateau" else plan.step()

    params = entry.parameters()
    optimizer = entry.make(params, kappa=0.5, kappa_follows_lr=True, lr=0.02, **arguments)
    plan = SCHEDULERS[scheduler](optimizer)
    step(optimizer, plan, params, 4)
    others = copies(params)
    other = entry.make(others, kappa=0.5, kappa_follows_lr=True, lr=0.02, **arguments)
    other_plan = SCHEDULERS[scheduler](other)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other_plan.load_state_dict(copy.deepcopy(plan.state_dict()))
    step(optimizer, plan, params, 4)
    step(other, other_plan, others, 4)
    assert_same(others, params)
    assert_same(other.state_dict(), optimizer.state_dict())


@each(ENTRIES)
def test_a_scheduler_warns_of_the_old_order_and_of_no_other(entry):
    params = entry.parameters()
    optimizer = entry.make(params)
    plan = lr_scheduler.StepLR(optimizer, step_size=2)
    take_steps(entry, optimizer, params, 1)
    plan.step()
    optimizer = entry.make(entry.parameters())
    plan = lr_scheduler.StepLR(optimizer, step_size=2)
    with pytest.warns(UserWarning, match=r"`lr_scheduler.step\(\)` before `optimizer.step\(\)`"):
        plan.step()
