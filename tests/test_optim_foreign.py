"""IRE around optimizers whose groups, arguments and parameters are not those of torch's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_ire
from every_optimizer import AROUND, EVERY, FOREIGN, IMPLEMENTATIONS, OWN, Run, assert_equal, bits, name_of
from optimizer_cases import loss_of, small_model

# arguments that some optimizer calls as IRE does: AccSGD, Alice, RACS, AvaGrad and others
THEIRS: dict[str, Any] = {
    "kappa": 1000.0,
    "gamma": None,
    "seed": "none",
    "warmup_steps": -5,
    "mask_interval": 0.5,
    "curvature": 3.0,
    "curvature_beta": 7.0,
    "kappa_follows_lr": "no",
    "amplify_weight_decay": None,
    "ranking": 4,
    "implementation": "fast",
}


class Descent(torch.optim.Optimizer):
    """theta <- theta - rate g, with whatever arguments a group is given; it reads nothing but ``rate``."""

    def __init__(self, params: Any, rate: float = 0.1, **arguments: Any) -> None:
        super().__init__(params, {"rate": rate, **arguments})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    param.sub_(param.grad, alpha=group["rate"])


class Forgetful(Descent):
    """Writes the state of each parameter anew at each step."""

    def __init__(self, params: Any, forget: Callable[[torch.optim.Optimizer], None]) -> None:
        super().__init__(params, lr=0.1)
        self.forget = forget

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.forget(self)
        for group in self.param_groups:
            for param in group["params"]:
                param.sub_(param.grad, alpha=group["rate"])


def replaces_dicts(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for param in group["params"]:
            optimizer.state[param] = {"count": 1}


def clears(optimizer: torch.optim.Optimizer) -> None:
    optimizer.state.clear()


def replaces_all(optimizer: torch.optim.Optimizer) -> None:
    optimizer.state = {param: {"count": 1} for group in optimizer.param_groups for param in group["params"]}


class Uninitialized(torch.optim.Optimizer):
    """An optimizer with groups and state of its own making."""

    def __init__(self, params: Any) -> None:
        self.param_groups = [{"params": list(params), "lr": 0.1}]
        self.state = {}
        self.defaults = {}

    def step(self, closure: Any = None) -> None:
        pass


def arguments_of(group: dict[str, Any]) -> dict[str, Any]:
    return {key: group[key] for key in THEIRS}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_groups_keep_arguments_that_share_a_name_with_those_of_ire(implementation):
    """And IRE goes by its own: with gamma=1 each step is 1 + kappa times that of the optimizer."""
    param = nn.Parameter(torch.ones(5))
    optimizer = Descent([param], lr=0.1, **THEIRS)
    handle = torch_ire.IRE(optimizer, kappa=2.0, gamma=1.0, curvature="random", implementation=implementation)
    assert arguments_of(optimizer.param_groups[0]) == THEIRS
    for _ in range(2):
        param.grad = torch.ones(5)
        optimizer.step()
    torch.testing.assert_close(param.detach(), torch.full((5,), 1 - 2 * 0.1 * 3.0))
    assert handle.ire_summary()["kappa_eff"] == [2.0]
    assert arguments_of(optimizer.param_groups[0]) == THEIRS

    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert arguments_of(optimizer.param_groups[0]) == THEIRS
    param.grad = torch.ones(5)
    optimizer.step()
    torch.testing.assert_close(param.detach(), torch.full((5,), 1 - 3 * 0.1 * 3.0))
    handle.detach()
    assert optimizer.param_groups[0] == {"params": [param], "rate": 0.1, "lr": 0.1, **THEIRS}


def test_a_plain_checkpoint_brings_their_arguments_and_leaves_those_of_ire():
    param = nn.Parameter(torch.ones(5))
    plain = Descent([param], lr=0.1, **{**THEIRS, "kappa": 5.0})
    optimizer = Descent([param], lr=0.1, **THEIRS)
    handle = torch_ire.IRE(optimizer, kappa=2.0, gamma=1.0, curvature="random")
    optimizer.load_state_dict(copy.deepcopy(plain.state_dict()))
    assert optimizer.param_groups[0]["kappa"] == 5.0
    assert handle.ire_summary()["kappa_eff"] == [2.0]


@pytest.mark.parametrize("lr", [{}, {"lr": None}], ids=["missing", "None"])
@pytest.mark.parametrize("curvature", ["random", "fisher", "hutchinson"])
def test_a_group_without_a_learning_rate_steps(curvature, lr):
    """Most of IRE does not need one."""
    model = small_model()
    optimizer = Descent(model.parameters(), rate=0.1, **lr)
    handle = torch_ire.IRE(optimizer, kappa=2.0, gamma=1.0, curvature=curvature)
    for number in range(3):
        if handle.mask_due():
            if curvature == "hutchinson":
                handle.update_mask(loss_of(model, number))
            else:
                loss_of(model, number).backward()
                handle.update_mask()
        optimizer.zero_grad()
        loss_of(model, number).backward()
        before = [param.detach().clone() for param in model.parameters()]
        optimizer.step()
        if curvature != "hutchinson":  # whose estimates need not reach all parameters
            for p, theta in zip(model.parameters(), before, strict=True):
                torch.testing.assert_close(p.detach(), theta - 0.1 * 3.0 * p.grad)
    handle.ire_summary()
    handle.check_replicas()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


@pytest.mark.parametrize("lr", [{}, {"lr": None}], ids=["missing", "None"])
def test_what_needs_a_learning_rate_is_refused_where_there_is_none(lr):
    optimizer = Descent([nn.Parameter(torch.ones(3))], **lr)
    with pytest.raises(ValueError, match=r"kappa_follows_lr.*\blr\b"):
        torch_ire.IRE(optimizer, kappa_follows_lr=True)
    optimizer = Descent([nn.Parameter(torch.ones(3))], weight_decay=0.1, decoupled_weight_decay=True, **lr)
    with pytest.raises(ValueError, match=r"amplify_weight_decay.*\blr\b"):
        torch_ire.IRE(optimizer, amplify_weight_decay=False)


@pytest.mark.parametrize("forget", [replaces_dicts, clears, replaces_all], ids=lambda forget: forget.__name__)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_step_that_loses_the_state_is_amplified_by_the_mask_it_started_with(implementation, forget):
    param = nn.Parameter(torch.ones(5))
    optimizer = Forgetful([param], forget)
    torch_ire.IRE(optimizer, kappa=2.0, gamma=1.0, curvature="random", mask_interval=1, implementation=implementation)
    for number in range(1, 4):
        param.grad = torch.ones(5)
        optimizer.step()
        torch.testing.assert_close(param.detach(), torch.full((5,), 1 - number * 0.1 * 3.0))


def test_an_optimizer_that_never_called_its_base_class_is_refused():
    with pytest.raises((TypeError, ValueError), match=r"Uninitialized.*Optimizer\.__init__"):
        torch_ire.IRE(Uninitialized([nn.Parameter(torch.ones(3))]))


def works_or_says(call: Callable[[], Any], params: list[Tensor]) -> bool:
    """Whether a call went through; if not, its error is short, speaks of parameters, and nothing has moved."""
    before = [param.detach().clone() for param in params]
    try:
        call()
    except (RuntimeError, ValueError) as error:
        assert "param" in str(error)  # noqa: PT017
        assert len(str(error)) < 500  # noqa: PT017
        assert_equal(params, before)
        return False
    return True


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("change", ["appended", "replaced"])
@pytest.mark.parametrize("curvature", ["random", "fisher"])
@pytest.mark.parametrize("subject", EVERY, ids=name_of)
def test_a_changed_list_of_parameters_steps_or_is_named(subject, curvature, change, after):
    run = Run(subject, curvature=curvature)
    for number in range(after):
        run.backward(number)
        if run.handle.mask_due():
            run.handle.update_mask()
        run.train(range(number, number + 1))
    new = nn.Parameter(torch.full((13, 8), 0.25))
    listed = run.optimizer.param_groups[0]["params"]
    if change == "appended":
        listed.append(new)
    else:
        listed[0] = new
    params = [*run.params, new]
    for number in range(after, after + 3):
        run.backward(number)
        new.grad = torch.ones_like(new)
        if run.handle.mask_due():
            works_or_says(run.handle.update_mask, params)
        for call in run.calls:
            run.backward(number)
            new.grad = torch.ones_like(new)
            before = new.detach().clone()
            works = works_or_says(getattr(run.optimizer, call), params)
            assert works == (not torch.equal(new.detach(), before)) or subject.name.startswith("average")
            if not works:
                break
    works_or_says(run.handle.ire_summary, params)
    if change == "appended":  # torch does not save where state of a parameter is left that is in no group
        works_or_says(run.optimizer.state_dict, params)


@pytest.mark.parametrize(("cls", "arguments"), FOREIGN, ids=lambda item: getattr(item, "__name__", ""))
def test_complex_parameters_are_refused(cls, arguments):
    with pytest.raises(TypeError, match="IRE does not support complex parameters"):
        torch_ire.IRE(cls([nn.Parameter(torch.ones(3, dtype=torch.complex64))], **arguments))


@pytest.mark.parametrize("curvature", ["random", "fisher"])
@pytest.mark.parametrize(("cls", "arguments"), FOREIGN, ids=lambda item: getattr(item, "__name__", ""))
def test_complex_parameters_that_come_later_are_refused_before_anything_moves(cls, arguments, curvature):
    real, late = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, dtype=torch.complex64))
    optimizer = cls([real], **arguments)
    torch_ire.IRE(optimizer, curvature=curvature)
    real.grad, late.grad = torch.ones(3), torch.ones(3, dtype=torch.complex64)
    with pytest.raises(TypeError, match="IRE does not support complex parameters"):  # noqa: PT012
        optimizer.add_param_group({"params": [late]})
        optimizer.step()
    assert torch.equal(real.detach(), torch.ones(3))
    assert torch.equal(late.detach(), torch.ones(3, dtype=torch.complex64))


# the reference optimizers read their step counts on the host
@pytest.mark.parametrize("subject", [s for s in EVERY if s.is_foreign or "native" in s.name], ids=name_of)
def test_parameters_on_meta_step_as_those_of_torch_do(subject):
    """Nothing is computed, shapes and keys of the state are those of a real run."""
    run, real = Run(subject), Run(subject)
    params = [nn.Parameter(torch.empty_like(param, device="meta")) for param in run.params]
    run.optimizer, run.handle = subject.make([{"params": params[:2]}, {"params": params[2:]}])
    for number in range(3):
        for call in run.calls:
            for param in params:
                param.grad = torch.empty_like(param)
            getattr(run.optimizer, call)()
        real.train(range(number, number + 1))
    for p, q in zip(params, real.params, strict=True):
        ours, theirs = run.optimizer.state[p], real.optimizer.state[q]
        assert ours.keys() == theirs.keys()
        assert {key: value.shape for key, value in ours.items()} == {key: v.shape for key, v in theirs.items()}


EXTREMES = [torch.inf, -torch.inf, torch.nan, 3e38, -3e38, 0.0, 1e-40, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kappa", [0.0, torch.tensor(0.0)], ids=["float", "tensor"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("cls", "arguments"), [*FOREIGN, (Descent, {"lr": 0.1})], ids=lambda i: getattr(i, "__name__", "")
)
def test_kappa_of_zero_is_the_optimizer_to_the_bit(cls, arguments, implementation, kappa, dtype):
    """Also where a displacement is infinite or not a number."""
    start = torch.linspace(-2, 2, len(EXTREMES)).to(dtype)
    param, plain = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizer, theirs = cls([param], **arguments), cls([plain], **arguments)
    torch_ire.IRE(optimizer, kappa=kappa, gamma=1.0, curvature="random", implementation=implementation)
    for number in range(4):
        values = torch.tensor(EXTREMES).roll(number).to(dtype) if number else torch.ones(len(EXTREMES), dtype=dtype)
        param.grad, plain.grad = values.clone(), values.clone()
        optimizer.step()
        theirs.step()
        assert torch.equal(bits(param), bits(plain)), f"step {number}: {param.detach()}, not {plain.detach()}"


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_warm_up_is_the_optimizer_to_the_bit(implementation):
    param, plain = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(8))
    optimizer, theirs = torch.optim.SGD([param], lr=0.1), torch.optim.SGD([plain], lr=0.1)
    torch_ire.IRE(optimizer, gamma=1.0, curvature="random", warmup_steps=2, implementation=implementation)
    for _ in range(2):
        param.grad, plain.grad = torch.tensor(EXTREMES), torch.tensor(EXTREMES)
        optimizer.step()
        theirs.step()
        assert torch.equal(bits(param), bits(plain))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("as_tensor", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize(
    "pair", list(zip([*OWN, *AROUND][::2], [*OWN, *AROUND][1::2], strict=True)), ids=lambda p: p[0].name
)
def test_an_infinite_kappa_gives_the_same_natively_and_by_the_reference(pair, as_tensor, dtype):
    """Moved coordinates become infinite; what does not move is the question."""
    results = []
    for subject in pair:
        params = [nn.Parameter(torch.linspace(-2, 2, 8).to(dtype)) for _ in range(2)]
        kappa = torch.tensor(torch.inf) if as_tensor else torch.inf
        optimizer, _ = subject.make([{"params": params[:1]}, {"params": params[1:]}], kappa=kappa)
        for call in ("first_step", "second_step") if subject.is_sam else ("step",):
            for param in params:
                param.grad = torch.tensor([0.0, 1.0, -1.0, 0.0, 2.0, 0.0, -3.0, 1.0]).to(dtype)
            getattr(optimizer, call)()
        results.append([param.detach() for param in params])
    for native, reference in zip(*results, strict=True):
        torch.testing.assert_close(native, reference, rtol=0.02, atol=1e-6, equal_nan=True)
