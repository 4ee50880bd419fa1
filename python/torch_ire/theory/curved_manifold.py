"""Experiment D: a curved manifold whose flat direction mixes coordinates, through SAMIRE.

L = sum over 4 pairs of (a b - 1)^2 / 2. The imbalance a^2 - b^2 decays as exp(-2 eta_eff t), for any targets.
The ideal rate is (1 + kappa) eta rho^2 / p for average SAM and (1 + kappa) eta rho^2 for SAM with one sample per step.
The diagonal mask reaches a part of it, the exact projector nearly all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from torch_ire.theory.comparison import Curve, Outcome, slope
from torch_ire.theory.flat_direction import PairProjector, TangentProjector
from torch_ire.theory.sam_runs import SamRun

__all__ = ["average_share", "curved_manifold", "sampled_share"]

_PAIRS = 4


def gradient(params: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of all pairs."""
    a, b = params
    error = a * b - 1
    return [error * b, error * a]


def diagonal(params: Sequence[Tensor]) -> list[Tensor]:
    """The Hessian diagonals of all pairs."""
    a, b = params
    return [b**2, a**2]


def _start(pairs: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    noise = 1e-3 * torch.randn(2, pairs, generator=generator, dtype=torch.float64)
    return [2.0 + noise[0], 0.5 + noise[1]]


def _how(kind: str) -> dict[str, object]:
    if kind == "mask":
        return {"diagonal": diagonal, "mask_interval": 10}
    projectors = {"exact": PairProjector(), "tangent": TangentProjector(), "base": None}
    return {"projector": projectors[kind]}


def _imbalance(run: SamRun) -> float:
    a, b = (p.detach() for p in run.params)
    return float((a**2 - b**2).mean())


def _rate(run: SamRun, steps: int, settling: int) -> float:
    """eta_eff from the decay of the imbalance, after the initial transient."""
    for _ in range(settling):
        run.step()
    first = _imbalance(run)
    for _ in range(steps):
        run.step()
    return -math.log(_imbalance(run) / first) / (2 * steps)


def average_share(
    kind: str,
    kappa: float,
    *,
    eta: float = 0.05,
    rho: float = 0.1,
    replicas: int = 200,
    decay: float = 0.5,
    seed: int = 0,
) -> float:
    """Measured rate of average SAM over the ideal one.

    Args:
        kind: "base", "mask", "exact" or "tangent".
        kappa: enhancement.
        eta: learning rate.
        rho: radius.
        replicas: copies of the 4 pairs, which run as one problem; see `average_sam`.
        decay: exponent by which the imbalance should fall during the run.
        seed: seed of start and perturbations.
    """
    ideal = (1 + kappa) * eta * rho**2 / (2 * _PAIRS)
    run = SamRun(
        _start(_PAIRS * replicas, seed), gradient, lr=eta, rho=rho * math.sqrt(replicas), kappa=kappa, seed=seed,
        **_how(kind),  # type: ignore[arg-type]
    )  # fmt: skip
    return _rate(run, math.ceil(decay / (2 * ideal)), math.ceil(2 / eta)) / ideal


class _SampledRun(SamRun):
    """One pair per step, its loss taken n = 4 times; the gradient of the others is zero."""

    def __init__(self, kind: str, kappa: float, eta: float, rho: float, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._waiting: list[int] = []
        self._sample = torch.zeros(_PAIRS, dtype=torch.float64)

        def sampled(params: Sequence[Tensor]) -> list[Tensor]:
            return [self._sample * g for g in gradient(params)]

        super().__init__(
            _start(_PAIRS, seed),
            sampled,
            lr=eta,
            rho=rho,
            kappa=kappa,
            perturbation="gradient",
            **_how(kind),  # type: ignore[arg-type]
        )

    def step(self) -> None:
        if not self._waiting:
            self._waiting = torch.randperm(_PAIRS, generator=self._generator).tolist()
        self._sample = torch.zeros(_PAIRS, dtype=torch.float64)
        self._sample[self._waiting.pop()] = _PAIRS
        super().step()


def sampled_share(
    kind: str, kappa: float, *, eta: float = 0.0025, rho: float = 0.1, decay: float = 0.06, seed: int = 0
) -> float:
    """Measured rate of SAM with one sample per step over the ideal one; arguments as for `average_share`."""
    ideal = (1 + kappa) * eta * rho**2
    run = _SampledRun(kind, kappa, eta, rho, seed)
    return _rate(run, _PAIRS * math.ceil(decay / (2 * ideal * _PAIRS)), math.ceil(6 / (_PAIRS * eta))) / ideal


def curved_manifold(*, quick: bool = False, seed: int = 0) -> Outcome:
    """Run experiment D and compare it with its predictions.

    Args:
        quick: fewer replicas and no exponents.
        seed: seed of starts, perturbations and samples.
    """
    outcome = Outcome()
    replicas = 40 if quick else 200
    curvature = 4.25  # a^2 + b^2 at the start
    fluctuation = 2 / (2 - 0.05 * curvature)
    outcome.compare(
        "D",
        "average SAM: rate over the ideal",
        average_share("base", 0.0, replicas=replicas, decay=0.1, seed=seed),
        fluctuation,
        0.05,
    )
    for kappa in (3.0, 9.0):
        for kind, name in (("exact", "exact projector"), ("tangent", "tangent")):
            share = average_share(kind, kappa, replicas=replicas, seed=seed)
            outcome.compare("D", f"average SAM, kappa = {kappa:g}, {name}: share of the ideal", share, 1.0, 0.1)
    shares = [average_share("mask", kappa, replicas=replicas, seed=seed) for kappa in (3.0, 9.0)]
    for kappa, share, reported in zip((3.0, 9.0), shares, (0.86, 0.61), strict=True):
        outcome.compare(
            "D", f"average SAM, kappa = {kappa:g}, diagonal mask: share of the ideal", share, reported, 0.08
        )
    for eta in (0.0025, 0.005, 0.0125):
        theory = 4 / (2 - eta * _PAIRS * curvature) ** 2
        outcome.compare(
            "D",
            f"SAM, eta = {eta:g}: rate over the ideal",
            sampled_share("base", 0.0, eta=eta, seed=seed),
            theory,
            0.03,
        )
        share = sampled_share("exact", 9.0, eta=eta, seed=seed)
        outcome.compare("D", f"SAM, eta = {eta:g}, kappa = 9, exact projector: share of the ideal", share, 1.0, 0.05)
    if not quick:
        _exponents(outcome, replicas, seed)
    return outcome


def _exponents(outcome: Outcome, replicas: int, seed: int) -> None:
    etas = (0.01, 0.02, 0.04)
    for name, with_ire, exponent in (("average SAM", False, 2.0), ("exact projector", True, 1.5)):
        rates, ideals = [], []
        for eta in etas:
            rho = 0.5 * math.sqrt(eta)
            kappa = 1 / rho - 1 if with_ire else 0.0
            ideals.append((1 + kappa) * eta * rho**2 / (2 * _PAIRS))
            share = average_share(
                "exact" if with_ire else "base", kappa, eta=eta, rho=rho, replicas=replicas, decay=0.06, seed=seed
            )
            rates.append(share * ideals[-1])
        outcome.compare("D", f"{name}: exponent in eta", slope(etas, rates), exponent, 0.05)
        outcome.curves.append(Curve("curved manifold", name, etas, rates, ideals))
