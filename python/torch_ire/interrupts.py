"""Defers signals during writes that belong together."""

from __future__ import annotations

import collections
import contextlib
import operator
import signal
import threading
from collections.abc import Callable, Iterable
from types import FrameType, TracebackType
from typing import Any

# Signals whose handlers raise exceptions in practice: Ctrl-C, time limits, and the notices of job schedulers.
_NAMES = ("SIGINT", "SIGTERM", "SIGALRM", "SIGHUP", "SIGUSR1", "SIGUSR2")
_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


class DeferredInterrupts:
    """Context that runs Python signal handlers at its end instead of between two statements inside it.

    Some writes belong together, such as the operator calls of a step and its step count. Python runs handlers in the
    main thread only; in other threads the context does nothing.

    Cost: a few microseconds.
    """

    def __enter__(self) -> DeferredInterrupts:
        self._pending: list[tuple[int, FrameType | None]] = []
        self._handlers: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            found = {number: signal.getsignal(number) for number in _SIGNALS}
            self._handlers = {number: handler for number, handler in found.items() if callable(handler)}
            try:
                for number in self._handlers:
                    signal.signal(number, self._note)
            except BaseException:  # raised by a signal before its handler was replaced
                self._restore()
                raise
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._pending.append((number, frame))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.ExitStack() as stack:  # in reverse: all handlers run, also if one raises
            for number, frame in reversed(self._pending):
                stack.callback(self._handlers[number], number, frame)
            stack.callback(self._restore)

    def _restore(self) -> None:
        with contextlib.ExitStack() as stack:  # restores all handlers, even if a signal raises in between
            for number, handler in self._handlers.items():
                stack.callback(signal.signal, number, handler)


def run_all(calls: Iterable[Callable[[], Any]]) -> None:
    """Calls functions in order, with no Python statement in between at which a signal handler could run."""
    collections.deque(map(operator.methodcaller("__call__"), calls), maxlen=0)
