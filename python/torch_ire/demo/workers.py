"""Runs the jobs on every core, one thread each, and reports their progress.

Models this small leave a second thread idle: two processes take about half the time of one with two threads.
"""

from __future__ import annotations

import os
import queue
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, ProcessPoolExecutor, wait
from contextlib import suppress
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from threading import Thread
from types import TracebackType
from typing import Any, TypeVar

import torch

from torch_ire.demo.data import Dataset

OnSteps = Callable[[int], None]
JobT = TypeVar("JobT")
OutcomeT = TypeVar("OutcomeT")
# The function that a worker calls; at module level, so that it can be pickled.
JobFunction = Callable[[JobT, Mapping[str, Dataset], OnSteps], OutcomeT]

_POLL_SECONDS = 0.2
_MOST_WORKERS = 8


def worker_count() -> int:
    """One worker per core that this process may use, at most eight: there are not enough jobs for more."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_WORKERS)


# The data, queue and event of a worker process, which it gets when it starts.
_worker: tuple[Mapping[str, Dataset], Queue[tuple[int, int]], Event] | None = None


def _start_worker(data: Mapping[str, Dataset], steps: Queue[tuple[int, int]], stop: Event) -> None:
    global _worker
    _worker = data, steps, stop
    # Ctrl-C reaches every process of the terminal; only the parent handles it, by setting ``stop``.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    # A killed parent closes no queue: its workers would wait for the next job for ever.
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_in_worker(function: JobFunction[Any, Any], index: int, job: Any) -> Any:
    assert _worker is not None
    data, steps, stop = _worker

    def on_steps(number: int) -> None:
        if stop.is_set():
            raise CancelledError
        steps.put((index, number))

    return function(job, data, on_steps)


class Workers:
    """A pool of spawned processes that hold the data; with ``count=1`` all jobs run in this process.

    Args:
        data: by name of the part.
        count: number of processes, at least 1.
    """

    def __init__(self, data: Mapping[str, Dataset], count: int) -> None:
        self._data = data
        self._pool: ProcessPoolExecutor | None = None
        if count > 1:
            context = get_context("spawn")
            self._steps: Queue[tuple[int, int]] = context.Queue()
            self._stop = context.Event()
            arguments = (data, self._steps, self._stop)
            self._pool = ProcessPoolExecutor(count, context, initializer=_start_worker, initargs=arguments)

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            if kind is not None:
                self._stop.set()
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._steps.close()

    def run(
        self, function: JobFunction[JobT, OutcomeT], jobs: Sequence[JobT], on_steps: Callable[[JobT, int], None]
    ) -> list[OutcomeT]:
        """Outcomes of the jobs, in their order.

        Args:
            function: called with a job, the data, and a callable that takes a number of finished steps.
            jobs: started in this order.
            on_steps: called in this process with a job and the number of steps that it has just finished.

        Raises:
            Exception: The first exception of a job, at once.
        """
        if self._pool is None:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                return [function(job, self._data, partial(on_steps, job)) for job in jobs]
            finally:
                torch.set_num_threads(threads)
        futures = [self._pool.submit(_run_in_worker, function, index, job) for index, job in enumerate(jobs)]
        pending = set(futures)
        while pending:
            finished, pending = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            for index, number in self._finished_steps():
                on_steps(jobs[index], number)
            for future in finished:
                future.result()
        return [future.result() for future in futures]

    def _finished_steps(self) -> Iterator[tuple[int, int]]:
        with suppress(queue.Empty):
            while True:
                yield self._steps.get_nowait()
