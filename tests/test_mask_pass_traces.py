"""refresh_mask() leaves no trace: gradients, hooks, buffers and random numbers of everything but the masks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import torch_ire
from optimizer_cases import batch, small_model
from torch_ire.untouched import restored_buffers


def masks(handle: torch_ire.AdmIRE) -> list[Tensor]:
    return [entry["flat_mask"] for entry in handle.state_dict()["state"].values()]


def outside(grad: bool) -> Tensor:
    tensor = torch.ones(5, requires_grad=True)
    if grad:
        tensor.grad = torch.full((5,), 3.0)
    return tensor


@pytest.mark.parametrize("grad", [False, True], ids=["without a gradient", "with a gradient"])
@pytest.mark.parametrize("unused", [False, True], ids=["all parameters used", "an unused parameter"])
def test_tensors_that_the_forward_closes_over_keep_their_gradients(grad: bool, unused: bool) -> None:
    """A learned prompt, the parameters of another network, an input that is optimised."""
    model, scale = small_model(), outside(grad)
    spare = [nn.Parameter(torch.ones(2))] if unused else []
    before = scale.grad
    opt = torch_ire.AdmIRE([*model.parameters(), *spare])
    assert torch_ire.refresh_mask(opt, model, batch(0), forward=lambda m, b: m(b[0]) * scale)
    assert scale.grad is before
    if grad:
        assert torch.equal(scale.grad, torch.full((5,), 3.0))
    assert all(p.grad is None for p in [*model.parameters(), *spare])


def test_the_masks_are_those_of_an_ordinary_backward_pass() -> None:
    found = []
    for unused in (False, True):
        model, scale = small_model(), outside(True)
        spare = [nn.Parameter(torch.ones(2))] if unused else []
        opt = torch_ire.AdmIRE([*model.parameters(), *spare])
        labels = torch_ire.LabelGenerator(seed=3)
        torch_ire.refresh_mask(opt, model, batch(0), forward=lambda m, b, s=scale: m(b[0]) * s, generator=labels)
        found.append(masks(opt)[:4])
    model, scale = small_model(), outside(False)
    opt = torch_ire.AdmIRE(model.parameters())
    logits = model(batch(0)[0]) * scale
    torch_ire.sampled_cross_entropy(logits, generator=torch_ire.LabelGenerator(seed=3)).backward()
    opt.update_mask()
    for ours in found:
        assert all(map(torch.equal, ours, masks(opt)))


def test_hooks_of_other_parameters_do_not_run() -> None:
    """A parameter that steps as soon as its gradient is there would step on the sampled loss."""
    model = small_model()
    others = list(model[0].parameters())
    seen = []
    for p in others:
        p.register_post_accumulate_grad_hook(seen.append)
    opt = torch_ire.AdmIRE(model[2].parameters())
    assert torch_ire.refresh_mask(opt, model, batch(0))
    assert seen == []
    F.cross_entropy(model(batch(0)[0]), batch(0)[1]).backward()
    assert len(seen) == 2


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_the_pass_goes_through_checkpointed_layers(use_reentrant: bool) -> None:
    """Reentrant checkpoints run a backward pass of their own, which the graph does not show."""
    found = []
    for checkpointed in (False, True):
        model, scale = small_model(), outside(True)
        before = scale.grad
        opt = torch_ire.AdmIRE(model.parameters())

        def forward(m: nn.Sequential, b: tuple[Tensor, Tensor], wrap=checkpointed, scale=scale) -> Tensor:
            hidden = m[1](m[0](b[0]))
            return (checkpoint(m[2], hidden, use_reentrant=use_reentrant) if wrap else m[2](hidden)) * scale

        torch_ire.refresh_mask(opt, model, batch(0), forward=forward, generator=torch_ire.LabelGenerator(seed=3))
        assert scale.grad is before
        assert torch.equal(scale.grad, torch.full((5,), 3.0))
        found.append(masks(opt))
    assert all(map(torch.equal, *found))


def test_an_error_in_the_backward_pass_puts_every_gradient_back() -> None:
    model, scale = small_model(), outside(True)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    grads = [p.grad for p in [*model.parameters(), scale]]
    model[0].weight.register_hook(lambda grad: 1 / 0)
    opt = torch_ire.AdmIRE(model.parameters())
    with pytest.raises(ZeroDivisionError):
        torch_ire.refresh_mask(opt, model, batch(0), forward=lambda m, b: m(b[0]) * scale)
    for p, grad in zip([*model.parameters(), scale], grads, strict=True):
        assert p.grad is grad
        assert bool((grad == grad.flatten()[0]).all())
    assert opt.mask_due()


class Counting(nn.Module):
    """Buffers that a forward pass in training mode changes, in place and by assignment."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(8, 5))
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        self.calls += 1
        self.last = out.detach().mean(0)
        return out


@pytest.mark.parametrize("curvature", ["fisher", "hutchinson"])
def test_buffers_are_left_as_found(curvature: str) -> None:
    """Spectral norms, codebooks and counters would otherwise be a step ahead of the run without masks."""
    torch.manual_seed(0)
    model = Counting()
    model(batch(0)[0])
    objects = dict(model.named_buffers())
    before = {name: buffer.clone() for name, buffer in objects.items()}
    opt = torch_ire.AdmIRE(model.parameters(), curvature=curvature)
    assert torch_ire.refresh_mask(opt, model, batch(1))
    after = dict(model.named_buffers())
    assert after.keys() == before.keys()
    for name, buffer in after.items():
        assert buffer is objects[name], name
        assert torch.equal(buffer, before[name]), name


def test_quantized_weights_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    model.register_buffer("quantized", torch.zeros(1 << 21, dtype=torch.int8))
    model.register_buffer("counter", torch.zeros(3, dtype=torch.int64))
    model.register_buffer("codebook", torch.zeros(1 << 21, dtype=torch.bfloat16))
    copied = []
    clone = Tensor.clone
    monkeypatch.setattr(Tensor, "clone", lambda self, **options: copied.append(self) or clone(self, **options))
    with restored_buffers(model):
        pass
    assert [id(buffer) for buffer in copied] == [id(model.counter), id(model.codebook)]


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("targets", [False, True])
def test_the_default_dtype_changes_no_estimate(default: torch.dtype, targets: bool) -> None:
    def estimates() -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(70_001, 8, generator=generator, dtype=torch.float32)  # more rows than float16 counts
        y = torch.randint(5, (70_001,), generator=generator)
        opt = torch_ire.AdmIRE(model.parameters(), curvature_beta=0.5)
        labels = torch_ire.LabelGenerator(seed=3)
        torch_ire.refresh_mask(opt, model, (x, y) if targets else x, generator=labels)
        return [entry["hessian_diag"] for entry in opt.state_dict()["state"].values()]

    model = small_model()
    expected = estimates()
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        found = estimates()
    finally:
        torch.set_default_dtype(before)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)
