"""displacement_projected_ against float64 algebra."""

from __future__ import annotations

import pytest
import torch

from tolerances import DTYPES
from torch_ire import ops, reference

pytestmark = pytest.mark.usefixtures("host_implementation")

SIZES = (1, 7, 0, 2048, 8193, 9000)
PRECISION = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def problem(dtype: torch.dtype, basis_dtype: torch.dtype, rows: int):
    generator = torch.Generator().manual_seed(rows)
    params, previous = (
        [torch.randn(n, generator=generator, dtype=torch.float64).to(dtype) for n in SIZES] for _ in range(2)
    )
    basis = torch.linalg.qr(torch.randn(sum(SIZES), rows, generator=generator, dtype=torch.float64)).Q.T
    return params, previous, list(torch.split(basis.contiguous().to(basis_dtype), list(SIZES), dim=1))


@pytest.mark.parametrize("kappa", [0.0, 3.0])
@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_exact_algebra(dtype: torch.dtype, kappa: float, decay: float) -> None:
    for basis_dtype in [torch.float64] if dtype == torch.float64 else [torch.float32, torch.bfloat16]:
        for functions in (ops, reference):
            params, previous, bases = problem(dtype, basis_dtype, 6)
            theta = torch.cat([p.double() for p in params])
            q = torch.cat([b.double() for b in bases], dim=1)
            gram_inverse = torch.linalg.inv(q @ q.T)
            step = theta - (1 - decay) * torch.cat([p.double() for p in previous])
            expected = theta + kappa * (step - q.T @ (gram_inverse @ (q @ step)))
            given = gram_inverse.to(torch.float64 if dtype == torch.float64 else torch.float32)
            kept = [p.clone() for p in previous]
            functions.displacement_projected_(params, previous, bases, kappa=kappa, decay=decay, gram_inverse=given)
            error = (torch.cat([p.double() for p in params]) - expected).abs() / (1 + expected.abs())
            assert error.max() <= PRECISION[dtype] * (1 + kappa)
            assert all(torch.equal(a, b) for a, b in zip(previous, kept, strict=True))


@pytest.mark.parametrize("functions", [ops, reference])
def test_kappa_zero_keeps_every_bit_after_an_infinite_displacement(functions) -> None:
    params, previous, bases = problem(torch.float32, torch.float32, 3)
    previous[3][0] = torch.inf
    kept = [p.clone() for p in params]
    functions.displacement_projected_(params, previous, bases, kappa=0.0)
    assert all(torch.equal(a, b) for a, b in zip(params, kept, strict=True))


def test_same_bits_with_any_number_of_threads() -> None:
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            params, previous, bases = problem(torch.float32, torch.float32, 7)
            ops.displacement_projected_(params, previous, bases, kappa=2.0)
            results.append(params)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_nothing_flat_is_left_where_the_basis_spans_everything() -> None:
    theta, before = torch.randn(4), torch.randn(4)
    kept = theta.clone()
    ops.displacement_projected_([theta], [before], [torch.eye(4)], kappa=5.0)
    torch.testing.assert_close(theta, kept)


def test_an_empty_list_is_allowed() -> None:
    ops.displacement_projected_([], [], [], kappa=1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([torch.ones(4)], [], [torch.ones(2, 4)]), r"previous"),
        (([torch.ones(4)], [torch.ones(5)], [torch.ones(2, 4)]), r"previous\[0\]"),
        (([torch.ones(4)], [torch.ones(4)], [torch.ones(2, 5)]), r"bases\[0\]: expected 2 rows of 4 as params\[0\]"),
        (([torch.ones(2, 3).T], [torch.ones(2, 3).T], [torch.ones(2, 6)]), r"params\[0\]: expected a contiguous"),
    ],
)
def test_messages_and_nothing_is_changed(arguments, message: str) -> None:
    kept = arguments[0][0].clone()
    with pytest.raises(RuntimeError, match=rf"displacement_projected_: {message}"):
        ops.displacement_projected_(*arguments, kappa=1.0)
    assert torch.equal(arguments[0][0], kept)
