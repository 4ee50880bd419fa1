"""lanczos_step_ against float64 algebra."""

from __future__ import annotations

import pytest
import torch

from torch_ire import ops, reference

pytestmark = pytest.mark.usefixtures("host_implementation")

PRECISION = {torch.float64: 1e-13, torch.float32: 3e-6}


def problem(dtype: torch.dtype, size: int, rows: int, count: int):
    generator = torch.Generator().manual_seed(size)
    full = torch.linalg.qr(torch.randn(size, rows, generator=generator, dtype=torch.float64)).Q.T
    basis = full.contiguous().to(dtype)
    basis[count:] = 7.0
    return basis, torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("functions", [ops, reference], ids=["ops", "reference"])
@pytest.mark.parametrize("dtype", PRECISION, ids=str)
@pytest.mark.parametrize("size", [31, 4095, 4096, 4097, 8193, 20001])
@pytest.mark.parametrize("count", [1, 4, 9, 10])
def test_one_step(functions, dtype: torch.dtype, size: int, count: int) -> None:
    basis, product = problem(dtype, size, 10, count)
    before, vector = basis.clone(), product.double().clone()
    v = before[:count].double()
    residual = vector - v.T @ (v @ vector)
    step = functions.lanczos_step_(basis, product, count=count)
    assert step.dtype == torch.float64
    assert step.shape == (count + 1,)
    scale = float(vector.norm())
    torch.testing.assert_close(step[:-1], v @ vector, rtol=0, atol=PRECISION[dtype] * scale)
    torch.testing.assert_close(step[-1], residual.norm(), rtol=PRECISION[dtype] * 10, atol=0)
    torch.testing.assert_close(product.double(), residual, rtol=0, atol=PRECISION[dtype] * scale)
    assert torch.equal(basis[:count], before[:count])
    assert torch.equal(basis[count + 1 :], before[count + 1 :])
    if count < 10:
        torch.testing.assert_close(basis[count].double(), residual / residual.norm(), rtol=0, atol=PRECISION[dtype] * 9)


@pytest.mark.parametrize("functions", [ops, reference], ids=["ops", "reference"])
@pytest.mark.parametrize("dtype", PRECISION, ids=str)
def test_orthogonal_where_one_pass_is_not_enough(functions, dtype: torch.dtype) -> None:
    """A product that is almost in the span: after one pass the rounding would dominate what is left."""
    basis, noise = problem(dtype, 5000, 6, 5)
    product = basis[0] * 1e3 + basis[1] + noise * (1e-4 if dtype == torch.float32 else 1e-11)
    functions.lanczos_step_(basis, product, count=5)
    overlaps = basis[:5].double() @ basis[5].double()
    assert overlaps.abs().max() <= 20 * torch.finfo(dtype).eps


def test_same_bits_with_any_number_of_threads() -> None:
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            basis, product = problem(torch.float32, 40000, 10, 6)
            results.append((ops.lanczos_step_(basis, product, count=6), basis))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_nan_is_seen_in_the_norm() -> None:
    basis, product = problem(torch.float32, 100, 4, 2)
    product[3] = float("nan")
    assert torch.isnan(ops.lanczos_step_(basis, product, count=2)).all()


@pytest.mark.parametrize(
    ("basis", "product", "count", "message"),
    [
        (torch.ones(3, 4), torch.ones(4), 0, "count: expected 1 to 3, got 0"),
        (torch.ones(3, 4), torch.ones(4), 4, "count: expected 1 to 3, got 4"),
        (torch.ones(3, 4), torch.ones(5), 1, "product: expected 4 contiguous"),
        (torch.ones(3, 4), torch.ones(4).double(), 1, "product: expected 4 contiguous elements of float32"),
        (torch.ones(3, 4).bfloat16(), torch.ones(4).bfloat16(), 1, "basis: expected dtype float32 or float64"),
        (torch.ones(4, 3).T, torch.ones(4), 1, "basis: expected a contiguous matrix"),
    ],
)
def test_messages(basis, product, count: int, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"lanczos_step_: {message}"):
        ops.lanczos_step_(basis, product, count=count)
