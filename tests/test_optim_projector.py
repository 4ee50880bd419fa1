"""Exact projectors in place of masks: theta <- theta + kappa P Delta after the base step."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch

import torch_ire
from optimizer_cases import CASES, IDS, loss_of, small_model, train, values


class Projector:
    """I - q q^T over all parameters, q a fixed unit vector; counts its calls."""

    def __init__(self, params):
        self.params = list(params)
        generator = torch.Generator().manual_seed(1)
        q = torch.randn(sum(p.numel() for p in self.params), generator=generator)
        self.q = q / q.norm()
        self.refreshes = 0

    def refresh(self):
        self.refreshes += 1

    def __call__(self, v):
        return v - self.q * torch.dot(self.q, v)

    def amplify_(self, params, previous, kappa):
        assert [id(p) for p in params] == [id(p) for p in self.params]
        moved = torch.cat([(p - w).flatten() for p, w in zip(params, previous, strict=True)])
        for p, d in zip(params, self(moved).split([p.numel() for p in params]), strict=True):
            p.add_(d.view_as(p), alpha=kappa)


def flatten(tensors):
    return torch.cat([t.flatten() for t in tensors])


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_step_identity(case):
    model = small_model()
    projector = Projector(model.parameters())
    optimizer = case(model.parameters(), kappa=3.0, curvature=projector, mask_interval=2, warmup_steps=1)
    for step in range(5):
        twin = copy.deepcopy(model)
        plain = case(twin.parameters(), curvature="random")
        state = optimizer.state_dict()
        assert state["param_groups"][0]["curvature"] == "projector"
        state["param_groups"][0]["curvature"] = "random"
        plain.load_state_dict(state)
        plain.param_groups[0]["kappa"] = 0.0
        assert not optimizer.mask_due()
        before = values(model)
        train(model, optimizer, range(step, step + 1))
        train(twin, plain, range(step, step + 1))
        delta = flatten(values(twin)) - flatten(before)
        expected = flatten(before) + delta + (3.0 * projector(delta) if step >= 1 else 0.0)
        torch.testing.assert_close(flatten(values(model)), expected, rtol=1e-4, atol=1e-5)
    assert projector.refreshes == 2  # at steps 1 and 3


def test_around_another_optimizer():
    model, twin = small_model(), small_model()
    projector = Projector(model.parameters())
    optimizer = torch.optim.NAdam(model.parameters(), lr=0.01)
    handle = torch_ire.IRE(optimizer, kappa=2.0, curvature=projector, mask_interval=2)
    plain = torch.optim.NAdam(twin.parameters(), lr=0.01)
    before = values(model)
    for m, o in ((model, optimizer), (twin, plain)):
        loss_of(m, 0).backward()
        o.step()
    delta = flatten(values(twin)) - flatten(before)
    torch.testing.assert_close(flatten(values(model)), flatten(before) + delta + 2.0 * projector(delta))
    assert projector.refreshes == 1
    assert not handle.mask_due()
    assert handle.ire_summary()["flat_share_by_parameter"] == {}
    state = copy.deepcopy(optimizer.state_dict())
    assert state["param_groups"][0]["ire_curvature"] == "projector"
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["ire_curvature"] is projector


def test_state_dicts_name_a_projector_and_keep_the_one_at_hand():
    model = small_model()
    projector = Projector(model.parameters())
    optimizer = torch_ire.SGDIRE(model.parameters(), curvature=projector)
    train(model, optimizer, range(2))
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[0]["curvature"] is projector
    without = torch_ire.SGDIRE(small_model().parameters())
    without.load_state_dict(optimizer.state_dict())
    assert without.param_groups[0]["curvature"] == "fisher"


@pytest.mark.parametrize("attached", [False, True])
def test_a_skipped_step_has_no_decay_to_leave_out(attached):
    class Identity:
        def refresh(self):
            pass

        def amplify_(self, params, previous, kappa, decay=0.0):
            for p, w in zip(params, previous, strict=True):
                p.add_(p - (1 - decay) * w, alpha=kappa)

    p, q = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    ire = {"kappa": 1.0, "curvature": Identity(), "amplify_weight_decay": False}
    if attached:
        optimizer = torch.optim.AdamW([p, q], lr=0.1, weight_decay=0.5, fused=True)
        torch_ire.IRE(optimizer, **ire)
    else:
        optimizer = torch_ire.AdmIRE([p, q], lr=0.1, weight_decay=0.5, **ire)
    p.grad = torch.zeros(2)
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full((2,), 0.95))
    assert torch.equal(q.detach(), torch.ones(2))
    optimizer.grad_scale, optimizer.found_inf = None, torch.ones(())
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full((2,), 0.95))


def test_groups_of_one_projector_need_one_kappa():
    a, b = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    projector = Projector([a, b])
    optimizer = torch_ire.SGDIRE([{"params": [a]}, {"params": [b], "kappa": 1.0}], curvature=projector)
    a.grad, b.grad = torch.ones(2), torch.ones(2)
    with pytest.raises(RuntimeError, match="SGDIRE: the groups of one projector need one kappa"):
        optimizer.step()


def test_something_else_is_no_curvature():
    with pytest.raises(ValueError, match="Invalid curvature value: 3"):
        torch_ire.SGDIRE([torch.nn.Parameter(torch.ones(2))], curvature=3)


class Unsteady(Projector):
    """Its refreshes fail from the second one on."""

    def refresh(self):
        super().refresh()
        if self.refreshes > 1:
            raise ValueError("the operator is asymmetric by 1e-7")


@pytest.mark.parametrize("attached", [False, True])
def test_a_refresh_that_fails_warns_once_and_keeps_the_last_basis(attached):
    model, twin = small_model(), small_model()
    arguments = {"kappa": 2.0, "mask_interval": 2}
    if attached:
        optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, twin)]
        for optimizer, kind in zip(optimizers, (Unsteady, Projector), strict=True):
            params = optimizer.param_groups[0]["params"]
            torch_ire.IRE(optimizer, curvature=kind(params), **arguments)
    else:
        optimizers = [
            torch_ire.SGDIRE(m.parameters(), lr=0.1, curvature=kind(m.parameters()), **arguments)
            for m, kind in ((model, Unsteady), (twin, Projector))
        ]
    for network, optimizer in zip((model, twin), optimizers, strict=True):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(network, optimizer, range(7))
        messages = [str(warning.message) for warning in caught]
        assert len(messages) == (network is model), messages
        assert all("keeps its last basis: the operator is asymmetric by 1e-7" in message for message in messages)
    for p, q in zip(values(model), values(twin), strict=True):
        assert torch.equal(p, q)


def test_an_amplification_that_fails_leaves_theta():
    class Broken(Projector):
        def amplify_(self, params, previous, kappa):
            super().amplify_(params, previous, kappa)
            raise RuntimeError("out of memory")

    model = small_model()
    optimizer = torch_ire.SGDIRE(model.parameters(), lr=0.1, curvature=Broken(model.parameters()))
    before = values(model)
    loss_of(model, 0).backward()
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step()
    for p, q in zip(values(model), before, strict=True):
        assert torch.equal(p, q)
