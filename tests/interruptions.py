"""Exceptions at chosen points of a call: at the n-th line of the package, or by a timer's signal."""

from __future__ import annotations

import inspect
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch

from layout import PACKAGE

_PREFIX = str(PACKAGE)


def _trace(on_event: Callable[[FrameType], None], call: Callable[[], Any]) -> None:
    """Runs a call with a look at every line of the package that runs and at every return from a function of it."""

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(_PREFIX):
            return None
        # an exception is lost where the interpreter closes a generator, which looks like a return
        closes = event == "return" and bool(frame.f_code.co_flags & inspect.CO_GENERATOR)
        if event in ("line", "return") and not closes:
            on_event(frame)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)


def number_of_points(call: Callable[[], Any]) -> int:
    """How many points of the package a call passes."""
    points = 0

    def count(frame: FrameType) -> None:
        nonlocal points
        points += 1

    _trace(count, call)
    return points


def interrupted_at(point: int, call: Callable[[], Any]) -> str | None:
    """Runs a call up to its n-th point, where KeyboardInterrupt is raised.

    Returns:
        The place as ``file:line``, or ``None`` if the call ended before.
    """
    passed, place = 0, None

    def count(frame: FrameType) -> None:
        nonlocal passed, place
        passed += 1
        if passed == point:
            place = f"{frame.f_code.co_filename[len(_PREFIX) + 1 :]}:{frame.f_lineno}"
            raise KeyboardInterrupt

    try:
        _trace(count, call)
    except KeyboardInterrupt:
        return place
    return None


def interrupted_after(seconds: float, call: Callable[[], Any]) -> None:
    """Makes a call that a signal may end by KeyboardInterrupt after some time of the wall clock."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # a coverage tracer that an exception interrupts while it holds its lock would wait for that lock for ever
    tracer = sys.gettrace()
    sys.settrace(None)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            call()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGALRM, before)
        sys.settrace(tracer)
        # torch's own context managers are interrupted too
        torch.set_grad_enabled(True)
