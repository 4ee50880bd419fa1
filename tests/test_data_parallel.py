"""DistributedDataParallel: replicas stay equal to the bit, labels differ, accumulation and both kinds of SAM work."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import torch_ire
from optimizer_cases import CASES, IDS, small_model

CASE = dict(zip(IDS, CASES, strict=True))


def halves(step: int, rank: int, parts: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(50 + step)
    x, y = torch.randn(32, 8, generator=generator), torch.randint(5, (32,), generator=generator)
    return x.chunk(parts)[rank].to(device), y.chunk(parts)[rank].to(device)


def replicated(device: torch.device, dtype: torch.dtype = torch.float32, **arguments: Any) -> DistributedDataParallel:
    return DistributedDataParallel(small_model(dtype=dtype).to(device), **arguments)


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x.to(next(model.parameters()).dtype)).float(), y)


def bits_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    """Parameters and state as plain numbers, for comparison by the test."""
    state = [entry[key] for entry in optimizer.state.values() for key in sorted(entry)]
    return [t.detach().double().tolist() for t in [*model.parameters(), *state] if isinstance(t, Tensor)]


def steps(
    model: DistributedDataParallel, optimizer: Any, device: torch.device, curvature: str, count: int = 5
) -> list[list[float]]:
    """A training loop; returns how far each first SAM step went, as seen at the first parameter."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    moves = []
    for step in range(count):
        x, y = halves(step, rank, world_size, device)
        if optimizer.mask_due():
            if curvature == "hutchinson":
                optimizer.update_mask(loss(model, x, y), process_group=dist.group.WORLD)
            else:
                torch_ire.sampled_cross_entropy(model(x.to(next(model.parameters()).dtype))).backward()
                optimizer.update_mask()
        if isinstance(optimizer, torch_ire.SAMIRE):
            if optimizer.param_groups[0]["perturbation"] == "gradient":
                loss(model, x, y).backward()
            before = next(model.parameters()).detach().double().clone()
            optimizer.first_step(zero_grad=True)
            moves.append((next(model.parameters()).detach().double() - before).flatten().tolist())
        loss(model, x, y).backward()
        optimizer.step()
        optimizer.zero_grad()
        optimizer.check_replicas()
    return moves


def trained(device: torch.device, case: str, curvature: str, dtype: torch.dtype, arguments: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    torch_ire.default_label_generator.manual_seed(5)
    model = replicated(device, dtype)
    optimizer = CASE[case](model.parameters(), kappa=2.0, gamma=0.6, mask_interval=2, curvature=curvature, **arguments)
    moves = steps(model, optimizer, device, curvature)
    assert 0 < optimizer.ire_summary()["flat_share"] < 1
    return bits_of(model, optimizer), moves


@pytest.mark.parametrize("curvature", ["fisher", "random"])
@pytest.mark.parametrize("case", IDS)
def test_replicas_are_equal_to_the_bit(ranks, case, curvature):
    """Masks, perturbations, moments and parameters; data and labels differ by rank."""
    results = ranks(2).run(trained, case, curvature, torch.float32, {})
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("case", "curvature", "arguments"),
    [
        ("AdmIRE", "second_moment", {}),
        ("AdmIRE", "hutchinson", {}),
        ("AdmIRE", "fisher", {"curvature_beta": 0.5}),
        ("SAMIRE-sgd", "hutchinson", {"curvature_beta": 0.5}),
    ],
)
def test_replicas_are_equal_with_every_curvature(ranks, case, curvature, arguments):
    results = ranks(4).run(trained, case, curvature, torch.float32, arguments)
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("case", ["AdmIRE", "SGDIRE", "SAMIRE-adamw"])
def test_stochastic_rounding_is_the_same_on_all_ranks(ranks, case):
    nearest = ranks(2).run(trained, case, "fisher", torch.bfloat16, {})
    rounded = ranks(2).run(trained, case, "fisher", torch.bfloat16, {"rounding": "stochastic"})
    assert rounded[0] == rounded[1]
    assert rounded[0][0] != nearest[0][0]


def hutchinson_without_replicas(device: torch.device) -> None:
    model = replicated(device)
    optimizer = torch_ire.AdmIRE(model.parameters(), curvature="hutchinson")
    x, y = halves(0, dist.get_rank(), 2, device)
    with pytest.raises(RuntimeError, match="needs the replicas"):
        optimizer.update_mask(loss(model, x, y))
    assert optimizer.state_dict()["state"] == {}


def test_hutchinson_without_a_process_group_is_refused(ranks):
    ranks(2).run(hutchinson_without_replicas)


def drawn_labels(device: torch.device) -> list[int]:
    torch_ire.default_label_generator.manual_seed(7)
    logits = torch.zeros(64, 9, device=device, requires_grad=True)
    torch_ire.sampled_cross_entropy(logits).backward()
    return logits.grad.argmin(1).tolist()


def test_labels_differ_by_rank(ranks):
    labels = ranks(4).run(drawn_labels)
    assert len({tuple(some) for some in labels}) == 4
    assert labels == ranks(4).run(drawn_labels)


# -- accumulation and SAM ----------------------------------------------------------------------------------------------


def accumulated(device: torch.device, case: str) -> Any:
    """docs/distributed.md: all but the last micro-batch inside no_sync, in the mask pass and in both passes of SAM."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    whole = small_model().to(device)
    model = DistributedDataParallel(copy.deepcopy(whole))
    arguments = {"kappa": 2.0, "gamma": 0.6, "mask_interval": 2, "curvature_beta": 0.3}
    pair = [(whole, CASE[case](whole.parameters(), **arguments)), (model, CASE[case](model.parameters(), **arguments))]
    labels = torch.randint(5, (6, 32), generator=torch.Generator().manual_seed(1)).to(device)

    def backward(network: nn.Module, step: int, targets: Tensor) -> None:
        if network is whole:
            loss(network, halves(step, 0, 1, device)[0], targets).backward()
            return
        x = halves(step, rank, world_size, device)[0].chunk(2)
        y = targets.chunk(world_size)[rank].chunk(2)
        for i in range(2):
            last = i == 1
            with contextlib.nullcontext() if last else network.no_sync():
                (loss(network, x[i], y[i]) / 2).backward()

    for step in range(4):
        targets = halves(step, 0, 1, device)[1]
        for network, optimizer in pair:
            if optimizer.mask_due():
                backward(network, step, labels[step])  # given labels: those that are drawn differ by rank
                optimizer.update_mask()
            if isinstance(optimizer, torch_ire.SAMIRE):
                backward(network, step, targets)
                optimizer.first_step(zero_grad=True)
            backward(network, step, targets)
            optimizer.step()
            optimizer.zero_grad()
    for ours, theirs in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    pair[1][1].check_replicas()
    return bits_of(*pair[1])


@pytest.mark.parametrize("case", ["SGDIRE", "SAMIRE-sgd"])
def test_accumulation_equals_one_large_batch(ranks, case):
    results = ranks(2).run(accumulated, case)
    assert results[0] == results[1]


def sam_by(device: torch.device, kind: str) -> tuple[list[float], list[float]]:
    """One SAM step; local: the first pass inside no_sync, its forward too."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    model = replicated(device)
    optimizer = torch_ire.SAMIRE(model.parameters(), lr=0.1, rho=0.5, kappa=0.0)
    x, y = halves(0, rank, world_size, device)
    with model.no_sync() if kind == "local" else contextlib.nullcontext():
        loss(model, x, y).backward()
    before = next(model.parameters()).detach().clone()
    optimizer.first_step(zero_grad=True)
    moved = (next(model.parameters()).detach() - before).flatten().tolist()
    loss(model, x, y).backward()
    optimizer.second_step(zero_grad=True)
    optimizer.check_replicas()

    # the same in one process: the mean of the gradients at each rank's own perturbation, or at that of all
    expected = small_model().to(device)
    gradients = []
    for part in range(world_size):
        twin = copy.deepcopy(expected)
        first = halves(0, part, world_size, device) if kind == "local" else halves(0, 0, 1, device)
        loss(twin, *first).backward()
        norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in twin.parameters()]))
        with torch.no_grad():
            for p in twin.parameters():
                p += 0.5 * p.grad / norm
                p.grad = None
        loss(twin, *halves(0, part, world_size, device)).backward()
        gradients.append([p.grad for p in twin.parameters()])
    for p, ours, *parts in zip(expected.parameters(), model.parameters(), *gradients, strict=True):
        torch.testing.assert_close(ours.detach(), p.detach() - 0.1 * torch.stack(parts).mean(0), rtol=1e-4, atol=1e-6)
    return moved, [float(p.detach().double().sum()) for p in model.parameters()]


@pytest.mark.parametrize("kind", ["local", "global"])
def test_replicas_are_equal_after_local_and_global_sam(ranks, kind):
    (first, parameters), (second, same_parameters) = ranks(2).run(sam_by, kind)
    assert parameters == same_parameters
    assert (first == second) == (kind == "global")


# -- ranks that have less ----------------------------------------------------------------------------------------------


class Branches(nn.Module):
    """Two branches, of which a batch takes one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 5), nn.Linear(8, 5)

    def forward(self, x: Tensor, branch: int) -> Tensor:
        return (self.first if branch == 0 else self.second)(x)


def skipped_branch(device: torch.device, ignore: bool) -> Any:
    """Rank 1 has no use for one branch, or no label at all: its gradients come from the others."""
    torch.manual_seed(0)
    rank = dist.get_rank()
    model = DistributedDataParallel(Branches().to(device), find_unused_parameters=True)
    optimizer = torch_ire.AdmIRE(model.parameters(), lr=0.1, gamma=0.5, mask_interval=1)
    for step in range(3):
        x, y = halves(step, rank, 2, device)
        targets = torch.full_like(y, -100) if ignore and rank == 1 else y
        torch_ire.sampled_cross_entropy(model(x, 0 if ignore else rank), targets).backward()
        optimizer.update_mask()
        F.cross_entropy(model(x, 0 if ignore else rank), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        optimizer.check_replicas()
    unused = [p for p in model.module.second.parameters() if "flat_mask" in optimizer.state[p]]
    assert len(unused) == (0 if ignore else 2)
    return bits_of(model, optimizer)


@pytest.mark.parametrize("ignore", [False, True])
def test_a_rank_without_labels_or_without_a_branch_takes_part(ranks, ignore):
    results = ranks(2).run(skipped_branch, ignore)
    assert results[0] == results[1]


# -- the check ---------------------------------------------------------------------------------------------------------


def drifted(device: torch.device, what: str) -> str:
    model = replicated(device)
    named = list(model.module.named_parameters())
    optimizer = torch_ire.AdmIRE(named, lr=0.1, curvature="random")
    optimizer.label_generator.manual_seed(3).draw()
    loss(model, *halves(0, dist.get_rank(), dist.get_world_size(), device)).backward()
    optimizer.step()
    optimizer.check_replicas()
    if dist.get_rank() == dist.get_world_size() - 1:
        param = named[2][1]
        state = optimizer.state[param]
        with torch.no_grad():
            if what == "parameter":
                param.view(-1)[7] = torch.nextafter(param.view(-1)[7], param.new_tensor(9.0))
            elif what == "exchanged":
                param.view(-1)[[3, 4]] = param.view(-1)[[4, 3]]
            elif what == "exp_avg":
                state["exp_avg"][0, 0] = -state["exp_avg"][0, 0]
            elif what == "flat_mask":
                state["flat_mask"][0] ^= 4
            elif what == "missing":
                del state["flat_mask"]
            elif what == "lr":
                optimizer.param_groups[0]["lr"] = 0.2
            else:
                optimizer.label_generator.draw()
    with pytest.raises(RuntimeError) as error:
        optimizer.check_replicas()
    return str(error.value)


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("parameter", "2.weight: parameter"),
        ("exchanged", "2.weight: parameter"),
        ("exp_avg", "2.weight: exp_avg"),
        ("flat_mask", "2.weight: flat_mask"),
        ("missing", "2.weight: flat_mask"),
        ("lr", "group 0: lr"),
        ("labels", "label_generator: offset"),
    ],
)
def test_a_drift_is_named_on_every_rank(ranks, what, name):
    messages = ranks(2).run(drifted, what)
    assert messages == [f"AdmIRE.check_replicas(): the replicas differ, first in {name}"] * 2


def drifted_shard(device: torch.device) -> str:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh(device.type, (2, 2))
    full = torch.arange(12.0, device=device)
    params = [
        torch.nn.Parameter(distribute_tensor(full, mesh, placements))
        for placements in ([Replicate(), Shard(0)], [Shard(0), Shard(0)], [Replicate(), Replicate()])
    ]
    handle = torch_ire.IRE(torch.optim.SGD(params, lr=0.1), curvature="random")
    handle.check_replicas()
    if dist.get_rank() == 3:
        params[1].detach().to_local().fill_(5.0)  # nobody has the same shard
    handle.check_replicas()
    if dist.get_rank() == 3:
        params[0].detach().to_local()[0] += 1.0  # rank 1 has the same shard; ranks 0 and 2 have another
    with pytest.raises(RuntimeError) as error:
        handle.check_replicas()
    return str(error.value)


def test_shards_are_compared_where_they_are_replicated(ranks):
    messages = ranks(4).run(drifted_shard)
    assert messages == ["IRE.check_replicas(): the replicas differ, first in 0.0: parameter"] * 4


def test_one_process_has_nothing_to_compare():
    torch_ire.AdmIRE(small_model().parameters()).check_replicas()
