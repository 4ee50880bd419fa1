"""Steps that are not made because a gradient is not finite: nothing changes, whoever says so, and all hear of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import torch_ire
from graph_replay import Recording
from optimizer_cases import CASES, IDS, loss_of, small_model, train, values

# one mask, made before the steps that count, so that a step more or less on the host changes nothing
ONCE = {"kappa": 2.0, "gamma": 0.6, "mask_interval": 10**6}
SAM_CASES = [case for case in CASES if "SAM" in case.name]
BAD = [torch.nan, torch.inf, -torch.inf]


def passes_of(optimizer: torch.optim.Optimizer) -> list[str]:
    if not isinstance(optimizer, torch_ire.SAMIRE):
        return ["second"]
    return ["first", "second"] if optimizer.param_groups[0]["perturbation"] == "gradient" else ["second"]


def spoil(model: torch.nn.Module, bad: float) -> None:
    """One element of one gradient."""
    list(model.parameters())[2].grad.view(-1)[7] = bad


def state_of(optimizer: torch.optim.Optimizer) -> dict[Tensor, dict[str, Tensor]]:
    return {p: {key: value.clone() for key, value in entry.items()} for p, entry in optimizer.state.items()}


def assert_unchanged(model: torch.nn.Module, optimizer: torch.optim.Optimizer, before: Any) -> None:
    weights, state = before
    for p, w in zip(model.parameters(), weights, strict=True):
        assert torch.equal(p.detach(), w)
    assert optimizer.state.keys() == state.keys()
    for p, entry in state.items():
        assert optimizer.state[p].keys() == entry.keys()
        for key, value in entry.items():
            assert torch.equal(optimizer.state[p][key], value), key


def bad_step(model: torch.nn.Module, optimizer: Any, where: str, bad: float, form: str = "two calls") -> None:
    """A whole training step, with a gradient that is spoilt in one of its passes."""

    def pass_(name: str) -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, 50)
        loss.backward()
        if name == where:
            spoil(model, bad)
        return loss.detach()

    passes = passes_of(optimizer)
    if not isinstance(optimizer, torch_ire.SAMIRE):
        pass_("second")
        optimizer.step()
    elif form == "closure":
        names = iter(passes)
        optimizer.step(lambda: pass_(next(names)))
    else:
        if "first" in passes:
            pass_("first")
        if form == "context":
            with optimizer.perturbed():
                pass_("second")
            optimizer.step()
        else:
            optimizer.first_step()
            pass_("second")
            optimizer.second_step()
    optimizer.zero_grad()


@pytest.mark.parametrize("implementation", ["native", "reference"])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_step_with_a_gradient_that_is_not_finite_changes_nothing(case, bad, implementation):
    """And the run goes on as if there had been none."""
    models = [small_model(), small_model()]
    optimizers = [case(m.parameters(), skip_nonfinite=True, implementation=implementation, **ONCE) for m in models]
    for model, optimizer in zip(models, optimizers, strict=True):
        assert optimizer.last_step_skipped is None
        train(model, optimizer, range(2))
        assert optimizer.last_step_skipped.item() is False
    model, optimizer = models[0], optimizers[0]
    for where in passes_of(optimizer):
        before = values(model), state_of(optimizer)
        bad_step(model, optimizer, where, bad)
        assert optimizer.last_step_skipped.item() is True
        assert_unchanged(model, optimizer, before)
    if optimizer.param_groups[0].get("perturbation") == "random":
        return  # its direction depends on the count of steps, the skipped ones included
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, range(2, 5))
        assert optimizer.last_step_skipped.item() is False
    for p, q in zip(values(models[0]), values(models[1]), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("form", ["closure", "context"])
@pytest.mark.parametrize("case", SAM_CASES, ids=[case.name for case in SAM_CASES])
def test_a_nan_in_either_pass_skips_every_form_of_a_sam_step(case, form):
    model = small_model()
    optimizer = case(model.parameters(), skip_nonfinite=True, **ONCE)
    train(model, optimizer, range(2))
    for where in passes_of(optimizer):
        before = values(model), state_of(optimizer)
        bad_step(model, optimizer, where, torch.nan, form)
        assert optimizer.last_step_skipped.item() is True
        assert_unchanged(model, optimizer, before)
    train(model, optimizer, range(2, 3))
    assert optimizer.last_step_skipped.item() is False


def test_an_abandoned_first_pass_does_not_skip_the_next_step():
    model = small_model()
    optimizer = torch_ire.SAMIRE(model.parameters(), lr=0.1, skip_nonfinite=True, curvature="random")
    loss_of(model, 0).backward()
    spoil(model, torch.nan)
    with pytest.raises(KeyError), optimizer.perturbed():
        raise KeyError
    optimizer.zero_grad()
    loss_of(model, 0).backward()
    optimizer.step()
    assert optimizer.last_step_skipped.item() is False


def test_a_second_pass_that_was_refused_may_be_made_again():
    """The first one is still what it was."""
    p, table = torch.nn.Parameter(torch.ones(3)), torch.nn.Embedding(5, 2, sparse=True)
    optimizer = torch_ire.SAMIRE([p, table.weight], lr=0.1, skip_nonfinite=True, curvature="random")
    before = p.detach().clone(), table.weight.detach().clone()
    p.grad, table.weight.grad = torch.tensor([1.0, torch.nan, 1.0]), torch.ones(5, 2)
    optimizer.first_step(zero_grad=True)
    p.grad = torch.ones(3)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.second_step()
    table.weight.grad = torch.ones(5, 2)
    optimizer.second_step()
    assert optimizer.last_step_skipped.item() is True
    assert torch.equal(p.detach(), before[0])
    assert torch.equal(table.weight.detach(), before[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_the_largest_finite_gradients_do_not_skip_a_step(dtype):
    """A norm of them is not."""
    p = torch.nn.Parameter(torch.ones(100, dtype=dtype))
    optimizer = torch_ire.AdmIRE([p], skip_nonfinite=True, curvature="random")
    p.grad = torch.full_like(p, torch.finfo(dtype).max)
    optimizer.step()
    assert optimizer.last_step_skipped.item() is False
    assert optimizer.state[p]["step"] == 1
    sam = torch_ire.SAMIRE([p], skip_nonfinite=True, curvature="random", lr=1e-3)
    p.grad = torch.full_like(p, torch.finfo(dtype).max)
    sam.first_step()
    p.grad = torch.ones_like(p)
    sam.second_step()
    assert sam.last_step_skipped.item() is False


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_nan_passes_through_without_skip_nonfinite(case):
    model = small_model()
    optimizer = case(model.parameters(), **ONCE)
    train(model, optimizer, range(1))
    bad_step(model, optimizer, "second", torch.nan)
    assert optimizer.last_step_skipped is None
    assert values(model)[2].isnan().any()


def test_a_nan_in_a_group_with_skip_nonfinite_skips_all_groups():
    a, b = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizer = torch_ire.SGDIRE(
        [{"params": [a], "skip_nonfinite": True}, {"params": [b]}], lr=1.0, kappa=0.0, curvature="random"
    )
    a.grad, b.grad = torch.tensor([1.0, torch.nan, 1.0]), torch.ones(3)
    optimizer.step()
    assert optimizer.last_step_skipped.item() is True
    assert torch.equal(b.detach(), torch.ones(3))
    a.grad, b.grad = torch.ones(3), torch.tensor([1.0, torch.nan, 1.0])
    optimizer.step()
    assert optimizer.last_step_skipped.item() is False
    assert torch.equal(a.detach(), torch.zeros(3))
    assert b.isnan().any()


def test_skip_nonfinite_in_a_group_without_parameters_skips_nothing():
    p = torch.nn.Parameter(torch.ones(3))
    opt = torch_ire.SGDIRE([{"params": [], "skip_nonfinite": True}, {"params": [p]}], lr=0.5)
    p.grad = torch.ones(3)
    opt.step()
    assert torch.equal(p.detach(), torch.full((3,), 0.5))
    assert not opt.last_step_skipped


def test_one_flag_covers_all_dtypes_layouts_and_missing_gradients():
    """One answer over lists of their own, and again after the model has changed under the optimizer."""
    params = [
        torch.nn.Parameter(torch.ones(6)),
        torch.nn.Parameter(torch.ones(4, 5).t()),
        torch.nn.Parameter(torch.ones(2)),
    ]
    params.append(torch.nn.Parameter(torch.ones(8, 2)[:, 0]))
    optimizer = torch_ire.AdmIRE(params, skip_nonfinite=True, curvature="random")
    for turn in range(4):
        if turn == 2:
            params[0].data = params[0].data.bfloat16()
        for p in params[:2] + params[3:]:
            p.grad = torch.ones(p.shape, dtype=p.dtype)
        params[3].grad[5] = torch.nan if turn % 2 else 1.0
        optimizer.step()
        assert optimizer.last_step_skipped.item() is bool(turn % 2)
    assert optimizer.state[params[3]]["step"] == 2
    assert torch.equal(params[2].detach(), torch.ones(2))


def test_a_copy_reports_no_skipped_step():
    model = small_model()
    optimizer = torch_ire.AdmIRE(model.parameters(), skip_nonfinite=True)
    train(model, optimizer, range(1))
    twin = copy.deepcopy(optimizer)
    assert twin.last_step_skipped is None
    assert twin.param_groups[0]["skip_nonfinite"]


@pytest.mark.parametrize("scaled", [False, True])
def test_skipped_steps_count_and_make_no_second_moment_mask(scaled):
    """After a skipped first step Adam's second moment is zero everywhere, which says nothing about what is flat."""
    model = small_model()
    optimizer = torch_ire.AdmIRE(
        model.parameters(), skip_nonfinite=not scaled, curvature="second_moment", mask_interval=2
    )
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    shares = []
    for step in range(4):
        scaler.scale(loss_of(model, step)).backward()
        if step == 0:
            spoil(model, torch.inf)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert optimizer.last_step_skipped.item() is (step == 0)
        assert optimizer.param_groups[0]["ire_step"] == step + 1
        shares.append(optimizer.ire_summary()["flat_share"])
    assert shares[:2] == [0.0, 0.0]
    assert shares[2] == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("name", ["AdmIRE", "SGDIRE", "SAMIRE-adamw"])
def test_a_replayed_step_decides_on_the_device(name):
    """A recorded step is replayed with finite gradients and others, and decides each time."""
    case = next(case for case in CASES if case.name == name)
    params = [torch.nn.Parameter(torch.ones(5)), torch.nn.Parameter(torch.ones(3, dtype=torch.float64))]
    optimizer = case(params, skip_nonfinite=True, capturable=True)
    for p in params:
        p.grad = torch.ones_like(p)

    def step() -> None:
        if isinstance(optimizer, torch_ire.SAMIRE):
            optimizer.first_step()
        optimizer.step()

    step()
    with Recording() as record:
        step()
    skipped = optimizer.last_step_skipped
    for bad in (True, False, True):
        before = [p.detach().clone() for p in params]
        params[1].grad[1] = torch.nan if bad else 1.0
        record.replay()
        assert skipped.item() is bad
        assert all(torch.equal(p.detach(), w) == bad for p, w in zip(params, before, strict=True))


@pytest.mark.parametrize("with_scaler", [False, True])
@pytest.mark.parametrize("form", ["two calls", "context"])
@pytest.mark.parametrize("case", SAM_CASES, ids=[case.name for case in SAM_CASES])
def test_a_scaler_lowers_its_scale_after_an_overflow_in_the_first_pass(case, form, with_scaler):
    """It skips the step either way, and halves its scale if first_step knows it; then training goes on."""
    model = small_model()
    optimizer = case(model.parameters(), **ONCE)
    if passes_of(optimizer) == ["second"]:
        pytest.skip("a random perturbation has no first pass")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    train(model, optimizer, range(1))
    scales = []
    for step, bad in enumerate([False, True, True, False, True, False]):
        before = values(model), state_of(optimizer)
        scaler.scale(loss_of(model, step)).backward()
        if bad:
            spoil(model, torch.inf)
        told = {"scaler": scaler} if with_scaler else {}
        if form == "context":
            with optimizer.perturbed(**told):
                scaler.scale(loss_of(model, step)).backward()
        else:
            optimizer.first_step(zero_grad=True, **told)
            scaler.scale(loss_of(model, step)).backward()
        if step % 2:
            scaler.unscale_(optimizer)  # as for clipping
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scales.append(scaler.get_scale())
        assert optimizer.last_step_skipped.item() is bad
        if bad:
            assert_unchanged(model, optimizer, before)
        else:
            assert not torch.equal(values(model)[0], before[0][0])
    halvings = [0, 1, 2, 2, 3, 3] if with_scaler else [0] * 6
    assert scales == [2.0 ** (14 - n) for n in halvings]


@pytest.mark.parametrize("name", ["AdmIRE", "SGDIRE", "SAMIRE-sgd", "SAMIRE-adamw", "average-SAMIRE"])
def test_a_scaler_finds_its_scale(name):
    """From a scale at which everything overflows, with both passes scaled: halved until gradients are finite."""
    case = next(case for case in CASES if case.name == name)
    model = small_model()
    optimizer = case(model.parameters(), skip_nonfinite=True, **ONCE)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**125, growth_interval=10**6)
    skipped = []
    for step in range(10):
        before = values(model)
        if passes_of(optimizer) == ["first", "second"]:
            scaler.scale(32 * loss_of(model, step)).backward()
        if isinstance(optimizer, torch_ire.SAMIRE):
            optimizer.first_step(zero_grad=True, scaler=scaler)
        scaler.scale(32 * loss_of(model, step)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        skipped.append(optimizer.last_step_skipped.item())
        assert torch.equal(before[0], values(model)[0]) == skipped[-1]
    halvings = skipped.index(False)
    assert 2 <= halvings < 9
    assert skipped == [True] * halvings + [False] * (10 - halvings)
    assert scaler.get_scale() == 2.0 ** (125 - halvings)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("decay_at_base_rate", [False, True])
def test_a_step_that_a_scaler_skips_is_not_amplified(fused, decay_at_base_rate):
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1, fused=fused)
    torch_ire.IRE(optimizer, kappa=2.0, gamma=0.6, curvature="random", amplify_weight_decay=not decay_at_base_rate)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    for step, bad in enumerate([False, True, False, True]):
        before = (
            values(model),
            {p: {k: v for k, v in e.items() if k != "flat_mask"} for p, e in state_of(optimizer).items()},
        )
        scaler.scale(loss_of(model, step)).backward()
        if bad:
            spoil(model, torch.nan)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if bad:
            for p, w in zip(values(model), before[0], strict=True):
                assert torch.equal(p, w)
            for p, entry in before[1].items():
                assert all(torch.equal(optimizer.state[p][key], value) for key, value in entry.items())
        else:
            assert not torch.equal(values(model)[0], before[0][0])
    assert scaler.get_scale() == 2.0**12


def skips_together(device: torch.device, name: str, where: str) -> None:
    """A gradient that is not finite in a shard of one rank: no rank makes the step, and all go on alike."""
    import torch.distributed as dist

    from test_sharded_optimizers import Twins, assert_same, make
    from test_sharded_optimizers import train as train_twins

    twins = Twins(device, ["rows", "plain", "last"])
    pair = make(twins, name, "fisher", skip_nonfinite=True, mask_interval=10**6)
    train_twins(twins, pair, 2)
    assert not any(optimizer.last_step_skipped.item() for optimizer in pair)
    for which in ("first", "second") if "SAM" in name else ("second",):
        before = [values_of(twins.parts), values_of(twins.whole)]
        twins.new_gradients()
        twins.drop_non_finite()
        good = [[p.grad for p in params] for params in (twins.parts, twins.whole)]
        bad = [[g.clone() for g in grads] for grads in good]
        if dist.get_rank() == 0:
            bad[0][0].to_local()[0, 0] = torch.nan  # of a matrix by rows: the other ranks do not see it
        bad[1][0][0, 0] = torch.nan
        for optimizer, params, spoilt, fine in zip(pair, (twins.parts, twins.whole), bad, good, strict=True):
            for now in ("first", "second") if "SAM" in name else ("second",):
                for p, g in zip(params, spoilt if now == which else fine, strict=True):
                    p.grad = g
                if now == "first":
                    optimizer.first_step()
            optimizer.step()
            assert optimizer.last_step_skipped.item()
        assert all(torch.equal(a, b) for a, b in zip(before[0], values_of(twins.parts), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(before[1], values_of(twins.whole), strict=True))
    train_twins(twins, pair, 2)
    assert_same(twins, *pair)


def values_of(params: list[Tensor]) -> list[Tensor]:
    return [getattr(p.detach(), "_local_tensor", p.detach()).clone() for p in params]


@pytest.mark.parametrize("name", ["AdmIRE", "SAMIRE-sgd"])
def test_ranks_skip_together(ranks, name):
    ranks(2).run(skips_together, name, "second")
