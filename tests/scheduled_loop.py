"""A training loop under a schedule in which everything changes, whose steps run plainly, from a record, or compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import torch_ire
from graph_replay import Recording
from optimizer_cases import CASES, batch, small_model, values

STEPS = 30
WARMUP, INTERVAL = 3, 4


def learning_rate(step: int) -> float:
    return 0.02 * (1 + step) / 8 if step < 8 else 0.02 * 0.9 ** (step - 8)


def enhancement(step: int) -> float:
    return 0.0 if step < 5 else 0.25 * (step - 4)


def arguments(capturable: bool, **overrides):
    lr, kappa = learning_rate(0), enhancement(0)
    if capturable:
        lr, kappa = torch.tensor(lr, dtype=torch.float64), torch.tensor(kappa, dtype=torch.float64)
    schedule = {"warmup_steps": WARMUP, "mask_interval": INTERVAL, "gamma": 0.6}
    return {"lr": lr, "kappa": kappa, **schedule, **overrides}


def set_scalars(optimizer: torch.optim.Optimizer, step: int) -> None:
    for group in optimizer.param_groups:
        for name, value in (("lr", learning_rate(step)), ("kappa", enhancement(step))):
            key = f"ire_{name}" if f"ire_{name}" in group else name
            if isinstance(group[key], torch.Tensor):
                group[key].fill_(value)
            else:
                group[key] = value


def plainly(name: str, function: Callable[[], None], step: int) -> None:
    """Runs a part of a step as it is."""
    function()


class Captured:
    """Records each part of a step once and replays it from then on."""

    def __init__(self, at: int, graph: Callable[[], Any] = Recording) -> None:
        self.at, self.graph, self.records = at, graph, {}

    def __call__(self, name: str, function: Callable[[], None], step: int) -> None:
        if step < self.at:
            function()
        elif step == self.at:
            with self.graph() as record:
                function()
            self.records[name] = record
            if not isinstance(record, Recording):
                record.replay()  # a CUDA graph does not run what it records
        else:
            self.records[name].replay()


class Loop:
    """The loop of the README with gradients that stay where they are; `part` runs the parts of a step."""

    def __init__(self, make, part: Callable[[str, Callable[[], None], int], None] = plainly, device="cpu") -> None:
        self.model = small_model(dtype=torch.float64).to(device)
        self.optimizer, self.handle = make(self.model)
        self.part = part
        self.due: list[int] = []

    def loss(self, step: int) -> torch.Tensor:
        x, y = batch(step)
        p = next(self.model.parameters())
        return nn.functional.cross_entropy(self.model(x.to(p)), y.to(p.device))

    def backward(self, step: int) -> None:
        model = self.model
        for p in model.parameters():
            if p.grad is not None:
                p.grad.zero_()
        with torch.enable_grad():
            loss = self.loss(step)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        for p, g in zip(model.parameters(), grads, strict=True):
            if p.grad is None:
                p.grad = g.clone()
            else:
                p.grad.copy_(g)

    def refresh(self, step: int) -> None:
        group = self.optimizer.param_groups[0]
        curvature = group.get("ire_curvature", group.get("curvature"))
        if not self.handle.mask_due():
            return
        self.due.append(step)
        if curvature in ("second_moment", "random"):
            self.handle.update_mask()
        elif curvature == "hutchinson":
            self.handle.update_mask(self.loss(step))
        else:
            grads = [p.grad for p in self.model.parameters()]
            for p in self.model.parameters():
                p.grad = None
            self.loss(step + 100).backward()
            self.handle.update_mask()
            for p, g in zip(self.model.parameters(), grads, strict=True):
                p.grad = g

    def run(self, steps: range = range(STEPS)) -> list[list[torch.Tensor]]:
        path = []
        for step in steps:
            set_scalars(self.optimizer, step)
            self.refresh(step)
            self.backward(step)
            if isinstance(self.optimizer, torch_ire.SAMIRE):
                self.part("first", self.optimizer.first_step, step)
                self.backward(step)
                self.part("second", self.optimizer.second_step, step)
            else:
                self.part("step", self.optimizer.step, step)
            path.append(values(self.model))
        return path


def ours(case, capturable: bool, **overrides):
    def make(model: nn.Module):
        optimizer = case(model.parameters(), **arguments(capturable, **overrides), capturable=capturable)
        return optimizer, optimizer

    return make


class Momentum(torch.optim.Optimizer):
    """Somebody's optimizer, which reads its learning rate where it is."""

    def __init__(self, params, lr) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p].setdefault("buffer", torch.zeros_like(p))
                    buffer = self.state[p]["buffer"].mul_(0.9).add_(p.grad)
                    p.sub_(buffer * group["lr"])


def around(capturable: bool, **overrides):
    def make(model: nn.Module):
        whole = arguments(capturable, **overrides)
        optimizer = Momentum(model.parameters(), lr=whole.pop("lr"))
        return optimizer, torch_ire.IRE(optimizer, **whole, capturable=capturable)

    return make


def assert_same(path, other) -> None:
    for step, (ps, qs) in enumerate(zip(path, other, strict=True)):
        for p, q in zip(ps, qs, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13, msg=lambda m, s=step: f"step {s}: {m}")


FIXED = [case for case in CASES if case.name != "average-SAMIRE"]
