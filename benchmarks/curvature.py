"""Curvature on the CPU: the projector against torch, Lanczos without its products, and numbers of products.

    python -m benchmarks.curvature [--only projector lanczos products] [--repeats 15] [--millions 10]

A ratio of times is the median over rounds of interleaved runs, so that other load affects both alike. Results go to
benchmarks/results/curvature.json; `python -m benchmarks.report --write` puts them into docs/curvature.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import interleaved, save, summary
from torch_ire import ops
from torch_ire.curvature import CallableOperator, FlatProjector, lanczos

ROWS = 20
STEPS = 30
NETWORKS, STARTS = 6, 4


def projector(repeats: int, millions: int) -> dict[str, Any]:
    """The projector v - Q^T Q v for 20 rows, with both storages, over the same expression in torch."""
    size = millions * 1_000_000
    basis, vector = torch.randn(ROWS, size) / size**0.5, torch.randn(size)
    half = basis.bfloat16()
    results = {}
    for name, rows in (("float32", basis), ("bfloat16", half)):
        seconds, ratio = interleaved(
            {
                "project_out": lambda rows=rows: lambda: ops.project_out([vector], [rows]),
                "v - Q.T @ (Q @ v)": lambda: lambda: vector - basis.T @ (basis @ vector),
            },
            repeats,
        )
        label = f"`project_out`, m = {ROWS}, p = {millions} M, {name} basis"
        results[label] = {"seconds": seconds, "ratio": ratio}
        print(f"{label}: {ratio:.3f} of torch's time")
    return results


def lanczos_overhead(repeats: int, millions: int) -> dict[str, Any]:
    """Thirty steps without the time of the products, over two reads of the basis per pass at copy bandwidth."""
    size = millions * 1_000_000
    diagonal = torch.linspace(0, 1, size) ** 8
    spent = 0.0

    def product(vector: Tensor) -> Tensor:
        nonlocal spent
        start = time.perf_counter()
        result = diagonal * vector
        spent += time.perf_counter() - start
        return result

    operator = CallableOperator(product, size)
    copied, source = torch.empty(5 * size), torch.ones(5 * size)
    copied.copy_(source)

    def bytes_a_second() -> float:
        start = time.perf_counter()
        for _ in range(4):
            copied.copy_(source)
        return 4 * 8 * 5 * size / (time.perf_counter() - start)

    basis_reads = 4 * sum(range(1, STEPS + 1))
    vector_traffic = 6 * STEPS + STEPS + 10  # w and the new row in each step, the Ritz vectors at the end
    moved = 4 * size * (basis_reads + vector_traffic)
    results = {}
    for name, storage in (("float32", None), ("bfloat16", torch.bfloat16)):
        outside, floors = [], []
        for _ in range(max(3, repeats // 3)):
            before = bytes_a_second()
            spent, start = 0.0, time.perf_counter()
            lanczos(operator, 10, tol=1e-12, max_matvecs=STEPS, max_basis=STEPS + 1, storage=storage, progress=False)
            outside.append(time.perf_counter() - start - spent)
            floors.append(moved / statistics.mean([before, bytes_a_second()]))
        label = f"`lanczos`, {STEPS} steps outside of the products, p = {millions} M, {name} basis"
        ratio = statistics.median(a / b for a, b in zip(outside, floors, strict=True))
        results[label] = {
            "seconds": {"lanczos": summary(outside), "float32 bytes at copy bandwidth": summary(floors)},
            "ratio": ratio,
        }
        print(f"{label}: {ratio:.2f} of the floor")
    return results


def plain_steps(operator: Any, seed: int, exact: Tensor) -> int:
    """Steps after which the Ritz values of an unrestarted run are within 1e-5: the minimum for any stopping rule."""
    from torch_ire.curvature.krylov import KrylovSpace
    from torch_ire.curvature.probes import ProbeSource

    probes = ProbeSource(operator, seed)
    space = KrylovSpace(operator, 45, probes.gaussian(), probes)
    while space.size < 45:
        space.expand()
        if space.size >= len(exact):
            values = torch.linalg.eigvalsh(space.matrix).flip(0)[: len(exact)]
            if bool(((values - exact).abs() <= 1e-5 * exact.abs()).all()):
                return space.size
    raise RuntimeError("plain Lanczos has not come within 1e-5 in 45 steps")


def relative_error(values: Tensor, exact: Tensor) -> float:
    """The largest relative error."""
    return float(((values - exact) / exact).abs().max())


def products(*_: int) -> dict[str, Any]:
    """Products for the top 10 eigenvalues to 1e-5 of a 64-24-24-10 tanh network on 1024 digits, after 150 SGD steps."""
    from scipy.sparse.linalg import eigsh
    from tests.curvature_problems import Digits

    def exact_values(digits: Digits) -> Tensor:
        values = eigsh(digits.hessian().to_scipy(), k=11, which="LA", tol=1e-12, return_eigenvectors=False)
        return torch.from_numpy(values.copy()).sort(descending=True).values[:10]

    counts: dict[str, list[int]] = {"least": [], "cold": [], "warm": [], "refresh": []}
    errors: dict[str, list[float]] = {"cold": [], "warm": [], "refresh": []}
    for network in range(NETWORKS):
        early, later = Digits.trained(seed=network), Digits.trained(seed=network)
        later.train(10)
        truth = {"cold": exact_values(early), "warm": exact_values(later)}
        for seed in range(STARTS):
            counts["least"].append(plain_steps(early.hessian(), seed, truth["cold"]))
            cold = lanczos(early.hessian(), 10, tol=1e-5, seed=seed, progress=False)
            warm = lanczos(later.hessian(), 10, tol=1e-5, seed=seed, warm_start=cold, progress=False)
            for name, pairs in (("cold", cold), ("warm", warm)):
                counts[name].append(pairs.num_matvecs)
                errors[name].append(relative_error(pairs.ritz_values, truth[name]))
        moving = Digits.trained(seed=network)
        flat = FlatProjector.from_operator(moving.hessian(), 10, progress=False)
        moving.train(10)
        pairs = flat.refresh()
        counts["refresh"].append(pairs.num_matvecs)
        # of the span that the projector now removes, from separate products
        small = flat.basis @ torch.stack([later.hessian().matvec(row) for row in flat.basis]).T
        errors["refresh"].append(relative_error(torch.linalg.eigvalsh((small + small.T) / 2).flip(0), truth["warm"]))
        of_network = {name: counts[name][-STARTS:] for name in ("least", "cold", "warm")}
        print(f"network {network}: {of_network}, refresh {pairs.num_matvecs}")
    return {"products": {"counts": counts, "relative_errors": errors}}


PARTS = {"projector": projector, "lanczos": lanczos_overhead, "products": products}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--millions", type=int, default=10)
    args = parser.parse_args()
    for part in args.only:
        path = save("curvature", PARTS[part](args.repeats, args.millions))
    print(f"written to {path.relative_to(path.parents[2])}")


if __name__ == "__main__":
    main()
