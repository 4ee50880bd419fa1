"""Keys and dtypes of the state tensors that a step keeps per parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from torch_ire.layouts import opmath_dtype

# ``rounding`` -> its state tensor per bfloat16 or float16 parameter. Other parameters need none.
_ROUNDING_STATE = {"kahan": "compensation", "master": "master_param"}
ROUNDING_STATE_KEYS = tuple(_ROUNDING_STATE.values())


def rounding_state_keys(group: Mapping[str, Any], dtype: torch.dtype) -> tuple[str, ...]:
    """The key of the rounding state for parameters of a dtype, if the group has one."""
    key = _ROUNDING_STATE.get(group["rounding"])
    return (key,) if key is not None and dtype in (torch.bfloat16, torch.float16) else ()


def state_dtype(key: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype of a state tensor for parameters of ``dtype``; "flat_mask" is packed bits."""
    if key == "flat_mask":
        return torch.uint8
    if key in ("step", "master_param", "hessian_diag_updates"):
        return torch.float32
    return dtype if key == "compensation" else opmath_dtype(dtype)
