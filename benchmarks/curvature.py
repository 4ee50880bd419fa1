"""Curvature on the CPU: the projector against torch, and Lanczos outside of its products against a copy's bandwidth.

    python -m benchmarks.curvature [--repeats 7] [--millions 10]

Every ratio is within a round of interleaved runs, the median over the rounds. Results go to
benchmarks/results/curvature.json.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import interleaved, save
from torch_ire import ops
from torch_ire.curvature import CallableOperator, lanczos

ROWS = 20
STEPS = 30


def projector(size: int, repeats: int) -> dict[str, Any]:
    """The projector v - Q^T Q v for 20 rows: ours, the line of torch that it equals, and ours with a bfloat16 basis."""
    basis, vector = torch.randn(ROWS, size) / size**0.5, torch.randn(size)
    half = basis.bfloat16()
    seconds, ratio = interleaved(
        {
            "project_out": lambda: lambda: ops.project_out([vector], [basis]),
            "v - Q.T @ (Q @ v)": lambda: lambda: vector - basis.T @ (basis @ vector),
            "project_out, bfloat16 basis": lambda: lambda: ops.project_out([vector], [half]),
        },
        repeats,
    )
    print(f"project_out, m = {ROWS}, p = {size}: {ratio:.2f} of torch's time")
    return {"project_out": {"seconds": seconds, "ratio": ratio}}


def lanczos_overhead(size: int, repeats: int) -> dict[str, Any]:
    """Thirty steps without the time of the products, in units of the traffic of two passes of two reads each."""
    diagonal = torch.linspace(0, 1, size) ** 8
    spent = 0.0

    def product(vector: Tensor) -> Tensor:
        nonlocal spent
        start = time.perf_counter()
        result = diagonal * vector
        spent += time.perf_counter() - start
        return result

    operator = CallableOperator(product, size)
    copied = torch.empty(5 * size)
    source = torch.ones(5 * size)
    outside, bandwidth = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        copied.copy_(source)
        bandwidth.append(8 * 5 * size / (time.perf_counter() - start))
        spent, start = 0.0, time.perf_counter()
        lanczos(operator, 10, tol=1e-12, max_matvecs=STEPS, max_basis=STEPS + 1, progress=False)
        outside.append(time.perf_counter() - start - spent)
    basis_reads = 4 * sum(range(1, STEPS + 1))
    vector_traffic = 6 * STEPS + STEPS + 10  # of w and the new row each step, and of the Ritz vectors at the end
    floor = 4 * size * (basis_reads + vector_traffic) / sorted(bandwidth)[repeats // 2]
    ratio = sorted(outside)[repeats // 2] / floor
    print(f"lanczos, {STEPS} steps, p = {size}: {ratio:.2f} of the bytes' floor outside of the products")
    return {"lanczos": {"outside": outside, "bandwidth": bandwidth, "floor": floor, "ratio": ratio}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--millions", type=int, default=10)
    args = parser.parse_args()
    size = args.millions * 1_000_000
    found = {**projector(size, args.repeats), **lanczos_overhead(size, max(3, args.repeats // 2))}
    path = save("curvature", found)
    print(f"written to {path.relative_to(path.parents[2])}")


if __name__ == "__main__":
    main()
