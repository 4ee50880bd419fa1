"""Copies keep IRE, nothing needs the garbage collector, and optimizers do not disturb each other's labels."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_ire
from every_optimizer import AROUND, EVERY, FOREIGN, IRE_ARGUMENTS, OWN, Run, assert_equal, name_of
from optimizer_cases import batch, loss_of, refresh, small_model


@pytest.fixture(autouse=True)
def _labels() -> Iterator[None]:
    """The generator that all tests share starts anew."""
    torch_ire.default_label_generator.manual_seed(0)
    yield
    torch_ire.default_label_generator.manual_seed(0)


def by_pickle(item: Any) -> Any:
    return pickle.loads(pickle.dumps(item))


def attached(cls: Any, arguments: dict[str, Any], **overrides: Any) -> tuple[nn.Module, Any, torch_ire.IRE]:
    model = small_model()
    optimizer = cls(model.parameters(), **arguments)
    return model, optimizer, torch_ire.IRE(optimizer, **{**IRE_ARGUMENTS, **overrides})


def train(model: nn.Module, optimizer: torch.optim.Optimizer, handle: Any, steps: range, seed: int = 0) -> None:
    labels = torch_ire.LabelGenerator(seed=seed)
    for number in steps:
        refresh(model, handle, number, labels)
        optimizer.zero_grad()
        loss_of(model, number).backward()
        optimizer.step()


COPIES = pytest.mark.parametrize("copied", [copy.deepcopy, by_pickle], ids=["deepcopy", "pickle"])
CURVATURES = pytest.mark.parametrize(
    "overrides", [{}, {"curvature": "fisher", "curvature_beta": 0.5}], ids=["random", "fisher"]
)
BASES = pytest.mark.parametrize(("cls", "arguments"), FOREIGN, ids=lambda item: getattr(item, "__name__", ""))


@COPIES
@CURVATURES
@BASES
@pytest.mark.parametrize("order", ["model, optimizer, handle", "handle, optimizer, model"])
@pytest.mark.parametrize("steps", [0, 3])
def test_a_copy_of_model_optimizer_and_handle_goes_on_alike(cls, arguments, overrides, copied, order, steps):
    model, optimizer, handle = attached(cls, arguments, **overrides)
    train(model, optimizer, handle, range(steps))
    if order.startswith("model"):
        twin, twin_optimizer, twin_handle = copied((model, optimizer, handle))
    else:
        twin_handle, twin_optimizer, twin = copied((handle, optimizer, model))
    assert torch_ire.ire_of(twin_optimizer) is twin_handle
    assert twin_handle.optimizers == [twin_optimizer]
    before = [param.detach().clone() for param in model.parameters()]
    train(twin, twin_optimizer, twin_handle, range(steps, steps + 5), seed=1)
    assert_equal(list(model.parameters()), before)
    train(model, optimizer, handle, range(steps, steps + 5), seed=1)
    assert_equal(list(twin.parameters()), list(model.parameters()))


@COPIES
@CURVATURES
@BASES
def test_a_copy_of_the_optimizer_alone_keeps_ire_or_says_that_it_does_not(cls, arguments, overrides, copied):
    model, optimizer, handle = attached(cls, arguments, **overrides)
    train(model, optimizer, handle, range(3))
    try:
        twin, twin_optimizer = copied((model, optimizer))
    except (TypeError, RuntimeError) as error:
        assert "IRE" in str(error)  # noqa: PT017
        return
    train(twin, twin_optimizer, torch_ire.ire_of(twin_optimizer), range(3, 8), seed=1)
    train(model, optimizer, handle, range(3, 8), seed=1)
    assert_equal(list(twin.parameters()), list(model.parameters()))


@COPIES
@CURVATURES
@BASES
def test_a_copy_saves_and_loads_before_its_first_step(cls, arguments, overrides, copied):
    """A state dict of a copy is that of its original, and goes into a copy as into any optimizer with IRE."""
    model, optimizer, handle = attached(cls, arguments, **overrides)
    train(model, optimizer, handle, range(3))
    saver, (twin, loader) = copied(optimizer), copied((model, optimizer))
    saved = saver.state_dict()
    for mine, other in zip(saved["state"].values(), optimizer.state_dict()["state"].values(), strict=True):
        assert mine["flat_mask"].dtype == torch.bool
        assert torch.equal(mine["flat_mask"], other["flat_mask"])
    loader.load_state_dict(saved)
    assert {entry["flat_mask"].dtype for entry in loader.state.values()} == {torch.uint8}
    train(twin, loader, torch_ire.ire_of(loader), range(3, 8), seed=1)
    train(model, optimizer, handle, range(3, 8), seed=1)
    assert_equal(list(twin.parameters()), list(model.parameters()))


@COPIES
@BASES
def test_a_copy_of_the_handle_alone_brings_its_optimizer(cls, arguments, copied):
    model, optimizer, handle = attached(cls, arguments)
    train(model, optimizer, handle, range(3))
    (twin,) = copied(handle).optimizers
    theirs = twin.param_groups[0]["params"]
    for number in range(3, 7):
        optimizer.zero_grad()
        loss_of(model, number).backward()
        for p, q in zip(model.parameters(), theirs, strict=True):
            q.grad = p.grad.clone()
        optimizer.step()
        twin.step()
    assert_equal(theirs, list(model.parameters()))


@pytest.fixture
def _by_counting_alone() -> Iterator[None]:
    # the first step of a process imports modules, whose frames hold what they find
    model, optimizer, handle = attached(torch.optim.SGD, {"lr": 0.1})
    train(model, optimizer, handle, range(1))
    del model, optimizer, handle
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def tensors_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [value for entry in optimizer.state.values() for value in entry.values() if isinstance(value, Tensor)]


def only_steps(run: Run) -> None:
    run.train(range(3))


def refreshes(run: Run) -> None:
    for number in range(3):
        run.backward(number)
        if run.handle.mask_due():
            run.handle.update_mask()
        run.train(range(number, number + 1))
    run.handle.ire_summary()


def saves_and_loads(run: Run) -> None:
    run.train(range(2))
    run.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    run.train(range(2, 4))


def is_copied(run: Run) -> None:
    run.train(range(2))
    copy.deepcopy((run.model, run.optimizer, run.handle))


def steps_by_closures(run: Run) -> None:
    for number in range(3):
        run.optimizer.step(run.closure(number))


@pytest.mark.usefixtures("_by_counting_alone")
@pytest.mark.parametrize(
    "life", [only_steps, refreshes, saves_and_loads, is_copied, steps_by_closures], ids=lambda life: life.__name__
)
@pytest.mark.parametrize("subject", EVERY, ids=name_of)
def test_an_optimizer_and_its_state_go_with_the_last_reference(subject, life):
    """As torch's do; the model lives on."""
    run = Run(subject, curvature="fisher") if life is refreshes else Run(subject)
    life(run)
    kept = [weakref.ref(run.optimizer), *map(weakref.ref, tensors_of(run.optimizer))]
    assert len(kept) > 4
    del run.optimizer, run.handle
    assert [ref() for ref in kept] == [None] * len(kept)


@pytest.mark.usefixtures("_by_counting_alone")
@pytest.mark.parametrize("make", [torch_ire.AdmIRE, torch_ire.SGDIRE])
def test_a_detached_step_in_backward_goes_with_the_last_reference(make):
    model = small_model()
    opt = torch_ire.StepInBackward(model.parameters(), lambda params: make(params, lr=0.1))
    for number in range(3):
        if opt.mask_due():
            with opt.paused():
                torch_ire.sampled_cross_entropy(model(batch(number)[0])).backward()
            opt.update_mask()
        loss_of(model, number).backward()
    kept = [weakref.ref(opt), weakref.ref(opt.optimizer), *map(weakref.ref, tensors_of(opt.optimizer))]
    opt.detach()
    del opt
    assert [ref() for ref in kept] == [None] * len(kept)


@pytest.mark.usefixtures("_by_counting_alone")
@pytest.mark.parametrize("subject", AROUND, ids=name_of)
def test_a_detached_handle_goes_with_the_last_reference(subject):
    run = Run(subject)
    run.train(range(2))
    kept = weakref.ref(run.handle)
    run.handle.detach()
    run.handle = None
    assert kept() is None


def looped(model: nn.Module, handle: Any, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """The loop of the README: no generator is passed."""
    for number in steps:
        if handle.mask_due():
            torch_ire.sampled_cross_entropy(model(batch(number)[0])).backward()
            handle.update_mask()
            optimizer.zero_grad()
        loss_of(model, number).backward()
        if isinstance(optimizer, torch_ire.SAMIRE):
            optimizer.first_step(zero_grad=True)
            loss_of(model, number).backward()
        optimizer.step()
        optimizer.zero_grad()


FISHER = {"curvature": "fisher", "mask_interval": 1}


def started(subject: Any) -> Run:
    return Run(subject, **FISHER)


@pytest.mark.parametrize("other", [OWN[0], OWN[2], AROUND[0]], ids=name_of)
@pytest.mark.parametrize("subject", [s for s in EVERY if "native" in s.name], ids=name_of)
def test_loading_another_optimizer_leaves_the_labels_of_one_in_use(subject, other):
    """A teacher, a second network, or a look at an old checkpoint: none of them moves the draws of a run."""
    torch_ire.default_label_generator.manual_seed(77)
    elsewhere = started(other)
    looped(elsewhere.model, elsewhere.handle, elsewhere.optimizer, range(5))
    checkpoint = copy.deepcopy(elsewhere.optimizer.state_dict())

    def path(disturb: Callable[[], None]) -> list[Tensor]:
        torch_ire.default_label_generator.manual_seed(5)
        run = started(subject)
        looped(run.model, run.handle, run.optimizer, range(3))
        disturb()
        looped(run.model, run.handle, run.optimizer, range(3, 6))
        return run.theta()

    expected = path(lambda: None)
    disturbed = path(lambda: started(other).optimizer.load_state_dict(copy.deepcopy(checkpoint)))
    assert_equal(disturbed, expected)


@pytest.mark.parametrize("subject", [s for s in EVERY if "native" in s.name], ids=name_of)
def test_going_back_to_a_checkpoint_of_ones_own_repeats_the_labels(subject):
    torch_ire.default_label_generator.manual_seed(5)
    run = started(subject)
    looped(run.model, run.handle, run.optimizer, range(3))
    checkpoint = copy.deepcopy((run.model.state_dict(), run.optimizer.state_dict()))
    looped(run.model, run.handle, run.optimizer, range(3, 6))
    expected = run.theta()
    run.model.load_state_dict(checkpoint[0])
    run.optimizer.load_state_dict(checkpoint[1])
    looped(run.model, run.handle, run.optimizer, range(3, 6))
    assert_equal(run.params, expected)


@pytest.mark.parametrize("subject", [s for s in EVERY if "native" in s.name], ids=name_of)
def test_going_back_to_a_checkpoint_from_before_the_first_draw_repeats_the_labels(subject):
    torch_ire.default_label_generator.manual_seed(5)
    run = started(subject)
    checkpoint = copy.deepcopy((run.model.state_dict(), run.optimizer.state_dict()))
    looped(run.model, run.handle, run.optimizer, range(3))
    expected = run.theta()
    run.model.load_state_dict(checkpoint[0])
    run.optimizer.load_state_dict(checkpoint[1])
    looped(run.model, run.handle, run.optimizer, range(3))
    assert_equal(run.params, expected)


def test_a_handle_does_not_keep_the_estimates_of_a_removed_parameter():
    """They wait for the optimizer's own state, which the parameter never gets."""
    stays, leaves = (nn.Parameter(torch.zeros(3)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [stays]}, {"params": [leaves]}], lr=0.1, momentum=0.9)
    handle = torch_ire.IRE(optimizer)
    stays.grad, leaves.grad = torch.ones(3), torch.ones(3)
    handle.update_mask()
    optimizer.param_groups.pop()
    kept = weakref.ref(leaves)
    del leaves
    stays.grad = torch.ones(3)
    optimizer.step()
    assert kept() is None


@pytest.mark.parametrize("what", [lambda opt: opt, lambda opt: opt.state_dict()], ids=["optimizer", "state_dict"])
def test_a_pickle_holds_each_state_tensor_once(what):
    """The state of small parameters shares memory, all of which pickle saves with every view of it."""
    params = [nn.Parameter(torch.randn(100)) for _ in range(200)]
    opt = torch_ire.AdmIRE(params, curvature="random")
    for param in params:
        param.grad = torch.ones(100)
    opt.step()
    theirs = torch.optim.AdamW(params)
    theirs.step()
    assert len(pickle.dumps(what(opt))) < 3 * len(pickle.dumps(what(theirs)))


def test_a_copy_packs_its_state_again():
    params = [nn.Parameter(torch.randn(100)) for _ in range(20)]
    for param in params:
        param.grad = torch.ones(100)
    opt = torch_ire.AdmIRE(params, curvature="random")
    opt.step()
    twin = copy.deepcopy(opt)
    for optimizer in (opt, twin):
        for param, other in zip(optimizer.param_groups[0]["params"], params, strict=True):
            param.grad = other.grad
        optimizer.step()
        kept = [optimizer.state[param]["exp_avg"] for param in optimizer.param_groups[0]["params"]]
        assert len({tensor.untyped_storage().data_ptr() for tensor in kept}) == 1
    assert_equal(twin.param_groups[0]["params"], params)
