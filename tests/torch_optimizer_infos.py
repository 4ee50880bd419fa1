"""The optimizers of this package as entries of torch's own table of optimizers, with the inputs that torch tests.

``torch.testing._internal.common_optimizers`` knows configurations, bad arguments and abilities of every optimizer of
torch. An entry here takes them for a class that has to behave like one of those.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.testing._internal.common_optimizers import (
    OptimizerInfo,
    OptimizerInput,
    _get_optim_inputs_including_global_cliquey_kwargs,
    optim_db,
)

import torch_ire

# Importing torch's test machinery forbids to set torch.backends flags outside of its own context managers, for the
# whole process and all other tests in it.
vars(torch.backends)["__allow_nonbracketed_mutation_flag"] = True

INFOS: dict[str, OptimizerInfo] = {info.name: info for info in optim_db}
SHAPES = ((5, 3), (4, 2), (3, 0), (1, 1))  # matrices all, for Muon
# These divide by the size of a parameter.
NEEDS_ELEMENTS = ("Adafactor", "Muon")


@dataclass(frozen=True)
class Entry:
    """An optimizer with the entry of torch's table whose behaviour it should have."""

    name: str
    info: OptimizerInfo
    make: Callable[..., Optimizer]

    @property
    def base(self) -> Callable[..., Optimizer]:
        """The optimizer of torch."""
        return self.info.optim_cls

    @property
    def is_attached(self) -> bool:
        """Whether this is torch's optimizer itself with ``IRE`` on it, rather than a class of this package."""
        return self.name.startswith("IRE")

    def configurations(self) -> list[OptimizerInput]:
        """torch's inputs, less those that ask for what the package says it does not do."""
        if self.is_attached:
            found = _get_optim_inputs_including_global_cliquey_kwargs(
                "cpu", torch.float32, self.info, skip=("differentiable",)
            )
        else:
            found = [*self.info.optim_inputs_func("cpu"), *self.info.optim_inputs_func("cuda")]
            found = [i for i in found if not i.kwargs.pop("amsgrad", False)]
        kinds = {str((i.desc, i.kwargs)): i for i in found}
        return [OptimizerInput(None, deepcopy(i.kwargs), i.desc) for i in kinds.values()]

    def parameters(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
        """A few parameters that the optimizer takes, the same in every call with the same seed."""
        generator = torch.Generator().manual_seed(seed)
        shapes = [shape for shape in SHAPES if 0 not in shape or self.info.name not in NEEDS_ELEMENTS]
        return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


IRE = {"kappa": 0.0, "gamma": 0.5, "mask_interval": 2, "curvature": "random"}


def _attached(base: Callable[..., Optimizer]) -> Callable[..., Optimizer]:
    def make(params: Any, **arguments: Any) -> Optimizer:
        optimizer = base(params, **{k: v for k, v in arguments.items() if k not in IRE})
        torch_ire.IRE(optimizer, **{k: arguments.get(k, v) for k, v in IRE.items()})
        return optimizer

    return make


def _own(make: Callable[..., Optimizer], **fixed: Any) -> Callable[..., Optimizer]:
    return lambda params, **arguments: make(params, **{**IRE, **fixed, **arguments})


OWN = [
    Entry("AdmIRE", INFOS["AdamW"], _own(torch_ire.AdmIRE)),
    Entry("SGDIRE", INFOS["SGD"], _own(torch_ire.SGDIRE)),
    Entry("SAMIRE-adamw", INFOS["AdamW"], _own(torch_ire.SAMIRE, base="adamw")),
    Entry("SAMIRE-sgd", INFOS["SGD"], _own(torch_ire.SAMIRE, base="sgd")),
]
# SparseAdam takes sparse gradients alone, which IRE refuses.
ATTACHED = [
    Entry(f"IRE-{name}", info, _attached(info.optim_cls)) for name, info in INFOS.items() if name != "SparseAdam"
]
ENTRIES = OWN + ATTACHED


def copies(params: list[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(p.detach().clone()) for p in params]


def loss_of(params: list[Any]) -> Tensor:
    """A valley with a curved floor, so that no two steps have equal gradients."""
    terms = [((p - i - 1).square() * (1 + i) + p.square().square() / 10).sum() for i, p in enumerate(params)]
    return torch.stack([term.float() for term in terms]).sum()


def take_steps(entry: Entry, optimizer: Optimizer, params: list[torch.nn.Parameter], number: int) -> None:
    """Steps of an ordinary loop; with the closure where the optimizer asks for one."""
    for _ in range(number):

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(params)
            loss.backward()
            return loss

        if entry.info.step_requires_closure:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()


def flattened(value: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dicts and lists by their path."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return {prefix: value}
    return {path: leaf for key, inner in items for path, leaf in flattened(inner, f"{prefix}/{key}").items()}


def assert_same(actual: Any, expected: Any) -> None:
    """Equal trees, tensors bit by bit and with their dtypes."""
    ours, theirs = flattened(actual), flattened(expected)
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        if isinstance(leaf, Tensor):
            assert leaf.dtype == theirs[path].dtype, f"{path} has dtype {leaf.dtype}, not {theirs[path].dtype}"
            assert leaf.isfinite().all(), f"{path}: {leaf} shows nothing"
            assert torch.equal(leaf.detach(), theirs[path].detach()), f"{path}: {leaf} is not {theirs[path]}"
        else:
            assert leaf == theirs[path], f"{path}: {leaf} is not {theirs[path]}"
