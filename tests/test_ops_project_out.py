"""project_out against float64 algebra."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tolerances import DTYPES
from torch_ire import ops, reference

pytestmark = pytest.mark.usefixtures("host_implementation")

SIZES = (1, 7, 0, 4095, 4096, 4097, 8191, 8192, 8193, 20000)
PRECISION = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def problem(dtype: torch.dtype, basis_dtype: torch.dtype, rows: int, sizes=SIZES) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(rows)
    vectors = [torch.randn(n, generator=generator, dtype=torch.float64).to(dtype) for n in sizes]
    columns = torch.randn(rows, sum(sizes), generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(columns.T).Q.T.contiguous().to(basis_dtype) if rows else columns.to(basis_dtype)
    return vectors, list(torch.split(basis, list(sizes), dim=1))


def exact(vectors: list[Tensor], bases: list[Tensor], gram_inverse: Tensor | None = None) -> Tensor:
    v, q = torch.cat([v.double() for v in vectors]), torch.cat([b.double() for b in bases], dim=1)
    coefficients = q @ v
    if gram_inverse is not None:
        coefficients = gram_inverse.double() @ coefficients
    return v - q.T @ coefficients


def basis_dtypes(dtype: torch.dtype) -> list[torch.dtype]:
    return [torch.float64] if dtype == torch.float64 else [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 21])
@pytest.mark.parametrize(("dtype", "basis_dtype"), [(d, b) for d in DTYPES for b in basis_dtypes(d)], ids=str)
def test_equals_exact_algebra(dtype: torch.dtype, basis_dtype: torch.dtype, rows: int) -> None:
    vectors, bases = problem(dtype, basis_dtype, rows)
    before = [v.clone() for v in vectors]
    for functions in (ops, reference):
        projected = functions.project_out(vectors, bases)
        assert [p.shape for p in projected] == [v.shape for v in vectors]
        assert all(p.dtype == dtype for p in projected)
        error = (torch.cat([p.double() for p in projected]) - exact(vectors, bases)).abs()
        assert error.max() <= PRECISION[dtype] * 4
    assert all(torch.equal(v, b) for v, b in zip(vectors, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gram_inverse_makes_an_oblique_basis_exact(dtype: torch.dtype) -> None:
    vectors, bases = problem(dtype, dtype, 5)
    bases = [torch.diag(torch.arange(1.0, 6.0, dtype=dtype)) @ b for b in bases]
    whole = torch.cat(bases, dim=1)
    gram_inverse = torch.linalg.inv(whole @ whole.T)
    for functions in (ops, reference):
        once = functions.project_out(vectors, bases, gram_inverse)
        twice = functions.project_out(once, bases, gram_inverse)
        torch.testing.assert_close(twice, once, rtol=0, atol=PRECISION[dtype])


def test_same_bits_with_any_number_of_threads_and_any_cut() -> None:
    vectors, bases = problem(torch.float32, torch.float32, 7)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(ops.project_out(vectors, bases))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_matrices_keep_their_shape_and_an_empty_list_is_allowed() -> None:
    assert ops.project_out([], []) == []
    matrix = torch.randn(3, 5)
    basis = torch.linalg.qr(torch.randn(15, 2)).Q.T.contiguous()
    (projected,) = ops.project_out([matrix], [basis])
    torch.testing.assert_close(projected.reshape(-1), ops.project_out([matrix.reshape(-1)], [basis])[0])
    assert projected.shape == (3, 5)


def test_nan_passes_through() -> None:
    basis = torch.eye(4)[:1]
    assert torch.isnan(ops.project_out([torch.full((4,), float("nan"))], [basis])[0]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([torch.ones(4)], []), r"bases: expected 1 tensors as in vectors, got 0"),
        (([torch.ones(4)], [torch.ones(2, 3)]), r"bases\[0\]: expected 2 rows of 4 as vectors\[0\]"),
        (([torch.ones(4)], [torch.ones(4)]), r"bases\[0\]"),
        (
            ([torch.ones(4)], [torch.ones(2, 4).double()]),
            r"bases\[0\]: expected dtype float32 or bfloat16, got float64",
        ),
        (([torch.ones(4).double()], [torch.ones(2, 4)]), r"bases\[0\]: expected dtype float64, got float32"),
        (([torch.ones(4)] * 2, [torch.ones(2, 4), torch.ones(3, 4)]), r"bases\[1\]: expected 2 rows"),
        (([torch.ones(4)] * 2, [torch.ones(2, 4), torch.ones(2, 4).bfloat16()]), r"bases\[1\]: expected dtype"),
        (([torch.ones(4)], [torch.ones(4, 2).T]), r"bases\[0\]: expected rows without gaps"),
        (([torch.ones(2, 3).T], [torch.ones(2, 6)]), r"vectors\[0\]: expected a contiguous"),
        (([torch.ones(4, dtype=torch.int64)], [torch.ones(2, 4)]), r"vectors\[0\]"),
        (([torch.ones(4)], [torch.ones(2, 4)], torch.ones(3, 3)), r"gram_inverse: expected a 2 x 2 matrix of float32"),
        (([torch.ones(4)], [torch.ones(2, 4)], torch.ones(2, 2).double()), r"gram_inverse: expected .* float32"),
    ],
)
def test_messages(arguments, message: str) -> None:
    with pytest.raises(RuntimeError, match=rf"project_out: {message}"):
        ops.project_out(*arguments)
