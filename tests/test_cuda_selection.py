"""kth_value and sample_labels for CUDA against the CPU operators: long lists, block sizes, schedules, alignment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import emulated_cuda
from selection_data import SCORES, assert_same_number
from tolerances import DTYPES, assert_within_ulps

DEVICES = ["emulated", pytest.param("cuda", marks=pytest.mark.gpu)]
SAMPLED = 40_000  # from this many elements on a sample comes first


@pytest.fixture(autouse=True)
def _as_asked(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.node.get_closest_marker("gpu"):  # needs no emulation, and a machine with a GPU no time to build it
        yield
        return
    emulated_cuda.configure()
    yield
    emulated_cuda.configure()


def on(device: str, operator: str, *arguments: Any, **keywords: Any) -> Any:
    """The CUDA operator on host tensors, moved to the device where there is one."""

    def placed(value: Any) -> Any:
        if isinstance(value, list):
            return [placed(item) for item in value]
        return value.to(device) if isinstance(value, Tensor) and device != "emulated" else value

    namespace = torch.ops.torch_ire_emulated if device == "emulated" else torch.ops.torch_ire
    return getattr(namespace, operator).default(*placed(list(arguments)), **keywords)


def numbers(n: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    x = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x[:: max(1, n // 50)] = torch.nan
    x[1 :: max(1, n // 30)] = -torch.inf
    x[2::3] = 0.0  # a third of ties
    return x.to(dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kth_value_agrees_with_the_cpu(dtype: torch.dtype, score: str, device: str) -> None:
    x = numbers(2 * SAMPLED + 3, dtype)
    tensors = [x[1:SAMPLED], x[SAMPLED : SAMPLED + 7], x[:0], x[SAMPLED + 7 :]]
    n = sum(t.numel() for t in tensors)
    for k in (1, n // 3, n // 2, round(0.8 * n), n):
        expected = torch.ops.torch_ire.kth_value.default(tensors, k, score=score)
        actual = on(device, "kth_value", tensors, k, score=score)
        assert actual.dtype == expected.dtype
        assert_same_number(actual.cpu(), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_kth_value_of_more_tensors_than_fit_into_a_launch(device: str) -> None:
    tensors = [*numbers(3 * 1500, torch.float32).split(3), numbers(SAMPLED, torch.float32, 1)]
    for k in (1, 2000, 30_000):
        expected = torch.ops.torch_ire.kth_value.default(tensors, k, score="abs")
        assert_same_number(on(device, "kth_value", tensors, k, score="abs").cpu(), expected)


@pytest.mark.parametrize("threads", [32, 96, 256, 1024])
@pytest.mark.parametrize("seed", [1, 2])
def test_block_size_and_schedule_do_not_matter(seed: int, threads: int) -> None:
    x = numbers(SAMPLED, torch.bfloat16)
    expected = torch.ops.torch_ire.kth_value.default([x], SAMPLED // 2, score="square")
    logits = torch.randn(5, 3000, generator=torch.Generator().manual_seed(seed))
    labels, logsumexp = torch.ops.torch_ire.sample_labels.default(logits, seed=3, offset=4)
    emulated_cuda.configure(seed, threads)
    assert_same_number(on("emulated", "kth_value", [x], SAMPLED // 2, score="square"), expected)
    drawn, normaliser = on("emulated", "sample_labels", logits, seed=3, offset=4)
    assert torch.equal(drawn, labels)
    assert_within_ulps(normaliser, logsumexp, 4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("classes", [1, 3, 257, 5001])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_labels_agree_with_the_cpu(dtype: torch.dtype, classes: int, device: str) -> None:
    logits = (4 * torch.randn(64, classes, generator=torch.Generator().manual_seed(5))).to(dtype)
    labels, logsumexp = torch.ops.torch_ire.sample_labels.default(logits, seed=1, offset=2)
    drawn, normaliser = on(device, "sample_labels", logits, seed=1, offset=2)
    # sums in another order move the boundary between two classes by a rounding error: one label in a million
    assert torch.equal(drawn.cpu(), labels)
    assert_within_ulps(normaliser.cpu(), logsumexp, 8, scale=torch.ones_like(logsumexp))
