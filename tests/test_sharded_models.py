"""Models that torch shards: FSDP2, hybrid, tensor parallel beside plain layers, and both together."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from benchmarks.traffic import Traffic
from torch import Tensor, nn

import torch_ire
from optimizer_cases import CASES, IDS
from torch_ire.packed_mask import count_flat

CASE = dict(zip(IDS, CASES, strict=True))
WAYS = {2: ["fsdp", "tensor"], 4: ["fsdp", "hybrid", "tensor", "fsdp x tensor"]}
EVERY = [(world_size, way) for world_size, ways in WAYS.items() for way in ways]


def model_of(device: torch.device) -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.5)
    return model.to(device)


def sharded(model: nn.Sequential, way: str, device: torch.device) -> tuple[nn.Module, int, int]:
    """The model spread over all ranks, with this rank's number among those that get different data, and their count."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    world_size = dist.get_world_size()
    if way in ("fsdp", "hybrid"):
        sizes, names = ((world_size,), ("data",)) if way == "fsdp" else ((2, 2), ("replica", "data"))
        mesh = init_device_mesh(device.type, sizes, mesh_dim_names=names)
        for layer in model:
            if list(layer.parameters()):
                fully_shard(layer, mesh=mesh)
        return fully_shard(model, mesh=mesh), dist.get_rank(), world_size
    data = 2 if way == "fsdp x tensor" else 1
    mesh = init_device_mesh(device.type, (data, world_size // data), mesh_dim_names=("data", "model"))
    # LayerNorm and the last layer are plain, or sharded by fully_shard alone
    parallelize_module(model, mesh["model"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    if data > 1:
        for i in (0, 2):
            fully_shard(model[i], mesh=mesh["data"])
    return model, mesh.get_local_rank("data"), data


def batch(step: int, rank: int, parts: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    x, y = torch.randn(16, 6, generator=generator), torch.randint(3, (16,), generator=generator)
    return x.chunk(parts)[rank].to(device), y.chunk(parts)[rank].to(device)


def full(tensor: Tensor) -> Tensor:
    return tensor.detach().full_tensor() if hasattr(tensor, "full_tensor") else tensor.detach()


def average_plain(model: nn.Module, way: str) -> None:
    """What DDP would do for the layers that tensor parallelism leaves plain, where there is data parallelism beside."""
    if way == "fsdp x tensor":
        for p in model.parameters():
            if p.grad is not None and not hasattr(p, "placements"):
                dist.all_reduce(p.grad)
                p.grad /= dist.get_world_size()


def trains_like_one_process(device: torch.device, case: str, way: str) -> list[Any]:
    whole = model_of(device)
    model, rank, parts = sharded(copy.deepcopy(whole), way, device)
    arguments = {"kappa": 2.0, "gamma": 0.6, "mask_interval": 2, "curvature": "random"}
    pair = [(whole, CASE[case](whole.parameters(), **arguments)), (model, CASE[case](model.parameters(), **arguments))]
    for step in range(5):
        for network, optimizer in pair:
            x, y = batch(step, *((rank, parts) if network is model else (0, 1)), device)

            def backward(network: Any = network, x: Tensor = x, y: Tensor = y) -> None:
                F.cross_entropy(network(x), y).backward()
                if network is model:
                    average_plain(network, way)

            if isinstance(optimizer, torch_ire.SAMIRE):
                if optimizer.param_groups[0]["perturbation"] == "gradient":
                    backward()
                optimizer.first_step(zero_grad=True)
            backward()
            optimizer.step()
            optimizer.zero_grad()
    for ours, theirs in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(full(ours), theirs.detach(), rtol=1e-4, atol=1e-5)
    moved = max(
        float((p - q).abs().max()) for p, q in zip(whole.parameters(), model_of(device).parameters(), strict=True)
    )
    assert moved > 0.01
    return [full(p).tolist() for p in model.parameters()]


@pytest.mark.parametrize("case", ["AdmIRE", "SAMIRE-sgd", "average-SAMIRE"])
@pytest.mark.parametrize(("world_size", "way"), EVERY)
def test_training_is_that_of_one_process(ranks, world_size, way, case):
    results = ranks(world_size).run(trains_like_one_process, case, way)
    assert all(result == results[0] for result in results)


def ranks_the_gathered_gradients(device: torch.device, way: str, curvature: str) -> float:
    model, rank, parts = sharded(model_of(device), way, device)
    params = list(model.parameters())
    optimizer = torch_ire.AdmIRE(params, lr=0.05, gamma=0.37, mask_interval=1, curvature=curvature)
    labels = torch_ire.LabelGenerator(seed=4, rank=rank)
    for step in range(3):
        x, y = batch(step, rank, parts, device)
        if curvature == "fisher":
            torch_ire.sampled_cross_entropy(model(x), generator=labels).backward()
            average_plain(model, way)
            scores = torch.cat([full(p.grad).flatten().square() for p in params])
            optimizer.update_mask()
        F.cross_entropy(model(x), y).backward()
        average_plain(model, way)
        optimizer.step()
        if curvature == "second_moment":
            scores = torch.cat([full(optimizer.state[p]["exp_avg_sq"]).flatten() for p in params])
        optimizer.zero_grad()
        threshold = scores.kthvalue(round(0.37 * scores.numel())).values
        state = optimizer.state_dict()["state"]
        flat = torch.cat([full(state[i]["flat_mask"]).flatten() for i in range(len(params))])
        assert torch.equal(flat, scores <= threshold), step
        assert torch.equal(threshold, optimizer._masks.thresholds["global", 0.37]), step
    return threshold.item()


@pytest.mark.parametrize("curvature", ["fisher", "second_moment"])
@pytest.mark.parametrize(("world_size", "way"), EVERY)
def test_masks_are_those_of_the_gathered_scores(ranks, world_size, way, curvature):
    thresholds = ranks(world_size).run(ranks_the_gathered_gradients, way, curvature)
    assert len(set(thresholds)) == 1
    assert thresholds[0] > 0


def hutchinson_over_tensor_parallel_layers(device: torch.device) -> None:
    model, _, _ = sharded(model_of(device), "tensor", device)
    masks = []
    for network in (model, model_of(device)):
        optimizer = torch_ire.SGDIRE(network.parameters(), lr=0.1, gamma=0.5, curvature="hutchinson", seed=3)
        x, y = batch(0, 0, 1, device)
        optimizer.update_mask(F.cross_entropy(network(x), y), process_group=dist.group.WORLD)
        masks.append(
            torch.cat([full(entry["flat_mask"]).flatten() for entry in optimizer.state_dict()["state"].values()])
        )
    # sums of another order differ in their last bits, and one coordinate may trade places with another
    assert (masks[0] != masks[1]).sum() <= 2
    assert masks[0].sum() == masks[1].sum() == round(0.5 * masks[0].numel())


def other_labels_on_each_data_rank(device: torch.device) -> tuple[list[int], list[int]]:
    logits = torch.zeros(32, 5, device=device, requires_grad=True)

    def labels(generator: torch_ire.LabelGenerator) -> list[int]:
        (grad,) = torch.autograd.grad(torch_ire.sampled_cross_entropy(logits, generator=generator), logits)
        return grad.argmin(1).tolist()

    return labels(torch_ire.LabelGenerator(seed=1)), labels(torch_ire.LabelGenerator(seed=1, rank=dist.get_rank() // 2))


def test_ranks_of_one_tensor_parallel_group_draw_the_same_labels(ranks):
    results = ranks(4).run(other_labels_on_each_data_rank)
    own = [labels for labels, _ in results]
    assert len({tuple(labels) for labels in own}) == 4
    grouped = [labels for _, labels in results]
    assert grouped[0] == grouped[1] == own[0]
    assert grouped[2] == grouped[3] == own[1]


def gradients_scaled(device: torch.device) -> list[float]:
    """An overflow on one rank alone skips the step on all of them."""
    model, rank, parts = sharded(model_of(device), "fsdp", device)
    optimizer = torch_ire.AdmIRE(model.parameters(), lr=0.05, curvature="second_moment", mask_interval=1)
    scaler = torch.amp.GradScaler(device.type, init_scale=8.0, growth_interval=100)
    scales = []
    for step in range(4):
        x, y = batch(step, rank, parts, device)
        before = [full(p).clone() for p in model.parameters()]
        scaler.scale(F.cross_entropy(model(x), y)).backward()
        if step == 2:
            first = next(model.parameters())
            if dist.get_rank() == 0:
                first.grad.to_local()[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        after = [full(p) for p in model.parameters()]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)) == (step == 2)
        scales.append(scaler.get_scale())
    flat = sum(int(count_flat(optimizer.state[p]["flat_mask"])) for p in model.parameters())
    return [*scales, flat > 0]


def test_a_grad_scaler_over_shards(ranks):
    for result in ranks(2).run(gradients_scaled):
        assert result == [8.0, 8.0, 4.0, 4.0, True]


def skipped_by_itself(device: torch.device, name: str) -> None:
    """The same without a scaler: one rank sees the overflow, all ranks leave out the step."""
    model, rank, parts = sharded(model_of(device), "fsdp", device)
    optimizer = CASE[name](model.parameters(), lr=0.05, curvature="random", skip_nonfinite=True)
    for step in range(4):
        x, y = batch(step, rank, parts, device)
        before = [full(p).clone() for p in model.parameters()]
        F.cross_entropy(model(x), y).backward()
        if step == 1 and dist.get_rank() == 0:
            next(model.parameters()).grad.to_local()[0, 0] = torch.nan
        with Traffic() as traffic:
            optimizer.step()
        assert traffic.payload == 4
        optimizer.zero_grad()
        after = [full(p) for p in model.parameters()]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)) == (step == 1)
        assert bool(optimizer.last_step_skipped) == (step == 1)
    optimizer.check_replicas()


@pytest.mark.parametrize("case", ["AdmIRE", "SGDIRE"])
def test_an_overflow_on_one_rank_skips_on_all(ranks, case):
    ranks(2).run(skipped_by_itself, case)


def test_hutchinson_over_tensor_parallel_layers(ranks):
    ranks(2).run(hutchinson_over_tensor_parallel_layers)
