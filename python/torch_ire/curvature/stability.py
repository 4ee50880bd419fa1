"""Largest stable learning rate and kappa, for the plain and for the IRE step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torch_ire.curvature.eigenpairs import Eigenpairs
from torch_ire.curvature.estimates import Estimate, trace
from torch_ire.curvature.flat_projector import FlatProjector
from torch_ire.curvature.lanczos import lanczos
from torch_ire.curvature.operator import CallableOperator, Operator, as_operator
from torch_ire.curvature.probes import ProbeSource

__all__ = ["Stability", "amplified_operator", "stability"]

Mask = Tensor | Sequence[Tensor] | FlatProjector

#: Width of the bracket of kappa_max for gradient descent, relative to 1 + kappa_max.
_KAPPA_ACCURACY = 1e-3
#: kappa is sought up to this; a mask on which the Hessian has no positive curvature allows any.
_LARGEST_KAPPA = 1e6


@dataclass(frozen=True)
class Stability:
    r"""Curvature against 2 / lr, before and after amplification.

    Args:
        lr: eta.
        kappa: that of the question.
        limit: 2 / eta.
        lambda_max: largest eigenvalue of H; gradient descent is linearly stable while it is at most `limit`.
        lambda_max_amplified: that of D^1/2 H D^1/2 with D = I + kappa n, for the IRE step.
        trace: tr H; batch-1 SGD at interpolation is stable while it is at most `limit`.
        trace_amplified: tr D H = tr H + kappa tr_flat H.
        trace_flat: tr_flat H = sum over flat coordinates of H_ii.
        kappa_max_gd: the kappa at which `lambda_max_amplified` reaches `limit`; 0 where the plain step is unstable
            already, inf where none is too large.
        kappa_max_sgd: (2 / eta - tr H) / tr_flat H, the bound of batch-1 SGD, with the same conventions.
        num_matvecs: products taken by all of it.
        eigenpairs: the leading pair, to start the next call from.

    Raises:
        ImportError: `plot()` without matplotlib.

    Cost: the leading eigenvector.

    Example:
        >>> import torch
        >>> from torch_ire import curvature
        >>> found = curvature.stability(torch.diag(torch.tensor([4.0, 1.0])), lr=0.1)
        >>> found.stable_gd, found.limit
        (True, 20.0)

    References:
        Wu, Ma, E, How SGD selects the global minima in over-parameterized learning, NeurIPS 2018.
    """

    lr: float
    kappa: float
    limit: float
    lambda_max: float
    lambda_max_amplified: float
    trace: Estimate
    trace_amplified: float
    trace_flat: Estimate
    kappa_max_gd: float
    kappa_max_sgd: float
    num_matvecs: int
    eigenpairs: Eigenpairs = field(repr=False)

    @property
    def stable_gd(self) -> bool:
        """Whether gradient descent with this amplification is linearly stable."""
        return self.lambda_max_amplified <= self.limit

    @property
    def stable_sgd(self) -> bool:
        """Whether batch-1 SGD with this amplification is, by its trace."""
        return self.trace_amplified <= self.limit

    def __str__(self) -> str:
        rows = [
            ("2 / lr", self.limit, ""),
            ("lambda_max", self.lambda_max, "gradient descent"),
            ("lambda_max, amplified", self.lambda_max_amplified, "stable" if self.stable_gd else "UNSTABLE"),
            ("trace", self.trace.value, f"± {self.trace.standard_error:.2g}, batch-1 SGD"),
            ("trace, amplified", self.trace_amplified, "stable" if self.stable_sgd else "UNSTABLE"),
            ("kappa_max, gradient descent", self.kappa_max_gd, ""),
            ("kappa_max, batch-1 SGD", self.kappa_max_sgd, ""),
        ]
        return "\n".join(f"{name:<28}{value:>12.5g}  {note}".rstrip() for name, value, note in rows)

    def plot(self, ax: Any = None) -> Any:
        """Bars of the curvatures against the line 2 / lr; returns the matplotlib axes."""
        from torch_ire.curvature.plots import new_axes

        ax = new_axes(ax)
        names = ["λmax", "λmax, IRE", "trace", "trace, IRE"]
        ax.bar(names, [self.lambda_max, self.lambda_max_amplified, self.trace.value, self.trace_amplified])
        ax.axhline(self.limit, color="C3", linestyle="--", label="2 / lr")
        ax.set(ylabel="curvature", title=f"stability at lr = {self.lr:g}, kappa = {self.kappa:g}")
        ax.legend()
        return ax


def stability(
    operator: Any,
    *,
    lr: float,
    kappa: float = 0.0,
    mask: Mask | None = None,
    tol: float = 1e-3,
    num_matvecs: int = 60,
    warm_start: Eigenpairs | None = None,
    seed: int = 0,
    size: int | None = None,
    progress: bool | None = None,
) -> Stability:
    r"""How far a learning rate and a kappa are from the edge of linear stability.

    The IRE step on a quadratic is :math:`\theta \leftarrow (I - \eta D H) \theta` with :math:`D = I + \kappa n`, and
    :math:`D H` has the eigenvalues of :math:`D^{1/2} H D^{1/2}`, so gradient descent is stable while the largest of
    them is at most 2 / eta; batch-1 SGD at interpolation while :math:`\mathrm{tr}(D H)` is.

    Args:
        operator: H, what `as_operator` takes.
        lr: eta, positive.
        kappa: at least 0.
        mask: the flat coordinates: a bool tensor (p,), one bool tensor a parameter, or a `FlatProjector`. None: all are
            flat.
        tol: relative accuracy of eigenvalues.
        num_matvecs: products for each of the two traces, at least 6.
        warm_start: `eigenpairs` of an earlier call.
        seed: of all random vectors.
        size: p, where `operator` is a plain callable.
        progress: None shows a bar on a terminal; False never.

    Returns:
        `Stability`.

    Raises:
        ValueError: on lr or kappa out of range, or a mask of another size.

    Cost: two traces, one `lanczos` run for the plain operator and a few warm-started ones for kappa_max.

    References:
        Wang et al., arXiv 2405.20763, section 5. Wu, Ma, E, How SGD selects the global minima in over-parameterized
        learning: a dynamical stability perspective, NeurIPS 2018.

    Example:
        >>> import torch
        >>> from torch_ire import curvature
        >>> found = curvature.stability(torch.diag(torch.tensor([4.0, 1.0])), lr=0.1)
        >>> round(found.kappa_max_gd, 2)
        4.0
    """
    H = as_operator(operator, size=size)
    lr, kappa = float(lr), float(kappa)
    if not (math.isfinite(lr) and lr > 0):
        raise ValueError(f"lr: expected a positive number, got {lr}")
    if not (math.isfinite(kappa) and kappa >= 0):
        raise ValueError(f"kappa: expected a number of at least 0, got {kappa}")
    flat = _flat_part(H, mask)
    before, limit = H.num_matvecs, 2.0 / lr
    with H.linearized():
        plain = lanczos(H, 1, tol=tol, warm_start=warm_start, seed=seed, progress=progress)
        full_trace = trace(H, num_matvecs=num_matvecs, seed=seed, progress=progress)
        flat_trace = _flat_trace(H, mask, flat, full_trace, num_matvecs, seed, progress)
        edge = _Edge(H, flat, plain, tol)
        return Stability(
            lr=lr,
            kappa=kappa,
            limit=limit,
            lambda_max=float(plain.ritz_values[0]),
            lambda_max_amplified=edge.sharpness(kappa),
            trace=full_trace,
            trace_amplified=full_trace.value + kappa * flat_trace.value,
            trace_flat=flat_trace,
            kappa_max_gd=edge.critical_kappa(limit),
            kappa_max_sgd=_ratio(limit - full_trace.value, flat_trace.value),
            num_matvecs=H.num_matvecs - before,
            eigenpairs=plain,
        )


def amplified_operator(operator: Operator, mask: Mask | None, kappa: float) -> Operator:
    r""":math:`D^{1/2} H D^{1/2}` with :math:`D = I + \kappa n`: what the IRE step makes of H.

    Args:
        operator: H.
        mask: as for `stability`.
        kappa: at least 0.

    Returns:
        an `Operator` of the same size.

    Raises:
        ValueError: on a mask of another size.

    Cost: one product of H and two applications of the mask or projector a product.

    Example:
        >>> import torch
        >>> from torch_ire import curvature
        >>> H = curvature.as_operator(torch.eye(2))
        >>> curvature.amplified_operator(H, torch.tensor([True, False]), 3.0).dense()
        tensor([[4., 0.],
                [0., 1.]])

    References:
        Wang et al., arXiv 2405.20763, section 5.
    """
    return _amplified(operator, _flat_part(operator, mask), kappa)


class _FlatPart:
    """n as a function: the part of a vector on the flat coordinates, or along the flat directions."""

    def __init__(self, mask: Tensor | FlatProjector | None) -> None:
        self._mask = mask

    def __call__(self, vector: Tensor) -> Tensor:
        if self._mask is None:
            return vector
        return vector * self._mask if isinstance(self._mask, Tensor) else self._mask(vector)


def _flat_part(H: Operator, mask: Mask | None) -> _FlatPart:
    if mask is None:
        return _FlatPart(None)
    if isinstance(mask, FlatProjector):
        if mask.basis.shape[1] != H.size:
            raise ValueError(f"mask: expected a projector of size {H.size}, got {mask.basis.shape[1]}")
        return _FlatPart(mask)
    flat = mask if isinstance(mask, Tensor) else torch.cat([m.reshape(-1).to(H.device) for m in mask])
    if flat.shape != (H.size,) or flat.dtype != torch.bool:
        raise ValueError(f"mask: expected {H.size} bools, got shape {tuple(flat.shape)} and dtype {flat.dtype}")
    return _FlatPart(flat.to(device=H.device, dtype=H.dtype))


def _amplified(H: Operator, flat: _FlatPart, kappa: float) -> Operator:
    gain = math.sqrt(1.0 + kappa) - 1.0

    def product(vector: Tensor) -> Tensor:
        inner = H.matvec(vector + gain * flat(vector))
        return inner + gain * flat(inner)

    return CallableOperator(product, H.size, dtype=H.dtype, device=H.device)


def _flat_trace(
    H: Operator, mask: Mask | None, flat: _FlatPart, full: Estimate, num_matvecs: int, seed: int, progress: bool | None
) -> Estimate:
    """tr(n H n): n is a projector either way, so that is the trace over the flat part."""
    if mask is None:
        return full
    compressed = CallableOperator(lambda v: flat(H.matvec(flat(v))), H.size, dtype=H.dtype, device=H.device)
    return trace(compressed, num_matvecs=num_matvecs, seed=seed, progress=progress)


class _Edge:
    """Sharpness of the amplified operator as a function of kappa, each run started from the last."""

    def __init__(self, H: Operator, flat: _FlatPart, plain: Eigenpairs, tol: float) -> None:
        self._H, self._flat, self._tol = H, flat, tol
        # A random share: the leading vector at kappa = 0 may have nothing of the one that leads at a large kappa.
        random = ProbeSource(H, 0).gaussian()
        self._start = plain.basis + 0.1 * random / random.norm()
        self._known = {0.0: float(plain.ritz_values[0])}

    def sharpness(self, kappa: float) -> float:
        """lambda_max(D^1/2 H D^1/2)."""
        if kappa not in self._known:
            amplified = _amplified(self._H, self._flat, kappa)
            pairs = lanczos(amplified, 1, tol=self._tol, warm_start=self._start.T, progress=False)
            self._known[kappa] = float(pairs.ritz_values[0])
        return self._known[kappa]

    def critical_kappa(self, limit: float) -> float:
        """The kappa at which the sharpness reaches the limit. Sharpness / (1 + kappa) does not increase with kappa."""
        if self.sharpness(0.0) >= limit:
            return 0.0
        low, high = 0.0, 1.0
        while self.sharpness(high) < limit:
            low, high = high, max(2.0 * high, (1.0 + high) * limit / max(self.sharpness(high), 1e-300) - 1.0)
            if high > _LARGEST_KAPPA:
                return math.inf
        secant = True
        while high - low > _KAPPA_ACCURACY * (1.0 + high):
            middle = (low + high) / 2
            if secant:
                a, b = self.sharpness(low), self.sharpness(high)
                # The curve is convex, so the secant falls short; the margin brackets from the other side.
                margin = 0.4 * _KAPPA_ACCURACY * (1.0 + high)
                middle = min(max(low + (high - low) * (limit - a) / (b - a) + margin, low + margin), high - margin)
            secant = not secant  # bisection every other time bounds the number of turns
            if self.sharpness(middle) < limit:
                low = middle
            else:
                high = middle
        return low


def _ratio(room: float, curvature: float) -> float:
    if room <= 0:
        return 0.0
    return room / curvature if curvature > 0 else math.inf
