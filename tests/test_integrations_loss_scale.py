"""The pass of the mask under a GradScaler: its gradients carry the scale, so that those of float16 do not underflow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torch_ire
from optimizer_cases import batch
from trainers import need

need("transformers")
need("accelerate")

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

from torch_ire.integrations.hugging_face import MaskRefreshCallback

SCALE = 1024.0


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def gradients_of_the_pass(scaler: torch.amp.GradScaler | None, curvature_beta: float) -> tuple[Tensor, Any]:
    """The gradient of the weight in the pass that the callback makes, and the optimizer after it."""
    torch.manual_seed(0)
    model = Head()
    optimizer = torch_ire.AdmIRE(model.parameters(), curvature="fisher", curvature_beta=curvature_beta)
    Accelerator(cpu=True)
    wrapped = AcceleratedOptimizer(optimizer, device_placement=False, scaler=scaler)
    callback = MaskRefreshCallback(
        forward=lambda network, inputs: network(inputs["x"]), generator=torch_ire.LabelGenerator(seed=3)
    )
    callback.on_train_begin(None, None, None, optimizer=wrapped, model=model)
    x, y = batch(0)
    loss = F.cross_entropy(model(x=x), y)
    (loss if scaler is None else scaler.scale(loss)).backward()
    seen: list[Tensor] = []
    hook = model.linear.weight.register_hook(lambda gradient: seen.append(gradient.clone()))
    callback.on_pre_optimizer_step(None, None, None, optimizer=wrapped, model=model)
    hook.remove()
    callback.on_train_end(None, None, None)
    (gradient,) = seen
    return gradient, optimizer


@pytest.mark.parametrize("curvature_beta", [0.0, 0.5])
def test_the_callback_of_the_trainer_scales_its_loss(curvature_beta):
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    scaled, ours = gradients_of_the_pass(scaler, curvature_beta)
    plain, expected = gradients_of_the_pass(None, curvature_beta)
    torch.testing.assert_close(scaled, plain * SCALE)
    for entry, other in zip(ours.state.values(), expected.state.values(), strict=True):
        assert torch.equal(entry["flat_mask"], other["flat_mask"])
        if curvature_beta:
            torch.testing.assert_close(entry["hessian_diag"], other["hessian_diag"])
