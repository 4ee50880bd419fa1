"""The checks that torch makes of its own optimizers, made of ours: numbers, state and copies."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch

from tolerances import assert_within_ulps
from torch_optimizer_infos import (
    ATTACHED,
    ENTRIES,
    INFOS,
    OWN,
    Entry,
    assert_same,
    copies,
    loss_of,
    take_steps,
)

# LBFGS takes a missing gradient for zeros, and its gradients from the closure alone.
WITHOUT_CLOSURE = [entry for entry in ENTRIES if not entry.info.step_requires_closure]


def each(entries: list[Entry]):
    return pytest.mark.parametrize("entry", entries, ids=[entry.name for entry in entries])


def each_configuration(entries: list[Entry]):
    """One test per optimizer and configuration of torch's table."""
    rows = [(entry, i) for entry in entries for i, _ in enumerate(entry.configurations())]
    names = [f"{entry.name}-{entry.configurations()[i].desc.replace(' ', '_')}" for entry, i in rows]
    return pytest.mark.parametrize(
        ("entry", "arguments"), [(entry, entry.configurations()[i].kwargs) for entry, i in rows], ids=names
    )


def loaded(state_dict):
    """A state dict that has been in a file."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# -- numbers -----------------------------------------------------------------------------------------------------------


@each_configuration(OWN)
def test_kappa_zero_is_the_optimizer_of_torch(entry, arguments):
    ours = entry.parameters(dtype=torch.float64)
    theirs = copies(ours)
    a = entry.make(ours, **arguments)
    plain = {k: v for k, v in arguments.items() if k != "capturable"}
    plain |= {k: tuple(map(float, v)) if k == "betas" else float(v) for k, v in plain.items() if k in ("lr", "betas")}
    b = entry.base(theirs, **plain)
    for _ in range(5):
        take_steps(entry, a, ours, 1)
        take_steps(entry, b, theirs, 1)
        for p, q in zip(ours, theirs, strict=True):
            # a dozen roundings of terms that are no larger than the weights and the steps, about 3; lr and betas in
            # float32 are read as such
            assert_within_ulps(p.detach(), q.detach(), 60, scale=torch.full_like(p, 3.0))


@each_configuration(ATTACHED)
def test_kappa_zero_leaves_every_bit_of_a_foreign_optimizer(entry, arguments):
    ours, theirs = entry.parameters(), entry.parameters()
    a, b = entry.make(ours, **arguments), entry.base(theirs, **arguments)
    for _ in range(4):
        take_steps(entry, a, ours, 1)
        take_steps(entry, b, theirs, 1)
        assert_same(ours, theirs)


@each(WITHOUT_CLOSURE)
def test_parameters_without_gradients_are_passed_over(entry):
    """The multi-tensor case: some gradients are missing, others not, and which changes."""
    ours, theirs = entry.parameters(), entry.parameters()
    a, b = entry.make(ours), entry.base(theirs)
    for absent in ((0,), (1, 2), (), (0, 2), range(len(ours))):
        for params, optimizer in ((ours, a), (theirs, b)):
            optimizer.zero_grad()
            loss_of(params).backward()
            for i in absent:
                params[i].grad = None
            before = [p.detach().clone() for p in params]
            optimizer.step()
            for i in absent:
                assert torch.equal(params[i].detach(), before[i])
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@each(WITHOUT_CLOSURE)
def test_a_step_without_any_gradient_is_none(entry):
    params = entry.parameters()
    before = copies(params)
    optimizer = entry.make(params, curvature="fisher")
    state = copy.deepcopy(dict(optimizer.state))
    optimizer.step()
    assert_same(params, before)
    assert_same(list(optimizer.state.values()), list(state.values()))


@each_configuration(OWN)
def test_zero_gradients_move_nothing_without_weight_decay(entry, arguments):
    params = entry.parameters()
    before = copies(params)
    optimizer = entry.make(params, kappa=3.0, **{**arguments, "weight_decay": 0.0})
    for _ in range(3):
        for p in params:
            p.grad = torch.zeros_like(p)
        optimizer.step()
    assert_same(params, before)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
@each(OWN)
def test_a_tensor_learning_rate_of_any_number_of_dimensions(entry, shape):
    ours, theirs = entry.parameters(), entry.parameters()
    a, b = entry.make(ours, lr=torch.full(shape, 0.01)), entry.make(theirs, lr=0.01)
    take_steps(entry, a, ours, 3)
    take_steps(entry, b, theirs, 3)
    for p, q in zip(ours, theirs, strict=True):
        assert_within_ulps(p.detach(), q.detach(), 4, scale=torch.full_like(p, 1.0))
    assert a.param_groups[0]["lr"].shape == shape
    assert a.param_groups[0]["lr"].item() == pytest.approx(0.01)


@each(ENTRIES)
def test_the_default_dtype_does_not_matter(entry):
    ours, theirs = entry.parameters(), entry.parameters()
    a, b = entry.make(ours, kappa=0.5), entry.make(theirs, kappa=0.5)
    take_steps(entry, a, ours, 3)
    torch.set_default_dtype(torch.float64)
    try:
        take_steps(entry, b, theirs, 3)
    finally:
        torch.set_default_dtype(torch.float32)
    if entry.name != "IRE-LBFGS":  # whose line of history is written in the default dtype
        assert_same(ours, theirs)


@each(OWN)
def test_found_inf_leaves_everything_as_it_is(entry):
    params = entry.parameters()
    optimizer = entry.make(params, kappa=0.5)
    take_steps(entry, optimizer, params, 2)
    weights, state = copies(params), copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(1.0)
    optimizer.step()
    assert_same(params, weights)
    now = optimizer.state_dict()["state"]
    for i, kept in state.items():  # a random mask is drawn all the same: the host does not know of the skip
        assert_same(
            {k: v for k, v in now[i].items() if k != "flat_mask"}, {k: v for k, v in kept.items() if k != "flat_mask"}
        )


# Adafactor and ASGD of torch read numbers on the host
@each([entry for entry in WITHOUT_CLOSURE if entry.base not in (torch.optim.Adafactor, torch.optim.ASGD)])
def test_meta_parameters_step_where_those_of_torch_do(entry):
    """A step on the meta device makes the state: that is how memory is planned."""
    params = [torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in ((3, 2), (4, 1))]
    for p in params:
        p.grad = torch.empty_like(p)
    entry.base(params).step()
    optimizer = entry.make(params, kappa=0.5)
    optimizer.step()
    assert all(
        v.device.type in ("meta", "cpu") for p in params for v in optimizer.state[p].values() if torch.is_tensor(v)
    )


# -- state -------------------------------------------------------------------------------------------------------------


@each_configuration(ENTRIES)
def test_a_reloaded_optimizer_goes_on_as_the_saved_one(entry, arguments):
    params = entry.parameters()
    optimizer = entry.make(params, kappa=0.5, **arguments)
    take_steps(entry, optimizer, params, 3)
    others = copies(params)
    other = entry.make(others, kappa=0.5, **arguments)
    saved = optimizer.state_dict()
    kept = copy.deepcopy(saved)
    other.load_state_dict(saved)
    assert_same(saved, kept)
    assert_same(other.state_dict(), kept)
    other.load_state_dict(kept)  # torch's share their state with the dict that they load
    for _ in range(3):
        take_steps(entry, optimizer, params, 1)
        take_steps(entry, other, others, 1)
        assert_same(params, others)
    assert_same(optimizer.state_dict(), other.state_dict())


@each(ENTRIES)
def test_a_state_dict_goes_through_a_file_of_weights_only(entry):
    params = entry.parameters()
    optimizer = entry.make(params, kappa=0.5)
    take_steps(entry, optimizer, params, 2)
    assert_same(loaded(optimizer.state_dict()), optimizer.state_dict())


@each_configuration(ENTRIES)
def test_every_state_has_something_in_it(entry, arguments):
    """Tools that look at a state take an empty one for a fault; torch leaves none."""
    params = entry.parameters()
    optimizer = entry.make(params, curvature="fisher", **arguments)
    take_steps(entry, optimizer, params, 2)
    assert all(len(state) > 0 for state in optimizer.state.values())


@each(ENTRIES)
def test_a_key_that_is_no_tensor_may_be_in_the_state(entry):
    params, others = entry.parameters(), entry.parameters()
    optimizer, other = entry.make(params, kappa=0.5), entry.make(others, kappa=0.5)
    take_steps(entry, optimizer, params, 2)
    optimizer.state["note"] = {"counted": 3}
    saved = optimizer.state_dict()
    assert saved["state"]["note"] == {"counted": 3}
    other.load_state_dict(saved)
    assert other.state["note"] == {"counted": 3}
    take_steps(entry, optimizer, params, 1)
    assert optimizer.state["note"] == {"counted": 3}


@pytest.mark.parametrize(
    ("entry", "flag"),
    [
        pytest.param(entry, flag, id=f"{entry.name}-{flag}")
        for entry in ENTRIES
        for flag in ("maximize", "capturable", "foreach", "fused", "differentiable")
        if flag in entry.make(entry.parameters()).param_groups[0]
    ],
)
def test_a_checkpoint_from_before_an_argument_existed(entry, flag):
    params = entry.parameters()
    optimizer = entry.make(params)
    take_steps(entry, optimizer, params, 2)
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        del group[flag]
    optimizer.load_state_dict(saved)
    take_steps(entry, optimizer, params, 1)
    assert flag in optimizer.param_groups[0]


@each(ENTRIES)
def test_a_checkpoint_whose_steps_are_numbers(entry):
    params, others = entry.parameters(), entry.parameters()
    optimizer, other = entry.make(params), entry.make(others)
    take_steps(entry, optimizer, params, 2)
    take_steps(entry, other, others, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].item()
    optimizer.load_state_dict(saved)
    take_steps(entry, optimizer, params, 2)
    take_steps(entry, other, others, 2)
    assert_same(params, others)


@pytest.mark.parametrize("named", [(True, True), (True, False), (False, True)], ids=str)
@each(ENTRIES)
def test_names_may_come_and_go_with_a_checkpoint(entry, named):
    def given(params, with_names):
        return [(f"weight{i}", p) for i, p in enumerate(params)] if with_names else params

    found = []
    for make in (entry.make, entry.base):
        params, others = entry.parameters(), entry.parameters(1)
        optimizer, other = make(given(params, named[0])), make(given(others, named[1]))
        take_steps(entry, optimizer, params, 2)
        other.load_state_dict(optimizer.state_dict())
        take_steps(entry, other, others, 1)
        found.append(other.param_groups[0]["param_names"])
    assert found[0] == found[1] == [f"weight{i}" for i, _ in enumerate(params)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@each(OWN)
def test_loading_keeps_the_dtype_of_every_tensor(entry, dtype):
    params = entry.parameters(dtype=dtype)
    optimizer = entry.make(params, kappa=0.5)
    take_steps(entry, optimizer, params, 2)
    before = {p: {k: (v.dtype, v.shape) for k, v in optimizer.state[p].items()} for p in params}
    optimizer.load_state_dict(loaded(optimizer.state_dict()))
    assert {p: {k: (v.dtype, v.shape) for k, v in optimizer.state[p].items()} for p in params} == before


@each([entry for entry in WITHOUT_CLOSURE if entry.is_attached])
def test_torch_goes_on_from_a_checkpoint_of_an_attached_optimizer(entry):
    """Also where a parameter has had a mask and no gradient so far: most optimizers take any state for a whole one."""
    params = entry.parameters()
    optimizer = entry.make(params)
    params[0].requires_grad_(False)
    for i, p in enumerate(params[1:]):
        p.grad = None if i == 0 else torch.ones_like(p)
    optimizer.step()
    others = copies(params)
    other = entry.base(others)
    other.load_state_dict(loaded(optimizer.state_dict()))
    params[0].requires_grad_(True)
    take_steps(entry, optimizer, params, 2)
    take_steps(entry, other, others, 2)
    assert_same(others, params)


# -- checkpoints across ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("theirs", ["AdamW", "SGD", "Adam"])
def test_a_checkpoint_of_ours_steps_in_torch(theirs, capturable):
    """What capturable=True means is this process's affair: AdamW on a CPU refuses to step with it."""
    entry = OWN[theirs == "SGD"]
    params = entry.parameters()
    arguments = {"momentum": 0.9} if theirs == "SGD" else {}
    optimizer = entry.make(params, weight_decay=0.1, lr=0.01, capturable=capturable, **arguments)
    take_steps(entry, optimizer, params, 3)
    others = copies(params)
    other = getattr(torch.optim, theirs)(others, **arguments)
    other.load_state_dict(loaded(optimizer.state_dict()))
    take_steps(entry, optimizer, params, 2)
    take_steps(entry, other, others, 2)
    for p, q in zip(params, others, strict=True):
        assert_within_ulps(q.detach(), p.detach(), 8, scale=torch.full_like(p, 1.0))


def test_the_decay_of_ours_stays_decoupled_when_a_checkpoint_of_adam_is_loaded():
    """Adam's groups say decoupled_weight_decay=False; AdamW says True whatever it loads, and so do its checkpoints."""
    entry = OWN[0]
    params = entry.parameters()
    adam = torch.optim.Adam(params, weight_decay=0.1)
    take_steps(entry, adam, params, 2)
    ours, theirs = copies(params), copies(params)
    a, b = entry.make(ours), torch.optim.AdamW(theirs)
    a.load_state_dict(adam.state_dict())
    b.load_state_dict(adam.state_dict())
    take_steps(entry, a, ours, 2)
    take_steps(entry, b, theirs, 2)
    for p, q in zip(ours, theirs, strict=True):
        assert_within_ulps(p.detach(), q.detach(), 8, scale=torch.full_like(p, 1.0))
    assert b.state_dict()["param_groups"][0]["decoupled_weight_decay"] is True
    assert a.state_dict()["param_groups"][0]["decoupled_weight_decay"] is True


# -- copies ------------------------------------------------------------------------------------------------------------


# copies of torch's LBFGS do not step
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@each([entry for entry in ENTRIES if entry.base is not torch.optim.LBFGS])
def test_a_copy_goes_on_as_the_original(entry, how):
    params = entry.parameters()
    optimizer = entry.make(params, kappa=0.5)
    take_steps(entry, optimizer, params, 3)
    pair = (params, optimizer)
    others, other = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    take_steps(entry, other, others, 3)
    take_steps(entry, optimizer, params, 3)
    assert_same(others, params)
    assert_same(other.state_dict(), optimizer.state_dict())


@each(ENTRIES)
def test_a_copy_has_every_public_attribute(entry):
    optimizer = entry.make(entry.parameters(), curvature="fisher")
    public = {name for name in vars(optimizer) if not name.startswith("_")}
    assert public == {name for name in vars(copy.deepcopy(optimizer)) if not name.startswith("_")}


@each(ENTRIES)
def test_an_optimizer_can_be_printed(entry):
    text = repr(entry.make(entry.parameters(), kappa=0.5))
    assert text.startswith(f"{entry.base.__name__ if entry.is_attached else entry.name.partition('-')[0]} (")


@each(ENTRIES)
def test_an_optimizer_that_nobody_holds_is_freed_at_once(entry):
    params = entry.parameters()
    optimizer = entry.make(params, kappa=0.5)
    take_steps(entry, optimizer, params, 3)
    died = weakref.ref(optimizer)
    moments = [weakref.ref(v) for p in params for v in optimizer.state[p].values() if torch.is_tensor(v)]
    gc.disable()
    try:
        del optimizer
        assert died() is None, "the optimizer is part of a reference cycle"
        assert all(moment() is None for moment in moments), "its state is part of a reference cycle"
    finally:
        gc.enable()


@each([entry for entry in ENTRIES if entry.info.supports_complex])
def test_complex_parameters_are_refused_at_once(entry):
    params = [torch.nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))]
    with pytest.raises(TypeError, match="does not support complex parameters"):
        entry.make(params)


def test_the_table_of_torch_is_complete():
    """An optimizer that torch adds, or a configuration, is tested as soon as torch has it."""
    assert {entry.base.__name__ for entry in ATTACHED} == INFOS.keys() - {"SparseAdam"}
