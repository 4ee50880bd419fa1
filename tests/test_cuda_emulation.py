"""The emulation executes what CUDA promises and finds what it does not promise."""

from __future__ import annotations

import ctypes

import pytest
import torch

import emulated_cuda

BLOCK_SIZES = (32, 96, 256, 1024)
SEEDS = range(20)


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def block_sum(values: torch.Tensor, threads: int, seed: int, with_barrier: bool) -> float:
    emulated_cuda.configure(seed, max_threads=0)
    out = torch.zeros(1)
    status = emulated_cuda.library().selftest_sum(
        pointer(values), ctypes.c_int(values.numel()), pointer(out), ctypes.c_int(threads), ctypes.c_int(with_barrier)
    )
    assert status == 0
    return out.item()


@pytest.mark.parametrize("threads", BLOCK_SIZES)
def test_block_sum_is_right_under_every_schedule(threads: int) -> None:
    values = torch.arange(1.0, 1001.0)  # sums of integers: every order gives the same float32
    assert {block_sum(values, threads, seed, with_barrier=True) for seed in SEEDS} == {500500.0}


def test_missing_barrier_shows() -> None:
    values = torch.arange(1.0, 1001.0)
    sums = [block_sum(values, 256, seed, with_barrier=False) for seed in SEEDS]
    assert sum(s != 500500.0 for s in sums) > len(sums) // 2


@pytest.mark.parametrize("with_barrier", [True, False])
def test_dynamic_shared_memory(with_barrier: bool) -> None:
    right = 0
    for seed in SEEDS:
        emulated_cuda.configure(seed, max_threads=0)
        values = torch.arange(64.0)
        assert emulated_cuda.library().selftest_reverse(pointer(values), 64, ctypes.c_int(with_barrier)) == 0
        right += int(torch.equal(values, torch.arange(64.0).flip(0)))
    assert right == (len(SEEDS) if with_barrier else 0)


def test_deadlock_is_an_error() -> None:
    emulated_cuda.configure(max_threads=0)
    assert emulated_cuda.library().selftest_divergent_barrier(pointer(torch.zeros(64)), 64) != 0


def test_collectives() -> None:
    emulated_cuda.configure(seed=3, max_threads=0)
    blocks, threads = 3, 64
    out = torch.full((threads, 8), -1, dtype=torch.int32)
    counter = torch.zeros(1, dtype=torch.int64)
    assert emulated_cuda.library().selftest_collectives(pointer(out), pointer(counter), blocks, threads) == 0
    lane = torch.arange(threads, dtype=torch.int32) % 32
    assert counter.item() == blocks * threads
    assert torch.equal(out[:, 0], lane ^ 5)
    assert torch.equal(out[:, 1], torch.where(lane + 3 < 32, lane + 3, lane))
    assert torch.equal(out[:, 2], torch.where(lane >= 3, lane - 3, lane))
    assert torch.equal(out[:, 3], torch.full_like(lane, 7))
    ballot = sum(1 << i for i in range(0, 32, 3))
    assert (out[:, 4].to(torch.int64) & 0xFFFFFFFF == ballot).all()
    assert torch.equal(out[:, 5], lane ^ 1)
    assert torch.equal(out[:, 6], torch.full_like(lane, 3))
    assert int(out[0, 7]) in range(blocks)


@pytest.mark.parametrize("threads", [0, 1025])
def test_launch_shapes_that_the_device_refuses(threads: int) -> None:
    emulated_cuda.configure(max_threads=0)
    assert emulated_cuda.library().selftest_reverse(pointer(torch.zeros(1)), threads, 1) != 0
