"""Loads the native operators and tells on which devices they run."""

from __future__ import annotations

import warnings
from types import ModuleType

import torch

module: ModuleType | None
error: str | None
try:
    from torch_ire import _C as module  # noqa: N811

    error = None
except ImportError as failure:
    module = None
    error = str(failure)
    warnings.warn(
        f"torch_ire: the native operators did not load ({error}). The reference implementation in plain torch replaces "
        "them: same results, slower. `torch_ire.show_config()` prints the details.",
        RuntimeWarning,
        stacklevel=2,
    )


def available(device: torch.device) -> bool:
    """Whether the native operators run on tensors of ``device``."""
    if module is None:
        return False
    return device.type == "cpu" or (device.type == "cuda" and bool(module.with_cuda))
