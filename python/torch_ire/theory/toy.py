"""Experiment A: the two-dimensional toy of Figure 1, through SGDIRE.

L(u, v) = (1 + u^2) v^2 / 2 has its minima on v = 0, flatter for smaller |u|. Gradient descent oscillates in v and moves
slowly along u; IRE multiplies the step in u by 1 + kappa. The flat coordinate is found by the mask from the Hessian's
diagonal (v^2, 1 + u^2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from torch_ire.optim import SGDIRE
from torch_ire.theory.comparison import Curve, Outcome, slope

__all__ = ["descend", "toy"]

_START = (1.0, 0.01)


def descend(
    kappa: float, lr: float, steps: int, start: tuple[float, float] = _START, *, settled: float = 0.0
) -> list[tuple[float, float]]:
    """The path (u, v) of SGDIRE on the toy.

    Args:
        kappa: enhancement of u; 0 is gradient descent.
        lr: eta.
        steps: maximum number of steps.
        start: initial (u, v).
        settled: end once |v| is at most this.
    """
    u, v = (torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in start)
    optimizer = SGDIRE([u, v], lr=lr, kappa=kappa, gamma=0.5, mask_interval=steps + 1)
    # The root of the Hessian diagonal as gradient makes the Fisher estimate equal to that diagonal.
    u.grad, v.grad = v.detach().abs(), (1 + u.detach() ** 2).sqrt()
    optimizer.update_mask()
    path = [start]
    for _ in range(steps):
        u.grad, v.grad = gradients(u, v)
        optimizer.step()
        path.append((u.item(), v.item()))
        if abs(path[-1][1]) <= settled or abs(path[-1][1]) > 1e6:
            break
    return path


def gradients(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of the toy."""
    u, v = u.detach(), v.detach()
    return u * v**2, (1 + u**2) * v


def toy() -> Outcome:
    """Run experiment A and compare it with its closed forms."""
    outcome = Outcome()
    _figure_one(outcome)
    _edge_of_stability(outcome)
    _below_the_edge(outcome)
    return outcome


def _figure_one(outcome: Outcome) -> None:
    u0, v0 = _START
    edge = descend(0.0, 1.0, 100)
    # d ln u = -v^2 and, at the edge, |v| shrinks by u^2 = 1 - 2 (1 - u): a pair of equations with a tanh solution.
    at_100 = u0 * math.exp(-(v0 / math.sqrt(2)) * math.tanh(math.sqrt(2) * v0 * 100))
    outcome.compare("A", "GD, eta = 1: u after 100 steps", edge[-1][0], at_100, 1e-4)
    limit = descend(0.0, 1.0, 2000, settled=1e-7)
    outcome.compare("A", "GD, eta = 1: u in the limit", limit[-1][0], math.exp(-v0 / math.sqrt(2)), 2e-4)
    unstable = descend(0.0, 2.0, 9)
    outcome.compare("A", "GD, eta = 2: v grows by -3 a step at first", unstable[2][1] / unstable[1][1], -3.0, 1e-3)
    outcome.paths.update({"GD, η = 1": edge, "GD, η = 2": unstable})
    for kappa, tolerance in ((90.0, 0.01), (900.0, 0.09)):
        path = descend(kappa, 1.0, 2000, settled=1e-9)
        first_order = math.exp(-v0 * math.sqrt((1 + kappa) / 2))
        outcome.compare(
            "A", f"IRE, kappa = {kappa:g}: u in the limit (first order)", path[-1][0], first_order, tolerance
        )
        outcome.paths[f"IRE, κ = {kappa:g}"] = path
    far = descend(9000.0, 1.0, 20)
    outcome.compare("A", "IRE, kappa = 9000: u after one step", far[1][0], 1 - 9001 * v0**2, 1e-9)
    outcome.paths["IRE, κ = 9000"] = far


def _edge_of_stability(outcome: Outcome) -> None:
    """At eta = 1 the gain grows as the root of 1 + kappa."""
    v0, kappas = 1e-3, (0.0, 9.0, 99.0, 999.0, 9999.0)
    moved = [_log_distance(kappa, 1.0, v0) for kappa in kappas]
    predicted = [v0 * math.sqrt((1 + kappa) / 2) for kappa in kappas]
    outcome.compare("A", "eta = 1: exponent of -ln u in 1 + kappa", slope([1 + k for k in kappas], moved), 0.5, 0.03)
    outcome.compare("A", "eta = 1: -ln u at kappa = 0 over v0 / sqrt 2", moved[0] / predicted[0], 1.0, 0.01)
    outcome.curves.append(Curve("toy", "η = 1 (edge): exponent 1/2", [1 + k for k in kappas], moved, predicted))


def _below_the_edge(outcome: Outcome) -> None:
    """Below the edge v decays geometrically and the gain is 1 + kappa."""
    v0, eta, kappas = 1e-3, 0.2, (0.0, 9.0, 99.0, 999.0)
    moved = [_log_distance(kappa, eta, v0) for kappa in kappas]
    predicted = [(1 + kappa) * eta * v0**2 / (1 - (1 - 2 * eta) ** 2) for kappa in kappas]
    outcome.compare("A", "eta = 0.2: exponent of -ln u in 1 + kappa", slope([1 + k for k in kappas], moved), 1.0, 0.005)
    for kappa, value, theory in zip(kappas, moved, predicted, strict=True):
        outcome.compare("A", f"eta = 0.2, kappa = {kappa:g}: -ln u in the limit", value, theory, 0.02)
    outcome.curves.append(Curve("toy", "η = 0.2: exponent 1", [1 + k for k in kappas], moved, predicted))


def _log_distance(kappa: float, eta: float, v0: float) -> float:
    """-ln u after v has decayed; at the edge that takes about 10 / v0 steps."""
    path: Sequence[tuple[float, float]] = descend(kappa, eta, 20000, (1.0, v0), settled=v0 * 1e-3)
    return -math.log(path[-1][0])
