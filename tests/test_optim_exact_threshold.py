"""One threshold over dtypes and processes against a sort of everything in float64."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from selection_data import SCORES, assert_same_number, score_of, tensor_lists
from torch_ire import ops, reference
from torch_ire.masks.exact_threshold import exact_threshold, needs_float64
from torch_ire.masks.ranking import Ranked, refresh_masks
from torch_ire.packed_mask import empty_mask, unpack

pytestmark = pytest.mark.usefixtures("host_implementation")

mixed_lists = st.lists(tensor_lists(max_tensors=3), min_size=1, max_size=4).map(
    lambda lists: [x for tensors in lists for x in tensors]
)


def expected_threshold(scores: list[Tensor], gamma: float, score: str) -> Tensor:
    everything = torch.cat([score_of(x, score).double().flatten() for x in scores]).sort().values
    k = round(gamma * everything.numel())
    return everything[k - 1] if k else torch.tensor(-torch.inf, dtype=torch.float64)


@pytest.mark.parametrize("functions", [ops, reference], ids=["ops", "reference"])
@settings(max_examples=60, deadline=None)
@given(scores=mixed_lists, score=st.sampled_from(SCORES), gamma=st.floats(0, 1) | st.sampled_from([0.0, 0.8, 1.0]))
def test_the_threshold_equals_that_of_a_full_sort(
    functions: ModuleType, scores: list[Tensor], score: str, gamma: float
) -> None:
    threshold = exact_threshold(functions, scores, gamma, score=score)
    wide = needs_float64([x.dtype for x in scores], score)
    assert threshold.dtype == (torch.float64 if wide else torch.float32)
    assert_same_number(threshold.double(), expected_threshold(scores, gamma, score))


def in_processes(
    shares: list[list[Tensor]], run: Callable[[list[Tensor], Callable[[Tensor], Tensor]], Tensor]
) -> list[Tensor]:
    """Runs every share in a thread of its own, with a sum over all of them that works like a collective."""
    barrier = threading.Barrier(len(shares), timeout=60)
    messages: list[Tensor] = [torch.empty(0)] * len(shares)
    results: list[Tensor] = [torch.empty(0)] * len(shares)

    def process(i: int) -> None:
        def reduce(message: Tensor) -> Tensor:
            messages[i] = message.clone()
            barrier.wait()
            message.copy_(torch.stack(messages).sum(0))
            barrier.wait()
            return message

        results[i] = run(shares[i], reduce)

    threads = [threading.Thread(target=process, args=(i,)) for i in range(len(shares))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.8, 1.0])
def test_every_process_finds_the_threshold_of_all(gamma: float, score: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3000, generator=generator).to(torch.bfloat16)
    y = torch.randn(2000, generator=generator, dtype=torch.float64).round(decimals=1)
    z = torch.randn(500, generator=generator)
    z[::7] = torch.nan
    z[1::7] = torch.inf
    shares = [[x, z[:100]], [], [y, z[100:], z[:0]]]
    wide = score != "square"
    found = in_processes(
        shares, lambda tensors, reduce: exact_threshold(ops, tensors, gamma, score=score, reduce=reduce, wide=wide)
    )
    for threshold in found:
        assert_same_number(threshold.double(), expected_threshold([x, y, z], gamma, score))
    assert len({threshold.dtype for threshold in found}) == 1


def test_a_process_without_scores_makes_all_collective_calls() -> None:
    calls = []
    exact_threshold(ops, [], 0.5, score="abs", reduce=lambda m: calls.append(m.shape) or m, wide=False)
    assert calls == [(2049,)] * 3


def test_the_threshold_of_no_scores_is_minus_infinity() -> None:
    for scores in ([], [torch.zeros(0)], [torch.zeros(0), torch.zeros(0, dtype=torch.float64)]):
        assert exact_threshold(ops, scores, 0.7, score="value").item() == -torch.inf


def test_float64_scores_that_are_equal_in_float32_are_ranked_exactly() -> None:
    fine = 1 + torch.arange(100, dtype=torch.float64) * 2.0**-40
    scores = [fine, torch.full((7,), 0.5), torch.full((3,), 2.0, dtype=torch.bfloat16)]
    for k in range(1, 111):
        threshold = exact_threshold(ops, scores, k / 110, score="abs")
        assert_same_number(threshold, expected_threshold(scores, k / 110, "abs"))


@pytest.mark.parametrize("functions", [ops, reference], ids=["ops", "reference"])
@settings(max_examples=60, deadline=None)
@given(scores=mixed_lists, score=st.sampled_from(["abs", "square"]), gamma=st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0]))
def test_masks_over_several_dtypes_are_exact(
    functions: ModuleType, scores: list[Tensor], score: str, gamma: float
) -> None:
    masks = [empty_mask(x) for x in scores]
    group = {"ranking": "global", "gamma": gamma}
    ranked = [Ranked(i, group, 0, x, x, m, True) for i, (x, m) in enumerate(zip(scores, masks, strict=True))]
    refresh_masks(functions, ranked, score, {})
    threshold = expected_threshold(scores, gamma, score).nan_to_num(nan=torch.inf)
    for x, mask in zip(scores, masks, strict=True):
        value = score_of(x, score).double()
        assert torch.equal(unpack(mask, x), value.isfinite() & (value <= threshold))
