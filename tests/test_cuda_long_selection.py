"""How often the CUDA selection reads a long list, scaled down with the limits of csrc/kernels/selection_plan.h."""

from __future__ import annotations

import ctypes
import math

import pytest
import torch
from torch import Tensor

import emulated_cuda
from selection_data import assert_same_number

# At 2^31 elements there is room for 0.3 / sqrt(n) of them and an eighth is scouted: the same here.
N = 400_000
MAX_SAMPLE = 512
ROOM = 8000
KEY_BYTES = {torch.float32: 4, torch.float64: 8, torch.bfloat16: 4}


@pytest.fixture(scope="module", autouse=True)
def _as_asked() -> None:
    emulated_cuda.configure()


def select(x: Tensor, k: int, tensors: int = 3, room: int = ROOM) -> tuple[Tensor, int, int]:
    """The k-th smallest magnitude, the elements scouted, and the reads of the list."""
    result = torch.full((), torch.nan, dtype=x.dtype)
    read = (ctypes.c_int64 * 2)()
    call = emulated_cuda.library().select_magnitude
    call.restype = ctypes.c_int64
    workspace = call(
        ctypes.c_void_p(x.data_ptr()), ctypes.c_int64(x.element_size()), ctypes.c_int64(x.numel()),
        ctypes.c_int64(tensors), ctypes.c_int64(k), ctypes.c_int64(MAX_SAMPLE),
        ctypes.c_int64(room * KEY_BYTES[x.dtype]), ctypes.c_void_p(result.data_ptr()), read,
    )  # fmt: skip
    assert 0 < workspace <= room * KEY_BYTES[x.dtype] + 17 * 1024
    return result, read[0], read[1]


def check(x: Tensor, k: int, **arguments: int) -> int:
    """Asserts the answer and what was scouted, and returns the reads."""
    result, scouted, reads = select(x, k, **arguments)
    assert_same_number(result.double(), x.double().abs().kthvalue(k).values)
    assert scouted == pytest.approx(x.numel() / 8, rel=0.01)
    return reads


def normal(seed: int, n: int = N) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_one_read_as_a_rule(dtype: torch.dtype, quantile: float) -> None:
    reads = [check(normal(seed).to(dtype), round(quantile * N)) for seed in range(3)]
    # at the median a miss in 1,500; the numbers are the same on every machine
    assert reads == [1, 1, 1]


def test_one_read_of_scores_that_spread_over_many_powers_of_ten() -> None:
    x = normal(4) * torch.exp(8 * normal(5))
    assert check(x, round(0.8 * N)) == 1


def test_one_read_of_a_sorted_list() -> None:
    assert check(normal(6).abs().sort().values, N // 2) == 1


def test_one_read_of_layers_of_different_scales() -> None:
    x = (normal(7).view(8, -1) * 10.0 ** torch.arange(-4, 4).unsqueeze(1)).flatten()
    assert check(x, round(0.8 * N), tensors=8) == 1


def test_one_read_of_a_half_type() -> None:
    # few numbers, each many times: they are counted, not gathered
    for quantile in (0.5, 0.8):
        assert check(normal(8).bfloat16(), round(quantile * N)) == 1


def test_one_read_where_ties_hold_the_answer() -> None:
    x = normal(9)
    x[torch.rand(N, generator=torch.Generator().manual_seed(10)) < 0.3] = 1.0
    for k in ((x.abs() < 1).sum().item() + 1, round(0.6 * N), (x.abs() <= 1).sum().item()):
        assert check(x, int(k)) == 1


def test_two_reads_where_neighbours_are_alike() -> None:
    # one scale for each 256 neighbours: the scouts know less than they think, and the wider bracket finds the answer
    scale = torch.exp(normal(11, N // 256 + 1)).repeat_interleave(256)[:N]
    reads = [check(normal(12) * scale, k) for k in (N // 4, N // 2, round(0.8 * N))]
    assert max(reads) <= 2


@pytest.mark.parametrize(("dtype", "reads"), [(torch.float32, 4), (torch.float64, 7), (torch.bfloat16, 4)], ids=str)
def test_no_more_reads_than_digits_where_the_sample_ends(dtype: torch.dtype, reads: int) -> None:
    # the sample has no number above the answer, so that nothing bounds it on this side
    for k in (1, N - 3, N):
        assert check(normal(15).to(dtype), k) <= reads


def test_two_reads_without_enough_room() -> None:
    x = normal(13)
    for k in (N // 2, round(0.9 * N)):
        assert check(x, k, room=600) <= 2


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("threads", [32, 96, 256])
def test_schedule_and_block_size_do_not_matter(threads: int, seed: int) -> None:
    emulated_cuda.configure(seed, threads)
    x = normal(14, 60_000)
    x[::97] = torch.nan
    for k in (1, 30_000, 59_000, 60_000):
        result, _, _ = select(x, k, tensors=5, room=1500)
        assert_same_number(result, x.abs().kthvalue(k).values)
    emulated_cuda.configure()


@pytest.mark.parametrize("bytes_of_key", [4, 8])
def test_plans_of_real_lists(bytes_of_key: int) -> None:
    out = (ctypes.c_int64 * 4)()
    for exponent in range(10, 36):
        n = 2**exponent
        emulated_cuda.library().selection_plan(ctypes.c_int64(n), ctypes.c_int64(bytes_of_key), out)
        samples, capacity, kept, every = out
        assert 0 < capacity * bytes_of_key <= max(2 << 20, n * bytes_of_key if n <= 32768 else 0)
        assert samples <= capacity
        assert 0 < kept <= capacity
        assert every == 0 or 8 <= every <= 32
        if samples and not every:  # the sample's bracket fits with room to spare
            assert 4 * n / math.sqrt(samples) <= 0.86 * capacity
    # the figures of selection_plan.h, in standard deviations of the scouts at the 0.8 quantile
    deviations = {}
    for exponent in (29, 30, 31):
        emulated_cuda.library().selection_plan(ctypes.c_int64(2**exponent), ctypes.c_int64(bytes_of_key), out)
        deviations[exponent] = out[2] / 2**exponent * math.sqrt(2**exponent / out[3]) / (2 * math.sqrt(0.8 * 0.2))
    expected = {4: {29: 6.4, 30: 6.0, 31: 4.2}, 8: {29: 4.2, 30: 3.0, 31: 2.1}}[bytes_of_key]
    assert deviations == pytest.approx(expected, abs=0.1)
