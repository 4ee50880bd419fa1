"""flat_mask_ against its definition, bit by bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from selection_data import (
    CHUNK,
    SCORES,
    SHAPES,
    assert_same_number,
    sampled_positions,
    score_of,
    sorted_scores,
    tensor_lists,
)
from tolerances import DTYPES
from torch_ire import ops, reference
from torch_ire.packed_mask import memory_order, pack

pytestmark = pytest.mark.usefixtures("host_implementation")

Function = Callable[..., None]


def garbage_masks(scores: list[Tensor]) -> list[Tensor]:
    return [torch.full(((t.numel() + 7) // 8,), 0xA5, dtype=torch.uint8) for t in scores]


def expected_bits(scores: Tensor, threshold: Tensor, score: str) -> list[bool]:
    limit = threshold.double().item()
    values = score_of(memory_order(scores), score).double()
    flat = [bool(v == v and abs(v) != torch.inf and (limit != limit or v <= limit)) for v in values.tolist()]
    return flat + [False] * (-len(flat) % 8)


def bits_of(mask: Tensor) -> list[bool]:
    return [bool(byte >> j & 1) for byte in mask.tolist() for j in range(8)]


def check(function: Function, scores: list[Tensor], threshold: Tensor, score: str) -> None:
    before = [t.clone() for t in scores]
    masks = garbage_masks(scores)
    function(masks, scores, threshold, score=score)
    for mask, t, b in zip(masks, scores, before, strict=True):
        assert bits_of(mask) == expected_bits(t, threshold, score)
        assert_same_number(t, b)


@pytest.mark.parametrize("function", [ops.flat_mask_, reference.flat_mask_])
@settings(max_examples=80, deadline=None)
@given(scores=tensor_lists(), score=st.sampled_from(SCORES), data=st.data())
def test_bits_are_the_definition(function: Function, scores: list[Tensor], score: str, data: st.DataObject) -> None:
    everything = torch.cat([s.flatten() for s in scores])
    candidates = [0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1.0, 0.3]
    threshold = torch.tensor(data.draw(st.sampled_from(candidates)), dtype=data.draw(st.sampled_from(DTYPES)))
    if everything.numel() and data.draw(st.booleans()):  # a tie with some coordinate
        wide = score_of(everything[data.draw(st.integers(0, everything.numel() - 1))], score)
        threshold = wide.float() if score == "square" else wide.to(everything.dtype)
    check(function, scores, threshold, score)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("score", SCORES)
def test_shapes_at_chunk_edges(dtype: torch.dtype, score: str) -> None:
    scores = [torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype) for shape in SHAPES]
    check(ops.flat_mask_, scores, torch.tensor(0.4), score)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.8, 1.0])
def test_with_kth_value_marks_the_share(dtype: torch.dtype, score: str, gamma: float) -> None:
    scores = [torch.randn(n, generator=torch.Generator().manual_seed(n)).to(dtype) for n in (50_000, 3, 9000)]
    n = sum(s.numel() for s in scores)
    k = round(gamma * n)
    threshold = ops.kth_value(scores, k, score=score) if k else torch.tensor(-torch.inf)
    masks = garbage_masks(scores)
    ops.flat_mask_(masks, scores, threshold, score=score)
    ranked = torch.cat([score_of(s, score) for s in scores])
    ties = int((ranked == threshold).sum())
    flat = sum(sum(bits_of(m)) for m in masks)
    assert flat == int((ranked <= threshold).sum())
    assert k <= flat <= k + max(0, ties - 1)


def check_ranked(scores: list[Tensor], k: int, score: str, hint: float = 0.5) -> None:
    """One call with k does what a sort and a comparison do."""
    expected = sorted_scores(scores, score)[k - 1]
    dtype = torch.float32 if score == "square" else scores[0].dtype
    for function in (ops.flat_mask_, reference.flat_mask_):
        threshold = torch.tensor(hint, dtype=dtype)
        masks = garbage_masks(scores)
        function(masks, scores, threshold, score=score, k=k)
        assert_same_number(threshold, expected.to(dtype))
        for mask, tensor in zip(masks, scores, strict=True):
            flat = score_of(memory_order(tensor), score).double()
            flat = flat.isfinite() & ~(flat > expected.double())
            assert torch.equal(mask, pack(flat))


@settings(max_examples=100, deadline=None)
@given(scores=tensor_lists(), score=st.sampled_from(SCORES), data=st.data())
def test_ranked_bits_are_the_definition(scores: list[Tensor], score: str, data: st.DataObject) -> None:
    n = sum(s.numel() for s in scores)
    if n:
        check_ranked(scores, data.draw(st.integers(1, n)), score, data.draw(st.sampled_from([0.0, 1.0, torch.nan])))


def ranked_lists() -> dict[str, Tensor]:
    """Lists that are sampled, each another way through the selection."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(200_003, generator=generator)
    sampled = x.clone()
    sampled[sampled_positions(x.numel())] = 1e3
    return {
        "normal": x,
        "answer above the bracket": sampled,
        "answer below the bracket": torch.where(sampled == 1e3, 1e-3, x),
        "equal": torch.ones_like(x),
        "ties at both ends": x.round(),
        "zeros": torch.where(x.abs() < 1.28, 0.0, x),
        "ties that cross a bucket": x.bfloat16().float(),
        "infinite": torch.where(x > -0.5, x, -torch.inf),
        "bracket of infinities": torch.where(x > 0.5, x, torch.inf),
        "not a number": torch.where(x > 0.5, x, torch.nan),
        "wide": x * torch.exp(30 * torch.rand(x.shape, generator=generator)),
        "subnormal": x * 1e-41,
    }


@pytest.mark.parametrize("name", ranked_lists())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("score", SCORES)
def test_ranked_bits_of_sampled_lists(name: str, dtype: torch.dtype, score: str) -> None:
    x = ranked_lists()[name].to(dtype)
    # tensors that begin at any byte and end within one
    scores = list(x.split([1, 70_001, 7, 0, CHUNK, x.numel() - 70_009 - CHUNK]))
    for k in {1, x.numel() // 2, round(0.8 * x.numel()), x.numel()}:
        check_ranked(scores, k, score)


@pytest.mark.parametrize("hint", [0.0, 0.1, 1.6, 1.65, 1e30, torch.inf, torch.nan])
def test_hint_changes_no_bit(hint: float) -> None:
    x = torch.randn(150_000, generator=torch.Generator().manual_seed(4))
    check_ranked([x], 120_000, "square", hint)


def test_more_ties_than_room_inside_the_bracket() -> None:
    # every tenth coordinate has one of two neighbouring numbers strictly inside the bracket: 850,000 of them
    n = 8_500_000
    x = torch.rand(n, generator=torch.Generator().manual_seed(5))
    middle = torch.tensor([0.8]).view(torch.int32)
    ties = torch.arange(0, n, 10)
    x[ties] = (middle + (ties // 10 % 2).int()).view(torch.float32)
    x[::10][::1000] = 0.7999
    k = int((x < 0.8).sum()) + 100_000
    threshold = torch.tensor(0.0)
    mask = torch.empty((n + 7) // 8, dtype=torch.uint8)
    ops.flat_mask_([mask], [x], threshold, score="abs", k=k)
    assert threshold == x.kthvalue(k).values
    assert torch.equal(mask, pack(x <= threshold))


def test_hint_of_the_last_call_is_overwritten() -> None:
    threshold = torch.tensor(7.0)
    mask = torch.zeros(1, dtype=torch.uint8)
    version = threshold._version
    ops.flat_mask_([mask], [torch.tensor([3.0, -1.0, 2.0])], threshold, score="square", k=2)
    assert threshold.item() == 4.0
    assert bits_of(mask) == [False, True, True, False, False, False, False, False]
    assert threshold._version > version


@pytest.mark.parametrize("threshold", [torch.nan, torch.inf])
def test_no_finite_threshold_makes_every_finite_score_flat(threshold: float) -> None:
    x = torch.tensor([1.0, torch.nan, torch.inf, -torch.inf, torch.finfo(torch.float32).max, -3.0])
    mask = torch.zeros(1, dtype=torch.uint8)
    ops.flat_mask_([mask], [x], torch.tensor(threshold))
    assert bits_of(mask) == [True, False, False, False, True, True, False, False]
    ops.flat_mask_([mask], [x], torch.tensor(threshold), score="square")  # the square of the largest overflows
    assert bits_of(mask) == [True, False, False, False, False, True, False, False]


@pytest.mark.parametrize("value", [1.0, 1.1, -1.1, 0.1, 1e-45, 3.5e38, -3.5e38])
def test_threshold_between_two_floats(value: float) -> None:
    # a float64 threshold is compared as it is, not after rounding to the scores' float32
    nearest = torch.tensor(value, dtype=torch.float64).float()
    scores = torch.stack(
        [nearest.nextafter(torch.tensor(-torch.inf)), nearest, nearest.nextafter(torch.tensor(torch.inf))]
    )
    check(ops.flat_mask_, [scores], torch.tensor(value, dtype=torch.float64), "value")


def test_dense_strides_in_any_order() -> None:
    x = torch.randn(3, 8, 5, 7)
    scores = [x.to(memory_format=torch.channels_last), x.transpose(0, 2), x]
    for function in (ops.flat_mask_, reference.flat_mask_):
        check(function, scores, torch.tensor(0.1), "abs")


def test_lists_may_be_empty() -> None:
    ops.flat_mask_([], [], torch.tensor(0.0))


def test_autograd_notices_the_write() -> None:
    mask = torch.zeros(1, dtype=torch.uint8)
    version = mask._version
    ops.flat_mask_([mask], [torch.zeros(3)], torch.tensor(0.0))
    assert mask._version > version


def test_opcheck() -> None:
    op = torch.ops.torch_ire.flat_mask_.default
    masks = [torch.zeros(1, dtype=torch.uint8), torch.zeros(2, dtype=torch.uint8)]
    for score in SCORES:
        torch.library.opcheck(op, (masks, [torch.randn(5), torch.randn(3, 4)], torch.tensor(0.1)), {"score": score})


X = torch.zeros(9)
BITS = torch.zeros(2, dtype=torch.uint8)
ZERO = torch.tensor(0.0)


@pytest.mark.parametrize(
    ("masks", "scores", "threshold", "score", "message"),
    [
        ([BITS], [], ZERO, "value", r"scores: expected at least one tensor, got an empty list"),
        ([], [X], ZERO, "value", r"flat_masks: expected one tensor for each of the 1 scores, got 0"),
        ([BITS.bool()], [X], ZERO, "value", r"flat_masks\[0\]: expected uint8 \(packed bits\), got bool"),
        ([BITS[:1]], [X], ZERO, "value", r"flat_masks\[0\]: expected 2 contiguous bytes for the 9 .* got shape \(1\)"),
        ([BITS], [X.long()], ZERO, "value", r"scores\[0\]: expected float32, .* got int64"),
        ([BITS, BITS], [X, X.half()], ZERO, "value", r"scores\[1\]: expected float32 as scores\[0\], got float16"),
        ([BITS], [torch.zeros(18)[::2]], ZERO, "value", r"scores\[0\]: expected a dense tensor"),
        ([BITS], [X], torch.zeros(2), "value", r"threshold: expected one .* number, got float32 of shape \(2\)"),
        ([BITS], [X], torch.tensor(1), "value", r"threshold: expected one .* number, got int64 of shape \(\)"),
        ([BITS], [X], ZERO, "x", r'score: expected "value", "abs" or "square", got "x"'),
    ],
)
def test_error_messages(masks: list[Tensor], scores: list[Tensor], threshold: Tensor, score: str, message: str) -> None:
    before = [m.clone() for m in masks]
    with pytest.raises(RuntimeError, match="torch_ire::flat_mask_: " + message):
        ops.flat_mask_(masks, scores, threshold, score=score)
    assert all(torch.equal(m, b) for m, b in zip(masks, before, strict=True))


@pytest.mark.parametrize(
    ("threshold", "score", "k", "message"),
    [
        (ZERO, "value", 0, r"k: expected 1 <= k <= 9, the number of elements, got 0"),
        (ZERO, "abs", 10, r"k: expected 1 <= k <= 9, the number of elements, got 10"),
        (ZERO.double(), "square", 1, r"threshold: expected float32, the dtype of the scores, .* got float64"),
    ],
)
def test_error_messages_with_k(threshold: Tensor, score: str, k: int, message: str) -> None:
    threshold, bits = threshold + 3, BITS.clone()
    with pytest.raises(RuntimeError, match="torch_ire::flat_mask_: " + message):
        ops.flat_mask_([bits], [X], threshold, score=score, k=k)
    assert threshold == 3
    assert torch.equal(bits, BITS)
