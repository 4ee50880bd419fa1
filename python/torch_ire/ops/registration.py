"""How a typed wrapper reaches its operator: the native one where it runs, the reference elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_ire import _native, reference

# Where the operators are looked up. Tests put the CUDA operators as compiled for the host here.
namespace = torch.ops.torch_ire


def call(name: str, device: torch.device, *args: Any, **kwargs: Any) -> Any:
    """Calls ``torch.ops.torch_ire.<name>``, or ``reference.<name>`` where no native operator runs on ``device``."""
    if _native.available(device):
        return getattr(namespace, name).default(*args, **kwargs)
    return getattr(reference, name)(*args, **kwargs)


def mark_mutated(*lists: Sequence[Tensor]) -> None:
    """Advances the version counters of tensors that a native operator changed, so that autograd notices a stale use.

    A compiler sees the mutation in the schema.
    """
    if not torch.compiler.is_compiling():
        for tensors in filter(None, lists):
            torch.autograd.graph.increment_version(tensors)


def check_one_device(name: str, *lists: Sequence[Tensor]) -> None:
    """For shape functions: the dispatcher takes them for lists of which any tensor is on the meta device."""
    devices = sorted({str(tensor.device) for tensors in lists for tensor in tensors})
    if len(devices) > 1:
        raise RuntimeError(f"torch_ire::{name}: expected all tensors on one device, got {', '.join(devices)}")


def register_fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers the shape function of an operator; without the native library there is no operator to register."""
    if _native.module is None:
        return lambda function: function
    register: Callable[[Callable[..., Any]], Callable[..., Any]] = torch.library.register_fake(f"torch_ire::{name}")
    return register
