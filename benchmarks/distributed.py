"""Sharded training on the CPU over Gloo: the step against torch's, and what an exact global threshold sends.

    python -m benchmarks.distributed [--only steps threshold] [--repeats 25]

A ratio is ours over theirs within one round of interleaved runs, the median over the rounds, of the slowest rank. A
barrier precedes every run. Results go to benchmarks/results/distributed.json; `python -m benchmarks.report --write`
puts them into docs/distributed.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import torch_ire
from benchmarks.cpu import MODELS, report
from benchmarks.measure import interleaved, save
from benchmarks.traffic import Traffic
from torch_ire.packed_mask import unpack


def sharded_model(name: str) -> tuple[nn.Module, list[Tensor]]:
    """A module of the given parameters under ``fully_shard``, and the whole gradients that they get."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import distribute_tensor

    generator = torch.Generator().manual_seed(0)
    module = nn.ParameterList([torch.randn(shape, generator=generator) for shape in MODELS[name]])
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(module, mesh=mesh)
    gradients = []
    for param in module.parameters():
        full = torch.randn(param.shape, generator=generator)
        param.grad = distribute_tensor(full, mesh, param.placements, src_data_rank=None)
        # every rank has drawn the same numbers; only one keeps them all
        gradients.append(full if dist.get_rank() == 0 else full.new_empty(0))
    return module, gradients


def steps(repeats: int) -> dict[str, Any]:
    """AdmIRE with a mask of its gradients in place, as it runs between two refreshes, against AdamW."""
    results = {}
    for name in MODELS:
        model, other = sharded_model(name)[0], sharded_model(name)[0]
        ours = torch_ire.AdmIRE(model.parameters(), lr=1e-6)
        theirs = torch.optim.AdamW(other.parameters(), lr=1e-6, fused=True)
        gradients = [p.grad for p in model.parameters()]
        ours.update_mask()
        for p, g in zip(model.parameters(), gradients, strict=True):
            p.grad = g

        def after_a_barrier(run: Callable[[], object]) -> Callable[[], Callable[[], object]]:
            def prepare() -> Callable[[], object]:
                dist.barrier()
                return run

            return prepare

        candidates = {"AdmIRE": after_a_barrier(ours.step), "torch AdamW fused": after_a_barrier(theirs.step)}
        results[f"FSDP2 step, {dist.get_world_size()} ranks, {name}"] = interleaved(candidates, repeats)
    return results


def threshold(_: int) -> dict[str, Any]:
    """One refresh: its traffic, its time, and whether the mask is that of one process, every bit."""
    results = {}
    for name in MODELS:
        model, gradients = sharded_model(name)
        optimizer = torch_ire.AdmIRE(model.parameters(), lr=1e-6)
        dist.barrier()
        start = time.perf_counter()
        with Traffic() as traffic:
            optimizer.update_mask()
        seconds = time.perf_counter() - start
        expected = torch.zeros(())
        if dist.get_rank() == 0:
            total = sum(g.numel() for g in gradients)
            expected = torch_ire.ops.kth_value(gradients, round(0.8 * total), score="square")
        dist.broadcast(expected, src=0)
        (found,) = optimizer._masks.thresholds.values()
        differing = 0
        state = optimizer.state_dict()["state"]
        for i, param in enumerate(model.parameters()):
            # of rank 0 the whole gradients, of which each rank gets its shard
            whole = state[i]["flat_mask"].full_tensor()
            if dist.get_rank() == 0:
                differing += int((whole != (gradients[i].square() <= expected)).sum())
            part = param.detach().to_local()
            packed = unpack(optimizer.state[param]["flat_mask"], part)
            differing += int((packed != state[i]["flat_mask"].to_local()).sum())
        results[f"exact threshold, {dist.get_world_size()} ranks, {name}"] = {
            "payload_bytes_a_rank": traffic.payload,
            # of a ring: each rank sends 2 (n - 1) / n of its payload
            "ring_bytes_a_rank": 2 * traffic.payload * (dist.get_world_size() - 1) // dist.get_world_size(),
            "collectives": len(traffic.calls),
            "refresh_seconds": seconds,
            "threshold_differs": float(found) != float(expected),
            "bits_that_differ": differing,
        }
    return results


PARTS = {"steps": (steps, 2), "threshold": (threshold, 4)}


def _rank(rank: int, world_size: int, part: str, repeats: int, folder: str, answers: SimpleQueue[Any]) -> None:
    torch.set_num_threads(1)
    rendezvous = (Path(folder) / "rendezvous").as_uri()
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world_size)
    answers.put(PARTS[part][0](repeats))
    dist.barrier()
    dist.destroy_process_group()


def run(part: str, repeats: int) -> list[dict[str, Any]]:
    """What a part returns on each of its ranks."""
    world_size = PARTS[part][1]
    answers: SimpleQueue[Any] = mp.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (world_size, part, repeats, folder, answers)
        processes = mp.spawn(_rank, arguments, nprocs=world_size, join=False)
        results = [answers.get() for _ in range(world_size)]
        while not processes.join():
            pass
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=25)
    args = parser.parse_args()
    torch.set_num_threads(1)  # as on each rank; it is what the results say of them
    for part in args.only:
        ranks = run(part, args.repeats)
        results = {}
        for name in ranks[0]:
            if part == "steps":
                times, ratio = max((rank[name] for rank in ranks), key=lambda measured: measured[1])
                results[name] = report(name, times, ratio)
            else:
                slowest = max((rank[name] for rank in ranks), key=lambda measured: measured["refresh_seconds"])
                differing = sum(rank[name]["bits_that_differ"] for rank in ranks)
                differs = any(rank[name]["threshold_differs"] for rank in ranks)
                results[name] = {**slowest, "bits_that_differ": differing, "threshold_differs": differs}
                print(f"{name}: {results[name]}")
        path = save("distributed", results)
    print(f"written to {path.relative_to(path.parents[2])}")


if __name__ == "__main__":
    main()
