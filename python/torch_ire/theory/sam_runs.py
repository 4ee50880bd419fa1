"""Step SAMIRE with gradients in closed form, a mask from the Hessian's diagonal, or an exact projector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_ire.optim import SAMIRE
from torch_ire.steps.arguments import Projector

__all__ = ["SamRun"]

Gradient = Callable[[Sequence[Tensor]], Sequence[Tensor]]


class SamRun:
    """SAMIRE on a problem known by its gradient.

    Args:
        params: starting point; leaf tensors that are moved in place.
        gradient: maps the parameters to their gradients; called at the perturbed point, and before that where the
            perturbation follows the gradient.
        lr: eta.
        rho: radius.
        kappa: enhancement.
        perturbation: "random" is average SAM, "gradient" standard SAM.
        diagonal: maps the parameters to the Hessian's diagonal, for the mask.
        gamma: share of flat coordinates.
        mask_interval: steps between refreshes of the mask.
        projector: an exact projector in place of the mask.
        seed: of the random perturbation.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        gradient: Gradient,
        *,
        lr: float,
        rho: float,
        kappa: float = 0.0,
        perturbation: Any = "random",
        diagonal: Gradient | None = None,
        gamma: float = 0.5,
        mask_interval: int = 10**9,
        projector: Projector | None = None,
        seed: int = 0,
    ) -> None:
        self.params = [p.requires_grad_() for p in params]
        self._gradient, self._diagonal = gradient, diagonal
        self._two_passes = perturbation == "gradient"
        self._optimizer = SAMIRE(
            self.params,
            lr=lr,
            rho=rho,
            perturbation=perturbation,
            kappa=kappa,
            gamma=gamma,
            mask_interval=mask_interval,
            curvature=projector if projector is not None else "fisher",
            seed=seed,
        )

    def _set_gradients(self, gradient: Gradient) -> None:
        for param, value in zip(self.params, gradient([p.detach() for p in self.params]), strict=True):
            param.grad = value

    def step(self) -> None:
        """One step of SAMIRE."""
        if self._diagonal is not None and self._optimizer.mask_due():
            # Equation (6) squares what it finds in .grad, so the root of the diagonal stands for one exact draw.
            diagonal = self._diagonal
            self._set_gradients(lambda params: [h.sqrt() for h in diagonal(params)])
            self._optimizer.update_mask()
        if self._two_passes:
            self._set_gradients(self._gradient)
        self._optimizer.first_step()
        self._set_gradients(self._gradient)
        self._optimizer.second_step()

    def drift(self, steps: int, measured: Tensor, held: Tensor) -> Tensor:
        """Mean change of `measured` a step, put back to `held` after each: the drift at a point.

        Args:
            steps: steps to average over.
            measured: one of the parameters.
            held: its value at that point.
        """
        total = torch.zeros_like(held)
        for _ in range(steps):
            self.step()
            with torch.no_grad():
                total += measured - held
                measured.copy_(held)
        return total / steps
