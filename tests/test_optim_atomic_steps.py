"""A step that raises has changed nothing: no parameter, no state, no counter; at any step, the first one included."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import torch_ire
from every_optimizer import AROUND, EVERY, OWN, Run, Subject, assert_equal, changes, name_of, same_bits, snapshot

Repair = Callable[[], None]
# the optimizer or its operator, and what was expected and what came
MESSAGE = re.compile(
    r"(?s)(IRE|torch_ire|fused_|displacement_|sam_perturb|global_norm).*(expect.*got|does not support sparse)"
)
WRONG = 2  # the parameter with the fault: the first one of the second group


@dataclass(frozen=True)
class Fault:
    """Something wrong with one parameter; ``inject`` returns what puts it right."""

    name: str
    inject: Callable[[Run], Repair]


def _gradient(change: Callable[[Tensor], Tensor]) -> Callable[[Run], Repair]:
    def inject(run: Run) -> Repair:
        param = run.params[WRONG]
        good = param.grad
        param.grad = change(good)

        def repair() -> None:
            param.grad = good

        return repair

    return inject


def _gradient_of_another_dtype(run: Run) -> Repair:
    param = run.params[WRONG]
    good, dtype = param.grad, param.grad_dtype
    param.grad = None
    param.grad_dtype = None
    param.grad = good.double()

    def repair() -> None:
        param.grad = None
        param.grad_dtype = dtype
        param.grad = good

    return repair


def _gradient_of_another_shape(run: Run) -> Repair:
    param = run.params[WRONG]
    good = param.grad
    param.grad = good.clone()
    param.grad.data = torch.ones(3, 7)

    def repair() -> None:
        param.grad = good

    return repair


def _data(change: Callable[[Tensor], Tensor]) -> Callable[[Run], Repair]:
    def inject(run: Run) -> Repair:
        param = run.params[WRONG]
        good = param.data
        param.data = change(good)

        def repair() -> None:
            param.data = good

        return repair

    return inject


def _parameter_and_gradient_of_another_shape(run: Run) -> Repair:
    param = run.params[WRONG]
    good, grad = param.data, param.grad
    param.grad = None
    param.data = torch.ones(4, 9)
    param.grad = torch.ones(4, 9)

    def repair() -> None:
        param.grad = None
        param.data = good
        param.grad = grad

    return repair


def _parameter_on_another_device(run: Run) -> Repair:
    param = run.params[WRONG]
    elsewhere = torch.nn.Parameter(torch.empty_like(param, device="meta"))
    elsewhere.grad = torch.empty_like(param, device="meta")
    torch.utils.swap_tensors(param, elsewhere)
    return lambda: torch.utils.swap_tensors(param, elsewhere)


def _state(kind: str, change: Callable[[Tensor], Any]) -> Callable[[Run], Repair]:
    """Replaces the mask, or the first tensor of the state in the parameter's shape."""

    def inject(run: Run) -> Repair:
        param = run.params[WRONG]
        state = run.optimizer.state[param]
        names = {"moment": ("exp_avg", "momentum_buffer")}.get(kind, (kind,))
        (key,) = (name for name in names if name in state)
        good = state[key]
        state[key] = change(good)

        def repair() -> None:
            state[key] = good

        return repair

    return inject


GRADIENTS = [
    Fault("gradient of another dtype", _gradient_of_another_dtype),
    Fault("gradient of another shape", _gradient_of_another_shape),
    Fault("sparse gradient", _gradient(lambda grad: grad.to_sparse())),
    Fault("data of another shape", _data(lambda data: torch.ones(3, 7))),
    Fault("data of another dtype", _data(lambda data: data.double())),
    Fault("data that overlaps itself", _data(lambda data: torch.ones(1).expand(data.shape))),
]
STATE = [
    Fault("parameter of another shape than its state", _parameter_and_gradient_of_another_shape),
    Fault("parameter on another device than its state", _parameter_on_another_device),
    Fault("moment of another dtype", _state("moment", lambda moment: moment.double())),
    Fault("moment of another shape", _state("moment", lambda moment: torch.ones(3, 7))),
    Fault("moment on meta", _state("moment", lambda moment: moment.to("meta"))),
    Fault("moment that is a list", _state("moment", lambda moment: moment.tolist())),
    Fault("step count of two elements", _state("step", lambda step: torch.ones(2))),
]
MASKS = [
    Fault("mask of another dtype", _state("flat_mask", lambda mask: mask.float())),
    Fault("mask of another length", _state("flat_mask", lambda mask: mask[:-1].clone())),
    Fault("mask on meta", _state("flat_mask", lambda mask: mask.to("meta"))),
]


def keeps_state_for(subject: Subject, fault: Fault) -> bool:
    """SGD without momentum keeps nothing but the mask, SGD without dampening counts no steps."""
    if "moment" in fault.name:
        return not any(name in subject.name for name in ("plain", "ASAMIRE"))
    return "step count" not in fault.name or not any(name in subject.name for name in ("plain", "ASAMIRE", "nesterov"))


def name_of_fault(fault: Fault) -> str:
    return fault.name


def assert_refused(run: Run, call: str, fault: Fault) -> None:
    """The call and its repetition raise, name both sides, and change nothing."""
    before = snapshot(run.optimizer)
    for attempt in ("first", "second"):
        with pytest.raises(RuntimeError) as caught:
            getattr(run.optimizer, call)()
        assert changes(before, snapshot(run.optimizer)) == [], f"{call}, {attempt} attempt"
        assert MESSAGE.search(str(caught.value)), f"{call}: {caught.value}"


def reads_gradients(run: Run, call: str) -> bool:
    return call != "first_step" or run.optimizer.param_groups[0]["perturbation"] == "gradient"


def assert_steps_are_atomic(subject: Subject, fault: Fault, after: int, **overrides: Any) -> None:
    """Every call of a step is refused while the fault lasts; repaired, the run is one that never saw it."""
    run, twin = Run(subject, **overrides), Run(subject, **overrides)
    for each in (run, twin):
        each.train(range(after))
    for call in run.calls:
        run.backward(after)
        twin.backward(after)
        # a perturbation needs parameters and gradients, and no state
        if call != "first_step" or (fault in GRADIENTS and reads_gradients(run, call)):
            repair = fault.inject(run)
            assert_refused(run, call, fault)
            repair()
        getattr(run.optimizer, call)()
        getattr(twin.optimizer, call)()
        assert_equal(run.params, twin.params)
    for each in (run, twin):
        each.train(range(after + 1, after + 4))
    assert_equal(run.params, twin.params)
    assert changes(snapshot(twin.optimizer), snapshot(run.optimizer)) == []


@pytest.mark.parametrize("after", [0, 1, 2, 5])
@pytest.mark.parametrize("fault", GRADIENTS, ids=name_of_fault)
@pytest.mark.parametrize("subject", OWN, ids=name_of)
def test_a_wrong_parameter_or_gradient_changes_nothing(subject, fault, after):
    assert_steps_are_atomic(subject, fault, after)


@pytest.mark.parametrize("after", [1, 3, 5])  # between two refreshes, which may replace a mask
@pytest.mark.parametrize(
    ("subject", "fault"),
    [(subject, fault) for subject in OWN for fault in (*STATE, *MASKS) if keeps_state_for(subject, fault)],
    ids=lambda item: item.name,
)
def test_wrong_state_changes_nothing(subject, fault, after):
    assert_steps_are_atomic(subject, fault, after)


@pytest.mark.parametrize("after", [1, 3, 5])
@pytest.mark.parametrize("fault", MASKS, ids=name_of_fault)
@pytest.mark.parametrize("subject", AROUND, ids=name_of)
def test_a_wrong_mask_stops_the_step_of_a_foreign_optimizer_before_it_moves(subject, fault, after):
    assert_steps_are_atomic(subject, fault, after)


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("subject", OWN, ids=name_of)
def test_a_refused_step_counts_nothing_where_kappa_follows_the_learning_rate(subject, after):
    """The largest learning rate seen is a counter too."""
    run = Run(subject, kappa_follows_lr=True)
    run.train(range(after))
    run.backward(after)
    if run.subject.is_sam:
        run.optimizer.first_step()
        run.backward(after)
    for group in run.optimizer.param_groups:
        group["lr"] = 7.0
    _gradient_of_another_shape(run)
    assert_refused(run, run.calls[-1], GRADIENTS[1])


@pytest.mark.parametrize("subject", EVERY, ids=name_of)
def test_gradients_of_other_strides_are_no_fault(subject):
    run, twin = Run(subject), Run(subject)
    for number in range(4):
        for call in run.calls:
            run.backward(number)
            twin.backward(number)
            for param in run.params:
                if param.dim() == 2:
                    grad = param.grad
                    param.grad = grad.t().contiguous().t()
            getattr(run.optimizer, call)()
            getattr(twin.optimizer, call)()
        if not subject.is_foreign:  # torch's own reductions may see the strides
            assert_equal(run.params, twin.params)
    for p, q in zip(run.params, twin.params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def _fails_after_running(patch: pytest.MonkeyPatch, name: str, seen: list[Tensor]) -> None:
    """The operator does its work and then raises; ``seen`` collects the tensors that it was given."""

    def failing(module: ModuleType) -> Callable[..., None]:
        real = getattr(module, name)

        def call(params: list[Tensor], *args: Any, **kwargs: Any) -> None:
            seen.extend(params)
            real(params, *args, **kwargs)
            raise RuntimeError("injected after the operator")

        return call

    for module in (torch_ire.ops, torch_ire.reference):
        patch.setattr(module, name, failing(module))


def _step_operator(subject: Subject) -> str:
    if subject.is_foreign:
        return "displacement_flat_"
    return "fused_adamw_flat_" if "Adm" in subject.name or "adamw" in subject.name else "fused_sgd_flat_"


@pytest.mark.parametrize("after", [1, 2, 5])
@pytest.mark.parametrize("subject", EVERY, ids=name_of)
def test_an_operator_that_fails_after_it_has_run_is_not_called_again(subject, after):
    """Nothing may be retried after a write could have happened."""
    run, twin = Run(subject), Run(subject)
    for each in (run, twin):
        each.train(range(after))
    theta = [param.detach().clone() for param in run.params]
    for each in (run, twin):
        for call in each.calls[:-1]:
            each.backward(after)
            getattr(each.optimizer, call)()
        each.backward(after)
    seen: list[Tensor] = []
    with pytest.MonkeyPatch.context() as patch:
        _fails_after_running(patch, _step_operator(subject), seen)
        with pytest.raises(RuntimeError, match="injected after the operator"):
            getattr(run.optimizer, run.calls[-1])()
    addresses = [tensor.data_ptr() for tensor in seen]
    assert seen
    assert len(addresses) == len(set(addresses)), "a parameter was given to the operator twice"
    getattr(twin.optimizer, run.calls[-1])()
    if subject.is_foreign:
        return  # its own step was made before the operator
    for i, (p, before, stepped) in enumerate(zip(run.params, theta, twin.params, strict=True)):
        assert same_bits(p.detach(), before) or same_bits(p.detach(), stepped.detach()), f"parameter {i}"
