"""What a step computes: the base optimizer at kappa = 0, its displacement amplified elsewhere."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import torch_ire
from optimizer_cases import ADAMW, CASES, IDS, loss_of, refresh, small_model, train, values
from tolerances import assert_within_ulps
from torch_ire.packed_mask import pack, unpack

PLAIN_CASES = [case for case in CASES if "SAM" not in case.name]
PLAIN_IDS = [case.name for case in PLAIN_CASES]


@pytest.mark.parametrize("implementation", ["native", "reference"])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("case", PLAIN_CASES, ids=PLAIN_IDS)
def test_kappa_zero_is_the_base_optimizer(case, maximize, implementation):
    ours, theirs = small_model(), small_model()
    a = case(ours.parameters(), kappa=0.0, curvature="random", maximize=maximize, implementation=implementation)
    b = case.torch(theirs.parameters(), maximize=maximize)
    for step in range(6):
        train(ours, a, range(step, step + 1))
        loss_of(theirs, step).backward()
        b.step()
        b.zero_grad()
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            # a few ulp a step, of the size of the terms that a step subtracts
            torch.testing.assert_close(p, q, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_rho_and_kappa_zero_is_the_base_optimizer(case):
    if "SAM" not in case.name:
        pytest.skip("no rho")
    ours, theirs = small_model(), small_model()
    a = case(ours.parameters(), kappa=0.0, curvature="random")
    for group in a.param_groups:
        group["rho"] = 0.0
    b = case.torch(theirs.parameters())
    for step in range(4):
        train(ours, a, range(step, step + 1))
        loss_of(theirs, step).backward()
        b.step()
        b.zero_grad()
    for p, q in zip(values(ours), values(theirs), strict=True):
        torch.testing.assert_close(p, q, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("curvature", ["fisher", "hutchinson", "random", "second_moment"])
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_step_is_amplified_by_one_plus_kappa_on_flat_coordinates(case, curvature):
    """theta_new = theta + (1 + kappa n) Delta, with Delta the displacement of the same optimizer at kappa = 0."""
    if curvature == "second_moment" and not case.has_second_moment:
        pytest.skip("SGD has no second moment")
    kappa = 3.0
    model = small_model()
    optimizer = case(model.parameters(), kappa=kappa, gamma=0.6, mask_interval=3, curvature=curvature)
    labels = torch_ire.LabelGenerator(seed=3)
    previous: dict[torch.Tensor, torch.Tensor] = {}
    for step in range(7):
        refresh(model, optimizer, step, labels, curvature)
        twin = copy.deepcopy(model)
        twin_optimizer = case(twin.parameters(), kappa=kappa, gamma=0.6, mask_interval=3, curvature=curvature)
        twin_optimizer.load_state_dict(optimizer.state_dict())
        for group in twin_optimizer.param_groups:
            group["kappa"] = 0.0
        before = values(model)
        train(model, optimizer, range(step, step + 1), labels=labels)
        train(twin, twin_optimizer, range(step, step + 1), labels=labels)
        masked = 0
        for p, q, w in zip(model.parameters(), twin.parameters(), before, strict=True):
            n = torch.zeros_like(p, dtype=torch.bool)
            if "flat_mask" in optimizer.state[p] and not (curvature == "second_moment" and step == 0):
                # a mask that step() refreshes by itself after the step acts from the next one on
                n = unpack(twin_optimizer.state[q]["flat_mask"] if curvature != "second_moment" else previous[p], p)
            masked += int(n.sum())
            expected = w + (1 + kappa * n) * (q.detach() - w)
            torch.testing.assert_close(p.detach(), expected, rtol=1e-5, atol=2e-6)
        previous = {p: optimizer.state[p]["flat_mask"].clone() for p in model.parameters()}
        if step > 0 or curvature != "second_moment":
            assert 0 < masked < sum(w.numel() for w in before)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_an_all_flat_mask_is_a_larger_learning_rate(case):
    ours, other = small_model(), small_model()
    a = case(ours.parameters(), kappa=2.0, gamma=1.0, mask_interval=1)
    b = case(other.parameters(), kappa=0.0, gamma=1.0, mask_interval=1)
    for group in b.param_groups:
        group["lr"] *= 3.0
    train(ours, a, range(5))
    train(other, b, range(5))
    assert a.ire_summary()["flat_share"] == 1.0
    for p, q in zip(values(ours), values(other), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-5)


def test_weight_decay_stays_at_its_base_rate_without_amplification():
    theta = torch.tensor([2.0, 2.0])
    for amplify, factor in ((True, 1 - 0.1 * 0.5 * 5), (False, 1 - 0.1 * 0.5)):
        p = torch.nn.Parameter(theta.clone())
        opt = torch_ire.AdmIRE([p], lr=0.1, weight_decay=0.5, kappa=4.0, gamma=0.5, amplify_weight_decay=amplify)
        p.grad = torch.tensor([1.0, 100.0])
        opt.update_mask()
        p.grad = torch.zeros(2)  # no gradient: the displacement is the decay alone
        opt.step()
        torch.testing.assert_close(p.detach(), torch.tensor([2.0 * factor, 2.0 * 0.95]))


def test_sgd_rejects_amplify_weight_decay_false_with_a_weight_decay():
    p = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="decoupled"):
        torch_ire.SGDIRE([p], weight_decay=0.1, amplify_weight_decay=False)
    torch_ire.SGDIRE([p], amplify_weight_decay=False)


def test_nothing_is_amplified_before_the_warmup():
    model = small_model()
    opt = torch_ire.AdmIRE(model.parameters(), **ADAMW, kappa=5.0, warmup_steps=4, mask_interval=3, curvature="random")
    base = small_model()
    torch_opt = torch.optim.AdamW(base.parameters(), **ADAMW)
    for step in range(4):
        train(model, opt, range(step, step + 1))
        loss_of(base, step).backward()
        torch_opt.step()
        torch_opt.zero_grad()
        for p, q in zip(values(model), values(base), strict=True):
            torch.testing.assert_close(p, q, rtol=2e-6, atol=1e-6)
    train(model, opt, range(4, 5))
    loss_of(base, 4).backward()
    torch_opt.step()
    assert max(float((p - q).abs().max()) for p, q in zip(values(model), values(base), strict=True)) > 1e-3


def test_masks_are_due_at_the_steps_of_algorithm_1():
    model = small_model()
    opt = torch_ire.SGDIRE(model.parameters(), warmup_steps=5, mask_interval=4)
    labels = torch_ire.LabelGenerator(seed=0)
    due = []
    for step in range(20):
        if opt.mask_due():
            due.append(step)
            refresh(model, opt, step, labels)
            assert not opt.mask_due()
        loss_of(model, step).backward()
        opt.step()
        opt.zero_grad()
    assert due == [5, 9, 13, 17]


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["float", "tensor"])
def test_kappa_follows_the_learning_rate(lr):
    p = torch.nn.Parameter(torch.zeros(4))
    opt = torch_ire.SGDIRE([p], lr=lr, kappa=4.0, gamma=1.0, kappa_follows_lr=True)
    p.grad = torch.ones(4)
    opt.update_mask()
    moved = []
    for value in (0.1, 0.2, 0.05):
        if isinstance(lr, torch.Tensor):
            opt.param_groups[0]["lr"].fill_(value)
        else:
            opt.param_groups[0]["lr"] = value
        before = p.detach().clone()
        p.grad = torch.ones(4)
        opt.step()
        moved.append(float((before - p.detach())[0]))
    assert moved == pytest.approx([0.1 * 5, 0.2 * 5, 0.05 * 2], rel=1e-5)


def test_each_group_tracks_its_own_largest_learning_rate():
    a = torch.nn.Parameter(torch.zeros(1))
    ours = torch_ire.SGDIRE([a], lr=1.0, kappa_follows_lr=True, curvature="random")
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    handle = torch_ire.IRE(theirs, kappa_follows_lr=True, curvature="random")
    for optimizer, summary in ((ours, ours.ire_summary), (theirs, handle.ire_summary)):
        optimizer.param_groups[0]["params"][0].grad = torch.ones(1)
        optimizer.step()
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.01})
        optimizer.step()
        assert [group["ire_step"] for group in optimizer.param_groups] == [2, 2]
        assert summary()["kappa_eff"] == [2.0, 2.0]


def test_a_captured_step_replays_with_the_largest_learning_rate():
    """It is kept where it lies in memory, and looking at the summary does not change it."""
    p = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch_ire.SGDIRE([p], lr=torch.tensor(1.0), kappa_follows_lr=True, curvature="random")
    (group,) = optimizer.param_groups
    optimizer.step()
    seen = group["ire_max_lr"]
    group["lr"].fill_(2.0)
    optimizer.ire_summary()
    assert seen.item() == 1.0
    optimizer.step()
    assert group["ire_max_lr"] is seen
    assert seen.item() == 2.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64])
def test_a_tensor_learning_rate_may_have_any_dtype(dtype):
    p = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch_ire.SGDIRE([p], lr=torch.tensor(2, dtype=dtype), kappa=torch.tensor(0, dtype=dtype))
    p.grad = torch.ones(1)
    optimizer.step()
    assert p.item() == -2.0


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_native_and_reference_steps_agree(case):
    models = [small_model(), small_model()]
    for model, implementation in zip(models, ("native", "reference"), strict=True):
        train(model, case(model.parameters(), kappa=2.0, gamma=0.7, implementation=implementation), range(12))
    for p, q in zip(values(models[0]), values(models[1]), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_other_dtypes_keep_their_moments_in_opmath(case, dtype):
    model = small_model(dtype=dtype)
    opt = case(model.parameters(), kappa=1.0, curvature="random")
    train(model, opt, range(3))
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    for p in model.parameters():
        assert p.dtype == dtype
        assert p.isfinite().all()
        for key, value in opt.state[p].items():
            assert value.dtype == {"flat_mask": torch.uint8, "step": torch.float32}.get(key, expected)


def test_stochastic_rounding_moves_bfloat16_weights_on_average():
    """Of a step far below the spacing of bfloat16 nearest rounding keeps nothing, stochastic rounding the mean."""
    moved = {}
    for rounding in ("nearest", "stochastic"):
        p = torch.nn.Parameter(torch.ones(1 << 16, dtype=torch.bfloat16))
        opt = torch_ire.SGDIRE([p], lr=1e-4, kappa=0.0, rounding=rounding, curvature="random", seed=5)
        for _ in range(10):
            p.grad = torch.ones_like(p)
            opt.step()
        moved[rounding] = 1 - float(p.detach().double().mean())
    assert moved["nearest"] == 0.0
    assert moved["stochastic"] == pytest.approx(1e-3, rel=0.03)


def test_stochastic_rounding_is_reproducible():
    def run(seed):
        p = torch.nn.Parameter(torch.linspace(-2, 2, 4097).bfloat16())
        q = torch.nn.Parameter(torch.linspace(-2, 2, 4097).bfloat16())
        opt = torch_ire.AdmIRE([p, q], lr=1e-3, rounding="stochastic", seed=seed, curvature="random")
        for _ in range(3):
            p.grad = torch.full_like(p, 0.5)
            q.grad = torch.full_like(q, 0.5)
            opt.step()
        return p.detach().clone(), q.detach().clone()

    (p1, q1), (p2, q2), (p3, _) = run(1), run(1), run(2)
    assert torch.equal(p1, p2)
    assert torch.equal(q1, q2)
    assert not torch.equal(p1, p3)
    assert not torch.equal(p1, q1)  # another parameter draws other numbers


@given(st.data())
def test_native_and_reference_agree_for_any_layout_and_missing_gradients(data):
    """Strided, channels-last, sliced, empty and scalar parameters; gradients laid out otherwise or missing."""
    shapes = data.draw(st.lists(st.sampled_from([(), (0,), (1,), (7, 5), (2, 3, 4, 4), (33,)]), min_size=1, max_size=5))
    kind = [data.draw(st.sampled_from(["plain", "transposed", "channels_last", "sliced"])) for _ in shapes]
    present = [data.draw(st.booleans()) for _ in shapes]
    name = data.draw(st.sampled_from(["AdmIRE", "SGDIRE", "SAMIRE-adamw"]))
    case = next(c for c in CASES if c.name == name)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))

    def layout(t, how):
        if how == "transposed" and t.dim() == 2:
            return t.t().contiguous().t()
        if how == "channels_last" and t.dim() == 4:
            return t.contiguous(memory_format=torch.channels_last)
        if how == "sliced" and t.dim() >= 1:
            return torch.stack([t, t], dim=-1)[..., 0]
        return t.clone()

    start = [torch.randn(s, generator=generator) for s in shapes]
    grads = [torch.randn(s, generator=generator) for s in shapes]
    ours = [torch.nn.Parameter(layout(t, k)) for t, k in zip(start, kind, strict=True)]
    plain = [torch.nn.Parameter(t.clone()) for t in start]
    results = []
    for params, rearrange in ((ours, True), (plain, False)):
        opt = case(params, kappa=2.0, gamma=0.5)
        for phase in ("mask", "step"):
            for p, g, there in zip(params, grads, present, strict=True):
                other_layout = layout(g, "transposed") if rearrange else g.clone()
                p.grad = other_layout if there else None
            if phase == "mask":
                if not any(present):
                    with pytest.raises(RuntimeError, match="no parameter has a gradient"):
                        opt.update_mask()
                    continue
                opt.update_mask()
            else:
                opt.step()
        results.append([p.detach().clone() for p in params])
    for a, b, s, there in zip(*results, start, present, strict=True):
        assert_within_ulps(a.contiguous(), b.contiguous(), 4, scale=torch.full_like(b, 2.0))
        if not there:
            assert torch.equal(a.contiguous(), s)


def test_the_toy_of_figure_1_moves_as_in_the_paper():
    """L = (1 + u^2) v^2 / 2 from (1, 0.01), with the mask (1, 0) of the flat coordinate (PAPER Fig. 1)."""

    def run(kappa, lr, steps):
        theta = torch.nn.Parameter(torch.tensor([1.0, 0.01], dtype=torch.float64))
        opt = torch_ire.SGDIRE([theta], lr=lr, kappa=kappa, gamma=0.5, mask_interval=10**9)
        theta.grad = torch.tensor([0.0, 1.0], dtype=torch.float64)  # u is the flat coordinate
        opt.update_mask()
        for _ in range(steps):
            u, v = theta
            loss = (1 + u**2) * v**2 / 2
            loss.backward()
            opt.step()
            opt.zero_grad()
        return theta.detach().tolist()

    u, v = run(0.0, 1.0, 100)
    assert u == pytest.approx(0.99367, abs=5e-6)
    assert v == pytest.approx(0.00459, abs=5e-6)
    assert run(0.0, 1.0, 1179)[0] == pytest.approx(0.99289, abs=1e-5)
    assert run(90.0, 1.0, 3000)[0] == pytest.approx(0.92849, abs=1e-5)
    assert run(900.0, 1.0, 3000)[0] == pytest.approx(0.74259, abs=1e-5)
    assert run(9000.0, 1.0, 1)[0] == pytest.approx(1 - 9001e-4, abs=1e-12)
    diverging = [run(0.0, 2.0, n)[1] for n in (1, 2, 3, 4)]
    assert diverging == pytest.approx([-0.03, 0.09, -0.269, 0.788], rel=2e-3)


def test_a_mask_from_gradients_follows_the_definition():
    model = small_model()
    opt = torch_ire.AdmIRE(model.parameters(), gamma=0.37)
    loss_of(model, 0).backward()
    squares = [p.grad.float().square() for p in model.parameters()]
    flat = torch.cat([s.flatten() for s in squares])
    threshold = flat.sort().values[round(0.37 * flat.numel()) - 1]
    opt.update_mask()
    for p, s in zip(model.parameters(), squares, strict=True):
        assert torch.equal(opt.state[p]["flat_mask"], pack(s <= threshold))
        assert p.grad is None
    assert opt.ire_summary()["threshold"] == {"global": float(threshold)}


@pytest.mark.parametrize("ranking", ["global", "group", "parameter"])
def test_each_ranking_marks_its_share(ranking):
    a, b, c = (torch.nn.Parameter(torch.zeros(100)) for _ in range(3))
    opt = torch_ire.AdmIRE([{"params": [a, b]}, {"params": [c], "gamma": 0.25}], gamma=0.5, ranking=ranking)
    generator = torch.Generator().manual_seed(0)
    for p, scale in ((a, 1.0), (b, 10.0), (c, 100.0)):
        p.grad = torch.rand(100, generator=generator).add_(0.5) * scale
    opt.update_mask()
    share = opt.ire_summary()["flat_share_by_parameter"]
    assert (
        share
        == {
            # 300 coordinates: the smallest 150 for a and b, the smallest 75 for c
            "global": {"0.0": 1.0, "0.1": 0.5, "1.0": 0.0},
            "group": {"0.0": 1.0, "0.1": 0.0, "1.0": 0.25},
            "parameter": {"0.0": 0.5, "0.1": 0.5, "1.0": 0.25},
        }[ranking]
    )


@pytest.mark.parametrize("curvature_beta", [0.0, 0.9])
def test_ties_are_flat_and_nonfinite_scores_and_missing_estimates_are_not(curvature_beta):
    p, q = torch.nn.Parameter(torch.zeros(8)), torch.nn.Parameter(torch.zeros(3))
    opt = torch_ire.SGDIRE([p, q], gamma=0.5, curvature_beta=curvature_beta)
    p.grad = torch.tensor([0.0, -0.0, 0.0, 0.0, 0.0, torch.nan, torch.inf, 5.0])
    opt.update_mask()
    # k = 4 and five tied zeros: all five are flat; NaN and inf are sharp; q has no estimate
    assert unpack(opt.state[p]["flat_mask"], p).tolist() == [True] * 5 + [False] * 3
    assert "flat_mask" not in opt.state[q] or not opt.state[q]["flat_mask"].any()
    opt.param_groups[0]["gamma"] = 1.0
    p.grad = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, torch.nan, -torch.inf, 5.0])
    opt.update_mask()
    assert unpack(opt.state[p]["flat_mask"], p).tolist() == [True] * 5 + [False, False, True]
    opt.param_groups[0]["gamma"] = 0.0
    p.grad = torch.zeros(8)
    opt.update_mask()
    assert not opt.state[p]["flat_mask"].any()


def test_scores_of_half_precision_gradients_neither_overflow_nor_underflow():
    p = torch.nn.Parameter(torch.zeros(4, dtype=torch.float16))
    opt = torch_ire.SGDIRE([p], gamma=0.5)
    p.grad = torch.tensor([300.0, 1e-4, 200.0, 2e-4], dtype=torch.float16)
    opt.update_mask()
    assert unpack(opt.state[p]["flat_mask"], p).tolist() == [False, True, False, True]


def test_one_ranking_covers_several_dtypes():
    p = torch.nn.Parameter(torch.zeros(4))
    q = torch.nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    opt = torch_ire.SGDIRE([p, q], gamma=0.5)
    p.grad = torch.tensor([1.0, 4.0, 5.0, 8.0])
    q.grad = torch.tensor([2.0, 3.0, 6.0, 7.0]).bfloat16()
    opt.update_mask()
    assert unpack(opt.state[p]["flat_mask"], p).tolist() == [True, True, False, False]
    assert unpack(opt.state[q]["flat_mask"], q).tolist() == [True, True, False, False]


def test_averaged_estimates_are_bias_corrected():
    p = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    opt = torch_ire.SGDIRE([p], curvature_beta=0.9)
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(5, 3, generator=generator, dtype=torch.float64)
    for g in draws:
        p.grad = g.clone()
        opt.update_mask(num_predictions=4.0)
    weights = torch.tensor([0.9**age for age in (4, 3, 2, 1, 0)], dtype=torch.float64)
    expected = (weights[:, None] * 4 * draws.square()).sum(0) / weights.sum()
    torch.testing.assert_close(opt.state[p]["hessian_diag"], expected, rtol=1e-6, atol=0)


def test_hutchinson_finds_the_diagonal_of_a_quadratic():
    H = torch.diag(torch.tensor([4.0, 1.0, 9.0, 0.25]))
    p = torch.nn.Parameter(torch.ones(4))
    opt = torch_ire.SGDIRE([p], curvature="hutchinson", gamma=0.5)
    opt.update_mask(p @ H @ p / 2)
    assert unpack(opt.state[p]["flat_mask"], p).tolist() == [False, True, False, True]
    assert p.grad is None


def test_random_masks_have_the_share_and_change_every_interval():
    p = torch.nn.Parameter(torch.zeros(100_000))
    opt = torch_ire.SGDIRE([p], gamma=0.3, mask_interval=2, curvature="random")
    masks = []
    for _ in range(4):
        p.grad = torch.ones_like(p)
        opt.step()
        masks.append(opt.state[p]["flat_mask"].clone())
    assert opt.ire_summary()["flat_share"] == pytest.approx(0.3, abs=0.01)
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[1], masks[2])


def test_each_group_may_have_its_own_curvature():
    """Gradients are ranked among the groups that ask for them, moments among theirs, and a control stays a control."""
    fisher, other, moments, control, control_twin = (torch.nn.Parameter(torch.ones(1000)) for _ in range(5))
    optimizer = torch_ire.AdmIRE(
        [
            {"params": [control], "curvature": "random"},
            {"params": [fisher]},
            {"params": [moments], "curvature": "second_moment"},
            {"params": [other]},
        ],
        gamma=0.5,
    )
    alone = torch_ire.AdmIRE([control_twin], gamma=0.5, curvature="random")
    assert optimizer.mask_due()
    fisher.grad, other.grad, control.grad = torch.ones(1000), torch.full((1000,), 2.0), torch.full((1000,), 9.0)
    optimizer.update_mask()
    assert not optimizer.mask_due()
    assert all(p.grad is None for p in (fisher, other, control))
    for p in (fisher, other, moments, control, control_twin):
        p.grad = torch.arange(1000.0)
    optimizer.step()
    alone.step()

    def flat(p, owner=optimizer):
        return unpack(owner.state[p]["flat_mask"], p)

    assert flat(fisher).all()
    assert not flat(other).any()
    assert torch.equal(flat(moments), torch.arange(1000) < 500)
    assert torch.equal(flat(control), flat(control_twin, alone))
    assert 400 < flat(control).sum() < 600


@pytest.mark.parametrize("curvature", ["fisher", "second_moment", "hutchinson", "random"])
def test_a_refresh_creates_no_state_without_an_estimate(curvature):
    """An entry without the base optimizer's tensors would be taken for its whole state."""
    p, frozen = torch.nn.Parameter(torch.ones(4)), torch.nn.Parameter(torch.ones(4), requires_grad=False)
    optimizer = torch_ire.AdmIRE([frozen, p], curvature=curvature)
    if curvature == "hutchinson":
        optimizer.update_mask((p**3).sum())
    p.grad = torch.ones(4)
    if curvature == "fisher":
        optimizer.update_mask()
        p.grad = torch.ones(4)
    optimizer.step()
    assert optimizer.state.keys() == {p}
    assert "flat_mask" in optimizer.state[p]
