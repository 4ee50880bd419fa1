"""What a piece of code sends to other processes: every collective with its payload."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Traffic(TorchDispatchMode):
    """Context that notes the collectives which run in it.

    Example:
        >>> import torch
        >>> with Traffic() as traffic:
        ...     _ = torch.ones(2) + 1
        >>> traffic.calls
        []
    """

    def __init__(self) -> None:
        super().__init__()
        #: (operator, bytes of the tensors that this process puts in)
        self.calls: list[tuple[str, int]] = []

    @property
    def payload(self) -> int:
        """Bytes that this process put in, all collectives together; a ring sends up to twice as many."""
        return sum(size for _, size in self.calls)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        namespace, name = str(func).split(".")[:2]
        if namespace in ("c10d", "_c10d_functional"):
            # of a gather the inputs, which come second
            sent = args[1] if "gather" in name and namespace == "c10d" else args[0]
            self.calls.append((name, sum(t.numel() * t.element_size() for t in _tensors(sent))))
        return func(*args, **(kwargs or {}))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
