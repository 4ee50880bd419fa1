"""IRE around other optimizers: the step identity for all of torch.optim, state, and leaving without a trace."""

from __future__ import annotations

import copy
import inspect
import io

import pytest
import torch

import torch_ire
from optimizer_cases import loss_of, small_model, train, values
from torch_ire.packed_mask import unpack

# what a class needs beyond parameters
ARGUMENTS = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
    "LBFGS": {"lr": 0.1, "max_iter": 2},
    "AdamW": {"lr": 0.01, "fused": True},
}


def torch_optimizers():
    for name, cls in sorted(vars(torch.optim).items()):
        if inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer) and cls is not torch.optim.Optimizer:
            yield name


def make(name, model):
    params = list(model.parameters())
    if name == "Muon":
        params = [p for p in params if p.dim() == 2]
    return getattr(torch.optim, name)(params, **ARGUMENTS.get(name, {"lr": 0.01}))


def step(name, model, optimizer, t):
    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, t)
        loss.backward()
        if name == "SparseAdam":
            for p in model.parameters():
                p.grad = p.grad.to_sparse()
        return loss

    if name == "LBFGS":
        optimizer.step(closure)
    else:
        closure()
        optimizer.step()


def flat(handle, p):
    return unpack(handle._targets().known_state(p)["flat_mask"], p)


@pytest.mark.parametrize("curvature", ["random", "fisher"])
@pytest.mark.parametrize("name", list(torch_optimizers()))
def test_a_step_is_amplified_by_one_plus_kappa_on_flat_coordinates(name, curvature):
    """theta_new = theta + (1 + kappa n) Delta for every optimizer of torch.optim, from the very first step on."""
    model = small_model()
    optimizer = make(name, model)
    kappa = 3.0
    handle = torch_ire.IRE(optimizer, kappa=kappa, gamma=0.5, mask_interval=2, curvature=curvature)
    moved = 0
    for t in range(5):
        if handle.mask_due():
            torch_ire.sampled_cross_entropy(model(torch.randn(16, 8))).backward()
            handle.update_mask()
        twin = copy.deepcopy(model)
        plain = make(name, twin)
        state = optimizer.state_dict()
        for entry in state["state"].values():
            entry.pop("flat_mask", None)
        if any(state["state"].values()):
            plain.load_state_dict(copy.deepcopy(state))
        before = values(model)
        step(name, model, optimizer, t)
        step(name, twin, plain, t)
        optimizer.zero_grad()
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for p, q, w in zip(model.parameters(), twin.parameters(), before, strict=True):
            if id(p) in owned:
                expected = w + (1 + kappa * flat(handle, p)) * (q.detach() - w)
                torch.testing.assert_close(p.detach(), expected, rtol=1e-5, atol=1e-5)
                moved += int((p.detach() != q.detach()).sum())
    assert moved > 0


def test_several_optimizers_share_one_ranking():
    a, b = torch.nn.Parameter(torch.zeros(4, 4)), torch.nn.Parameter(torch.zeros(16))
    handle = torch_ire.IRE([torch.optim.Muon([a]), torch.optim.AdamW([b])], gamma=0.5)
    a.grad, b.grad = torch.full((4, 4), 10.0), torch.ones(16)
    handle.update_mask()
    assert handle.ire_summary()["flat_share_by_parameter"] == {"0.0": 0.0, "1.0": 1.0}
    assert handle.ire_summary()["flat_share"] == 0.5


def test_the_state_dict_of_the_optimizer_carries_the_mask():
    """Resume with the optimizer's own checkpoint alone, before the first step and later."""
    for steps in (0, 5):
        whole, first, second = small_model(), small_model(), small_model(seed=1)
        opts = [torch.optim.NAdam(m.parameters(), lr=0.01) for m in (whole, first, second)]
        handles = [torch_ire.IRE(o, gamma=0.6, mask_interval=3) for o in opts]
        labels = torch_ire.LabelGenerator(seed=0)
        for model, opt, handle in list(zip((whole, first), opts, handles, strict=False)):
            labels = torch_ire.LabelGenerator(seed=0)
            train(model, opt, range(steps), handle=handle, labels=labels)
            if steps == 0:
                torch_ire.sampled_cross_entropy(model(torch.ones(16, 8)), generator=labels).backward()
                handle.update_mask()
        buffer = io.BytesIO()
        torch.save(opts[1].state_dict(), buffer)
        buffer.seek(0)
        state = torch.load(buffer, weights_only=True)
        assert all(entry["flat_mask"].dtype == torch.bool for entry in state["state"].values())
        second.load_state_dict(first.state_dict())
        opts[2].load_state_dict(state)
        for i, model in ((0, whole), (2, second)):
            train(model, opts[i], range(steps, 9), handle=handles[i], labels=torch_ire.LabelGenerator(seed=9))
        for p, q in zip(values(whole), values(second), strict=True):
            assert torch.equal(p, q)


def test_a_checkpoint_from_before_the_attachment_loads():
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, range(3))
    state = copy.deepcopy(optimizer.state_dict())
    handle = torch_ire.IRE(optimizer, kappa=7.0)
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["ire_kappa"] == 7.0
    assert optimizer.param_groups[0]["ire_step"] == 3
    train(model, optimizer, range(3, 20), handle=handle)
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict({"state": {}, "param_groups": []})
    bad = optimizer.state_dict()
    bad["state"][0]["flat_mask"] = bad["state"][0]["flat_mask"][:1]
    with pytest.raises(ValueError, match=r"IRE.load_state_dict: state\[0\]\['flat_mask'\]"):
        optimizer.load_state_dict(bad)


def test_copies_train_identically():
    model = small_model()
    optimizer = torch.optim.RAdam(model.parameters(), lr=0.05)
    handle = torch_ire.IRE(optimizer, curvature="fisher", curvature_beta=0.5, mask_interval=3)
    train(model, optimizer, range(4), handle=handle)
    twin, twin_handle = copy.deepcopy((model, handle))
    train(model, optimizer, range(4, 10), handle=handle, labels=torch_ire.LabelGenerator(seed=1))
    train(twin, twin_handle.optimizers[0], range(4, 10), handle=twin_handle, labels=torch_ire.LabelGenerator(seed=1))
    for p, q in zip(values(model), values(twin), strict=True):
        assert torch.equal(p, q)


def test_detach_removes_all_hooks_state_and_arguments():
    model = small_model()
    optimizer = torch.optim.Adam(model.parameters())
    groups = copy.deepcopy([{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups])
    handle = torch_ire.IRE(optimizer)
    train(model, optimizer, range(3), handle=handle)
    handle.detach()
    assert [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups] == groups
    assert all(entry.keys() == {"step", "exp_avg", "exp_avg_sq"} for entry in optimizer.state.values())
    twin = copy.deepcopy(model)
    plain = torch.optim.Adam(twin.parameters())
    plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for m, o in ((model, optimizer), (twin, plain)):
        loss_of(m, 3).backward()
        o.step()
    for p, q in zip(values(model), values(twin), strict=True):
        assert torch.equal(p, q)
    torch_ire.IRE(optimizer)


def test_detach_leaves_the_arguments_of_the_optimizer():
    """An optimizer may have a kappa and a gamma of its own; those of IRE come and go beside them."""
    a, b, c = (torch.nn.Parameter(torch.ones(4)) for _ in range(3))
    optimizer = torch.optim.SGD([{"params": [a], "kappa": 9.0, "ranking": "group"}, {"params": [b]}], lr=0.1)
    handle = torch_ire.IRE(optimizer, kappa=1.0, curvature="random")
    optimizer.add_param_group({"params": [c], "gamma": 0.25})
    optimizer.load_state_dict(optimizer.state_dict())
    assert handle.ire_summary()["kappa_eff"] == [1.0, 1.0, 1.0]
    twin = copy.deepcopy(handle)
    for one in (handle, twin):
        groups = one.optimizers[0].param_groups
        one.mask_due()
        one.detach()
        ours = [{k: v for k, v in g.items() if k in ("kappa", "gamma", "ranking") or "ire" in k} for g in groups]
        assert ours == [{"kappa": 9.0, "ranking": "group"}, {}, {"gamma": 0.25}]


def test_weight_decay_stays_at_its_base_rate_without_amplification():
    p = torch.nn.Parameter(torch.tensor([2.0, 2.0]))
    optimizer = torch.optim.AdamW([p], lr=0.1, weight_decay=0.5)
    handle = torch_ire.IRE(optimizer, kappa=4.0, gamma=1.0, amplify_weight_decay=False)
    p.grad = torch.ones(2)
    handle.update_mask()
    p.grad = torch.zeros(2)
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full((2,), 2.0 * 0.95))


@pytest.mark.parametrize("skipped", ["no gradient", "overflow"])
def test_a_skipped_step_subtracts_no_decay(skipped):
    p, q = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([p, q], lr=0.1, weight_decay=0.5, fused=True)
    torch_ire.IRE(optimizer, kappa=4.0, gamma=1.0, curvature="random", amplify_weight_decay=False)
    if skipped == "overflow":
        scaler = torch.amp.GradScaler("cpu")
        (scaler.scale(p.sum() + q.sum()) * torch.inf).backward()
        scaler.step(optimizer)
    else:
        p.grad = torch.ones(3)
        optimizer.step()
    assert torch.equal(p.detach(), torch.ones(3)) == (skipped == "overflow")
    assert torch.equal(q.detach(), torch.ones(3))


def test_amplify_weight_decay_false_works_without_a_weight_decay():
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.LBFGS([p], max_iter=1, lr=0.5)
    torch_ire.IRE(optimizer, kappa=1.0, gamma=1.0, curvature="random", amplify_weight_decay=False)

    def closure():
        optimizer.zero_grad()
        loss = 0.5 * p.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(p.detach(), torch.ones(2) * (1 - 0.5 * 2 * 0.5))


def test_groups_keep_their_own_kappa_and_later_groups_get_the_default():
    a, b, c = (torch.nn.Parameter(torch.ones(4)) for _ in range(3))
    optimizer = torch.optim.SGD([{"params": [a], "ire_kappa": 9.0}, {"params": [b]}], lr=0.1)
    torch_ire.IRE(optimizer, kappa=1.0, gamma=1.0, curvature="random")
    optimizer.add_param_group({"params": [c]})
    for p in (a, b, c):
        p.grad = torch.ones(4)
    optimizer.step()
    assert [g["ire_kappa"] for g in optimizer.param_groups] == [9.0, 1.0, 1.0]
    assert [float(p.detach()[0]) for p in (a, b, c)] == pytest.approx([0.0, 0.8, 0.8], abs=1e-6)


def test_groups_added_later_belong_to_the_handle_at_once():
    a, b, c = (torch.nn.Parameter(torch.ones(4)) for _ in range(3))
    optimizer = torch.optim.SGD([a], lr=0.1)
    handle = torch_ire.IRE(optimizer, gamma=0.5)
    optimizer.add_param_group({"params": [b]})
    assert handle.mask_due()
    a.grad, b.grad = torch.ones(4), torch.full((4,), 2.0)
    handle.update_mask()
    assert handle.ire_summary()["flat_share_by_parameter"] == {"0.0": 1.0, "1.0": 0.0}
    optimizer.add_param_group({"params": [c]})
    assert handle.ire_summary()["kappa_eff"] == [2.0, 2.0, 2.0]
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(4))]})
    optimizer.load_state_dict(optimizer.state_dict())
    assert flat(handle, a).all()
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(4))], "ire_gamma": 2.0})
    with pytest.raises(ValueError, match=r"Invalid gamma value: 2\.0"):
        optimizer.step()
    assert "ire_kappa" not in optimizer.param_groups[-1]


def test_a_summary_shows_the_last_step_of_every_optimizer():
    params = [torch.nn.Parameter(torch.ones(4)) for _ in range(2)]
    optimizers = [torch.optim.SGD([p], lr=0.1) for p in params]
    handle = torch_ire.IRE(optimizers, kappa=1.0, gamma=1.0, curvature="random")
    for p, optimizer in zip(params, optimizers, strict=True):
        p.grad = torch.ones(4)
        optimizer.step()
    assert handle.ire_summary()["displacement_share"] == pytest.approx(0.25)


def test_calls_on_a_detached_handle_raise():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])
    handle = torch_ire.IRE(optimizer)
    handle.detach()
    handle.detach()
    for call in (handle.mask_due, handle.update_mask, handle.ire_summary):
        with pytest.raises(RuntimeError, match="this IRE handle has been detached"):
            call()


def test_sliced_parameters_are_amplified():
    p = torch.nn.Parameter(torch.ones(3, 2)[:, 0])
    optimizer = torch.optim.SGD([p], lr=0.1)
    torch_ire.IRE(optimizer, kappa=1.0, gamma=1.0, curvature="random")
    p.grad = torch.ones(3)
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full((3,), 0.8))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda o: torch_ire.IRE([]), ValueError, "IRE got an empty list of optimizers"),
        (lambda o: torch_ire.IRE([o, o]), ValueError, "IRE got the same optimizer twice"),
        (lambda o: torch_ire.IRE([3]), TypeError, "IRE is attached to torch.optim.Optimizer objects, got int"),
        (lambda o: (torch_ire.IRE(o), torch_ire.IRE(o)), ValueError, "this AdamW has an IRE handle already"),
        (lambda o: torch_ire.IRE(o, curvature="second_moment"), ValueError, "is for AdmIRE"),
        (lambda o: torch_ire.IRE(o, kappa=-1.0), ValueError, "Invalid kappa value: -1.0"),
        (
            lambda o: torch_ire.IRE(torch_ire.AdmIRE([torch.nn.Parameter(torch.ones(1))])),
            ValueError,
            "AdmIRE has IRE built in",
        ),
        (
            lambda o: torch_ire.IRE(
                torch.optim.Adam([torch.nn.Parameter(torch.ones(1))], weight_decay=0.1), amplify_weight_decay=False
            ),
            ValueError,
            "that of Adam is part of the gradient",
        ),
    ],
)
def test_unsupported_arguments_raise(call, error, message):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], weight_decay=0.1)
    with pytest.raises(error, match=message):
        call(optimizer)


def test_optimizers_of_one_handle_count_together_where_one_has_gradients_of_zero():
    """At the first step of a warm-up from lr = 0; the matrix behind the first one starts at zero."""
    first, second = torch.nn.Linear(4, 2, bias=False), torch.nn.Linear(2, 3, bias=False)
    torch.nn.init.zeros_(second.weight)
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.0) for part in (first, second)]
    ire = torch_ire.IRE(optimizers, warmup_steps=2, mask_interval=3)
    due = []
    for step in range(6):
        due.append(ire.mask_due())
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 0.1 * step
            optimizer.zero_grad()
        if due[-1]:
            torch_ire.sampled_cross_entropy(second(first(torch.ones(3, 4)))).backward()
            ire.update_mask()
        second(first(torch.ones(3, 4)))[:, 0].sum().backward()
        for optimizer in optimizers:
            optimizer.step()
    assert due == [False, False, True, False, False, True]
