"""sample_labels against the cumulative distribution in float64, and against its statistics."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tolerances import DTYPES, assert_within_ulps, opmath_dtype
from torch_ire import ops, reference
from torch_ire.counter_rng import mix64, uniform_open

pytestmark = pytest.mark.usefixtures("host_implementation")

BLOCK = 1024
# how far from the border between two classes, in probability, rounding may move it
EPS = {torch.float32: 1e-6, torch.bfloat16: 1e-6, torch.float16: 1e-6, torch.float64: 1e-13}


def uniforms(rows: int, seed: int, offset: int) -> Tensor:
    key = mix64(seed, offset)
    return torch.tensor([uniform_open(mix64(key, row)) for row in range(rows)], dtype=torch.float64)


def check_draws(logits: Tensor, seed: int = 3, offset: int = 5) -> Tensor:
    """u lies in the interval of the drawn label, and the logsumexp is torch's; returns the labels."""
    before = logits.clone()
    labels, logsumexp = ops.sample_labels(logits, seed=seed, offset=offset)
    assert torch.equal(logits.double().nan_to_num(), before.double().nan_to_num())
    assert labels.dtype == torch.int64
    assert labels.shape == logsumexp.shape == logits.shape[:-1]
    assert logsumexp.dtype == opmath_dtype(logits.dtype)
    x = logits.double().reshape(-1, logits.shape[-1])
    p = x.softmax(-1)
    upper = p.cumsum(-1)
    chosen = labels.reshape(-1, 1)
    high = upper.gather(1, chosen).squeeze(1)
    low = high - p.gather(1, chosen).squeeze(1)
    u = uniforms(x.shape[0], seed, offset)
    eps = EPS[logits.dtype]
    assert bool(((low - eps <= u) & (u <= high + eps)).all())
    assert bool((p.gather(1, chosen) > 0).all())
    expected = logits.double().logsumexp(-1)
    assert_within_ulps(logsumexp, expected.to(logsumexp.dtype), 8, scale=torch.ones(()).expand(expected.shape))
    return labels


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 2, 3, 10, 15, 16, 17, 1000, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 5003])
def test_draw_is_where_the_uniform_number_falls(dtype: torch.dtype, classes: int) -> None:
    for spread in (0.1, 3.0, 20.0):
        logits = (torch.randn(40, classes, generator=torch.Generator().manual_seed(classes)) * spread).to(dtype)
        labels = check_draws(logits)
        same = labels == reference.sample_labels(logits, seed=3, offset=5)[0]
        assert same.double().mean() > 0.95  # the others sit at a border, which check_draws has looked at


@settings(max_examples=50, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    rows=st.integers(0, 9),
    classes=st.integers(1, 40),
    ties=st.booleans(),
    excluded=st.floats(0, 0.9),
    shift=st.sampled_from([0.0, -3000.0, 3000.0]),
    seed=st.integers(-(2**63), 2**64 - 1),
    offset=st.integers(0, 2**40),
)
def test_any_logits(
    dtype: torch.dtype, rows: int, classes: int, ties: bool, excluded: float, shift: float, seed: int, offset: int
) -> None:
    generator = torch.Generator().manual_seed(rows * 41 + classes)
    logits = torch.randn(rows, classes, generator=generator) * 5
    logits = (logits.round() if ties else logits) + shift
    hidden = torch.rand(rows, classes, generator=generator) < excluded
    hidden[:, classes // 2] = False
    check_draws(logits.masked_fill(hidden, -torch.inf).to(dtype), seed, offset)


@pytest.mark.parametrize("shape", [(7,), (0, 5), (2, 0, 3), (2, 3, 4), (1, 1)])
def test_shapes(shape: tuple[int, ...]) -> None:
    logits = torch.randn(shape)
    labels, logsumexp = ops.sample_labels(logits, seed=0, offset=0)
    assert labels.shape == logsumexp.shape == shape[:-1]
    if labels.numel():
        check_draws(logits)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [5, 1500])
def test_strides_change_nothing(dtype: torch.dtype, classes: int) -> None:
    logits = torch.randn(3, classes, 5, 7, generator=torch.Generator().manual_seed(0)).to(dtype).movedim(1, -1)
    expected = ops.sample_labels(logits.contiguous(), seed=9, offset=1)
    for other in (logits, logits.contiguous().flip(0).flip(0), logits.transpose(0, 2).contiguous().transpose(0, 2)):
        labels, logsumexp = ops.sample_labels(other, seed=9, offset=1)
        assert torch.equal(labels, expected[0])
        assert torch.equal(logsumexp, expected[1])
    row = torch.randn(1, 1, classes).to(dtype)
    assert torch.equal(
        ops.sample_labels(row.expand(4, 6, classes), seed=9, offset=1)[0],
        ops.sample_labels(row.expand(4, 6, classes).contiguous(), seed=9, offset=1)[0],
    )


@pytest.mark.parametrize("threads", [2, 5])
def test_any_number_of_threads(threads: int) -> None:
    logits = torch.randn(301, 1200)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = ops.sample_labels(logits, seed=1, offset=2)
        torch.set_num_threads(threads)
        actual = ops.sample_labels(logits, seed=1, offset=2)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chi_square(dtype: torch.dtype) -> None:
    # 40 000 draws from 12 classes: the 99.99 % quantile of chi-square with 11 degrees of freedom is 37.4.
    row = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5, 0.5, -2.0, 1.5, 0.0, -0.5, 1.0, -torch.inf], dtype=dtype)
    n = 40_000
    labels, _ = ops.sample_labels(row.expand(n, 12), seed=11, offset=4)
    counts = labels.bincount(minlength=12).double()
    expected = n * row.double().softmax(0)
    assert counts[11] == 0
    assert ((counts - expected)[:11] ** 2 / expected[:11]).sum() < 37.4


def test_rows_calls_and_seeds_are_independent() -> None:
    logits = torch.zeros(2000, 64)
    draws = [ops.sample_labels(logits, seed=s, offset=o)[0] for s, o in ((0, 0), (0, 1), (1, 0), (1, 1))]
    for i, a in enumerate(draws):
        assert (a[1:] == a[:-1]).double().mean() < 0.04  # one in 64 by chance
        for b in draws[:i]:
            assert (a == b).double().mean() < 0.04


def test_far_blocks_share_one_scale() -> None:
    # 2000 classes in two blocks: the second one's logits are so large that the first has no weight, and the reverse
    for high in (slice(0, BLOCK), slice(BLOCK, 2000)):
        logits = torch.zeros(50, 2000)
        logits[:, high] = 200.0
        labels = check_draws(logits)
        assert bool(((labels >= high.start) & (labels < high.stop)).all())


@pytest.mark.parametrize("functions", [ops, reference])
@pytest.mark.parametrize("classes", [4, 3000])
def test_rows_that_are_not_finite(functions: object, classes: int) -> None:
    inf, nan = math.inf, math.nan
    logits = torch.zeros(7, classes)
    logits[0, classes - 1] = nan
    logits[1] = -inf
    logits[2, 2] = inf
    logits[3, [0, classes - 1]] = inf
    logits[4, 1], logits[4, 2] = inf, nan
    logits[5] = -inf
    logits[5, 3] = nan
    labels, logsumexp = functions.sample_labels(logits, seed=0, offset=0)  # type: ignore[attr-defined]
    assert labels[[0, 1, 2, 4, 5]].tolist() == [-1, -1, 2, -1, -1]
    assert labels[3].item() in (0, classes - 1)
    assert 0 <= labels[6].item() < classes
    assert logsumexp[[0, 4, 5]].isnan().all()
    assert logsumexp[[1, 2, 3]].tolist() == [-inf, inf, inf]
    torch.testing.assert_close(logsumexp[6].item(), math.log(classes))


def test_infinite_logits_share_the_draw_evenly() -> None:
    logits = torch.full((2000, 5), 3.0)
    logits[:, [1, 4]] = torch.inf
    for functions in (ops, reference):
        labels, _ = functions.sample_labels(logits, seed=0, offset=0)
        counts = labels.bincount(minlength=5)
        assert counts[[0, 2, 3]].sum() == 0
        assert abs(counts[1].item() - 1000) < 150


def test_reference_draws_the_same_labels() -> None:
    logits = torch.randn(3, 50, 11, generator=torch.Generator().manual_seed(1))
    assert torch.equal(
        ops.sample_labels(logits, seed=2, offset=3)[0], reference.sample_labels(logits, seed=2, offset=3)[0]
    )


def test_opcheck() -> None:
    op = torch.ops.torch_ire.sample_labels.default
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        torch.library.opcheck(op, (torch.randn(4, 3, 7).to(dtype),), {"seed": 1, "offset": 2})
    torch.library.opcheck(op, (torch.randn(3, 7, 4).movedim(1, -1),), {"seed": 1, "offset": 2})


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (torch.zeros(3, 4, dtype=torch.int64), r"logits: expected float32, float64, bfloat16 or float16, got int64"),
        (torch.zeros(3, 4, dtype=torch.complex64), r"logits: expected float32, .* got complex64"),
        (torch.zeros(3, 0), r"logits: expected at least one class in the last dimension, got shape \(3, 0\)"),
        (torch.zeros(()), r"logits: expected at least one class in the last dimension, got shape \(\)"),
    ],
)
def test_error_messages(logits: Tensor, message: str) -> None:
    with pytest.raises(RuntimeError, match="torch_ire::sample_labels: " + message):
        ops.sample_labels(logits, seed=0, offset=0)
