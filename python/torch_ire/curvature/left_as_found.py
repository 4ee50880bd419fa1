"""Evaluate a user's closure without leaving a trace: buffers, random state and gradients stay as they were."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_pre_hook

__all__ = ["RandomState", "frozen_buffers", "math_attention"]


@contextmanager
def frozen_buffers() -> Iterator[None]:
    """Every module that runs inside works on copies of its buffers, so BatchNorm statistics stay as they are.

    The modules are met through a global forward hook, because a closure does not say which model it runs. The
    original tensor objects are put back rather than written to: a saved graph may hold them.
    """
    originals: dict[int, tuple[nn.Module, dict[str, Tensor | None]]] = {}

    def before_forward(module: nn.Module, _: Any) -> None:
        if id(module) in originals or not module._buffers:
            return
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


@contextmanager
def math_attention() -> Iterator[None]:
    """Attention by its plain formula: the fused kernels have no second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


class RandomState:
    """The random state at one moment, to be replayed: dropout draws the same mask in every product.

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
        """Inside, generators start from the stored state; afterwards they are as found."""
        with torch.random.fork_rng(devices=self._cuda):
            torch.set_rng_state(self._cpu_state)
            for index, state in zip(self._cuda, self._cuda_states, strict=True):
                torch.cuda.set_rng_state(state, index)
            yield
