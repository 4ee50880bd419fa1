"""Signals that arrive while they are deferred: each reaches its handler, in the order of arrival."""

from __future__ import annotations

import signal
from types import FrameType

import pytest

from torch_ire.interrupts import DeferredInterrupts


def test_a_handler_that_raises_does_not_lose_the_next_signal() -> None:
    seen: list[int] = []

    def raises(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    handlers = {signal.SIGUSR1: raises, signal.SIGUSR2: lambda number, frame: seen.append(number)}
    try:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        with pytest.raises(KeyboardInterrupt), DeferredInterrupts():  # noqa: PT012
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGUSR2)
            assert seen == []
        assert seen == [signal.SIGUSR1, signal.SIGUSR2]
        assert {number: signal.getsignal(number) for number in handlers} == handlers
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
