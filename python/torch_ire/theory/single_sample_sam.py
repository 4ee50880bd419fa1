"""Experiment C: standard SAM with one sample per step against IRE + SAM (Theorem 5.6), through SAMIRE.

L is the mean of L_i = (n/2) (1 + u^2) v_i^2, n = 4. The unit gradient of a sample is the top eigenvector of its
Hessian, and theory has d ln u / dt = -4 eta_eff with

    eta_eff = (1 + kappa) eta rho^2 4 / (2 - c)^2,    c = eta n (1 + u^2).

On v_i the step is v <- (1 - c) v - c rho sign v, which settles on the two points +-c rho / (2 - c). No noise remains,
so one replica is enough.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from torch_ire.theory.comparison import Curve, Outcome, slope
from torch_ire.theory.sam_runs import SamRun

__all__ = ["SampledProblem", "drift_rate", "halving_steps", "predicted_rate", "single_sample_sam"]

_N = 4


class SampledProblem:
    """The gradient of one sample, which `draw` selects for each step."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._waiting: list[int] = []
        self._mask = torch.zeros(_N, dtype=torch.float64)

    def draw(self) -> None:
        """Select the next sample of a random order."""
        if not self._waiting:
            self._waiting = torch.randperm(_N, generator=self._generator).tolist()
        self._mask = torch.zeros(_N, dtype=torch.float64)
        self._mask[self._waiting.pop()] = _N

    def gradient(self, params: Sequence[Tensor]) -> list[Tensor]:
        """The gradient of the selected sample."""
        u, v = params
        weighted = self._mask * v
        return [u * (weighted * v).sum(), (1 + u**2) * weighted]

    @staticmethod
    def diagonal(params: Sequence[Tensor]) -> list[Tensor]:
        """The Hessian diagonal of the mean loss."""
        u, v = params
        return [(v**2).sum().reshape(1), (1 + u**2).expand_as(v)]


class _Run(SamRun):
    def __init__(self, eta: float, rho: float, kappa: float, seed: int) -> None:
        self._problem = SampledProblem(seed)
        c = 2 * eta * _N
        u = torch.ones(1, dtype=torch.float64)
        # Off the manifold, where gradients are zero, and near the two-point cycle.
        v = torch.full((_N,), 1.05 * c * rho / (2 - c), dtype=torch.float64)
        super().__init__(
            [u, v], self._problem.gradient, lr=eta, rho=rho, kappa=kappa, perturbation="gradient",
            diagonal=SampledProblem.diagonal, gamma=1 / (_N + 1),
        )  # fmt: skip

    def step(self) -> None:
        self._problem.draw()
        super().step()


def predicted_rate(eta: float, rho: float, kappa: float, u: float = 1.0) -> float:
    """eta_eff with its finite-eta factor."""
    return (1 + kappa) * eta * rho**2 * 4 / (2 - eta * _N * (1 + u**2)) ** 2


def drift_rate(eta: float, rho: float, kappa: float = 0.0, *, seed: int = 0) -> float:
    """Measured eta_eff at u = 1, once v has settled."""
    run = _Run(eta, rho, kappa, seed)
    u = run.params[0]
    held = u.detach().clone()
    run.drift(math.ceil(8 / (2 * eta)), u, held)
    return -float(run.drift(100 * _N, u, held)) / _N


def halving_steps(eta: float, rho: float, kappa: float, *, seed: int = 0) -> int:
    """Steps in which u falls from 1 to 1/2.

    Raises:
        RuntimeError: after four times the predicted number of steps.
    """
    run = _Run(eta, rho, kappa, seed)
    return run.steps_until(lambda: run.params[0].item() <= 0.5, predicted_halving(eta, rho, kappa))


def predicted_halving(eta: float, rho: float, kappa: float) -> float:
    """The integral of d ln u / (-4 eta_eff(u)) from 1 to 1/2."""
    nodes = torch.linspace(0.0, math.log(2.0), 1001, dtype=torch.float64)
    inverse = torch.tensor([1 / (4 * predicted_rate(eta, rho, kappa, u=math.exp(-float(x)))) for x in nodes])
    return float(torch.trapezoid(inverse.double(), nodes))


def single_sample_sam(*, quick: bool = False, seed: int = 0) -> Outcome:
    """Run experiment C and compare it with its predictions.

    Args:
        quick: omit the runs from u = 1 to 1/2.
        seed: seed of the order of the samples.
    """
    outcome = Outcome()
    radii = (0.0125, 0.025, 0.05, 0.1, 0.2)
    for name, with_ire, exponent in (("SAM", False, 2.0), ("IRE + SAM", True, 1.0)):
        kappas = [1 / rho - 1 if with_ire else 0.0 for rho in radii]
        rates = [drift_rate(0.005, rho, kappa, seed=seed) for rho, kappa in zip(radii, kappas, strict=True)]
        theory = [predicted_rate(0.005, rho, kappa) for rho, kappa in zip(radii, kappas, strict=True)]
        for rho, rate, value in zip(radii, rates, theory, strict=True):
            outcome.compare("C", f"{name}, rho = {rho:g}: eta_eff", rate, value, 0.01)
        outcome.compare("C", f"{name}: exponent in rho", slope(radii, rates), exponent, 0.005)
        outcome.curves.append(Curve("standard SAM", name, radii, rates, theory))
    etas = (0.0025, 0.005, 0.01, 0.02)
    rates = [drift_rate(eta, 0.05, seed=seed) for eta in etas]
    exponent = slope(etas, [predicted_rate(eta, 0.05, 0.0) for eta in etas])
    outcome.compare("C", "SAM: exponent in eta", slope(etas, rates), exponent, 0.005)
    if not quick:
        _end_to_end(outcome, seed)
    return outcome


def _end_to_end(outcome: Outcome, seed: int) -> None:
    radii = (0.025, 0.05, 0.1, 0.2)
    for name, with_ire, exponent in (("SAM", False, -2.0), ("IRE + SAM", True, -1.0)):
        steps = []
        for rho in radii:
            kappa = 1 / rho - 1 if with_ire else 0.0
            steps.append(halving_steps(0.01, rho, kappa, seed=seed))
            theory = predicted_halving(0.01, rho, kappa)
            outcome.compare("C", f"{name}, rho = {rho:g}: steps from u = 1 to 1/2", steps[-1], theory, 0.03)
        outcome.compare("C", f"{name}: exponent of those steps in rho", slope(radii, steps), exponent, 0.01)
