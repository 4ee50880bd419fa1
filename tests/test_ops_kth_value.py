"""kth_value against a full sort."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from selection_data import CHUNK, SCORES, SHAPES, assert_same_number, sampled_positions, sorted_scores, tensor_lists
from tolerances import DTYPES
from torch_ire import ops, reference

pytestmark = pytest.mark.usefixtures("host_implementation")

# from this many coordinates on the native operator samples before it counts
SAMPLED = 40_000


def ranks(n: int) -> list[int]:
    return sorted({1, 2, n // 3, n // 2, round(0.8 * n), n - 1, n} & set(range(1, n + 1)))


def check_ranks(tensors: list[Tensor], score: str, ks: list[int], hint: Tensor | None = None) -> None:
    expected = sorted_scores(tensors, score)
    for k in ks:
        kth = ops.kth_value(tensors, k, score=score, hint=hint)
        assert kth.shape == ()
        assert kth.dtype == (torch.float32 if score == "square" else tensors[0].dtype)
        assert_same_number(kth, expected[k - 1])


@settings(max_examples=150, deadline=None)
@given(tensors=tensor_lists(), score=st.sampled_from(SCORES), data=st.data())
def test_equals_full_sort(tensors: list[Tensor], score: str, data: st.DataObject) -> None:
    n = sum(t.numel() for t in tensors)
    if n == 0:
        with pytest.raises(RuntimeError, match=r"kth_value: k: expected 1 <= k <= 0"):
            ops.kth_value(tensors, 1, score=score)
        return
    before = [t.clone() for t in tensors]
    k = data.draw(st.integers(1, n))
    check_ranks(tensors, score, [1, k, n])
    for t, b in zip(tensors, before, strict=True):
        assert_same_number(t, b)


@settings(max_examples=60, deadline=None)
@given(tensors=tensor_lists(), score=st.sampled_from(SCORES), data=st.data())
def test_reference_equals_full_sort(tensors: list[Tensor], score: str, data: st.DataObject) -> None:
    n = sum(t.numel() for t in tensors)
    if n:
        k = data.draw(st.integers(1, n))
        kth = reference.kth_value(tensors, k, score=score)
        assert kth.dtype == (torch.float32 if score == "square" else tensors[0].dtype)
        assert_same_number(kth, sorted_scores(tensors, score)[k - 1])


def test_small_numbers_by_hand() -> None:
    x = torch.tensor([3.0, -1.0, torch.nan, -0.0, torch.inf, -torch.inf, 0.0])
    in_order = [-torch.inf, -1.0, 0.0, 0.0, 3.0, torch.inf, torch.nan]
    for functions in (ops, reference):
        for k, expected in enumerate(in_order, 1):
            assert_same_number(functions.kth_value([x[:3], x[3:]], k), torch.tensor(expected))
        assert functions.kth_value([x], 4, score="square").item() == 9.0
        assert functions.kth_value([x], 3, score="abs").item() == 1.0


def test_negative_nan_is_greatest() -> None:
    x = torch.tensor([0x7FC00001, -0x00400000, -0x7FFFFF, 0], dtype=torch.int32).view(
        torch.float32
    )  # NaN of both signs
    assert x[:3].isnan().all()
    assert ops.kth_value([x], 1).item() == 0.0
    assert ops.kth_value([x], 2).isnan()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("score", SCORES)
def test_shapes_at_chunk_edges(dtype: torch.dtype, score: str) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]
    check_ranks(tensors, score, ranks(sum(t.numel() for t in tensors)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("num_tensors", [1, 40])
def test_sampled_lists(dtype: torch.dtype, score: str, num_tensors: int) -> None:
    generator = torch.Generator().manual_seed(2)
    x = (torch.randn(5 * SAMPLED, generator=generator) * torch.randn(5 * SAMPLED, generator=generator).exp()).to(dtype)
    tensors = [*x.tensor_split(num_tensors), x[:0]]
    check_ranks(tensors, score, ranks(x.numel()))


def low_entropy() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3 * SAMPLED, generator=generator)
    return {
        "equal": torch.full_like(x, 2.5),
        "two": (x > 0.5).float(),
        "few": x.round(),
        "zeros": torch.where(x.abs() < 1.28, torch.zeros_like(x), x),  # 80 %
        "sorted": x.sort().values,
        "reversed": x.sort(descending=True).values,
        "nan": torch.where(x > 0, x, torch.nan),
        "infinite": torch.where(x > 0, x, -torch.inf),
        "subnormal": x * 1e-41,
        "all_nan": torch.full_like(x, torch.nan),
        "spread": x * torch.exp(30 * torch.rand(x.shape, generator=generator)),
    }


@pytest.mark.parametrize("name", low_entropy())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_low_entropy_keys(name: str, dtype: torch.dtype) -> None:
    x = low_entropy()[name].to(dtype)
    for score in SCORES:
        expected = sorted_scores([x], score)
        ks = set(ranks(x.numel()))
        # the first and the last of every run of equal scores near a quantile
        for q in (0.3, 0.69, 0.8):
            value = expected[int(q * x.numel())]
            run = (expected == value).nonzero().flatten()
            if run.numel():
                ks |= {int(run[0]) + 1, int(run[-1]) + 1, max(1, int(run[0])), min(x.numel(), int(run[-1]) + 2)}
        for k in ks:
            assert_same_number(ops.kth_value([x], k, score=score), expected[k - 1])


@pytest.mark.parametrize("hint", [0.0, -1e30, 1e30, torch.nan, torch.inf, -torch.inf, 0.70, 0.708, 0.71, 0.72])
@pytest.mark.parametrize("hint_dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_hint_changes_nothing(hint: float, hint_dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(8 * SAMPLED, generator=generator)
    guess = torch.tensor(hint, dtype=hint_dtype)
    check_ranks([x], "square", [1, round(0.6 * x.numel()), x.numel()], hint=guess)
    check_ranks([x[:100]], "value", [1, 50, 100], hint=guess)


def test_exact_hint() -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(8 * SAMPLED, generator=generator)
    for k in (1, x.numel() // 2, round(0.8 * x.numel()), x.numel()):
        check_ranks([x], "abs", [k], hint=sorted_scores([x], "abs")[k - 1].float())


@pytest.mark.parametrize("misleading", [-1e3, 1e3, "half"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sample_that_misleads(misleading: float | str, dtype: torch.dtype) -> None:
    # Both brackets from the sample miss, and more keys than there is room for remain: the radix passes have to answer.
    n = 700_000
    x = torch.randn(n, generator=torch.Generator().manual_seed(6), dtype=torch.float64).to(dtype)
    where = sampled_positions(n)
    if misleading == "half":
        x[where] = 1e3
        x[where[::2]] = -1e3
    else:
        x[where] = float(misleading)
    check_ranks([x], "value", ranks(n))


@pytest.mark.parametrize("sampled", [0, 3, 7, 100])
def test_sample_that_misleads_among_neighbouring_numbers(sampled: int) -> None:
    # Eight subnormals without a float between them, in runs of ties: every end of a bracket is an answer somewhere.
    n = 2 * SAMPLED
    steps = torch.randint(0, 8, (n,), generator=torch.Generator().manual_seed(9), dtype=torch.int32)
    steps[sampled_positions(n)] = sampled
    x = steps.view(torch.float32)
    expected = sorted_scores([x], "value")
    first = (expected[1:] != expected[:-1]).nonzero().flatten() + 2
    check_ranks([x], "value", sorted({1, n, *first.tolist(), *(first - 1).tolist()}))


def test_room_for_the_gathered_keys_overflows() -> None:
    # 20 million doubles: one bracket holds more keys than the workspace has room for, a second pass narrows it.
    x = torch.rand(20_000_000, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    k = x.numel() // 2
    assert_same_number(ops.kth_value([x], k), x.kthvalue(k).values)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_any_number_of_threads(threads: int) -> None:
    x = torch.randn(6 * SAMPLED, generator=torch.Generator().manual_seed(8))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        check_ranks([x[: SAMPLED + 1], x[SAMPLED + 1 :]], "square", ranks(x.numel()))
    finally:
        torch.set_num_threads(before)


def test_dense_strides_in_any_order() -> None:
    x = torch.randn(3, 8, 5, 7)
    tensors = [x.to(memory_format=torch.channels_last), x.transpose(0, 2), x]
    check_ranks(tensors, "value", ranks(3 * x.numel()))


def test_workspace_does_not_grow() -> None:
    x = torch.randn(2_000_000)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        ops.kth_value([x], 1_600_000, score="square")
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in profile.events())
    assert 0 < allocated <= 4 << 20


def test_opcheck() -> None:
    op = torch.ops.torch_ire.kth_value.default
    for score in SCORES:
        torch.library.opcheck(op, ([torch.randn(5), torch.randn(3)], 3), {"score": score, "hint": torch.tensor(0.1)})
    torch.library.opcheck(op, ([torch.randn(5, dtype=torch.bfloat16)], 5), {})


X = torch.zeros(4)


@pytest.mark.parametrize(
    ("tensors", "k", "arguments", "message"),
    [
        ([], 1, {}, r"tensors: expected at least one tensor, got an empty list"),
        ([X], 0, {}, r"k: expected 1 <= k <= 4, the number of elements, got 0"),
        ([X, X], 9, {}, r"k: expected 1 <= k <= 8, the number of elements, got 9"),
        ([X], 1, {"score": "cube"}, r'score: expected "value", "abs" or "square", got "cube"'),
        ([X.int()], 1, {}, r"tensors\[0\]: expected float32, float64, bfloat16 or float16, got int32"),
        ([X.cfloat()], 1, {}, r"tensors\[0\]: expected float32, float64, bfloat16 or float16, got complex64"),
        ([X, X.double()], 1, {}, r"tensors\[1\]: expected float32 as tensors\[0\], got float64"),
        ([X, torch.zeros(8)[::2]], 1, {}, r"tensors\[1\]: expected a dense tensor .* with strides \(2\)"),
        ([X.to_sparse()], 1, {}, r"SparseCPU"),
        (
            [X],
            1,
            {"hint": torch.zeros(2)},
            r"hint: expected one float32, float64, .* number, got float32 of shape \(2\)",
        ),
        ([X], 1, {"hint": torch.tensor(1)}, r"hint: expected one float32, .* number, got int64 of shape \(\)"),
    ],
)
def test_error_messages(tensors: list[Tensor], k: int, arguments: dict[str, object], message: str) -> None:
    with pytest.raises((RuntimeError, NotImplementedError), match=message):
        ops.kth_value(tensors, k, **arguments)  # type: ignore[arg-type]


def test_chunk_edge_holds_the_answer() -> None:
    for n in (CHUNK - 1, CHUNK, CHUNK + 1, 6 * CHUNK, 6 * CHUNK + 1):
        for position in (0, n - 1, min(n - 1, CHUNK), CHUNK - 2):
            x = torch.ones(n)
            x[position] = -1.0
            assert ops.kth_value([x], 1).item() == -1.0
            assert ops.kth_value([x], 2).item() == 1.0
            assert ops.kth_value([-x], n).item() == 1.0
