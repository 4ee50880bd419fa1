"""The pool of processes that the tests of distributed training run in."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from processes import Countdown, Program, is_alive
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


def tell_and_hang(device: torch.device) -> None:
    print("rank", os.getpid(), flush=True)
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


def test_ranks_end_with_the_process_that_started_them() -> None:
    """Killed without a chance to clean up, as by a time limit around the suite."""
    tests = str(Path(__file__).parent)
    source = "import ranks, test_ranks\nif __name__ == '__main__': ranks.Ranks(1).run(test_ranks.tell_and_hang)"
    env = {"PYTHONPATH": os.pathsep.join([tests, *sys.path])}
    with Program([sys.executable, "-c", source], env=env) as program:
        program.wait_for("rank ", 120.0)
        pid = int(program.read().split()[1])
        os.kill(program.pid, signal.SIGKILL)
        deadline = Countdown(30.0)
        while is_alive(pid) and deadline.left() > 0:
            time.sleep(0.05)
        assert not is_alive(pid)


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
