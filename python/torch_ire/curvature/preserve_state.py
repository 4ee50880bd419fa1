"""Evaluate a user's closure without side effects: buffers, random state and attention settings are restored."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_pre_hook

__all__ = ["RandomState", "frozen_buffers", "math_attention"]


@contextmanager
def frozen_buffers() -> Iterator[None]:
    """Every module that this thread runs inside works on copies of its buffers: BatchNorm statistics do not change.

    A global forward hook finds the modules, because a closure does not name its model; modules that other threads run
    are left alone. On exit the original tensor objects return, since a saved graph may hold them.
    """
    owner = threading.get_ident()
    originals: dict[int, tuple[nn.Module, dict[str, Tensor | None]]] = {}

    def before_forward(root: nn.Module, _: Any) -> None:
        if id(root) in originals or threading.get_ident() != owner:
            return
        # The whole tree at once: DataParallel runs the modules inside it in threads of its own.
        for module in root.modules():
            if id(module) in originals:
                continue
            originals[id(module)] = (module, dict(module._buffers))
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.clone()

    handle = register_module_forward_pre_hook(before_forward)
    try:
        yield
    finally:
        handle.remove()
        for module, buffers in originals.values():
            module._buffers.update(buffers)


class _MathAttention:
    """Counts the scopes that need math attention: torch's setting belongs to the process, not to a thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._scopes = 0
        self._setting: AbstractContextManager[Any] | None = None

    def enter(self) -> None:
        with self._lock:
            if self._scopes == 0:
                setting = sdpa_kernel(SDPBackend.MATH)
                setting.__enter__()
                self._setting = setting
            self._scopes += 1

    def leave(self) -> None:
        with self._lock:
            self._scopes -= 1
            if self._scopes == 0 and self._setting is not None:
                setting, self._setting = self._setting, None
                setting.__exit__(None, None, None)


_MATH_ATTENTION = _MathAttention()


@contextmanager
def math_attention() -> Iterator[None]:
    """Attention runs by its formula: the fused kernels have no second derivative.

    Scopes nest, also across threads: the first one changes the setting of the process and the last one restores it.
    """
    _MATH_ATTENTION.enter()
    try:
        yield
    finally:
        _MATH_ATTENTION.leave()


class RandomState:
    """The random state at construction, for replay: dropout draws the same mask in every product.

    Args:
        devices: devices whose generators a closure may use; the CPU generator is always included.
    """

    def __init__(self, devices: Sequence[torch.device]) -> None:
        cuda = [d for d in devices if d.type == "cuda"]
        self._cuda = sorted({torch.cuda.current_device() if d.index is None else d.index for d in cuda})
        self._cpu_state = torch.get_rng_state()
        self._cuda_states = [torch.cuda.get_rng_state(index) for index in self._cuda]

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Start the generators from the stored state inside; restore them on exit."""
        with torch.random.fork_rng(devices=self._cuda):
            torch.set_rng_state(self._cpu_state)
            for index, state in zip(self._cuda, self._cuda_states, strict=True):
                torch.cuda.set_rng_state(state, index)
            yield
