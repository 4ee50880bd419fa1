"""hessian_diag_ against its definition and the reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from selection_data import SHAPES, assert_same_number, tensor_lists
from tolerances import DTYPES, assert_within_ulps, opmath_dtype
from torch_ire import ops, reference

pytestmark = pytest.mark.usefixtures("host_implementation")


def states_for(grads: list[Tensor], seed: int) -> list[Tensor]:
    """Means of which some have seen no estimate yet."""
    generator = torch.Generator().manual_seed(seed)
    states = []
    for g in grads:
        h = torch.empty_like(g, dtype=opmath_dtype(g.dtype))
        h.copy_(torch.rand(g.shape, generator=generator))
        picked = torch.randint(0, 6, g.shape, generator=generator)
        h[picked == 0] = torch.nan
        h[picked == 1] = torch.inf
        states.append(h)
    return states


def check_against_reference(grads: list[Tensor], **arguments: object) -> None:
    actual, expected = states_for(grads, 1), states_for(grads, 1)
    before = [g.clone() for g in grads]
    ops.hessian_diag_(actual, grads, **arguments)  # type: ignore[arg-type]
    reference.hessian_diag_(expected, grads, **arguments)  # type: ignore[arg-type]
    for a, e, g, b in zip(actual, expected, grads, before, strict=True):
        assert_within_ulps(a, e, 2)
        assert_same_number(g, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("beta", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("scale", [None, 1024.0, 3.0])
def test_equals_reference(dtype: torch.dtype, beta: float, scale: float | None) -> None:
    grads = [torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype) for shape in SHAPES]
    grads.append(torch.randn(2, 3, 4, 5).to(dtype).to(memory_format=torch.channels_last))
    grad_scale = None if scale is None else torch.tensor(scale)
    check_against_reference(grads, beta=beta, num_predictions=32.0, grad_scale=grad_scale)


@settings(max_examples=60, deadline=None)
@given(grads=tensor_lists(), beta=st.sampled_from([0.0, 0.5, 0.99]))
def test_equals_reference_on_hard_numbers(grads: list[Tensor], beta: float) -> None:
    check_against_reference(grads, beta=beta, num_predictions=7.0)


def test_numbers_by_hand() -> None:
    nan, inf = math.nan, math.inf
    h = torch.tensor([nan, nan, 2.0, 2.0, 2.0, inf, -inf, nan, 2.0])
    g = torch.tensor([3.0, nan, 3.0, nan, inf, 1.0, 1.0, inf, 1e30])
    expected = torch.tensor([36.0, nan, 0.75 * 2 + 0.25 * 36, 2.0, 2.0, 4.0, 4.0, nan, 2.0])
    for functions in (ops, reference):
        actual = h.clone()
        functions.hessian_diag_([actual], [g], beta=0.75, num_predictions=4.0)
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_gradients_are_squared_in_float32(dtype: torch.dtype) -> None:
    g = torch.tensor([1.0078125, 2.0**-12, 300.0]).to(dtype)  # squares that the half types round, flush or overflow
    h = torch.full((3,), math.nan)
    ops.hessian_diag_([h], [g], beta=0.0)
    assert torch.equal(h, g.float() * g.float())


def test_first_estimate_needs_no_bias_correction() -> None:
    g = torch.randn(100)
    h = torch.full((100,), math.nan)
    for _ in range(5):
        ops.hessian_diag_([h], [g], beta=0.9, num_predictions=8.0)
    torch.testing.assert_close(h, 8 * g * g)


@pytest.mark.parametrize("scale", [0.0, math.nan, math.inf])
def test_scale_that_is_not_usable(scale: float) -> None:
    h, g = torch.tensor([2.0, math.nan]), torch.ones(2)
    for functions in (ops, reference):
        actual = h.clone()
        functions.hessian_diag_([actual], [g], beta=0.0, grad_scale=torch.tensor(scale))
        # dividing by inf leaves the finite estimate 0; by 0 or NaN none
        assert_same_number(actual, torch.zeros(2) if scale == math.inf else h)


def test_lists_may_be_empty() -> None:
    ops.hessian_diag_([], [], beta=0.5)


def test_opcheck() -> None:
    op = torch.ops.torch_ire.hessian_diag_.default
    torch.library.opcheck(op, ([torch.ones(5), torch.ones(2, 2)], [torch.randn(5), torch.randn(2, 2)]), {"beta": 0.9})
    arguments = {"beta": 0.0, "num_predictions": 3.0, "grad_scale": torch.tensor(2.0)}
    torch.library.opcheck(op, ([torch.ones(5)], [torch.randn(5, dtype=torch.bfloat16)]), arguments)


H = torch.zeros(4)


@pytest.mark.parametrize(
    ("hs", "gs", "arguments", "message"),
    [
        ([H], [], {}, r"grads: expected at least one tensor, got an empty list"),
        ([H, H], [H], {}, r"hessian_diags: expected one tensor for each of the 1 grads, got 2"),
        ([H], [H.double()], {}, r"hessian_diags\[0\]: expected float64, got float32"),
        ([H.half()], [H.half()], {}, r"hessian_diags\[0\]: expected float32, got float16"),
        ([H[:3]], [H], {}, r"hessian_diags\[0\]: expected shape \(4\) .* as grads\[0\], got \(3\)"),
        ([H], [H.int()], {}, r"grads\[0\]: expected float32, .* got int32"),
        ([H], [H], {"beta": 1.5}, r"beta: expected a number in \[0, 1\], got 1.5"),
        ([H], [H], {"beta": math.nan}, r"beta: expected a number in \[0, 1\], got nan"),
        ([H], [H], {"num_predictions": 0.0}, r"num_predictions: expected a positive number, got 0"),
        ([H], [H], {"grad_scale": torch.zeros(2)}, r"grad_scale: expected one float32 or float64 number"),
    ],
)
def test_error_messages(hs: list[Tensor], gs: list[Tensor], arguments: dict[str, object], message: str) -> None:
    before = [h.clone() for h in hs]
    with pytest.raises(RuntimeError, match="torch_ire::hessian_diag_: " + message):
        ops.hessian_diag_(hs, gs, **{"beta": 0.9, **arguments})  # type: ignore[arg-type]
    assert all(torch.equal(h, b) for h, b in zip(hs, before, strict=True))
