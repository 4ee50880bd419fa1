"""The table that drives the tests of all optimizers: one row a configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torch_ire


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[..., torch_ire.optim.ire_optimizer.IREOptimizer]
    # the optimizer of torch that kappa=0 must be, with the same arguments
    base: Callable[..., torch.optim.Optimizer]
    base_arguments: dict[str, Any] = field(default_factory=dict)

    def __call__(self, params: Any, **overrides: Any) -> torch_ire.optim.ire_optimizer.IREOptimizer:
        return self.make(params, **{**self.base_arguments, **overrides})

    def torch(self, params: Any, **overrides: Any) -> torch.optim.Optimizer:
        return self.base(params, **{**self.base_arguments, **overrides})

    @property
    def has_second_moment(self) -> bool:
        return self.base is torch.optim.AdamW


def _sam(base: str, **sam: Any) -> Callable[..., torch_ire.SAMIRE]:
    return lambda params, **arguments: torch_ire.SAMIRE(params, base=base, **sam, **arguments)


ADAMW = {"lr": 2e-2, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
SGD = {"lr": 0.05, "momentum": 0.9, "dampening": 0.2, "weight_decay": 0.01}
NESTEROV = {"lr": 0.05, "momentum": 0.8, "weight_decay": 0.01, "nesterov": True}
PLAIN = {"lr": 0.1}

# every base hyperparameter is off its neutral value in at least one row
CASES = [
    Case("AdmIRE", torch_ire.AdmIRE, torch.optim.AdamW, ADAMW),
    Case("SGDIRE", torch_ire.SGDIRE, torch.optim.SGD, SGD),
    Case("SGDIRE-nesterov", torch_ire.SGDIRE, torch.optim.SGD, NESTEROV),
    Case("SGDIRE-plain", torch_ire.SGDIRE, torch.optim.SGD, PLAIN),
    Case("SAMIRE-sgd", _sam("sgd"), torch.optim.SGD, SGD),
    Case("SAMIRE-adamw", _sam("adamw"), torch.optim.AdamW, ADAMW),
    Case("ASAMIRE-sgd", _sam("sgd", adaptive=True, rho=0.5), torch.optim.SGD, PLAIN),
    Case("average-SAMIRE", _sam("sgd", perturbation="random", rho=0.1), torch.optim.SGD, SGD),
]
IDS = [case.name for case in CASES]


def small_model(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 13), nn.Tanh(), nn.Linear(13, 5))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.5)
    return model.to(dtype)


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.randn(32, 8, generator=generator), torch.randint(5, (32,), generator=generator)


def loss_of(model: nn.Module, step: int) -> Tensor:
    x, y = batch(step)
    return F.cross_entropy(model(x.to(next(model.parameters()).dtype)).float(), y)


def refresh(
    model: nn.Module, handle: Any, step: int, labels: torch_ire.LabelGenerator, curvature: str = "fisher"
) -> None:
    """The first half of a training step: the mask, where it is due."""
    if not handle.mask_due():
        return
    if curvature == "hutchinson":
        handle.update_mask(loss_of(model, step))
    else:
        torch_ire.sampled_cross_entropy(
            model(batch(step)[0].to(next(model.parameters()).dtype)), generator=labels
        ).backward()
        handle.update_mask()


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: range,
    *,
    handle: Any = None,
    labels: torch_ire.LabelGenerator | None = None,
) -> None:
    """The training loop of the README, with both passes of SAM where there are two."""
    handle = handle or optimizer
    labels = labels or torch_ire.LabelGenerator(seed=7)
    groups = handle.param_groups if isinstance(handle, torch.optim.Optimizer) else [{}]
    curvature = groups[0].get("curvature", "fisher")
    for step in steps:
        if hasattr(handle, "mask_due"):
            refresh(model, handle, step, labels, curvature)
        if isinstance(optimizer, torch_ire.SAMIRE):
            if optimizer.param_groups[0]["perturbation"] == "gradient":
                loss_of(model, step).backward()
            optimizer.first_step(zero_grad=True)
            loss_of(model, step).backward()
            optimizer.second_step(zero_grad=True)
        else:
            loss_of(model, step).backward()
            optimizer.step()
            optimizer.zero_grad()


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


class IdleProjector:
    """An exact projector as the optimizers know one, which does nothing."""

    def refresh(self) -> None:
        pass

    def amplify_(self, params, previous, kappa) -> None:
        pass
