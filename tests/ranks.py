"""Runs functions in several processes at once: over Gloo on the CPU, over NCCL if there are enough GPUs.

The processes of a pool are started once and serve many tests, because importing torch takes longer than most of them.
They meet through a file, so nothing depends on free ports. Every call has a time limit: a rank that hangs is killed,
and the test fails with the stack of every rank. Ranks end with the process that started them.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist

from processes import Countdown

# Seconds that the other ranks have, once one has failed, to fail too before they are looked at and killed.
GRACE = 3.0
STARTED = "started"


class RanksFailedError(AssertionError):
    """What went wrong, rank by rank."""


def _serve(
    connection: Connection, rank: int, world_size: int, backend: str, folder: str, measuring: dict[str, str]
) -> None:
    """The life of one rank: joins the process group, then runs what it is sent."""
    Thread(target=_exit_with_parent, daemon=True).start()
    coverage = _start_coverage(measuring)
    torch.set_num_threads(1)
    with (Path(folder) / f"stack{rank}").open("w") as stack:
        faulthandler.register(signal.SIGUSR1, file=stack, all_threads=True)
        device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(
            backend,
            init_method=(Path(folder) / "rendezvous").as_uri(),
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=600),  # the pool's own limit is shorter and says more
        )
        connection.send_bytes(pickle.dumps(("returned", STARTED)))
        while True:
            try:
                function, arguments = pickle.loads(connection.recv_bytes())
            except EOFError:
                break
            try:
                answer = pickle.dumps(("returned", function(device, *arguments)))
            except BaseException:
                answer = pickle.dumps(("raised", traceback.format_exc()))
            connection.send_bytes(answer)
        dist.destroy_process_group()
        faulthandler.unregister(signal.SIGUSR1)
    if coverage is not None:  # a forked process ends without the exit handlers in which this would be done
        coverage.stop()
        coverage.save()


def _exit_with_parent() -> None:
    # Where the tests are killed, a rank that hangs would live on, and hold what they print to.
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _start_coverage(measuring: dict[str, str]) -> Any:
    """Measures the coverage of this process where pytest-cov does so in the parent."""
    if not measuring:
        return None
    os.environ.update(measuring)
    from coverage import process_startup

    return process_startup()


class Ranks:
    """A pool of processes that are one ``torch.distributed`` world.

    Args:
        world_size: How many.
        backend: "gloo" or "nccl".
    """

    def __init__(self, world_size: int, backend: str = "gloo") -> None:
        self.world_size = world_size
        self.backend = backend
        self._processes: list[Any] = []
        self._connections: list[Connection] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def run(self, function: Callable[..., Any], *arguments: Any, timeout: float = 120.0) -> list[Any]:
        """What ``function(device, *arguments)`` returns on each rank.

        Args:
            function: A function of a test module, by its name: it is pickled, as arguments and results are.
            arguments: The same for every rank.
            timeout: Seconds on an idle machine.

        Raises:
            RanksFailedError: A rank raised, died or did not return in time. The pool starts anew at the next call.
        """
        if not self._processes:
            self._start()
        task = pickle.dumps((function, arguments))
        for connection in self._connections:
            connection.send_bytes(task)
        return self._collect(timeout)

    def _start(self) -> None:
        # forked from a server that has imported torch once; it has no threads and no device yet
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(
            ["torch", "torch.distributed.tensor", "torch.distributed.fsdp", "torch.distributed.checkpoint"]
        )
        self._folder = tempfile.TemporaryDirectory(prefix="ranks")
        # the server itself measures no coverage: it ends after pytest has collected what there is
        measuring = {key: os.environ.pop(key) for key in list(os.environ) if key.startswith("COVERAGE_PROCESS")}
        try:
            for rank in range(self.world_size):
                ours, theirs = context.Pipe()
                arguments = (theirs, rank, self.world_size, self.backend, self._folder.name, measuring)
                process = context.Process(target=_serve, args=arguments, daemon=True)
                process.start()
                theirs.close()
                self._processes.append(process)
                self._connections.append(ours)
        finally:
            os.environ.update(measuring)
        assert self._collect(timeout=120.0) == [STARTED] * self.world_size

    def _collect(self, timeout: float) -> list[Any]:
        countdown, failed = Countdown(timeout), False
        answers: dict[int, tuple[str, Any]] = {}
        while len(answers) < self.world_size:
            waiting = {self._connections[rank]: rank for rank in range(self.world_size) if rank not in answers}
            if countdown.left() <= 0:
                break
            ready = wait(list(waiting), min(1.0, countdown.left()))  # a second at a time: the load may change
            for connection in ready:
                rank = waiting[connection]
                try:
                    answers[rank] = pickle.loads(connection.recv_bytes())
                except (EOFError, ConnectionResetError):
                    self._processes[rank].join(1.0)
                    answers[rank] = ("raised", f"the process ended with exit code {self._processes[rank].exitcode}\n")
                if answers[rank][0] == "raised" and not failed:
                    countdown, failed = Countdown(min(GRACE, countdown.left())), True
        if len(answers) == self.world_size and all(kind == "returned" for kind, _ in answers.values()):
            return [answers[rank][1] for rank in range(self.world_size)]
        stacks = self._stacks([rank for rank in range(self.world_size) if rank not in answers])
        self.kill()
        report = []
        for rank in range(self.world_size):
            kind, value = answers.get(rank, ("hung", stacks.get(rank, "")))
            report.append(f"--- rank {rank} {kind}" + (f":\n{value}" if kind != "returned" else ""))
        raise RanksFailedError(f"of {self.world_size} ranks ({timeout:g} s allowed):\n" + "\n".join(report))

    def _stacks(self, ranks: list[int]) -> dict[int, str]:
        assert self._folder is not None
        for rank in ranks:
            os.kill(self._processes[rank].pid, signal.SIGUSR1)
        time.sleep(0.5 if ranks else 0.0)
        return {rank: (Path(self._folder.name) / f"stack{rank}").read_text() for rank in ranks}

    def kill(self) -> None:
        """Ends the processes at once."""
        for process in self._processes:
            process.kill()
            process.join()
        self._forget()

    def stop(self) -> None:
        """Lets the processes end by themselves, and ends those that don't."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.join(10.0)
        self.kill()

    def _forget(self) -> None:
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.close()
        self._processes, self._connections = [], []
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
