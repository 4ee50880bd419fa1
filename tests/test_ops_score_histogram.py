"""score_histogram against digits of Python integers."""

from __future__ import annotations

import struct
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from selection_data import CHUNK, SCORES, SHAPES, score_of, special_values, tensor_lists
from tolerances import DTYPES
from torch_ire import ops, reference

pytestmark = pytest.mark.usefixtures("host_implementation")


def key_bits(dtype: torch.dtype, score: str, wide: bool) -> int:
    return 64 if wide or (dtype == torch.float64 and score != "square") else 32


def key_of(number: float, bits: int) -> int:
    """The place of a number in the order of all floats, 0 for both zeros."""
    if number != number:
        return 2 ** (bits - 1) - 1
    magnitude = int.from_bytes(struct.pack(">d" if bits == 64 else ">f", abs(number)), "big")
    return -magnitude if number < 0 else magnitude


def keys_of(tensors: list[Tensor], score: str, wide: bool) -> list[int]:
    bits = key_bits(tensors[0].dtype, score, wide)
    return [key_of(number, bits) for x in tensors for number in score_of(x, score).flatten().tolist()]


def expected_counts(keys: list[int], prefix: int, shift: int, bits: int) -> Tensor:
    counts = torch.zeros(2048, dtype=torch.int64)
    if shift + 11 >= bits:
        digits = Counter((key >> shift) + 1024 for key in keys)
    else:
        digits = Counter((key >> shift) % 2048 for key in keys if key >> shift >> 11 == prefix)
    for digit, count in digits.items():
        counts[digit] = count
    return counts


@settings(max_examples=150, deadline=None)
@given(tensors=tensor_lists(), score=st.sampled_from(SCORES), wide=st.booleans(), data=st.data())
def test_counts_are_the_definition(tensors: list[Tensor], score: str, wide: bool, data: st.DataObject) -> None:
    bits = key_bits(tensors[0].dtype, score, wide)
    keys = keys_of(tensors, score, wide)
    shift = data.draw(st.integers(0, bits - 1) | st.sampled_from([0, 11, 22]))
    prefix = data.draw(st.sampled_from(keys or [0])) >> shift >> 11
    before = [t.clone() for t in tensors]
    expected = expected_counts(keys, prefix, shift, bits)
    for functions in (ops, reference):
        counts = functions.score_histogram(tensors, torch.tensor(prefix), shift=shift, score=score, wide=wide)
        assert counts.dtype == torch.int64
        assert torch.equal(counts, expected)
    assert all(torch.equal(t.view(torch.uint8), b.view(torch.uint8)) for t, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shapes_at_chunk_edges(dtype: torch.dtype, score: str, wide: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]
    tensors[-1][1:] = tensors[-1][:-1].clone()  # one element from an aligned address
    tensors.append(tensors[-1][1:])
    bits = key_bits(dtype, score, wide)
    keys = keys_of(tensors, score, wide)
    for shift in range(bits - 10, -1, -11):
        prefix = keys[7] >> shift >> 11
        counts = ops.score_histogram(tensors, torch.tensor(prefix), shift=shift, score=score, wide=wide)
        assert torch.equal(counts, expected_counts(keys, prefix, shift, bits))


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_numbers(dtype: torch.dtype, score: str, wide: bool) -> None:
    x = special_values(dtype)
    bits = key_bits(dtype, score, wide)
    keys = keys_of([x], score, wide)
    for shift in (0, 11, bits - 11, bits - 10):
        for prefix in {key >> shift >> 11 for key in keys}:
            counts = ops.score_histogram([x], torch.tensor(prefix), shift=shift, score=score, wide=wide)
            assert torch.equal(counts, expected_counts(keys, prefix, shift, bits))


def test_several_thousand_tensors() -> None:
    x = torch.randn(3 * 2500, generator=torch.Generator().manual_seed(2))
    whole = ops.score_histogram([x], torch.tensor(0), shift=22)
    assert torch.equal(ops.score_histogram(list(x.split(3)), torch.tensor(0), shift=22), whole)
    assert whole.sum() == x.numel()


@pytest.mark.parametrize("prefix", [2**21, 2**32, -(2**32), -(2**31), 2**63 - 1, -(2**63)])
def test_prefix_that_no_key_has(prefix: int) -> None:
    # cut to the width of a key these would be prefixes that keys do have
    x = torch.tensor([0.0, 1e-45, -1e-45, torch.nan, torch.inf])
    for functions in (ops, reference):
        assert not functions.score_histogram([x], torch.tensor(prefix), shift=0).any()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads(threads: int) -> None:
    x = torch.randn(40 * CHUNK + 3, generator=torch.Generator().manual_seed(3))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        counts = ops.score_histogram([x[:5], x[5:]], torch.tensor(253), shift=11, score="abs")
    finally:
        torch.set_num_threads(before)
    assert torch.equal(counts, reference.score_histogram([x], torch.tensor(253), shift=11, score="abs"))
    assert counts.sum() > CHUNK


def test_nothing_to_count() -> None:
    for functions in (ops, reference):
        for tensors in ([], [torch.zeros(0)], [torch.zeros(0, dtype=torch.float64), torch.zeros(3, 0).double()]):
            for shift in (0, 22):
                counts = functions.score_histogram(tensors, torch.tensor(0), shift=shift)
                assert torch.equal(counts, torch.zeros(2048, dtype=torch.int64))


def test_dense_strides_in_any_order() -> None:
    x = torch.randn(3, 8, 5, 7)
    counts = ops.score_histogram([x], torch.tensor(0), shift=22)
    for y in (x.to(memory_format=torch.channels_last), x.transpose(0, 2)):
        assert torch.equal(ops.score_histogram([y], torch.tensor(0), shift=22), counts)


def test_opcheck() -> None:
    op = torch.ops.torch_ire.score_histogram.default
    for score in SCORES:
        torch.library.opcheck(op, ([torch.randn(5), torch.randn(3)], torch.tensor(0)), {"shift": 22, "score": score})
    torch.library.opcheck(op, ([torch.randn(5).half()], torch.tensor(3)), {"shift": 44, "wide": True})
    torch.library.opcheck(op, ([], torch.tensor(3)), {"shift": 0})


X = torch.zeros(4)
ZERO = torch.tensor(0)


@pytest.mark.parametrize(
    ("tensors", "prefix", "arguments", "message"),
    [
        ([X.int()], ZERO, {}, r"tensors\[0\]: expected float32, float64, bfloat16 or float16, got int32"),
        ([X, X.double()], ZERO, {}, r"tensors\[1\]: expected float32 as tensors\[0\], got float64"),
        ([X, torch.zeros(8)[::2]], ZERO, {}, r"tensors\[1\]: expected a dense tensor .* with strides \(2\)"),
        ([X], ZERO.int(), {}, r"prefix: expected one int64 number, got int32 of shape \(\)"),
        ([X], torch.tensor([1, 2]), {}, r"prefix: expected one int64 number, got int64 of shape \(2\)"),
        ([], ZERO.float(), {}, r"prefix: expected one int64 number, got float32 of shape \(\)"),
        ([X], ZERO, {"score": "cube"}, r'score: expected "value", "abs" or "square", got "cube"'),
        ([X], ZERO, {"shift": -1}, r"shift: expected 0 <= shift < 32, got -1"),
        ([X], ZERO, {"shift": 32}, r"shift: expected 0 <= shift < 32, got 32"),
        ([X.double()], ZERO, {"shift": 32, "score": "square"}, r"shift: expected 0 <= shift < 32, got 32"),
        ([X.double()], ZERO, {"shift": 64}, r"shift: expected 0 <= shift < 64, got 64"),
        ([X], ZERO, {"shift": 64, "wide": True}, r"shift: expected 0 <= shift < 64, got 64"),
    ],
)
def test_error_messages(tensors: list[Tensor], prefix: Tensor, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(RuntimeError, match="torch_ire::score_histogram: " + message):
        ops.score_histogram(tensors, prefix, **{"shift": 0, **arguments})  # type: ignore[arg-type]
