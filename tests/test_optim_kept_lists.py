"""Tensor lists that a step keeps for the next one: what makes them stale, and what they must not keep alive."""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_ire


def parameter(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype))


def adm_ire(params: Any, **arguments: Any) -> torch_ire.AdmIRE:
    return torch_ire.AdmIRE(params, **{"lr": 0.1, "curvature": "random", "mask_interval": 100, **arguments})


def step(optimizer: torch.optim.Optimizer, gradient: Callable[[Tensor], Tensor] = torch.ones_like) -> None:
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = gradient(param.detach())
    optimizer.step()


# -- stale lists -----------------------------------------------------------------------------------------------------


def test_positions_follow_a_parameter_that_joins_an_earlier_group():
    """The stream of stochastic rounding is that of the position, also in a copy that gathers its lists anew."""
    first, second, late = (parameter(64, dtype=torch.bfloat16, seed=i) for i in range(3))
    optimizer = adm_ire([{"params": [first]}, {"params": [second]}], rounding="stochastic")
    step(optimizer)
    step(optimizer)
    optimizer.param_groups[0]["params"].append(late)
    other = copy.deepcopy(optimizer)
    for each in (optimizer, other):
        step(each, lambda param: torch.full_like(param, 0.3))
    copied = [param for group in other.param_groups for param in group["params"]]
    assert [torch.equal(a, b) for a, b in zip((first, late, second), copied, strict=True)] == [True, True, True]


@pytest.mark.parametrize("groups", [1, 2])
def test_a_parameter_may_be_transposed_in_place(groups):
    weight, other = parameter(4, 4), parameter(3, seed=1)
    reference = nn.Parameter(weight.detach().clone())
    members = [[weight, other]] if groups == 1 else [[other], [weight]]
    optimizer = adm_ire([{"params": some} for some in members], kappa=0.0)
    plain = torch.optim.AdamW([reference], lr=0.1)
    for _ in range(2):
        step(optimizer)
        step(plain)
    weight.data, reference.data = weight.data.t(), reference.data.t()
    gradient = torch.arange(16.0).view(4, 4) - 8
    other.grad, weight.grad, reference.grad = torch.ones(3), gradient.clone(), gradient.clone()
    optimizer.step()
    plain.step()
    torch.testing.assert_close(weight, reference)


def test_a_parameter_may_change_its_dtype_within_its_memory():
    param = parameter(64)
    optimizer = adm_ire([param], rounding="kahan")
    step(optimizer)
    step(optimizer)
    assert "compensation" not in optimizer.state[param]
    rounded = param.detach().bfloat16()
    param.grad = None
    param.data = param.data.view(torch.bfloat16)[:64].copy_(rounded)
    step(optimizer)
    assert optimizer.state[param]["compensation"].dtype == torch.bfloat16
    assert not torch.equal(param, rounded)


def replace_local_part(device: torch.device, how: str) -> float:
    """The move of a sharded parameter whose local part has been replaced after two steps."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))

    def sharded(value: float) -> nn.Parameter:
        return nn.Parameter(distribute_tensor(torch.full((4, 4), value, device=device), mesh, [Shard(0)]))

    param = sharded(0.0)
    optimizer = adm_ire([param], kappa=0.0, weight_decay=0.0)
    step(optimizer)
    step(optimizer)
    if how == "swap_tensors":
        torch.utils.swap_tensors(param, sharded(0.0))
    else:
        param._local_tensor = torch.zeros_like(param._local_tensor)  # as FSDP2 after a change of device
    step(optimizer)
    return float(param.to_local().max())


@pytest.mark.parametrize("how", ["swap_tensors", "local part"])
def test_a_sharded_parameter_steps_where_its_values_are(ranks, how):
    """``model.to(...)`` and FSDP2 replace the local part of a ``DTensor`` that stays the same object."""
    moves = ranks(2).run(replace_local_part, how)
    assert moves == [pytest.approx(-0.1)] * 2


# -- memory ----------------------------------------------------------------------------------------------------------


def test_a_refused_step_keeps_no_gradient():
    good, bad = parameter(3), parameter(3, seed=1)
    optimizer = adm_ire([{"params": [good]}, {"params": [bad]}])
    step(optimizer)
    step(optimizer)
    good.grad, bad.grad = torch.ones(3), torch.ones(3).to_sparse()
    kept = weakref.ref(good.grad)
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    optimizer.zero_grad()
    assert kept() is None


def test_a_warning_that_is_an_error_keeps_no_gradient():
    class Failing:
        def refresh(self) -> None:
            raise ValueError("no curvature")

        def amplify_(self, params: Any, previous: Any, kappa: float) -> None:
            raise AssertionError("not reached")

    param = parameter(3)
    optimizer = adm_ire([param], curvature=Failing())
    param.grad = torch.ones(3)
    kept = weakref.ref(param.grad)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="no curvature"):
            optimizer.step()
    optimizer.zero_grad()
    assert kept() is None


def test_loading_frees_the_state_that_it_replaces():
    """Before the next step: the forward and backward pass between them need the memory."""
    optimizer = adm_ire([parameter(3), parameter(5, seed=1)])
    step(optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    replaced = [weakref.ref(entry["exp_avg"]) for entry in optimizer.state.values()]
    optimizer.load_state_dict(saved)
    assert [ref() is None for ref in replaced] == [True, True]


def test_a_step_keeps_no_copy_of_a_parameter_with_gaps_in_memory():
    param = nn.Parameter(torch.zeros(4, 8)[:, ::2])
    optimizer = adm_ire([param])
    step(optimizer)
    assert optimizer._plan._plans == {}
    before = param.detach().clone()
    step(optimizer)
    assert not torch.equal(param, before)


def test_state_that_is_replaced_between_steps_is_freed():
    """Offloading moves state to the host for a while, to free the memory of the device."""
    optimizer = adm_ire([parameter(3), parameter(5, seed=1)])
    step(optimizer)
    step(optimizer)
    replaced = [weakref.ref(tensor) for entry in optimizer.state.values() for tensor in entry.values()]
    for entry in optimizer.state.values():
        entry.update({key: tensor.clone() for key, tensor in entry.items()})
    assert [ref() for ref in replaced] == [None] * 8
    step(optimizer)
    assert [float(entry["step"]) for entry in optimizer.state.values()] == [3.0, 3.0]
