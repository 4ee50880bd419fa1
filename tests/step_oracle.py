"""The formulas of the optimizers in float64, one tensor at a time, written from the papers alone.

AdamW: arXiv:1711.05101, Algorithm 2. IRE: arXiv:2405.20763, Algorithm 1 and Eqs. (5) and (6). SAM: arXiv:2010.01412.
ASAM: arXiv:2102.11600. Every result comes with its scale, the size of the terms that the result is a sum of: rounding
errors are proportional to the scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Arguments = Mapping[str, Any]


@dataclass
class Memory:
    """What an optimizer keeps of one parameter, as float64 tensors."""

    flat: Tensor  # bool, the shape of the parameter
    steps: int = 0
    moments: dict[str, Tensor] = field(default_factory=dict)
    estimates: list[Tensor] = field(default_factory=list)  # oldest first


@dataclass
class Step:
    """A step of one parameter that has been computed, but not taken."""

    theta: Tensor
    scale: Tensor
    moments: dict[str, Tensor]
    moment_scales: dict[str, Tensor]


class Oracle:
    """One method per formula. A subclass that overrides a method is an optimizer with that formula wrong."""

    def gain(self, flat: Tensor, a: Arguments, lr: float, largest_lr: float) -> Tensor:
        """1 + kappa_eff n."""
        kappa = float(a["kappa"]) * (lr / largest_lr if a["kappa_follows_lr"] and largest_lr > 0 else 1.0)
        return 1.0 + kappa * flat.double()

    def decay_gain(self, gain: Tensor, a: Arguments) -> Tensor:
        return gain if a["amplify_weight_decay"] else torch.ones_like(gain)

    def bias_correction(self, beta: float, step: int) -> float:
        return 1.0 - beta**step

    def adamw(self, theta: Tensor, g: Tensor, memory: Memory, a: Arguments, lr: float, gain: Tensor) -> Step:
        beta1, beta2 = map(float, a["betas"])
        m = memory.moments.get("exp_avg", torch.zeros_like(theta))
        v = memory.moments.get("exp_avg_sq", torch.zeros_like(theta))
        t = memory.steps + 1
        new_m = m + (1 - beta1) * (g - m)
        new_v = beta2 * v + (1 - beta2) * g * g
        denominator = (new_v / self.bias_correction(beta2, t)).sqrt() + a["eps"]
        rate = gain * lr / self.bias_correction(beta1, t)
        decay = self.decay_gain(gain, a) * lr * a["weight_decay"] * theta
        return Step(
            theta - decay - rate * new_m / denominator,
            theta.abs() + decay.abs() + rate * torch.maximum(m.abs(), g.abs()) / denominator,
            {"exp_avg": new_m, "exp_avg_sq": new_v},
            {"exp_avg": torch.maximum(m.abs(), g.abs()), "exp_avg_sq": new_v},
        )

    def intake(self, memory: Memory, a: Arguments) -> float:
        """The share of a gradient that enters the momentum buffer; the first one enters whole."""
        return 1.0 - a["dampening"] if memory.steps else 1.0

    def sgd(self, theta: Tensor, g: Tensor, memory: Memory, a: Arguments, lr: float, gain: Tensor) -> Step:
        u = g + a["weight_decay"] * theta if a["weight_decay"] else g
        size = g.abs() + a["weight_decay"] * theta.abs()
        if a["momentum"] == 0:
            return Step(theta - gain * lr * u, theta.abs() + gain * lr * size, {}, {})
        buffer = memory.moments.get("momentum_buffer", torch.zeros_like(theta))
        new = a["momentum"] * buffer + self.intake(memory, a) * u
        new_size = a["momentum"] * buffer.abs() + size
        direction = u + a["momentum"] * new if a["nesterov"] else new
        scale = theta.abs() + gain * lr * (size + new_size)
        return Step(theta - gain * lr * direction, scale, {"momentum_buffer": new}, {"momentum_buffer": new_size})

    def average(self, estimates: Sequence[Tensor], beta: float) -> Tensor:
        """The mean of estimates, oldest first, with weights beta^age."""
        weights = [beta**age for age in reversed(range(len(estimates)))]
        return sum(w * h for w, h in zip(weights, estimates, strict=True)) / sum(weights)  # type: ignore[return-value]

    def num_flat(self, gamma: float, number: int) -> int:
        return round(gamma * number)

    def flat(self, scores: Sequence[Tensor], gamma: float) -> list[Tensor]:
        """The masks of one ranking: finite and not above the k-th smallest; NaN and infinity are the largest."""
        everything = torch.cat([s.flatten() for s in scores])
        k = self.num_flat(gamma, everything.numel())
        if k == 0:
            return [torch.zeros_like(s, dtype=torch.bool) for s in scores]
        threshold = everything.nan_to_num(torch.inf, torch.inf).sort().values[k - 1]
        return [s.isfinite() & (s <= threshold) for s in scores]

    def norm(self, thetas: Sequence[Tensor], grads: Sequence[Tensor], groups: Sequence[Arguments]) -> float:
        """||g||, or || |theta| g || where adaptive; one norm for all."""
        rows = zip(thetas, grads, groups, strict=True)
        return sum(float(((theta if a["adaptive"] else 1.0) * g).square().sum()) for theta, g, a in rows) ** 0.5

    def perturbations(
        self, norm: float, thetas: Sequence[Tensor], grads: Sequence[Tensor], groups: Sequence[Arguments]
    ) -> list[Tensor]:
        """e = rho g / (norm + 1e-12), or rho theta^2 g / (norm + 1e-12) where adaptive; 0 if the norm is not finite."""
        if not norm < torch.inf:
            return [torch.zeros_like(theta) for theta in thetas]
        rows = zip(thetas, grads, groups, strict=True)
        return [a["rho"] / (norm + 1e-12) * (theta.square() * g if a["adaptive"] else g) for theta, g, a in rows]
