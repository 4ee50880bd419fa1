"""``IRE`` around every optimizer of torch, and around optimizers as people write them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

import torch_ire
from tolerances import assert_within_ulps
from torch_optimizer_infos import ATTACHED, Entry, copies, loss_of, take_steps

CONFIGURATIONS = [
    pytest.param(entry, i, id=f"{entry.name}-{arguments.desc.replace(' ', '_')}")
    for entry in ATTACHED
    for i, arguments in enumerate(entry.configurations())
]
# A power of two: kappa times a displacement is exact, so a fused multiply-add has the bits of two operations.
KAPPA, GAMMA = 0.5, 0.6


def flat_masks(scores: list[Tensor], gamma: float) -> list[Tensor]:
    """n of Eq. (5), by sorting."""
    values = torch.cat([s.flatten() for s in scores]).sort().values
    threshold = values[round(gamma * len(values)) - 1]
    return [s <= threshold for s in scores]


def estimates(params: list[torch.nn.Parameter], step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(p.shape, generator=generator).to(p.dtype) for p in params]


class ByHand:
    """IRE as a loop of one's own writes it."""

    def __init__(self, kappa: float, gamma: float, decay: float = 0.0) -> None:
        self.kappa, self.gamma, self.decay = kappa, gamma, decay
        self.flat: dict[Tensor, Tensor] = {}

    def refresh(self, params: list[torch.nn.Parameter], grads: list[Tensor]) -> None:
        self.flat = dict(zip(params, flat_masks([g.float().square() for g in grads], self.gamma), strict=True))

    @torch.no_grad()
    def amplify(self, before: dict[Tensor, Tensor]) -> None:
        for p, start in before.items():
            p += torch.where(self.flat[p], self.kappa * ((p - start) + self.decay * start), 0.0)


def take_steps_by_hand(entry: Entry, optimizer: Optimizer, params: list[torch.nn.Parameter], hand: ByHand) -> None:
    before = {p: p.detach().clone() for p in params}
    take_steps(entry, optimizer, params, 1)
    hand.amplify(before)


@pytest.mark.parametrize(("entry", "number"), CONFIGURATIONS)
def test_every_optimizer_is_amplified_to_the_bit(entry, number):
    """theta_new = w0 + (1 + kappa n) Delta, with state and closures as they are without IRE."""
    runs = []
    for attached in (True, False):
        params = entry.parameters()
        optimizer = entry.base(params, **entry.configurations()[number].kwargs)
        hand = ByHand(KAPPA, GAMMA)
        ire = torch_ire.IRE(optimizer, kappa=KAPPA, gamma=GAMMA, mask_interval=2) if attached else None
        for step in range(5):
            if step % 2 == 0:
                grads = estimates(params, step)
                hand.refresh(params, grads)
                if ire is not None:
                    assert ire.mask_due()
                    for p, g in zip(params, grads, strict=True):
                        p.grad = g
                    ire.update_mask()
            if ire is not None:
                take_steps(entry, optimizer, params, 1)
            else:
                take_steps_by_hand(entry, optimizer, params, hand)
        runs.append((params, optimizer))
    (ours, a), (theirs, b) = runs
    for p, q in zip(ours, theirs, strict=True):
        assert p.isfinite().all()
        assert torch.equal(p, q)
        assert a.state.get(p, {}).keys() - {"flat_mask"} == b.state.get(q, {}).keys()


DECOUPLED: list[tuple[str, dict[str, Any]]] = [
    ("AdamW", {}),
    ("Muon", {}),
    ("Adafactor", {}),
    ("Adam", {"decoupled_weight_decay": True}),
    ("NAdam", {"decoupled_weight_decay": True}),
    ("RAdam", {"decoupled_weight_decay": True}),
]


@pytest.mark.parametrize(("name", "arguments"), DECOUPLED, ids=[name for name, _ in DECOUPLED])
def test_a_decoupled_decay_stays_at_its_base_rate_if_asked(name, arguments):
    """theta_new = w0 + Delta + kappa n (Delta + lr weight_decay w0)."""
    entry = next(entry for entry in ATTACHED if entry.info.name == name)
    ours = entry.parameters()
    theirs = copies(ours)
    lr, weight_decay = 0.05, 0.5
    a = entry.base(ours, lr=lr, weight_decay=weight_decay, **arguments)
    b = entry.base(theirs, lr=lr, weight_decay=weight_decay, **arguments)
    ire = torch_ire.IRE(a, kappa=KAPPA, gamma=GAMMA, mask_interval=100, amplify_weight_decay=False)
    hand = ByHand(KAPPA, GAMMA, lr * weight_decay)
    grads = estimates(ours, 0)
    hand.refresh(theirs, grads)
    for p, g in zip(ours, grads, strict=True):
        p.grad = g
    ire.update_mask()
    for _ in range(3):
        take_steps(entry, a, ours, 1)
        take_steps_by_hand(entry, b, theirs, hand)
        for p, q in zip(ours, theirs, strict=True):
            assert_within_ulps(p.detach(), q.detach(), 30, scale=torch.full_like(p, 2.0))


def test_several_optimizers_share_one_ranking():
    params = [torch.nn.Parameter(torch.randn(s, generator=torch.Generator().manual_seed(3))) for s in ((6, 4), (5,))]
    others = copies(params)
    pairs = [[torch.optim.Muon(ps[:1]), torch.optim.AdamW(ps[1:])] for ps in (params, others)]
    ire = torch_ire.IRE(pairs[0], kappa=KAPPA, gamma=GAMMA)
    hand = ByHand(KAPPA, GAMMA)
    grads = [g * scale for g, scale in zip(estimates(params, 0), (1.0, 0.5), strict=True)]
    hand.refresh(others, grads)
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    ire.update_mask()
    before = {p: p.detach().clone() for p in others}
    for optimizers, ps in zip(pairs, (params, others), strict=True):
        loss_of(ps).backward()
        for optimizer in optimizers:
            optimizer.step()
    hand.amplify(before)
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


@pytest.mark.parametrize("kappa", [0.0, KAPPA])
def test_sparse_gradients_of_a_sparse_optimizer_are_supported(kappa):
    """A random mask needs no dense gradient; one from gradients is refused before anything changes."""
    weights = torch.randn(7, 2, generator=torch.Generator().manual_seed(0))
    ours, theirs = torch.nn.Parameter(weights.clone()), torch.nn.Parameter(weights.clone())
    a, b = torch.optim.SparseAdam([ours], lr=0.1), torch.optim.SparseAdam([theirs], lr=0.1)
    torch_ire.IRE(a, kappa=kappa, gamma=GAMMA, curvature="random")
    for step in range(3):
        start = theirs.detach().clone()
        for p in (ours, theirs):
            p.grad = torch.sparse_coo_tensor(torch.tensor([[step, 5]]), torch.ones(2, 2), (7, 2), check_invariants=True)
        a.step()
        b.step()
        n = a.state_dict()["state"][0]["flat_mask"]
        with torch.no_grad():
            theirs += torch.where(n, kappa * (theirs - start), 0.0)
        assert torch.equal(ours, theirs)
    other = torch.optim.SparseAdam([theirs], lr=0.1)
    handle = torch_ire.IRE(other)
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        handle.update_mask()
    assert torch.equal(ours, theirs)


# -- optimizers as people write them -----------------------------------------------------------------------------------


class Plain(Optimizer):
    """theta <- theta - rate g, with whatever else its groups hold."""

    def __init__(self, params: Any, **others: Any) -> None:
        super().__init__(params, {"rate": 0.5, "lr": 0.5, **others})

    @torch.no_grad()
    def step(self, closure: Any = None, factor: float = 1.0) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["seen"] = self.state[p].get("seen", 0) + 1
                    p.sub_(group["rate"] * factor * p.grad)
        return loss


def amplified(optimizer: Optimizer, p: torch.nn.Parameter, grad: Tensor, **arguments: Any) -> torch_ire.IRE:
    """A handle whose mask is flat where the gradient is smallest; the gradient of the step is set."""
    ire = torch_ire.IRE(optimizer, **{"kappa": 2.0, "gamma": 0.5, "mask_interval": 100, **arguments})
    p.grad = grad.clone()
    ire.update_mask()
    p.grad = grad.clone()
    return ire


@pytest.mark.parametrize(
    "own",
    [
        {"kappa": 1000.0},
        {"gamma": None},
        {"gamma": 10.0, "seed": None, "ranking": 7},
        {"warmup_steps": 1000, "curvature": True},
        {"lr": None},
        {"lr": "by the number of steps"},
    ],
    ids=str,
)
def test_arguments_of_a_foreign_optimizer_are_its_own(own):
    """Also under names that IRE uses, and where the learning rate is no number."""
    p = torch.nn.Parameter(torch.zeros(2))
    optimizer = Plain([p], **own)
    amplified(optimizer, p, torch.tensor([1.0, 2.0]))
    optimizer.step()
    assert p.tolist() == [-1.5, -1.0]
    assert {key: optimizer.param_groups[0][key] for key in own} == own
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(saved)
    p.grad = torch.tensor([1.0, 2.0])
    optimizer.step()
    assert p.tolist() == [-3.0, -2.0]
    assert {key: optimizer.param_groups[0][key] for key in own} == own


def test_an_optimizer_may_have_no_learning_rate():
    p = torch.nn.Parameter(torch.zeros(2))
    optimizer = Plain([p])
    del optimizer.defaults["lr"], optimizer.param_groups[0]["lr"]
    ire = amplified(optimizer, p, torch.tensor([1.0, 2.0]))
    optimizer.step()
    assert p.tolist() == [-1.5, -1.0]
    assert ire.ire_summary()["kappa_eff"] == [2.0]


def test_detach_restores_the_state_dict_of_the_optimizer():
    p = torch.nn.Parameter(torch.zeros(2))
    optimizer = Plain([p], kappa=1000.0, gamma=0.25)
    before = copy.deepcopy(optimizer.state_dict())
    amplified(optimizer, p, torch.tensor([1.0, 2.0])).detach()
    assert optimizer.state_dict() == before
    optimizer.step()
    assert p.tolist() == [-0.5, -1.0]


def test_arguments_and_the_result_of_step_pass_through():
    p = torch.nn.Parameter(torch.zeros(2))
    optimizer = Plain([p])
    amplified(optimizer, p, torch.tensor([1.0, 2.0]))
    assert optimizer.step(lambda: 7.0, factor=2.0) == 7.0
    assert p.tolist() == [-3.0, -2.0]


def test_an_optimizer_without_a_call_of_its_base_constructor_raises():
    class Unfinished(Optimizer):
        def __init__(self, params):
            self.param_groups = [{"params": list(params), "lr": 0.1}]
            self.state = {}

    with pytest.raises((TypeError, ValueError), match=r"Unfinished.*Optimizer\.__init__"):
        torch_ire.IRE(Unfinished([torch.nn.Parameter(torch.ones(2))]))


def test_parameters_written_into_a_group_join_the_ranking_and_removed_ones_leave_it():
    """Pruning, growing and quantizing tools write into ``param_groups`` without ``add_param_group``."""
    p, q = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
    optimizer = Plain([p])
    ire = amplified(optimizer, p, torch.tensor([1.0, 2.0]))
    optimizer.param_groups[0]["params"].append(q)
    q.grad = torch.tensor([4.0, 3.0])
    optimizer.step()
    assert (p.tolist(), q.tolist()) == ([-1.5, -1.0], [-2.0, -1.5])  # no mask for q so far
    p.grad, q.grad = torch.tensor([1.0, 2.0]), torch.tensor([4.0, 3.0])
    ire.update_mask()
    optimizer.param_groups[0]["params"] = [q]
    p.grad, q.grad = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.5])
    optimizer.step()
    assert (p.tolist(), q.tolist()) == ([-1.5, -1.0], [-2.25, -1.75])  # the smaller half was that of p
    del optimizer.state[p]["seen"]  # for which torch's state_dict() has no number
    optimizer.state_dict()
    ire.ire_summary()


@pytest.mark.parametrize("kappa", [0.0, 2.0])
def test_infinite_displacements_stay_infinite(kappa):
    p = torch.nn.Parameter(torch.zeros(4))
    optimizer = Plain([p])
    amplified(optimizer, p, torch.tensor([1.0, 2.0, 3.0, 4.0]), kappa=kappa)
    p.grad = torch.tensor([torch.inf, 1.0, -torch.inf, 2.0])
    optimizer.step()
    assert p.tolist() == [-torch.inf, -0.5 * (1 + kappa), torch.inf, -1.0]


@pytest.mark.parametrize("kappa", [0.0, 2.0])
def test_an_infinite_weight_that_takes_no_step_stays(kappa):
    """A bias of minus infinity switches a unit off."""
    p = torch.nn.Parameter(torch.tensor([-torch.inf, 1.0]))
    optimizer = Plain([p])
    amplified(optimizer, p, torch.tensor([0.0, 2.0]), kappa=kappa)
    p.grad = torch.tensor([0.0, 2.0])
    optimizer.step()
    assert p.tolist() == [-torch.inf, 0.0]
    p.grad = None
    optimizer.step()
    assert p.tolist() == [-torch.inf, 0.0]
