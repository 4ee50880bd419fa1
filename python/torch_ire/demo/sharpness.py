"""Trace of the Hessian of a trained model: small where the minimum is flat."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_ire.demo.data import Dataset
from torch_ire.demo.training import Run, build_model, loss_of

# Batches of training examples that the trace is measured on.
_BATCHES = 2


@dataclass(frozen=True)
class TraceJob:
    """One trace to estimate: of the model that ``run`` ended with."""

    run: Run
    probes: int


def hessian_trace(loss: Tensor, params: list[Tensor], probes: int, generator: torch.Generator) -> float:
    """Hutchinson's estimate of the trace of the Hessian.

    ``tr H = E[z^T H z]`` for z with independent entries +1 and -1.

    Args:
        loss: scalar, computed from ``params`` by twice differentiable operations.
        params: leaves that require gradients.
        probes: number of vectors z; one Hessian-vector product each.
        generator: draws the vectors, on the CPU.

    Returns:
        The mean over the probes, in the units of the loss over squared parameter.

    Determinism: the same for the same generator state.

    References: M. F. Hutchinson, A stochastic estimator of the trace of the influence matrix (1989).

    Example:
        >>> import torch
        >>> x = torch.ones(3, requires_grad=True)
        >>> hessian_trace((x**2).sum(), [x], 2, torch.Generator().manual_seed(0))
        6.0
    """
    grads = torch.autograd.grad(loss, params, create_graph=True)
    total = 0.0
    for _ in range(probes):
        signs = [torch.randint(0, 2, p.shape, generator=generator).to(p.dtype).mul_(2).sub_(1) for p in params]
        products = torch.autograd.grad(grads, params, signs, retain_graph=True)
        total += sum(float((z * hz).sum()) for z, hz in zip(signs, products, strict=True))
    return total / probes


def trace_of_run(job: TraceJob, data: Mapping[str, Dataset], on_steps: Callable[[int], None]) -> float:
    """The trace at the weights that a run ended with, on examples of its training split.

    BatchNorm uses its running statistics, which makes the loss a function of the weights alone.
    """
    part, seed = job.run.job.part, job.run.job.seed
    model = build_model(part)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in job.run.weights.items()})
    model.eval()
    loss = loss_of(model, *data[part.name].train.spread(_BATCHES * part.batch_size))
    trace = hessian_trace(loss, list(model.parameters()), job.probes, torch.Generator().manual_seed(seed))
    on_steps(1)
    return trace
