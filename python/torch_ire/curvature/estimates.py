"""Stochastic estimates of trace, Frobenius norm and diagonal, each with its standard error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from torch_ire.curvature.operator import Operator, as_operator
from torch_ire.curvature.probes import ProbeSource
from torch_ire.curvature.progress import progress_bar

__all__ = ["DiagonalEstimate", "Estimate", "diagonal", "frobenius_norm", "trace"]


@dataclass(frozen=True)
class Estimate:
    """An estimate from random samples.

    Args:
        value: the estimate.
        standard_error: its estimated standard deviation; nan with fewer than two samples.
        samples: (n,), float64 on the CPU, the independent samples behind it.
        exact_part: the part of `value` that Hutch++ computes exactly.
        num_matvecs: number of products.
        interrupted: whether Ctrl-C ended the sampling early.

    Raises:
        ImportError: `plot()` needs matplotlib.

    Cost: the samples, on the CPU.

    Example:
        >>> import torch
        >>> from torch_ire import curvature
        >>> estimate = curvature.frobenius_norm(torch.diag(torch.tensor([3.0, 4.0])), num_matvecs=4)
        >>> estimate.value, estimate.standard_error
        (5.0, 0.0)

    References:
        Hutchinson, Comm. Statist. Simulation Comput. 19 (1990).
    """

    value: float
    standard_error: float
    samples: Tensor = field(repr=False)
    exact_part: float
    num_matvecs: int
    interrupted: bool = False

    def __float__(self) -> float:
        return self.value

    def plot(self, ax: Any = None) -> Any:
        """Running mean of the samples with its standard error; returns the matplotlib axes."""
        from torch_ire.curvature.plots import new_axes

        ax = new_axes(ax)
        count = torch.arange(1, len(self.samples) + 1, dtype=torch.float64, device="cpu")
        mean = self.exact_part + self.samples.cumsum(0) / count
        error = self.standard_error * (len(self.samples) / count).sqrt()
        ax.plot(count, mean)
        ax.fill_between(count, mean - error, mean + error, alpha=0.25)
        ax.set(xlabel="samples", ylabel="estimate", title=f"{self.value:.4g} ± {self.standard_error:.2g}")
        return ax


@dataclass(frozen=True)
class DiagonalEstimate:
    """The diagonal, coordinate by coordinate.

    Args:
        value: (p,), the estimate, the operator's dtype and device.
        standard_error: (p,), of each coordinate; nan with fewer than two samples.
        num_matvecs: number of products.
        interrupted: whether Ctrl-C ended the sampling early.

    Raises:
        ImportError: `plot()` needs matplotlib.

    Cost: two vectors of memory.

    Example:
        >>> import torch
        >>> from torch_ire import curvature
        >>> curvature.diagonal(torch.diag(torch.arange(3.0)), num_matvecs=2).value
        tensor([0., 1., 2.])

    References:
        Bekas, Kokiopoulou, Saad, An estimator for the diagonal of a matrix, Appl. Numer. Math. 57 (2007).
    """

    value: Tensor = field(repr=False)
    standard_error: Tensor = field(repr=False)
    num_matvecs: int
    interrupted: bool = False

    def plot(self, ax: Any = None) -> Any:
        """Sorted magnitudes on a logarithmic axis; returns the matplotlib axes."""
        from torch_ire.curvature.plots import new_axes

        ax = new_axes(ax)
        ax.semilogy(self.value.abs().sort(descending=True).values.cpu())
        ax.set(xlabel="coordinate, sorted", ylabel="|diagonal|", title=f"diagonal, {self.num_matvecs} samples")
        return ax


def trace(
    operator: Any,
    *,
    num_matvecs: int = 99,
    method: Literal["hutch++", "hutchinson"] = "hutch++",
    seed: int = 0,
    size: int | None = None,
    progress: bool | None = None,
) -> Estimate:
    r"""Trace of a symmetric operator.

    Hutchinson: the mean of :math:`z^T H z` over random signs z. Hutch++ spends a third of the products on a basis Q of
    the range of H, a third on the exact :math:`\mathrm{tr}(Q H Q^T)`, and the last third on Hutchinson's mean over
    the complement of Q; for a decaying spectrum its error falls as 1/n instead of 1/sqrt(n).

    Args:
        operator: anything that `as_operator` takes.
        num_matvecs: number of products, at least 2; for Hutch++ at least 6. Hutch++ is exact if a third of them spans
            the space.
        method: "hutch++" or "hutchinson".
        seed: seed of the random signs.
        size: p, required for a plain callable.
        progress: None shows a bar on a terminal, False never does.

    Returns:
        `Estimate`; its standard error covers the sampled part.

    Raises:
        ValueError: for too few products.
        FloatingPointError: if the operator returns nan or inf.

    Cost: Hutchinson one product and 2 p memory per sample; Hutch++ holds num_matvecs / 3 vectors.
    Determinism: a seed repeats the result if the operator repeats its products.

    Example:
        >>> import torch
        >>> from torch_ire import curvature
        >>> round(float(curvature.trace(torch.diag(torch.arange(5.0)))), 4)
        10.0

    References:
        Hutchinson, Comm. Statist. Simulation Comput. 19 (1990). Meyer, Musco, Musco, Woodruff, Hutch++: optimal
        stochastic trace estimation, SOSA 2021.
    """
    H = as_operator(operator, size=size)
    if method not in ("hutch++", "hutchinson"):
        raise ValueError(f'method: expected "hutch++" or "hutchinson", got {method!r}')
    if num_matvecs < (6 if method == "hutch++" else 2):
        raise ValueError(f"num_matvecs: expected at least 2, and 6 for hutch++, got {num_matvecs}")
    probes, before = ProbeSource(H, seed), H.num_matvecs
    basis = torch.zeros(0, H.size, dtype=H.dtype, device=H.device)
    exact = 0.0
    with H.linearized():
        if method == "hutch++":
            basis, exact = _range_part(H, min(num_matvecs // 3, H.size), probes)
        left = 0 if len(basis) == H.size else num_matvecs - (H.num_matvecs - before)

        def sample() -> float:
            probe = probes.rademacher()
            probe -= (basis @ probe) @ basis
            return float(probe @ _finite(H, probe))

        samples, interrupted = _sampled(sample, left, "trace", progress)
    value = exact + (float(samples.mean()) if len(samples) else 0.0)
    error = _standard_error(samples) if left else 0.0
    return Estimate(value, error, samples, exact, H.num_matvecs - before, interrupted)


def _range_part(H: Operator, count: int, probes: ProbeSource) -> tuple[Tensor, float]:
    sketch = torch.stack([_finite(H, probes.rademacher()) for _ in range(count)])
    basis = torch.linalg.qr(sketch.T).Q.T.contiguous()
    return basis, sum(float(row @ _finite(H, row)) for row in basis)


def frobenius_norm(
    operator: Any, *, num_matvecs: int = 100, seed: int = 0, size: int | None = None, progress: bool | None = None
) -> Estimate:
    r"""Frobenius norm, from :math:`\|H\|_F^2 = E \|H z\|^2` over random signs z.

    Args:
        operator: anything that `as_operator` takes.
        num_matvecs: number of products, at least 2.
        seed: seed of the random signs.
        size: p, required for a plain callable.
        progress: None shows a bar on a terminal, False never does.

    Returns:
        `Estimate`; `samples` are of the squared norm, and the standard error is that of its root (delta method).

    Raises:
        ValueError: for too few products.
        FloatingPointError: if the operator returns nan or inf.

    Cost: one product per sample; 2 p memory.

    Example:
        >>> import torch
        >>> from torch_ire import curvature
        >>> curvature.frobenius_norm(torch.eye(4)).value
        2.0

    References:
        Hutchinson, Comm. Statist. Simulation Comput. 19 (1990), applied to H^2.
    """
    H = as_operator(operator, size=size)
    _check_samples(num_matvecs)
    probes, before = ProbeSource(H, seed), H.num_matvecs
    with H.linearized():
        samples, interrupted = _sampled(
            lambda: float(_finite(H, probes.rademacher()).norm()) ** 2, num_matvecs, "Frobenius norm", progress
        )
    value = math.sqrt(float(samples.mean()))
    error = _standard_error(samples) / (2 * value) if value else 0.0
    return Estimate(value, error, samples, 0.0, H.num_matvecs - before, interrupted)


def diagonal(
    operator: Any, *, num_matvecs: int = 100, seed: int = 0, size: int | None = None, progress: bool | None = None
) -> DiagonalEstimate:
    r"""Diagonal, as the mean of :math:`z \odot H z` over random signs z: unbiased, exact for a diagonal H.

    Args:
        operator: anything that `as_operator` takes.
        num_matvecs: number of products, at least 2.
        seed: seed of the random signs.
        size: p, required for a plain callable.
        progress: None shows a bar on a terminal, False never does.

    Returns:
        `DiagonalEstimate`.

    Raises:
        ValueError: for too few products.
        FloatingPointError: if the operator returns nan or inf.

    Cost: one product per sample; 4 p memory.

    References:
        Bekas, Kokiopoulou, Saad, An estimator for the diagonal of a matrix, Appl. Numer. Math. 57 (2007).

    Example:
        >>> import torch
        >>> from torch_ire import curvature
        >>> curvature.diagonal(torch.diag(torch.arange(3.0)), num_matvecs=2).standard_error
        tensor([0., 0., 0.])
    """
    H = as_operator(operator, size=size)
    _check_samples(num_matvecs)
    probes, before = ProbeSource(H, seed), H.num_matvecs
    mean = torch.zeros(H.size, dtype=H.dtype, device=H.device)
    spread = torch.zeros_like(mean)

    def sample() -> float:
        nonlocal mean, spread
        probe = probes.rademacher()
        value = probe * _finite(H, probe)
        # Welford's update: one pass, no cancellation.
        step = value - mean
        mean = mean + step / (H.num_matvecs - before)
        spread = spread + step * (value - mean)
        return 0.0

    with H.linearized():
        samples, interrupted = _sampled(sample, num_matvecs, "diagonal", progress)
    count = len(samples)
    error = (spread / (count * (count - 1))).sqrt() if count > 1 else torch.full_like(mean, math.nan)
    return DiagonalEstimate(mean, error, H.num_matvecs - before, interrupted)


def _check_samples(num_matvecs: int) -> None:
    if num_matvecs < 2:
        raise ValueError(f"num_matvecs: expected at least 2, for a standard error, got {num_matvecs}")


def _finite(H: Operator, vector: Tensor) -> Tensor:
    product = H.matvec(vector)
    if not bool(torch.isfinite(product).all()):
        raise FloatingPointError(f"matvec {H.num_matvecs}: the operator returned nan or inf")
    return product


def _sampled(sample: Callable[[], float], count: int, description: str, progress: bool | None) -> tuple[Tensor, bool]:
    values: list[float] = []
    with progress_bar(description, count, progress) as advance:
        try:
            for _ in range(count):
                values.append(sample())
                advance(1, "")
        except KeyboardInterrupt:
            if not values:
                raise
            return torch.tensor(values, dtype=torch.float64, device="cpu"), True
    return torch.tensor(values, dtype=torch.float64, device="cpu"), False


def _standard_error(samples: Tensor) -> float:
    return float(samples.std() / math.sqrt(len(samples))) if len(samples) > 1 else math.nan
