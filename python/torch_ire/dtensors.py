"""Which tensors are ``DTensor`` s, without importing what they need."""

from __future__ import annotations

import sys
from typing import Any


def is_dtensor(tensor: Any) -> bool:
    """Whether a tensor is a ``DTensor``; importing them takes longer than this library, and who has one has done it."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)
