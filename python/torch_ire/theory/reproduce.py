"""Experiments A to D in one call: the table and the picture."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import torch

from torch_ire.theory.average_sam import average_sam
from torch_ire.theory.comparison import Outcome, print_table
from torch_ire.theory.curved_manifold import curved_manifold
from torch_ire.theory.picture import draw
from torch_ire.theory.single_sample_sam import single_sample_sam
from torch_ire.theory.toy import toy

__all__ = ["reproduce"]


def reproduce(picture: str | Path | None = None, *, quick: bool = False, seed: int = 0, processes: int = 2) -> Outcome:
    """Run experiments A to D, print measured against predicted, and draw the picture.

    Args:
        picture: file of the picture; None draws nothing.
        quick: fewer samples and no end-to-end runs.
        seed: seed of all random numbers.
        processes: experiments that run at the same time; each uses one thread.

    Returns:
        the results; `all(line.holds for line in outcome.comparisons)` confirms the theory.

    Determinism: a seed gives the same numbers.

    Example:
        >>> from torch_ire.theory import reproduce
        >>> found = reproduce("torch-ire-theory.png")  # doctest: +SKIP
    """
    jobs = [(name, quick, seed) for name in ("average_sam", "single_sample_sam", "curved_manifold", "toy")]
    if processes > 1:
        # Spawn: a fork of a process that has used torch's threads may hang.
        with get_context("spawn").Pool(processes) as pool:
            found = pool.map(_run, jobs, chunksize=1)
    else:
        found = [_run(job) for job in jobs]
    outcome = Outcome()
    for part in sorted(found, key=lambda part: part.comparisons[0].experiment):
        outcome.extend(part)
    print_table(outcome.comparisons)
    if picture is not None:
        draw(outcome, picture)
    return outcome


def _run(job: tuple[str, bool, int]) -> Outcome:
    name, quick, seed = job
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are small
    experiments: dict[str, Callable[[], Outcome]] = {
        "toy": toy,
        "average_sam": lambda: average_sam(quick=quick, seed=seed),
        "single_sample_sam": lambda: single_sample_sam(quick=quick, seed=seed),
        "curved_manifold": lambda: curved_manifold(quick=quick, seed=seed),
    }
    try:
        return experiments[name]()
    finally:
        torch.set_num_threads(threads)
