"""Detects ``DTensor`` s without importing ``torch.distributed.tensor``."""

from __future__ import annotations

import sys
from typing import Any


def is_dtensor(tensor: Any) -> bool:
    """Whether a tensor is a ``DTensor``. Their module, slow to import, is loaded already if there is one."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)
