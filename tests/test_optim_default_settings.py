"""What an optimizer draws and makes depends on its parameters and its seed, not on torch's default dtype or device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import torch_ire
from every_optimizer import AROUND, OWN, Run, assert_equal, changes, name_of, snapshot
from optimizer_cases import loss_of


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SETTINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: torch.device("meta"),
}


class Fixed:
    """Gradients that are made once, so that nothing but the optimizer runs under a setting."""

    def __init__(self, run: Run) -> None:
        self.gradients: list[list[Tensor]] = []
        for number in range(5):
            run.backward(number)
            self.gradients.append([param.grad.clone() for param in run.params])

    def give(self, run: Run, number: int) -> None:
        for param, grad in zip(run.params, self.gradients[number], strict=True):
            param.grad = grad.clone()


def stepped(subject: Any, setting: str | None, gradients: Fixed, **overrides: Any) -> Run:
    run = Run(subject, **overrides)
    for number in range(5):
        loss = loss_of(run.model, number) if overrides.get("curvature") == "hutchinson" else None
        with SETTINGS[setting]() if setting else torch.enable_grad():
            if run.handle.mask_due():
                gradients.give(run, number)
                run.handle.update_mask(loss) if loss is not None else run.handle.update_mask()
            for call in run.calls:
                gradients.give(run, number)
                getattr(run.optimizer, call)()
    return run


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(
    "overrides",
    [
        {"curvature": "random"},
        {"curvature": "fisher", "curvature_beta": 0.5},
        {"curvature": "hutchinson", "curvature_beta": 0.5},
    ],
    ids=lambda overrides: overrides["curvature"],
)
@pytest.mark.parametrize("subject", OWN, ids=name_of)
def test_a_default_of_torch_changes_nothing(subject, overrides, setting):
    gradients = Fixed(Run(subject))
    expected = stepped(subject, None, gradients, **overrides)
    run = stepped(subject, setting, gradients, **overrides)
    assert changes(snapshot(expected.optimizer), snapshot(run.optimizer)) == []
    assert_equal(run.params, expected.params)


@pytest.mark.parametrize("setting", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("subject", AROUND, ids=name_of)
def test_a_default_dtype_changes_no_random_mask_around_a_foreign_optimizer(subject, setting):
    """Whose own state may follow the default, as that of torch does."""
    gradients = Fixed(Run(subject))
    masks = []
    for each in (None, setting):
        run = stepped(subject, each, gradients)
        masks.append([run.optimizer.state[param]["flat_mask"] for param in run.params])
    assert_equal(masks[1], masks[0])


@pytest.mark.parametrize("setting", ["float64", "float16", "bfloat16"])
def test_a_default_dtype_changes_no_label(setting):
    logits = torch.randn(64, 11, generator=torch.Generator().manual_seed(0)).requires_grad_()
    losses = []
    for each in (None, setting):
        with SETTINGS[each]() if each else torch.enable_grad():
            loss = torch_ire.sampled_cross_entropy(logits, generator=torch_ire.LabelGenerator(seed=3))
        (gradient,) = torch.autograd.grad(loss, logits)
        losses.append((loss.detach(), gradient))
    assert torch.equal(losses[0][0], losses[1][0])
    assert torch.equal(losses[0][1], losses[1][1])
