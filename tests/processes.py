"""Starts the programs of the tests, limits how long they run, and ends everything that they have started in turn.

A launcher such as torchrun puts its ranks into sessions of their own, so killing the launcher, or its process group,
leaves them running. Every process here carries a token in its environment, which all its descendants inherit; ``kill``
ends every process that has it. What they print goes to files: a pipe would stay open as long as any of them lives.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

TOKEN = "TORCH_IRE_TEST_TOKEN"
POLL = 0.05  # seconds
# A limit grows with the load of the machine, up to this factor.
MOST_SLOWDOWN = 10.0


class ProcessFailedError(AssertionError):
    """A program that ended with another status than expected, or not in time; with what it printed."""


def slowdown() -> float:
    """How much longer than on an idle machine a program may take: runnable processes per core, from 1 to 10."""
    if not hasattr(os, "getloadavg"):
        return 1.0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(1.0, os.getloadavg()[0] / cores), MOST_SLOWDOWN)


def is_alive(pid: int) -> bool:
    """Whether a process still runs: one that has ended and waits for its parent to ask does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Countdown:
    """A time limit in seconds of an idle machine: on a loaded one the time passes more slowly, see ``slowdown``."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds
        self._last = time.monotonic()

    def left(self) -> float:
        """Seconds left; 0 or less when the time is over."""
        now = time.monotonic()
        self._left -= (now - self._last) / slowdown()
        self._last = now
        return self._left


class Program:
    """A started program.

    Args:
        command: The program and its arguments.
        cwd: Its working directory.
        env: Variables that are added to the environment of this process.
        without: Prefixes of variables that are taken out of it.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        without: tuple[str, ...] = (),
    ) -> None:
        self.command = list(command)
        self._token = uuid.uuid4().hex
        kept = {key: value for key, value in os.environ.items() if not (without and key.startswith(without))}
        files = {name: tempfile.TemporaryFile() for name in ("stdout", "stderr")}  # noqa: SIM115 - kill() closes them
        # files until the end, bytes from then on
        self._printed: dict[str, Any] = dict(files)
        self._process = subprocess.Popen(
            self.command,
            cwd=cwd,
            env={**kept, **(env or {}), TOKEN: self._token},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            **files,
        )

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """The process id of the program itself."""
        return self._process.pid

    def read(self, name: str = "stdout") -> str:
        """What it has printed so far to "stdout" or "stderr"."""
        printed = self._printed[name]
        if not isinstance(printed, bytes):
            number = printed.fileno()
            printed = os.pread(number, os.fstat(number).st_size, 0)
        return printed.decode(errors="replace")

    def status(self) -> int | None:
        """Its exit status, negative after a signal; ``None`` while it runs."""
        return self._process.poll()

    def wait_for(self, text: str, limit: float) -> None:
        """Returns as soon as ``text`` is in what it has printed to stdout.

        Raises:
            ProcessFailedError: It ended first, or the limit was reached; it has been killed then.
        """
        countdown = Countdown(limit)
        while text not in self.read():
            if self.status() is not None and text not in self.read():
                self.fail(f"ended with status {self.status()} before it printed {text!r}")
            if countdown.left() <= 0:
                self.fail(f"did not print {text!r} within {limit:g} s")
            time.sleep(POLL)

    def finish(self, limit: float, status: int | None = 0) -> str:
        """Waits for its end, ends what it has left running, and returns what it printed to stdout.

        Args:
            limit: Seconds on an idle machine.
            status: The exit status to expect; ``None``: any.

        Raises:
            ProcessFailedError: It ended with another status, or did not end.
        """
        countdown = Countdown(limit)
        while self.status() is None:
            if countdown.left() <= 0:
                self.fail(f"did not end within {limit:g} s")
            time.sleep(POLL)
        self.kill()
        if status is not None and self.status() != status:
            self.fail(f"ended with status {self.status()}, expected {status}")
        return self.read()

    def kill(self) -> None:
        """Ends it and everything that it has started, whatever sessions and parents they have by now."""
        for _ in range(100):  # a process may start another while it is looked for
            alive = self._alive()
            if not alive:
                break
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)  # all there is to go by without /proc
            for pid in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.poll()  # no zombie
            time.sleep(POLL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5.0)
        for name, file in self._printed.items():
            if not isinstance(file, bytes):
                with file:
                    self._printed[name] = self.read(name).encode()

    def _alive(self) -> list[int]:
        found = [] if self._process.poll() is not None else [self._process.pid]
        mark = f"{TOKEN}={self._token}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            # unreadable: of another user; empty: a process that has ended and waits for its parent to ask
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return found

    def fail(self, problem: str) -> NoReturn:
        """Kills it and raises ``ProcessFailedError`` with the problem and what it printed."""
        self.kill()
        raise ProcessFailedError(self.described(problem))

    def described(self, problem: str) -> str:
        """Command, problem, and the end of what it printed."""
        parts = [f"{' '.join(self.command)}\n{problem}"]
        parts += [f"--- {name}\n{self.read(name)[-8000:]}" for name in ("stdout", "stderr") if self.read(name)]
        return "\n".join(parts)


def finish_all(programs: Sequence[Program], limit: float, grace: float = 5.0) -> None:
    """Waits for the end of programs that work together.

    Args:
        programs: All are ended when one fails or the limit is reached.
        limit: Seconds on an idle machine.
        grace: Seconds that the others have, once one has failed, to say why.

    Raises:
        ProcessFailedError: One failed; the message has what each of those that failed printed.
    """
    countdown, failed = Countdown(limit), False
    while countdown.left() > 0 and any(program.status() is None for program in programs):
        if not failed and any(program.status() not in (None, 0) for program in programs):
            countdown, failed = Countdown(min(grace, countdown.left())), True
        time.sleep(POLL)
    problems = [
        program.described("was still running" if program.status() is None else f"ended with status {program.status()}")
        for program in programs
        if program.status() != 0
    ]
    for program in programs:
        program.kill()
    if problems:
        raise ProcessFailedError(f"{limit:g} s allowed:\n" + "\n".join(problems))


def run(
    command: Sequence[str],
    *,
    limit: float = 120.0,
    status: int | None = 0,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    without: tuple[str, ...] = (),
) -> Program:
    """Runs a program to its end; see :class:`Program` and its ``finish``.

    Returns:
        The program, for ``read`` and ``status``.
    """
    with Program(command, cwd=cwd, env=env, without=without) as program:
        program.finish(limit, status)
    return program


def run_python(source: str, *arguments: str, limit: float = 120.0, **options: object) -> str:
    """What a Python program, given as text, prints to stdout; its error output is part of the message if it fails."""
    return run([sys.executable, "-c", source, *arguments], limit=limit, **options).read()  # type: ignore[arg-type]


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A port of 127.0.0.1 that no one else is given meanwhile, and that a server of the test can still listen on.

    The socket is bound and never listens, which with ``SO_REUSEADDR`` on both sides keeps the port out of the kernel's
    choice without keeping the server from it.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])
