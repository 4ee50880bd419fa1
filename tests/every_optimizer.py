"""Every optimizer of the library under one interface: its classes, and ``IRE`` around optimizers of torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import torch_ire
from optimizer_cases import ADAMW, CASES, NESTEROV, loss_of, small_model

# a mask that each second step draws anew, so that masks are part of what a step changes
IRE_ARGUMENTS: dict[str, Any] = {"kappa": 2.0, "gamma": 0.5, "mask_interval": 2, "curvature": "random", "seed": 3}


@dataclass(frozen=True)
class Subject:
    """An optimizer as a user makes it; ``make`` returns the optimizer and the object with ``mask_due()``."""

    name: str
    make: Callable[..., tuple[torch.optim.Optimizer, Any]]
    # optimizers of torch check their gradients themselves; IRE around them answers for its masks and parameters
    is_foreign: bool = False

    @property
    def is_sam(self) -> bool:
        return "SAMIRE" in self.name


def _own(case: Any, implementation: str) -> Callable[..., tuple[torch.optim.Optimizer, Any]]:
    def make(params: Any, **overrides: Any) -> tuple[torch.optim.Optimizer, Any]:
        optimizer = case(params, **{**IRE_ARGUMENTS, "implementation": implementation, **overrides})
        return optimizer, optimizer

    return make


def _around(cls: type[torch.optim.Optimizer], implementation: str, **arguments: Any) -> Callable[..., Any]:
    def make(params: Any, **overrides: Any) -> tuple[torch.optim.Optimizer, Any]:
        optimizer = cls(params, **arguments)
        return optimizer, torch_ire.IRE(optimizer, **{**IRE_ARGUMENTS, "implementation": implementation, **overrides})

    return make


FOREIGN: list[tuple[type[torch.optim.Optimizer], dict[str, Any]]] = [
    (torch.optim.AdamW, ADAMW),
    (torch.optim.SGD, NESTEROV),
    (torch.optim.NAdam, {"lr": 0.02}),
]
IMPLEMENTATIONS = ("native", "reference")
OWN = [Subject(f"{case.name}-{how}", _own(case, how)) for case in CASES for how in IMPLEMENTATIONS]
AROUND = [
    Subject(f"IRE-{cls.__name__}-{how}", _around(cls, how, **arguments), is_foreign=True)
    for cls, arguments in FOREIGN
    for how in IMPLEMENTATIONS
]
EVERY = [*OWN, *AROUND]


def name_of(subject: Subject) -> str:
    """The id of a test case."""
    return subject.name


class Run:
    """A model of four parameters, in two groups unless told otherwise, and its optimizer."""

    def __init__(self, subject: Subject, *, groups: int = 2, **overrides: Any) -> None:
        self.subject = subject
        self.model: nn.Module = small_model()
        self.params = list(self.model.parameters())
        lists = [self.params] if groups == 1 else [self.params[:2], self.params[2:]]
        self.optimizer, self.handle = subject.make([{"params": params} for params in lists], **overrides)

    @property
    def calls(self) -> tuple[str, ...]:
        """The methods that a training step calls, each after a backward pass."""
        return ("first_step", "second_step") if self.subject.is_sam else ("step",)

    def backward(self, number: int) -> None:
        for param in self.params:
            param.grad = None
        loss_of(self.model, number).backward()

    def train(self, steps: range) -> None:
        for number in steps:
            for call in self.calls:
                self.backward(number)
                getattr(self.optimizer, call)()

    def closure(self, number: int) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            self.backward(number)
            return loss_of(self.model, number).detach()

        return closure

    def theta(self) -> list[Tensor]:
        return [param.detach().clone() for param in self.params]


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def same_bits(a: Any, b: Any) -> bool:
    """Equality of tensors to the bit, NaN included, and of other values."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return type(a) is type(b) and bool(a == b)
    if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
        return False
    return a.is_meta or torch.equal(bits(a), bits(b))


def snapshot(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Copies of all parameters, of all state and of all numbers of the groups, under names that a message can show."""
    found: dict[str, Any] = {}
    for g, group in enumerate(optimizer.param_groups):
        for key, value in group.items():
            if key != "params":
                found[f"group {g} {key}"] = value.detach().clone() if isinstance(value, Tensor) else value
        for i, param in enumerate(group["params"]):
            found[f"parameter {g}.{i}"] = param.detach().clone()
            for key, value in optimizer.state.get(param, {}).items():
                found[f"state {g}.{i} {key}"] = value.detach().clone() if isinstance(value, Tensor) else value
    return found


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The names under which two snapshots differ."""
    return [
        name
        for name in dict.fromkeys([*before, *after])
        if name not in before or name not in after or not same_bits(before[name], after[name])
    ]


def assert_equal(ours: list[Tensor], expected: list[Tensor]) -> None:
    """Equality of lists of tensors to the bit."""
    for i, (p, q) in enumerate(zip(ours, expected, strict=True)):
        assert same_bits(p.detach(), q.detach()), f"parameter {i}: {p.detach().flatten()[:4]}, not {q.flatten()[:4]}"
