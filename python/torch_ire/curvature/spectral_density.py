"""Density of eigenvalues by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torch_ire.curvature.krylov import KrylovSpace
from torch_ire.curvature.operator import Operator, as_operator
from torch_ire.curvature.probes import ProbeSource
from torch_ire.curvature.progress import progress_bar

__all__ = ["SpectralDensity", "spectral_density"]


@dataclass(frozen=True)
class SpectralDensity:
    """A smoothed density of eigenvalues, integrating to 1.

    Args:
        grid: (n,), float64, the points of the density.
        density: (n,), float64.
        standard_error: (n,), of the density over the probes; nan with one probe.
        nodes: one tensor of Ritz values per probe.
        weights: the weights of those nodes, summing to 1 per probe.
        broadening: standard deviation of the Gaussian that represents one eigenvalue.
        num_matvecs: number of products.
        interrupted: whether Ctrl-C ended the run early.

    Raises:
        ImportError: `plot()` needs matplotlib.

    Cost: the curves, on the CPU.

    Example:
        >>> import torch
        >>> from torch_ire import curvature
        >>> density = curvature.spectral_density(torch.diag(torch.tensor([1.0, 3.0])), num_probes=2)
        >>> density.mean(torch.ones_like)[0]
        1.0

    References:
        Ubaru, Chen, Saad, SIAM J. Matrix Anal. Appl. 38 (2017).
    """

    grid: Tensor = field(repr=False)
    density: Tensor = field(repr=False)
    standard_error: Tensor = field(repr=False)
    nodes: list[Tensor] = field(repr=False)
    weights: list[Tensor] = field(repr=False)
    broadening: float
    num_matvecs: int
    interrupted: bool = False

    def mean(self, function: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        """The mean of a function over the spectrum, tr f(H) / p, without broadening, and its standard error."""
        values = torch.stack([(w * function(x)).sum() for x, w in zip(self.nodes, self.weights, strict=True)])
        error = float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan
        return float(values.mean()), error

    def plot(self, ax: Any = None) -> Any:
        """Density on a logarithmic axis with its standard error; returns the matplotlib axes."""
        from torch_ire.curvature.plots import new_axes

        ax = new_axes(ax)
        floor = 1e-6 * float(self.density.max())
        ax.semilogy(self.grid, self.density.clamp(min=floor))
        if len(self.nodes) > 1:
            low, high = self.density - self.standard_error, self.density + self.standard_error
            ax.fill_between(self.grid, low.clamp(min=floor), high.clamp(min=floor), alpha=0.25)
        ax.set(xlabel="eigenvalue", ylabel="density", ylim=(floor, None), title="spectral density")
        return ax


def spectral_density(
    operator: Any,
    *,
    num_probes: int = 4,
    num_steps: int = 40,
    num_points: int = 1024,
    broadening: float | None = None,
    seed: int = 0,
    size: int | None = None,
    progress: bool | None = None,
) -> SpectralDensity:
    r"""Density of eigenvalues, :math:`\phi(x) = \frac1p \sum_i g_\sigma(x - \lambda_i)`.

    From a random unit vector, Lanczos gives nodes (Ritz values) and weights (squared first coordinates) of a Gauss
    quadrature for the density; the mean over vectors is unbiased. Full reorthogonalization prevents ghost copies,
    which would falsify the weights.

    Args:
        operator: anything that `as_operator` takes.
        num_probes: number of random vectors, at least 1.
        num_steps: Lanczos steps per vector, at least 1; polynomials of degree 2 num_steps - 1 are integrated exactly.
        num_points: points of the grid, at least 2.
        broadening: sigma; default one hundredth of the spectrum's width.
        seed: seed of the random vectors.
        size: p, required for a plain callable.
        progress: None shows a bar on a terminal, False never does.

    Returns:
        `SpectralDensity`.

    Raises:
        ValueError: if a count is out of range, or the operator is not symmetric.
        FloatingPointError: if the operator returns nan or inf.

    Cost: num_probes num_steps products; memory (num_steps + 1) p.
    Determinism: a seed repeats the result if the operator repeats its products.

    References:
        Ubaru, Chen, Saad, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, SIAM J. Matrix Anal. Appl. 38
        (2017).

    Example:
        >>> import torch
        >>> from torch_ire import curvature
        >>> density = curvature.spectral_density(torch.eye(30), num_probes=2)
        >>> round(float(density.grid[density.density.argmax()]), 2)
        1.0
    """
    H = as_operator(operator, size=size)
    counts = (("num_probes", num_probes, 1), ("num_steps", num_steps, 1), ("num_points", num_points, 2))
    for name, value, least in counts:
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    if broadening is not None and not broadening > 0:
        raise ValueError(f"broadening: expected a positive number, got {broadening}")
    probes, before = ProbeSource(H, seed), H.num_matvecs
    nodes: list[Tensor] = []
    weights: list[Tensor] = []
    interrupted = False
    with H.linearized(), progress_bar("spectral density", num_probes, progress) as advance:
        try:
            for _ in range(num_probes):
                x, w = _quadrature(H, num_steps, probes)
                nodes.append(x)
                weights.append(w)
                advance(1, "")
        except KeyboardInterrupt:
            if not nodes:
                raise
            interrupted = True
    low, high = min(float(x.min()) for x in nodes), max(float(x.max()) for x in nodes)
    rounding = 8 * torch.finfo(H.dtype).eps * max(abs(low), abs(high))
    width = high - low if high - low > rounding else max(abs(high), 1.0)
    sigma = broadening if broadening is not None else width / 100
    grid = torch.linspace(low - 4 * sigma, high + 4 * sigma, num_points, dtype=torch.float64, device="cpu")
    curves = torch.stack([_smoothed(grid, x, w, sigma) for x, w in zip(nodes, weights, strict=True)])
    error = curves.std(0) / math.sqrt(len(curves)) if len(curves) > 1 else torch.full_like(grid, math.nan)
    return SpectralDensity(grid, curves.mean(0), error, nodes, weights, sigma, H.num_matvecs - before, interrupted)


def _quadrature(H: Operator, num_steps: int, probes: ProbeSource) -> tuple[Tensor, Tensor]:
    space = KrylovSpace(H, num_steps, probes.gaussian(), probes)
    # An invariant space ends the quadrature: it is exact, and a random direction would have weight zero.
    while not space.full and (space.size == 0 or space.coupling[-1] > 0):
        space.expand()
    values, vectors = torch.linalg.eigh(space.matrix)
    return values, vectors[0] ** 2


def _smoothed(grid: Tensor, nodes: Tensor, weights: Tensor, sigma: float) -> Tensor:
    distance = (grid[:, None] - nodes[None, :]) / sigma
    return torch.exp(-0.5 * distance**2) @ weights / (sigma * math.sqrt(2 * math.pi))
