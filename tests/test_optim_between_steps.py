"""Parameters, groups and checkpoints that change between steps, as models, schedules and tools change them."""

from __future__ import annotations

import copy

import pytest
import torch

import torch_ire

KINDS = ("AdmIRE", "SGDIRE", "SAMIRE", "IRE")


def make(kind: str, params: list[torch.nn.Parameter], **arguments):
    """An optimizer and what has its masks."""
    if kind == "IRE":
        optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9)
        return optimizer, torch_ire.IRE(optimizer, **arguments)
    momentum = {} if kind == "AdmIRE" else {"momentum": 0.9}
    optimizer = getattr(torch_ire, kind)(params, lr=0.1, **momentum, **arguments)
    return optimizer, optimizer


def kernel(seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The weights of a convolution, or a gradient of them: in memory they lie as the caller says."""
    return torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(seed)).to(dtype)


def flat_of(optimizer) -> torch.Tensor:
    return optimizer.state_dict()["state"][0]["flat_mask"]


def smallest(values: torch.Tensor, share: float) -> torch.Tensor:
    return values <= values.flatten().sort().values[round(share * values.numel()) - 1]


@pytest.mark.parametrize("back", [False, True], ids=["to channels_last", "to contiguous"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_belongs_to_coordinates_not_to_places_in_memory(kind, back):
    """``model.to(memory_format=...)`` moves every weight in memory; which coordinate is flat stays."""
    formats = [torch.contiguous_format, torch.channels_last]
    before, after = reversed(formats) if back else formats
    ours = torch.nn.Conv2d(3, 4, 2, bias=False).to(memory_format=before)
    theirs = torch.nn.Conv2d(3, 4, 2, bias=False)
    steps = []
    for model in (ours, theirs):
        with torch.no_grad():
            model.weight.copy_(kernel())
        optimizer, handle = make(kind, [model.weight], kappa=3.0, gamma=0.5, mask_interval=100)
        model.weight.grad = kernel(1)
        handle.update_mask()
        for step in range(4):
            if model is ours and step == 2:
                ours.to(memory_format=after)
            model.weight.grad = kernel(2 + step)
            optimizer.step()
        assert torch.equal(flat_of(optimizer), smallest(kernel(1).square(), 0.5))
        steps.append(model.weight.detach().clone())
    torch.testing.assert_close(steps[0], steps[1], rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_an_average_of_estimates_follows_its_parameter_to_another_layout(kind):
    model = torch.nn.Conv2d(3, 4, 2, bias=False)
    p = model.weight
    optimizer, handle = make(kind, [p], gamma=0.5, mask_interval=1, curvature_beta=0.5)
    for seed in (1, 2):
        p.grad = kernel(seed)
        handle.update_mask()
        p.grad = kernel(9)
        optimizer.step()
        model.to(memory_format=torch.channels_last)
    expected = (0.5 * kernel(1).square() + kernel(2).square()) / 1.5
    torch.testing.assert_close(optimizer.state_dict()["state"][0]["hessian_diag"], expected)
    assert torch.equal(flat_of(optimizer), smallest(optimizer.state_dict()["state"][0]["hessian_diag"], 0.5))


BAD = [
    ("gamma", 1.5, "Invalid gamma value: 1.5"),
    ("gamma", -0.5, "Invalid gamma value: -0.5"),
    ("mask_interval", 0, "Invalid mask_interval value: 0"),
    ("ranking", "layer", "Invalid ranking value: 'layer'"),
    ("curvature", "Fisher", "Invalid curvature value: 'Fisher'"),
]


@pytest.mark.parametrize(("key", "value", "message"), BAD, ids=[message for *_, message in BAD])
def test_an_argument_that_a_schedule_drives_out_of_range_is_refused_before_the_step(key, value, message):
    """Not after the weights have moved: whoever catches the error and goes on would take the step again."""
    p = torch.nn.Parameter(torch.ones(4))
    optimizer = torch_ire.AdmIRE([p], lr=0.1, mask_interval=1, curvature="second_moment")
    p.grad = torch.arange(4.0)
    optimizer.step()
    before, state = p.detach().clone(), copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.param_groups[0][key] = value
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert torch.equal(p.detach(), before)
    for name, kept in state[0].items():
        assert torch.equal(optimizer.state_dict()["state"][0][name], kept), name


def test_an_argument_out_of_range_is_refused_before_a_refresh_writes_anything():
    params = [torch.nn.Parameter(torch.ones(4)) for _ in range(2)]
    groups = [{"params": params[:1]}, {"params": params[1:], "curvature_beta": 0.5}]
    optimizer = torch_ire.AdmIRE(groups, lr=0.1)
    for p in params:
        p.grad = torch.arange(4.0)
    optimizer.param_groups[1]["gamma"] = 2.0
    with pytest.raises(ValueError, match=r"Invalid gamma value: 2\.0"):
        optimizer.update_mask()
    assert not any(optimizer.state.values())
    assert all(p.grad is not None for p in params)
    assert optimizer.mask_due()


def test_a_parameter_of_two_optimizers_in_one_handle_is_refused():
    p = torch.nn.Parameter(torch.zeros(4))
    pair = [torch.optim.SGD([p], lr=0.1), torch.optim.SGD([p], lr=0.1)]
    with pytest.raises(ValueError, match="more than one"):
        torch_ire.IRE(pair, curvature="random")


def perturbed() -> tuple[torch.nn.Parameter, torch_ire.SAMIRE]:
    p = torch.nn.Parameter(torch.ones(4))
    optimizer = torch_ire.SAMIRE([p], lr=0.1, rho=1.0, curvature="random")
    p.grad = torch.ones(4)
    optimizer.first_step(zero_grad=True)
    assert p.tolist() == [1.5] * 4
    return p, optimizer


def test_loading_in_the_middle_of_a_step_does_not_leave_the_perturbation_in_the_weights():
    """What is loaded is the optimizer; the weights of the model are theta, whether they are loaded as well or not."""
    p, optimizer = perturbed()
    optimizer.load_state_dict(optimizer.state_dict())
    assert not optimizer.is_perturbed
    assert p.tolist() == [1.0] * 4


def test_a_parameter_that_leaves_in_the_middle_of_a_step_goes_back_to_theta():
    p, optimizer = perturbed()
    optimizer.param_groups[0]["params"] = [torch.nn.Parameter(torch.ones(2))]
    p.grad = torch.ones(4)
    optimizer.step()
    assert not optimizer.is_perturbed
    assert p.tolist() == [1.0] * 4


def test_a_mask_is_not_estimated_at_perturbed_weights():
    p = torch.nn.Parameter(torch.ones(4))
    optimizer = torch_ire.SAMIRE([p], lr=0.1, rho=1.0)
    p.grad = torch.ones(4)
    optimizer.first_step(zero_grad=True)
    p.grad = torch.arange(4.0)
    with pytest.raises(RuntimeError, match="perturbed"):
        optimizer.update_mask()
    assert optimizer.is_perturbed
    assert p.grad is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("adaptive", [False, True])
def test_a_perturbation_does_not_depend_on_gaps_in_memory(adaptive, dtype):
    """A column of a matrix: its arithmetic is float32 as that of every half-precision parameter; 300 squared is not."""
    values, grads = torch.linspace(1.0, 300.0, 8).to(dtype), torch.linspace(0.001, 0.01, 8).to(dtype)
    found = []
    for p in (torch.nn.Parameter(torch.stack([values, values], 1)[:, 0]), torch.nn.Parameter(values.clone())):
        optimizer = torch_ire.SAMIRE([p], lr=0.1, rho=0.5, adaptive=adaptive, curvature="random")
        p.grad = grads.clone()
        optimizer.first_step()
        found.append(p.detach().clone())
    assert found[0].isfinite().all()
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("kind", KINDS)
def test_an_average_of_half_precision_products_is_kept_in_float32(kind):
    """h of a diagonal quadratic: z * Hz is exact in bfloat16, and so is the mean of two up to float32."""
    p = torch.nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    optimizer, handle = make(kind, [p], curvature="hutchinson", curvature_beta=0.7, mask_interval=1)
    diagonals = [torch.randn(64, generator=torch.Generator().manual_seed(s)).bfloat16() for s in (0, 1)]
    for diagonal in diagonals:
        handle.update_mask((diagonal * p * p).float().sum())
        p.grad = torch.zeros_like(p)
        optimizer.step()
    first, second = (2 * d.double() for d in diagonals)
    h = optimizer.state_dict()["state"][0]["hessian_diag"]
    torch.testing.assert_close(h.double(), (0.7 * first + second) / 1.7, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("curvature_beta", [0.0, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_the_default_device_does_not_matter(kind, curvature_beta):
    """Parameters say where everything lies; "meta" is a device on which a number that strays can't be read."""
    p = torch.nn.Parameter(torch.ones(4))
    with torch.device("meta"):
        arguments = {"mask_interval": 1, "curvature_beta": curvature_beta, "kappa_follows_lr": True}
        optimizer, handle = make(kind, [p], **arguments)
        for _ in range(2):
            for call in (handle.update_mask, optimizer.step):
                p.grad = torch.arange(4.0, device="cpu")
                call()
        handle.ire_summary()
        optimizer.load_state_dict(optimizer.state_dict())
        p.grad = torch.arange(4.0, device="cpu")
        optimizer.step()
    tensors = [value for value in optimizer.state[p].values() if torch.is_tensor(value)]
    assert tensors
    assert all(value.device.type == "cpu" for value in tensors)
