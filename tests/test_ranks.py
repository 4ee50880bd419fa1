"""The pool of processes that the tests of distributed training run in."""

from __future__ import annotations

import os
import time

import pytest
import torch
import torch.distributed as dist

from ranks import Ranks, RanksFailedError


def add_up(device: torch.device, value: int) -> tuple[int, int, float]:
    total = torch.full((), float(value * (dist.get_rank() + 1)), device=device)
    dist.all_reduce(total)
    return dist.get_rank(), os.getpid(), total.item()


def fail_on_the_last(device: torch.device) -> None:
    if dist.get_rank() == dist.get_world_size() - 1:
        raise ValueError("a rank that fails")
    dist.barrier()


def hang_on_the_first(device: torch.device) -> None:
    if dist.get_rank() == 0:
        wait_for_ever()


def wait_for_ever() -> None:
    time.sleep(3600)


def die(device: torch.device) -> None:
    os._exit(3)


def test_processes_serve_many_calls(ranks) -> None:
    first, second = ranks(2).run(add_up, 1), ranks(2).run(add_up, 10)
    assert [(rank, total) for rank, _, total in first] == [(0, 3.0), (1, 3.0)]
    assert [total for _, _, total in second] == [30.0, 30.0]
    pids = {pid for _, pid, _ in first}
    assert {pid for _, pid, _ in second} == pids
    assert len(pids - {os.getpid()}) == 2


def test_a_failure_names_every_rank_and_the_pool_recovers() -> None:
    pool = Ranks(2)
    try:
        with pytest.raises(RanksFailedError) as failure:
            pool.run(fail_on_the_last)
        assert "--- rank 1 raised" in str(failure.value)
        assert "ValueError: a rank that fails" in str(failure.value)
        assert "--- rank 0" in str(failure.value)
        start = time.monotonic()
        with pytest.raises(RanksFailedError, match=r"(?s)rank 0 hung.*wait_for_ever.*rank 1 returned"):
            pool.run(hang_on_the_first, timeout=1.0)
        assert time.monotonic() - start < 60.0  # a start of the pool included
        with pytest.raises(RanksFailedError, match="the process ended with exit code 3"):
            pool.run(die)
        assert [total for _, _, total in pool.run(add_up, 1)] == [3.0, 3.0]
    finally:
        pool.stop()
