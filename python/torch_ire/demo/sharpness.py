"""The trace of the Hessian of a trained model; flat minima have a small one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from torch_ire import curvature
from torch_ire.demo.data import Dataset
from torch_ire.demo.training import Run, build_model, loss_of

# Batches of training examples that the trace is measured on.
_BATCHES = 2


@dataclass(frozen=True)
class TraceJob:
    """One trace to estimate: of the model that ``run`` ended with, from ``probes`` Hessian-vector products."""

    run: Run
    probes: int


def trace_of_run(job: TraceJob, data: Mapping[str, Dataset], on_steps: Callable[[int], None]) -> float:
    """Hutchinson's estimate of the trace at the weights that a run ended with, on examples of its training split.

    BatchNorm uses its running statistics, which makes the loss a function of the weights alone.

    Args:
        job: the run, and the number of products.
        data: by name of the part.
        on_steps: called with 1 when done.

    Returns:
        The trace; nan if the run diverged.
    """
    part, seed = job.run.job.part, job.run.job.seed
    model = build_model(part)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in job.run.weights.items()})
    model.eval()
    examples = data[part.name].train.spread(_BATCHES * part.batch_size)
    hessian = curvature.HessianOperator(lambda: loss_of(model, *examples), model.named_parameters())
    try:
        estimate = curvature.trace(hessian, num_matvecs=job.probes, method="hutchinson", seed=seed, progress=False)
        trace = float(estimate)
    except FloatingPointError:
        trace = float("nan")
    on_steps(1)
    return trace
