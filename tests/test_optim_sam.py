"""SAM, ASAM and average SAM: where the gradient is taken, and that the parameters always come back."""

from __future__ import annotations

import copy

import pytest
import torch

import torch_ire
from optimizer_cases import loss_of, small_model, train, values


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_perturbation_has_its_definition(adaptive):
    model = small_model()
    opt = torch_ire.SAMIRE(model.parameters(), lr=0.1, rho=0.3, adaptive=adaptive)
    loss_of(model, 0).backward()
    before = values(model)
    grads = [p.grad.clone() for p in model.parameters()]
    weights = [w.abs() if adaptive else torch.ones_like(w) for w in before]
    norm = torch.cat([(w * g).flatten() for w, g in zip(weights, grads, strict=True)]).norm()
    opt.first_step()
    for p, w, a, g in zip(model.parameters(), before, weights, grads, strict=True):
        torch.testing.assert_close(p.detach(), w + 0.3 * a**2 * g / norm, rtol=1e-5, atol=1e-6)


def test_the_random_perturbation_lies_on_the_sphere_and_changes():
    model = small_model()
    opt = torch_ire.SAMIRE(model.parameters(), lr=0.1, rho=0.3, perturbation="random", curvature="random", seed=4)
    seen = []
    for step in range(2):
        before = values(model)
        opt.first_step()
        moved = torch.cat([(p - w).flatten() for p, w in zip(values(model), before, strict=True)])
        assert float(moved.norm()) == pytest.approx(0.3, rel=1e-4)
        seen.append(moved)
        loss_of(model, step).backward()
        opt.second_step(zero_grad=True)
    assert float(torch.dot(*seen)) / 0.09 < 0.5
    twin = torch_ire.SAMIRE(small_model().parameters(), rho=0.3, perturbation="random", seed=4)
    start = [p.detach().clone() for p in twin.param_groups[0]["params"]]
    twin.first_step()
    again = torch.cat([(p - w).flatten() for p, w in zip(twin.param_groups[0]["params"], start, strict=True)])
    torch.testing.assert_close(again.detach(), seen[0])


def test_parameters_return_to_theta_with_gradients_in_either_pass_or_none():
    """Gradient in the first pass only, in the second only, in neither: lr = 0 has to leave every weight alone."""
    only_first, only_second, never, both = (torch.nn.Parameter(torch.ones(3)) for _ in range(4))
    opt = torch_ire.SAMIRE([only_first, only_second, never, both], lr=0.0, rho=1.0, kappa=2.0, curvature="random")
    only_first.grad = torch.ones(3)
    both.grad = torch.ones(3)
    opt.first_step(zero_grad=True)
    assert not torch.equal(only_first.detach(), torch.ones(3))
    only_second.grad = torch.ones(3)
    both.grad = torch.ones(3)
    opt.second_step(zero_grad=True)
    for p in (only_first, only_second, never, both):
        assert torch.equal(p.detach(), torch.ones(3))


def test_a_gradient_in_the_second_pass_alone_takes_a_plain_step():
    p, q = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    opt = torch_ire.SAMIRE([p, q], lr=0.5, curvature="random", kappa=0.0)
    p.grad = torch.ones(3)
    opt.first_step(zero_grad=True)
    p.grad, q.grad = torch.ones(3), torch.ones(3)
    opt.second_step()
    assert torch.equal(q.detach(), torch.full((3,), 0.5))
    assert torch.equal(p.detach(), torch.full((3,), 0.5))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_one_bad_gradient_moves_nothing_in_the_first_pass(bad):
    p, q = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    opt = torch_ire.SAMIRE([p, q], rho=1.0)
    p.grad, q.grad = torch.tensor([1.0, bad, 1.0]), torch.ones(3)
    opt.first_step(zero_grad=True)
    assert torch.equal(p.detach(), torch.ones(3))
    assert torch.equal(q.detach(), torch.ones(3))


def test_the_two_step_and_the_closure_form_agree():
    a, b, c = small_model(), small_model(), small_model()
    opt_a = torch_ire.SAMIRE(a.parameters(), lr=0.1, momentum=0.9, rho=0.2, curvature="random")
    opt_b = torch_ire.SAMIRE(b.parameters(), lr=0.1, momentum=0.9, rho=0.2, curvature="random")
    opt_c = torch_ire.SAMIRE(c.parameters(), lr=0.1, momentum=0.9, rho=0.2, curvature="random")
    train(a, opt_a, range(4))
    for step in range(4):

        def closure(step=step):
            opt_b.zero_grad()
            loss = loss_of(b, step)
            loss.backward()
            return loss

        opt_b.step(closure)
        loss_of(c, step).backward()
        with opt_c.perturbed():
            loss_of(c, step).backward()
        opt_c.step()
        opt_c.zero_grad()
    for p, q, r in zip(values(a), values(b), values(c), strict=True):
        assert torch.equal(p, q)
        assert torch.equal(p, r)


def empty() -> None:
    """What trainers pass to step() where the loop itself has computed the gradients."""


def test_an_empty_closure_takes_the_second_step():
    a, b, c = small_model(), small_model(), small_model()
    opt_a, opt_b, opt_c = (torch_ire.SAMIRE(m.parameters(), lr=0.1, rho=0.2, kappa=0.0) for m in (a, b, c))
    train(a, opt_a, range(2))
    for step in range(2):
        loss_of(b, step).backward()
        opt_b.first_step(zero_grad=True)
        loss_of(b, step).backward()
        opt_b.step(empty)
        opt_b.zero_grad()
        loss_of(c, step).backward()
        with opt_c.perturbed():
            loss_of(c, step).backward()
        opt_c.step(empty)
        opt_c.zero_grad()
    for p, q, r in zip(values(a), values(b), values(c), strict=True):
        assert torch.equal(p, q)
        assert torch.equal(p, r)


def test_a_closure_that_computes_no_gradient_is_refused():
    model = small_model()
    opt = torch_ire.SAMIRE(model.parameters(), lr=0.1, rho=0.2)
    before = values(model)
    loss_of(model, 0).backward()
    with pytest.raises(RuntimeError, match="left no gradient at the perturbed parameters"):
        opt.step(empty)
    for p, q in zip(before, values(model), strict=True):
        assert torch.equal(p, q)


class PosingWrapper:
    """As Lightning wraps optimizers: an heir of the optimizer's class without state of its own."""

    def __init__(self, optimizer):
        self._optimizer = optimizer
        self.__class__ = type("Posing" + type(optimizer).__name__, (PosingWrapper, type(optimizer)), {})

    def step(self, closure=None):
        return self._optimizer.step(closure or empty)

    def __getattr__(self, name):
        return getattr(self._optimizer, name)


def test_a_wrapper_that_inherits_from_the_optimizer_shares_its_perturbation():
    a, b = small_model(), small_model()
    opt_a, opt_b = (torch_ire.SAMIRE(m.parameters(), lr=0.1, momentum=0.9, rho=0.2) for m in (a, b))
    train(a, opt_a, range(3))
    train(b, PosingWrapper(opt_b), range(3))
    for p, q in zip(values(a), values(b), strict=True):
        assert torch.equal(p, q)
    assert opt_b.ire_summary()["threshold"] == opt_a.ire_summary()["threshold"]


def test_an_exception_in_the_perturbed_pass_restores_theta():
    model = small_model()
    opt = torch_ire.SAMIRE(model.parameters(), rho=0.5)
    before = values(model)
    loss_of(model, 0).backward()
    with pytest.raises(KeyError), opt.perturbed():
        raise KeyError

    def closure():
        if opt.is_perturbed:
            raise KeyError
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    with pytest.raises(KeyError):
        opt.step(closure)
    for p, q in zip(before, values(model), strict=True):
        assert torch.equal(p, q)


def test_a_refused_second_pass_restores_theta():
    """Sparse gradients in the second pass of a closure alone."""
    table = torch.nn.Embedding(5, 2)
    before = table.weight.detach().clone()
    opt = torch_ire.SAMIRE(table.parameters(), rho=1.0)

    def closure():
        table.sparse = bool(opt.is_perturbed)
        loss = table(torch.tensor([1])).sum()
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match="SAMIRE does not support sparse gradients"):
        opt.step(closure)
    assert torch.equal(table.weight.detach(), before)
    assert not opt.is_perturbed


def test_groups_may_have_bases_of_their_own():
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(4)]
    groups = [{"params": [params[0]]}, {"params": [params[1]], "base": "adamw", "weight_decay": 0.1}]
    opt = torch_ire.SAMIRE(groups, lr=0.1, rho=0.0, kappa=0.0, momentum=0.5)
    sgd = torch.optim.SGD([params[2]], lr=0.1, momentum=0.5)
    adamw = torch.optim.AdamW([params[3]], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        for p in params:
            p.grad = p.detach() + torch.arange(3.0)
        opt.first_step()
        for optimizer in (opt, sgd, adamw):
            optimizer.step()
    torch.testing.assert_close(params[0], params[2])
    torch.testing.assert_close(params[1], params[3])
    with pytest.raises(ValueError, match="Invalid base value: 'lion'"):
        opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))], "base": "lion"})


def test_gradient_accumulation_is_one_large_batch():
    whole, parts = small_model(), small_model()
    a = torch_ire.SAMIRE(whole.parameters(), lr=0.1, rho=0.2, curvature="random")
    b = torch_ire.SAMIRE(parts.parameters(), lr=0.1, rho=0.2, curvature="random")
    for step in range(3):
        micro = [2 * step, 2 * step + 1]
        for _ in range(2):
            (sum(loss_of(whole, s) for s in micro) / 2).backward()
            for s in micro:
                (loss_of(parts, s) / 2).backward()
            if not a.is_perturbed:
                a.first_step(zero_grad=True)
                b.first_step(zero_grad=True)
        a.second_step(zero_grad=True)
        b.second_step(zero_grad=True)
    for p, q in zip(values(whole), values(parts), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_backups_are_not_saved_or_copied():
    model = small_model()
    opt = torch_ire.SAMIRE(model.parameters(), momentum=0.9)
    train(model, opt, range(2))
    for entry in opt.state_dict()["state"].values():
        assert entry.keys() == {"momentum_buffer", "flat_mask"}
    twin = copy.deepcopy(opt)
    with pytest.raises(RuntimeError, match="call first_step"):
        twin.second_step()


def test_a_copy_between_the_passes_raises_and_a_load_discards_the_perturbation():
    model = small_model()
    opt = torch_ire.SAMIRE(model.parameters(), rho=0.5)
    before, state = values(model), opt.state_dict()
    loss_of(model, 0).backward()
    opt.first_step()
    with pytest.raises(RuntimeError, match=r"copied between first_step\(\) and second_step\(\)"):
        copy.deepcopy(opt)
    for p, w in zip(model.parameters(), before, strict=True):
        p.data.copy_(w)
    opt.load_state_dict(state)  # as a loop that falls back to its last checkpoint
    opt.zero_grad()
    opt.step()
    for p, q in zip(before, values(model), strict=True):
        assert torch.equal(p, q)


def test_a_load_after_the_perturbed_pass_starts_a_new_step():
    model, other = small_model(), small_model()
    opt, twin = (torch_ire.SAMIRE(m.parameters(), lr=0.1, rho=0.5) for m in (model, other))
    state = opt.state_dict()
    loss_of(model, 0).backward()
    with opt.perturbed():
        loss_of(model, 0).backward()
    opt.load_state_dict(state)
    for net, optimizer in ((model, opt), (other, twin)):

        def closure(net=net, optimizer=optimizer):
            optimizer.zero_grad()
            loss = loss_of(net, 0)
            loss.backward()
            return loss

        optimizer.step(closure)  # both passes, also where one had been made before
    for p, q in zip(values(model), values(other), strict=True):
        assert torch.equal(p, q)


def test_several_dtypes_share_one_norm():
    p = torch.nn.Parameter(torch.zeros(1))
    q = torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    opt = torch_ire.SAMIRE([p, q], rho=1.0)
    p.grad, q.grad = torch.tensor([3.0]), torch.tensor([4.0]).bfloat16()
    opt.first_step()
    assert p.item() == pytest.approx(0.6)
    assert q.item() == pytest.approx(0.8, rel=1e-2)


def test_sliced_parameters_are_perturbed_too():
    storage = torch.ones(3, 2)
    p = torch.nn.Parameter(storage[:, 0])
    opt = torch_ire.SAMIRE([p], lr=0.1, rho=1.0, kappa=0.0, curvature="random")
    p.grad = torch.tensor([2.0, 1.0, 2.0])
    opt.first_step()
    torch.testing.assert_close(p.detach(), torch.tensor([1 + 2 / 3, 1 + 1 / 3, 1 + 2 / 3]))
    opt.second_step()
    torch.testing.assert_close(p.detach(), torch.tensor([0.8, 0.9, 0.8]))
    assert torch.equal(storage[:, 1], torch.ones(3))
