"""global_norm against exact sums."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from selection_data import SHAPES
from tolerances import DTYPES, assert_within_ulps, opmath_dtype
from torch_ire import ops, reference

pytestmark = pytest.mark.usefixtures("host_implementation")


def exact_norm(tensors: list[Tensor], weights: list[Tensor]) -> float:
    """The sum of squares in rational numbers, the root in double."""
    total = Fraction(0)
    for i, x in enumerate(tensors):
        w = weights[i].double().flatten().tolist() if weights else [1.0] * x.numel()
        total += sum((Fraction(a) * Fraction(b)) ** 2 for a, b in zip(x.double().flatten().tolist(), w, strict=True))
    return math.sqrt(total)


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    sizes=st.lists(st.integers(0, 1200), min_size=1, max_size=5),
    weighted=st.booleans(),
    exponent=st.integers(-4, 4),
    seed=st.integers(0, 2**31),
)
def test_equals_exact_sum(dtype: torch.dtype, sizes: list[int], weighted: bool, exponent: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = [(torch.randn(n, generator=generator) * 10.0**exponent).to(dtype) for n in sizes]
    weights = [torch.rand(n, generator=generator).to(dtype) for n in sizes] if weighted else []
    expected = torch.tensor(exact_norm(tensors, weights), dtype=torch.float64).to(opmath_dtype(dtype))
    for functions in (ops, reference):
        norm = functions.global_norm(tensors, weights)
        assert norm.shape == ()
        assert_within_ulps(norm, expected, 1 if dtype != torch.float64 else 8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes_at_chunk_edges(dtype: torch.dtype) -> None:
    tensors = [torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype) for shape in SHAPES]
    weights = [torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype) for shape in SHAPES]
    before = [t.clone() for t in tensors]
    for w in ([], weights):
        assert_within_ulps(ops.global_norm(tensors, w), reference.global_norm(tensors, w), 8)
    assert all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True))
    for t in tensors:
        single = torch.linalg.vector_norm(t.double()).to(opmath_dtype(dtype))
        assert_within_ulps(ops.global_norm([t]), single, 8 if dtype == torch.float64 else 1)


def test_same_bits_with_any_number_of_threads() -> None:
    tensors = list(torch.randn(1_000_003, dtype=torch.float64).tensor_split(7))
    before = torch.get_num_threads()
    try:
        norms = []
        for threads in (1, 2, 3, 4, 7):
            torch.set_num_threads(threads)
            norms.append(ops.global_norm(tensors))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(n, norms[0]) for n in norms)


def test_long_sums_keep_their_digits() -> None:
    # A float32 sum would stop growing at 2^24 equal terms; 0.1 has a square whose rounding errors all point one way.
    x = torch.full((40_000_000,), 0.1)
    assert ops.global_norm([x]).item() == pytest.approx(float(x[0]) * math.sqrt(x.numel()), rel=1e-7)


def test_squares_beyond_the_range_of_float32() -> None:
    assert ops.global_norm([torch.tensor([3e30, 4e30])]).item() == pytest.approx(5e30, rel=1e-6)
    assert ops.global_norm([torch.tensor([3e-30, 4e-30])]).item() == pytest.approx(5e-30, rel=1e-6)
    assert ops.global_norm([torch.full((4,), 3e38)]).item() == math.inf


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_numbers_pass_through(value: float) -> None:
    for n, position in ((1, 0), (9000, 8999), (700, 600)):
        x = torch.ones(n)
        x[position] = value
        norm = ops.global_norm([x, torch.ones(3)]).item()
        assert math.isnan(norm) if math.isnan(value) else norm == math.inf


def test_lists_may_be_empty() -> None:
    for functions in (ops, reference):
        for norm in (functions.global_norm([]), functions.global_norm([torch.zeros(0), torch.zeros(3, 0)])):
            assert torch.equal(norm, torch.tensor(0.0))


def test_opcheck() -> None:
    op = torch.ops.torch_ire.global_norm.default
    x = [torch.randn(5), torch.randn(2, 2)]
    torch.library.opcheck(op, (x, []))
    torch.library.opcheck(op, (x, [torch.randn(5), torch.randn(2, 2)]))
    torch.library.opcheck(op, ([torch.randn(5, dtype=torch.float64)], []))


X = torch.zeros(4)


@pytest.mark.parametrize(
    ("tensors", "weights", "message"),
    [
        ([X.int()], [], r"tensors\[0\]: expected float32, .* got int32"),
        ([X, X.double()], [], r"tensors\[1\]: expected float32 as tensors\[0\], got float64"),
        ([torch.zeros(8)[::2]], [], r"tensors\[0\]: expected a dense tensor"),
        ([torch.zeros(1).expand(3)], [], r"tensors\[0\]: expected a dense tensor .* with strides \(0\)"),
        ([X], [X, X], r"weights: expected one tensor for each of the 1 tensors, got 2"),
        ([X], [X.double()], r"weights\[0\]: expected float32, got float64"),
        ([X], [X[:2]], r"weights\[0\]: expected shape \(4\) .* got \(2\)"),
    ],
)
def test_error_messages(tensors: list[Tensor], weights: list[Tensor], message: str) -> None:
    with pytest.raises(RuntimeError, match="torch_ire::global_norm: " + message):
        ops.global_norm(tensors, weights)
