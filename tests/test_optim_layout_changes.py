"""A parameter that moves to another memory format keeps its mask and its path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_ire
from every_optimizer import EVERY, IRE_ARGUMENTS, Subject, assert_equal, name_of

SHAPES = ((4, 3, 3, 5), (6, 5), (7,))


def gradient(number: int, position: int) -> Tensor:
    generator = torch.Generator().manual_seed(10 * number + position)
    return torch.randn(SHAPES[position], generator=generator)


def other_format(tensor: Tensor) -> Tensor:
    if tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor.t().contiguous().t() if tensor.dim() == 2 else tensor.clone()


def by_data(param: nn.Parameter) -> None:
    """As ``Module.to(memory_format=torch.channels_last)``."""
    param.data = other_format(param.data)


def by_swap(param: nn.Parameter) -> None:
    """As ``Module.to`` under ``torch.__future__.set_swap_module_params_on_conversion``."""
    torch.utils.swap_tensors(param, nn.Parameter(other_format(param.detach())))


class Path:
    """Steps with gradients that are given, whose layout is that of the parameter or not."""

    def __init__(self, subject: Subject, **overrides: Any) -> None:
        self.subject = subject
        self.params = [nn.Parameter(gradient(99, i)) for i in range(len(SHAPES))]
        self.optimizer, self.handle = subject.make(self.params, **overrides)

    def give(self, number: int) -> None:
        for i, param in enumerate(self.params):
            param.grad = gradient(number, i)

    def step(self, number: int, between: Callable[[], None] = lambda: None) -> None:
        if self.handle.mask_due():
            self.give(50 + number)
            self.handle.update_mask()
        for call in ("first_step", "second_step") if self.subject.is_sam else ("step",):
            self.give(number)
            getattr(self.optimizer, call)()
            if call == "first_step":
                between()

    def change(self, how: Callable[[nn.Parameter], None]) -> None:
        self.optimizer.zero_grad()
        for param in self.params:
            how(param)

    def masks(self) -> list[Tensor]:
        return [entry["flat_mask"] for entry in self.optimizer.state_dict()["state"].values()]


@pytest.mark.parametrize("overrides", [{}, {"curvature": "fisher", "curvature_beta": 0.5}], ids=["random", "fisher"])
@pytest.mark.parametrize("how", [by_data, by_swap], ids=lambda how: how.__name__)
@pytest.mark.parametrize("subject", EVERY, ids=name_of)
def test_a_change_of_memory_format_changes_no_mask_and_no_step(subject, how, overrides):
    """The mask is packed in the order of memory, which is another one then."""
    arguments = {"mask_interval": 4, **overrides}
    path, twin = Path(subject, **arguments), Path(subject, **arguments)
    for number in range(2):
        path.step(number)
        twin.step(number)
    path.change(how)
    assert_equal(path.masks(), twin.masks())
    # the next random mask is drawn in the order of memory, which may differ
    for number in range(2, 8 if overrides else 4):
        path.step(number)
        twin.step(number)
        for p, q in zip(path.params, twin.params, strict=True):  # sums over tensors may run in another order
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
        assert_equal(path.masks(), twin.masks())


@pytest.mark.parametrize("how", [by_data, by_swap], ids=lambda how: how.__name__)
@pytest.mark.parametrize("subject", [s for s in EVERY if s.is_sam], ids=name_of)
def test_a_change_of_memory_format_between_two_passes_changes_no_step(subject, how):
    arguments = {"mask_interval": 50, "curvature": "fisher"}
    path, twin = Path(subject, **arguments), Path(subject, **arguments)
    for number in range(4):
        path.step(number, between=lambda changes=number == 2: path.change(how) if changes else None)
        twin.step(number)
    for p, q in zip(path.params, twin.params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


class Replacing(torch.optim.Optimizer):
    """Puts new tensors in the place of the old ones, in a memory format of its own."""

    def __init__(self, params: Any, make: Callable[[Tensor], Tensor]) -> None:
        super().__init__(params, {"lr": 0.1})
        self.make = make

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                param.data = self.make(param.data - group["lr"] * param.grad)


@pytest.mark.parametrize("make", [torch.clone, other_format], ids=["same format", "another format"])
@pytest.mark.parametrize("implementation", ["native", "reference"])
def test_an_optimizer_that_replaces_the_data_is_amplified_as_any(make, implementation):
    def path(make: Callable[[Tensor], Tensor]) -> list[nn.Parameter]:
        params = [nn.Parameter(gradient(99, i)) for i in range(len(SHAPES))]
        optimizer = Replacing(params, make)
        torch_ire.IRE(
            optimizer, **{**IRE_ARGUMENTS, "curvature": "fisher", "mask_interval": 50}, implementation=implementation
        )
        for number in range(3):
            for i, param in enumerate(params):
                param.grad = gradient(number, i)
            if number == 0:
                torch_ire.ire_of(optimizer).update_mask()
                for i, param in enumerate(params):
                    param.grad = gradient(number, i)
            optimizer.step()
        return params

    for p, q in zip(path(make), path(lambda tensor: tensor), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("ranking", ["parameter", "group"])
def test_a_second_moment_ranks_in_the_new_format_without_a_gradient(ranking):
    param, other = nn.Parameter(gradient(99, 0)), nn.Parameter(gradient(99, 1))
    optimizer = torch_ire.AdmIRE([param, other], curvature="second_moment", mask_interval=1, gamma=0.5, ranking=ranking)
    param.grad, other.grad = gradient(0, 0), gradient(0, 1)
    optimizer.step()
    before = optimizer.state_dict()["state"][0]
    by_data(param)
    param.grad = None
    optimizer.step()
    after = optimizer.state_dict()["state"][0]
    largest_flat = after["exp_avg_sq"][after["flat_mask"]].max()
    assert largest_flat < after["exp_avg_sq"][~after["flat_mask"]].min()
    if ranking == "parameter":
        assert torch.equal(after["flat_mask"], before["flat_mask"])
