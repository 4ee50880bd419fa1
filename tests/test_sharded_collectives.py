"""What sharded optimizers send, when, and that all ranks take part: nothing in a step, kilobytes in a refresh."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from benchmarks.traffic import Traffic
from torch import Tensor

import torch_ire
from optimizer_cases import IDS
from test_sharded_optimizers import Twins, make, meshes, same_bits, spread_out, train
from torch_ire.packed_mask import count_flat


def traffic_of_training(device: torch.device, name: str, curvature: str) -> None:
    twins = Twins(device, ["rows", "plain", "last"])
    optimizer, _ = make(twins, name, curvature, mask_interval=3)
    for step in range(7):
        if optimizer.mask_due():
            twins.new_gradients()
            with Traffic() as traffic:
                optimizer.update_mask()
            # that there is an estimate, and three digits of the threshold, for each way to shard
            assert [op for op, _ in traffic.calls] == ["allreduce_"] * 4
            assert traffic.payload == 8 + 3 * 8 * 2049
        twins.new_gradients()
        twins.drop_non_finite()
        if isinstance(optimizer, torch_ire.SAMIRE):
            with Traffic() as traffic:
                optimizer.first_step()
            assert [op for op, _ in traffic.calls] == ["allgather_"]
            assert traffic.payload == 16
        with Traffic() as traffic:
            optimizer.step()
        refreshes = curvature == "second_moment" and step % 3 == 0
        assert len(traffic.calls) == (4 if refreshes else 0), step
    # the step by which DCP makes the state of a fresh optimizer
    fresh, _ = make(twins, name, curvature, lr=0.0)
    before = [param.detach().clone() for param in twins.parts]
    for param in twins.parts:
        param.grad = torch.zeros_like(param)
    with Traffic() as traffic:
        fresh.step()
    # whether the gradients are zero on all ranks: at the first step of a warm-up from 0 they are not
    assert [op for op, _ in traffic.calls] == ["allreduce_"]
    assert traffic.payload == 8
    assert all(group["ire_step"] == 0 for group in fresh.param_groups)
    for old, new in zip(before, twins.parts, strict=True):
        assert same_bits(getattr(old, "_local_tensor", old), getattr(new, "_local_tensor", new).detach())


def first_step_of_a_warm_up(device: torch.device) -> None:
    """Gradients on one rank alone: all ranks count the step."""
    twins = Twins(device, ["rows", "last"])
    optimizer, _ = make(twins, "AdmIRE", "fisher", lr=0.0)
    for param in twins.parts:
        param.grad = torch.zeros_like(param)
    if dist.get_rank() == 0:
        twins.parts[0].grad.to_local().fill_(1.0)
    optimizer.step()
    assert all(group["ire_step"] == 1 for group in optimizer.param_groups)


def test_ranks_agree_on_what_is_a_step(ranks):
    ranks(2).run(first_step_of_a_warm_up)


@pytest.mark.parametrize("case", IDS)
def test_a_step_sends_nothing_and_a_refresh_kilobytes(ranks, case):
    ranks(2).run(traffic_of_training, case, "fisher")


@pytest.mark.parametrize("curvature", ["second_moment", "random"])
def test_a_step_that_refreshes_by_itself(ranks, curvature):
    ranks(2).run(traffic_of_training, "AdmIRE", curvature)


def traffic_of_replicas(device: torch.device) -> None:
    model = torch.nn.Linear(5, 3).to(device)
    for make_optimizer in (torch_ire.AdmIRE, torch_ire.SAMIRE):
        optimizer = make_optimizer(model.parameters())
        with Traffic() as traffic:
            torch_ire.sampled_cross_entropy(model(torch.ones(4, 5, device=device))).backward()
            optimizer.update_mask()
            model(torch.ones(4, 5, device=device)).sum().backward()
            optimizer.step()
        assert traffic.calls == []


def test_replicas_send_nothing(ranks):
    """Gradients are averaged already: masks are equal without a word."""
    ranks(2).run(traffic_of_replicas)


def traffic_by_size(device: torch.device, rows: int) -> tuple[int, int]:
    way = meshes(device)["rows"]
    param = torch.nn.Parameter(spread_out(torch.zeros(rows, 1000, device=device), way))
    param.grad = spread_out(torch.randn(rows, 1000, generator=torch.Generator().manual_seed(0)).to(device), way)
    optimizer = torch_ire.AdmIRE([param])
    with Traffic() as traffic:
        optimizer.update_mask()
    flat = count_flat(optimizer.state[param]["flat_mask"])
    dist.all_reduce(flat)
    return traffic.payload, int(flat)


def test_a_threshold_costs_the_same_whatever_the_size_of_the_model(ranks):
    small, large = ranks(4).run(traffic_by_size, 1), ranks(4).run(traffic_by_size, 2000)
    assert [payload for payload, _ in small] == [payload for payload, _ in large] == [49184] * 4
    assert 2 * 49184 <= 256 * 1024  # a ring sends a payload at most twice
    assert {flat for _, flat in small} == {800}
    assert {flat for _, flat in large} == {1_600_000}


def gradients_on_one_rank(device: torch.device, curvature_beta: float) -> tuple[float, int]:
    """Rank 0 has estimates; the others have none, or a part of them: the threshold is that of what there is."""
    twins = Twins(device, ["rows", "last"])
    optimizer, _ = make(twins, "SGDIRE", "fisher", curvature_beta=curvature_beta)
    twins.new_gradients()
    twins.drop_non_finite()
    here = twins.parts if dist.get_rank() == 0 else twins.parts[:2] if dist.get_rank() == 1 else []
    for param in twins.parts:
        if not any(param is p for p in here):
            param.grad = None
    scores = torch.cat([torch.zeros(0, device=device)] + [p.grad.to_local().flatten().square() for p in here])
    optimizer.update_mask()
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, scores.tolist())
    ranked = torch.tensor([score for part in gathered for score in part]).sort().values
    k = round(0.6 * ranked.numel())
    ((_, threshold),) = optimizer._masks.thresholds.items()
    assert float(threshold) == float(ranked[k - 1])
    masks = [optimizer.state[p]["flat_mask"] for p in twins.parts if "flat_mask" in optimizer.state[p]]
    assert len(masks) == len(here)
    assert sum(int(count_flat(mask)) for mask in masks) == int((scores <= threshold).sum())
    return float(threshold), len(here)


@pytest.mark.parametrize("curvature_beta", [0.0, 0.5])
@pytest.mark.parametrize("world_size", [2, 4])
def test_a_rank_without_gradients_takes_part(ranks, world_size, curvature_beta):
    results = ranks(world_size).run(gradients_on_one_rank, curvature_beta)
    assert len({threshold for threshold, _ in results}) == 1
    assert results[0][1] > results[1][1]


def no_gradients_at_all(device: torch.device, name: str) -> list[str]:
    twins = Twins(device, ["rows", "plain"])
    optimizer, _ = make(twins, name, "fisher")
    messages = []
    for call in ("update_mask", "first_step") if isinstance(optimizer, torch_ire.SAMIRE) else ("update_mask",):
        with pytest.raises(RuntimeError) as error:
            getattr(optimizer, call)()
        messages.append(str(error.value))
    train(twins, make(twins, name, "fisher"), 2)  # nothing is left in the way
    return messages


@pytest.mark.parametrize("case", ["AdmIRE", "SAMIRE-sgd"])
def test_no_gradient_on_any_rank_is_an_error_on_all(ranks, case):
    results = ranks(2).run(no_gradients_at_all, case)
    assert results[0] == results[1]
    assert all("no parameter has a gradient" in message for message in results[0])


def rests_at_a_learning_rate_of_zero(device: torch.device) -> tuple[int, int]:
    """Rank 1 never has a gradient, and hence no state, when a schedule comes to 0; before, DCP creates state."""
    twins = Twins(device, ["rows"])
    optimizer = torch_ire.AdmIRE(twins.parts, lr=0.0, curvature="second_moment", mask_interval=1)
    for param in twins.parts:
        param.grad = torch.zeros_like(param)
    with Traffic() as traffic:
        optimizer.step()
    assert (optimizer.param_groups[0]["ire_step"], traffic.payload) == (0, 8)
    optimizer.state.clear()
    for lr in (0.1, 0.1, 0.0, 0.0, 0.1):
        optimizer.param_groups[0]["lr"] = lr
        twins.new_gradients()
        twins.drop_non_finite()
        if dist.get_rank() == 1:
            optimizer.zero_grad()
        optimizer.step()
    return optimizer.param_groups[0]["ire_step"], len(optimizer.state)


def test_a_schedule_that_comes_to_zero_where_a_rank_has_no_state(ranks):
    (first, some), (second, none) = ranks(2).run(rests_at_a_learning_rate_of_zero)
    assert first == second == 5
    assert (some > 0, none) == (True, 0)


def perturbed_with_gradients_on_one_rank(device: torch.device, adaptive: bool) -> tuple[float, list[float]]:
    twins = Twins(device, ["rows"])
    optimizer = torch_ire.SAMIRE(twins.parts, rho=0.5, adaptive=adaptive)
    twins.new_gradients()
    twins.drop_non_finite()
    if dist.get_rank() == 1:
        for param in twins.parts:
            param.grad = None
    before = [param.detach().to_local().clone() for param in twins.parts]
    squares = sum(
        float((p.grad.to_local() * (p.detach().to_local() if adaptive else 1)).double().square().sum())
        for p in twins.parts
        if p.grad is not None
    )
    optimizer.first_step()
    with pytest.raises(RuntimeError, match="called twice"):
        optimizer.first_step()
    norm = float(optimizer._perturbation.norm)
    if dist.get_rank() == 0:
        assert norm == pytest.approx(squares**0.5, rel=1e-6)
    moved = sum(
        float((p.detach().to_local() - b).double().square().sum()) for p, b in zip(twins.parts, before, strict=True)
    )
    for param in twins.parts:
        param.grad = torch.zeros_like(param)
    optimizer.second_step()
    assert all(same_bits(p.detach().to_local(), b) for p, b in zip(twins.parts, before, strict=True))
    return norm, [moved**0.5]


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_over_ranks_of_which_one_has_no_gradient(ranks, adaptive):
    (first, moved), (second, still) = ranks(2).run(perturbed_with_gradients_on_one_rank, adaptive)
    assert first == second > 0
    assert still == [0.0]
    if not adaptive:
        assert moved == pytest.approx([0.5], rel=1e-4)


def equal_norms(device: torch.device) -> tuple[float, float]:
    twins = Twins(device, ["rows", "plain", "rows of columns", "hybrid"])
    pair = make(twins, "SAMIRE-sgd", "random")
    twins.new_gradients()
    twins.drop_non_finite()
    for optimizer in pair:
        optimizer.first_step()
    for part, whole in zip(twins.parts, twins.whole, strict=True):
        full = part.detach().full_tensor() if hasattr(part, "full_tensor") else part.detach()
        torch.testing.assert_close(full, whole.detach(), rtol=1e-6, atol=1e-6)
    return float(pair[0]._perturbation.norm), float(pair[1]._perturbation.norm)


def test_the_norm_of_sam_is_that_of_all_ranks(ranks):
    results = ranks(4).run(equal_norms)
    assert len({ours for ours, _ in results}) == 1  # to the bit
    assert results[0][0] == pytest.approx(results[0][1], rel=1e-6)


def rejected(device: torch.device) -> None:
    from torch.distributed.tensor import DTensor, Partial, Replicate

    mesh, placements = meshes(device)["rows"]
    partial = DTensor.from_local(torch.ones(4, device=device), mesh, [Partial()], run_check=False)
    param = torch.nn.Parameter(spread_out(torch.ones(4, device=device), (mesh, placements)))
    projector = type("Projector", (), {"refresh": lambda self: None, "amplify_": lambda self, *_: None})()
    for make_optimizer in (torch_ire.AdmIRE, torch_ire.SGDIRE, torch_ire.SAMIRE):
        with pytest.raises(TypeError, match="partial placements"):
            make_optimizer([torch.nn.Parameter(partial)])
        with pytest.raises(TypeError, match="needs plain tensors"):
            make_optimizer([param], curvature=projector)
    with pytest.raises(TypeError, match=r"IRE: .*partial placements"):
        torch_ire.IRE(torch.optim.SGD([torch.nn.Parameter(partial)]))
    plain = torch.nn.Parameter(torch.ones(4, device=device))
    plain.grad, optimizer = None, torch_ire.AdmIRE([param, plain])
    # partial sums, which sequence parallelism leaves: redistributed as torch's optimizers do
    whole = torch.nn.Parameter(spread_out(torch.ones(4, device=device), (mesh, [Replicate()])))
    whole.grad = partial
    reference = torch.nn.Parameter(torch.ones(4, device=device))
    reference.grad = torch.full((4,), float(dist.get_world_size()), device=device)
    for p in (whole, reference):
        torch_ire.SGDIRE([p], lr=0.1).step()
    assert torch.equal(whole.detach().to_local(), reference.detach())
    assert optimizer.state_dict()["state"] == {}


def test_what_cannot_be_stepped_is_refused(ranks):
    ranks(2).run(rejected)


def attached(device: torch.device) -> None:
    """IRE(...) on torch's own optimizers over shards."""
    twins = Twins(device, ["rows", "last"])
    results: list[list[Tensor]] = []
    for params in (twins.parts, twins.whole):
        optimizers = [torch.optim.SGD(params[::2], lr=0.1, momentum=0.9), torch.optim.NAdam(params[1::2], lr=0.1)]
        handle = torch_ire.IRE(optimizers, kappa=2.0, gamma=0.5, mask_interval=2)
        twins.generator.manual_seed(17)
        for _ in range(4):
            if handle.mask_due():
                twins.new_gradients()
                handle.update_mask()
            twins.new_gradients()
            twins.drop_non_finite()
            for optimizer in optimizers:
                optimizer.step()
        summary = handle.ire_summary(over_mesh=True)
        state = [optimizer.state_dict()["state"][i]["flat_mask"] for optimizer in optimizers for i in range(6)]
        full = [t.full_tensor() if hasattr(t, "full_tensor") else t for t in [*state, *(p.detach() for p in params)]]
        results.append([*full, torch.tensor(summary["flat_share"]), torch.tensor(summary["displacement_share"])])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert float(results[0][-1]) > 0


def test_the_handle_over_shards(ranks):
    ranks(2).run(attached)
