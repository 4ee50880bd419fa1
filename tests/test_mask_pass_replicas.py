"""refresh_mask() gives all replicas of a model the same mask, also where DDP does not average."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import torch_ire
from optimizer_cases import batch, small_model
from ranks import Ranks

WORLD = 2


def run(device: torch.device, options: dict[str, Any]) -> dict[str, list[torch.Tensor]]:
    """Four steps of DDP with an accumulated micro-batch each; the mask's pass comes where ``options`` say."""
    rank = torch.distributed.get_rank()
    model = small_model().to(device)
    replica = DistributedDataParallel(model, gradient_as_bucket_view=True)
    opt = torch_ire.AdmIRE(replica.parameters(), lr=1e-2, mask_interval=2, **options.get("arguments", {}))
    labels = torch_ire.LabelGenerator(seed=7)
    for step in range(4):
        data = [tuple(t.to(device) for t in batch(4 * step + 2 * rank + half)) for half in range(2)]
        for half, (x, y) in enumerate(data):
            with replica.no_sync() if half == 0 else contextlib.nullcontext():
                if half == options["when"]:
                    given = replica if options.get("wrapped") else model
                    if not options.get("by_hand"):
                        torch_ire.refresh_mask(opt, given, (x, y), generator=labels)
                    elif opt.mask_due():
                        aside = [p.grad for p in model.parameters()]
                        opt.zero_grad()
                        torch_ire.sampled_cross_entropy(replica(x), generator=labels).backward()
                        opt.update_mask(num_predictions=64.0)
                        for p, grad in zip(model.parameters(), aside, strict=True):
                            p.grad = grad
                (F.cross_entropy(replica(x), y) / 2).backward()
        opt.step()
        opt.zero_grad()
    state = opt.state_dict()["state"].values()
    return {
        "masks": [entry["flat_mask"].cpu() for entry in state],
        "averages": [entry["hessian_diag"].cpu() for entry in state if "hessian_diag" in entry],
        "parameters": [p.detach().cpu() for p in model.parameters()],
    }


def agree(answers: list[dict[str, list[torch.Tensor]]]) -> bool:
    return all(
        len(first) == len(other) and all(map(torch.equal, first, other))
        for answer in answers[1:]
        for first, other in zip(answers[0].values(), answer.values(), strict=True)
    )


@pytest.mark.parametrize("curvature", ["fisher", "hutchinson"])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("when", [0, 1], ids=["in no_sync", "after accumulation"])
def test_replicas_get_one_mask(ranks: Callable[[int], Ranks], when: int, wrapped: bool, curvature: str) -> None:
    options = {"when": when, "wrapped": wrapped, "arguments": {"curvature": curvature}}
    answers = ranks(WORLD).run(run, options)
    assert agree(answers)
    flat = torch.cat([mask.flatten() for mask in answers[0]["masks"]]).float().mean()
    assert float(flat) == pytest.approx(0.8, abs=0.01)


def test_estimates_equal_those_of_a_pass_through_ddp(ranks: Callable[[int], Ranks]) -> None:
    """With B over all replicas."""
    arguments = {"curvature_beta": 0.5}
    ours = ranks(WORLD).run(run, {"when": 0, "arguments": arguments})
    theirs = ranks(WORLD).run(run, {"when": 1, "by_hand": True, "arguments": arguments})
    assert agree(ours)
    assert len(ours[0]["averages"]) == len(theirs[0]["averages"]) == 4
    again = ranks(WORLD).run(run, {"when": 1, "arguments": arguments})
    assert agree([again[0], theirs[0]])


def lonely(device: torch.device) -> tuple[list[torch.Tensor], bool]:
    """A parameter that only rank 1 uses, and one that nobody does."""
    rank = torch.distributed.get_rank()
    model = nn.ModuleDict({name: nn.Linear(6, 4) for name in ("shared", "second", "unused")}).to(device)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    x = torch.randn(8, 6, generator=generator).to(device)
    opt = torch_ire.AdmIRE(model.parameters(), gamma=0.5)

    def forward(model: Any, x: torch.Tensor) -> torch.Tensor:
        return model["shared"](x) + (model["second"](x) if rank == 1 else 0.0)

    torch_ire.refresh_mask(opt, model, x, forward=forward)
    state = opt.state_dict()["state"]
    return [state[i]["flat_mask"].cpu() for i in sorted(state)], all(p.grad is None for p in model.parameters())


def test_a_rank_without_gradients_takes_part(ranks: Callable[[int], Ranks]) -> None:
    (first, clean), (second, _) = ranks(WORLD).run(lonely)
    assert clean
    assert len(first) == 4  # of "shared" and "second"; nobody has an estimate for "unused"
    assert all(map(torch.equal, first, second))


def sharded_and_accumulated(device: torch.device, with_masks: bool) -> list[torch.Tensor]:
    """Two steps of FSDP2 whose first micro-batch is not synchronised; the masks are refreshed between the two."""
    rank = torch.distributed.get_rank()
    model = small_model().to(device)
    fully_shard(model[0])
    fully_shard(model)
    opt = torch_ire.AdmIRE(model.parameters(), lr=1e-2, kappa=0.0, mask_interval=1)
    for step in range(2):
        for half in range(2):
            x, y = (t.to(device) for t in batch(4 * step + 2 * rank + half))
            model.set_requires_gradient_sync(half == 1)
            if half == 1 and with_masks:
                assert torch_ire.refresh_mask(opt, model, (x, y))
            F.cross_entropy(model(x), y).backward()
        opt.step()
        opt.zero_grad()
    return [p.detach().full_tensor().cpu() for p in model.parameters()]


def test_unsynchronised_gradients_of_fsdp2_are_left_alone(ranks: Callable[[int], Ranks]) -> None:
    without = ranks(WORLD).run(sharded_and_accumulated, False)
    with_masks = ranks(WORLD).run(sharded_and_accumulated, True)
    for ours, theirs in zip(with_masks, without, strict=True):
        assert all(map(torch.equal, ours, theirs))
