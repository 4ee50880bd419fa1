"""lanczos_step_ against float64 algebra."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tolerances import opmath_dtype
from torch_ire import ops, reference

pytestmark = pytest.mark.usefixtures("host_implementation")

PRECISION = {torch.float64: 1e-13, torch.float32: 3e-6, torch.bfloat16: 3e-6}  # of the arithmetic, by storage
UNIT_ROUNDOFF = {torch.float64: 0.0, torch.float32: 0.0, torch.bfloat16: 2.0**-8}  # of storing a row
MORE_ROWS = 800  # than the CUDA kernel keeps sums for


def problem(dtype: torch.dtype, size: int, rows: int, count: int):
    generator = torch.Generator().manual_seed(size)
    full = torch.linalg.qr(torch.randn(size, rows, generator=generator, dtype=torch.float64)).Q.T
    basis = full.contiguous().to(dtype)
    basis[count:] = 7.0
    return basis, torch.randn(size, generator=generator, dtype=torch.float64).to(opmath_dtype(dtype))


def exact_step(basis: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients and residual of two Gram-Schmidt passes in float64, against the rows as they are stored."""
    v, total = basis.double(), torch.zeros(len(basis), dtype=torch.float64)
    for _ in range(2):
        overlaps = v @ vector
        vector = vector - v.T @ overlaps
        total += overlaps
    return total, vector


@pytest.mark.parametrize("functions", [ops, reference], ids=["ops", "reference"])
@pytest.mark.parametrize("dtype", PRECISION, ids=str)
@pytest.mark.parametrize("size", [31, 4095, 4096, 4097, 8193, 20001])
@pytest.mark.parametrize("count", [1, 4, 9, 10])
def test_one_step(functions, dtype: torch.dtype, size: int, count: int) -> None:
    basis, product = problem(dtype, size, 10, count)
    before, vector = basis.clone(), product.double().clone()
    coefficients, residual = exact_step(before[:count], vector)
    step = functions.lanczos_step_(basis, product, count=count)
    assert step.dtype == torch.float64
    assert step.shape == (count + 1,)
    scale = float(vector.norm())
    torch.testing.assert_close(step[:-1], coefficients, rtol=0, atol=PRECISION[dtype] * scale)
    torch.testing.assert_close(step[-1], residual.norm(), rtol=PRECISION[dtype] * 10, atol=0)
    torch.testing.assert_close(product.double(), residual, rtol=0, atol=PRECISION[dtype] * scale)
    assert torch.equal(basis[:count], before[:count])
    assert torch.equal(basis[count + 1 :], before[count + 1 :])
    if count < 10:
        unit = residual / residual.norm()
        torch.testing.assert_close(basis[count].double(), unit, rtol=UNIT_ROUNDOFF[dtype], atol=PRECISION[dtype] * 9)


@pytest.mark.parametrize("functions", [ops, reference], ids=["ops", "reference"])
@pytest.mark.parametrize("dtype", PRECISION, ids=str)
def test_orthogonal_where_one_pass_is_not_enough(functions, dtype: torch.dtype) -> None:
    """A product that is almost in the span: after one pass the rounding would dominate what is left."""
    basis, noise = problem(dtype, 5000, 6, 5)
    share = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 1e-2}[dtype]
    product = basis[0].to(noise.dtype) * 1e3 + basis[1].to(noise.dtype) + noise * share
    norm = functions.lanczos_step_(basis, product, count=5)[-1]
    v = basis[:5].double()
    # The second pass squares what the stored rows overlap among themselves; the new row is rounded in addition.
    stored = torch.linalg.matrix_norm(v @ v.T - torch.eye(5, dtype=torch.float64), 2)
    left = 20 * torch.finfo(noise.dtype).eps + 2e3 / float(norm) * float(stored) ** 2
    assert left <= 2e-4
    assert (v @ product.double() / norm).abs().max() <= left
    assert (v @ basis[5].double()).abs().max() <= left + 4 * 0.0017 / 5000**0.5 * (dtype == torch.bfloat16)


@pytest.mark.parametrize("dtype", PRECISION, ids=str)
def test_rows_that_are_padded_to_aligned_addresses(dtype: torch.dtype) -> None:
    dense, product = problem(dtype, 4999, 6, 3)
    padded = torch.full((6, 5024), 5.0, dtype=dtype)
    padded[:, :4999] = dense
    results = []
    for basis in (dense, padded[:, :4999]):
        residual = product.clone()
        results.append((ops.lanczos_step_(basis, residual, count=3), residual, basis))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=2 * UNIT_ROUNDOFF[dtype], atol=1e-5)
    assert (padded[:, 4999:] == 5.0).all()


@pytest.mark.parametrize("dtype", PRECISION, ids=str)
def test_more_rows_than_sums_fit_into_shared_memory(dtype: torch.dtype) -> None:
    basis, product = problem(dtype, 1001, MORE_ROWS, MORE_ROWS)
    coefficients, residual = exact_step(basis, product.double())
    step = ops.lanczos_step_(basis, product, count=MORE_ROWS)
    torch.testing.assert_close(step[:-1], coefficients, rtol=0, atol=1e-4)
    torch.testing.assert_close(product.double(), residual, rtol=0, atol=1e-4)


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
        (torch.ones(3, 4).half(), torch.ones(4), 1, "basis: expected dtype float32, bfloat16 or float64, got float16"),
        (torch.ones(3, 4).bfloat16(), torch.ones(4).bfloat16(), 1, "product: expected 4 contiguous .* of float32"),
        (torch.ones(4, 3).T, torch.ones(4), 1, "basis: expected a matrix of rows without gaps"),
        (torch.ones(4).expand(3, 4), torch.ones(4), 1, "basis: expected a matrix of rows without gaps"),
    ],
)
def test_messages(basis, product, count: int, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"lanczos_step_: {message}"):
        ops.lanczos_step_(basis, product, count=count)
