"""How far apart two right answers may be."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def opmath_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def assert_within_ulps(actual: Tensor, expected: Tensor, ulps: float, scale: Tensor | None = None) -> None:
    """Every element within ``ulps`` units in the last place of its dtype, inf and NaN at the same places.

    The unit is that of ``max(|expected|, scale)``: where a result is a difference, ``scale`` is the size of its terms.
    """
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    info = torch.finfo(actual.dtype)
    a, e = actual.double(), expected.double()
    torch.testing.assert_close(a.isnan(), e.isnan(), rtol=0, atol=0)
    infinite = e.isinf() | a.isinf()
    torch.testing.assert_close(a[infinite], e[infinite], rtol=0, atol=0, equal_nan=True)
    finite = ~(infinite | e.isnan())
    size = e.abs() if scale is None else torch.maximum(e.abs(), scale.double().abs())
    unit = torch.clamp(size[finite] * info.eps, min=info.smallest_normal * info.eps)
    error = (a[finite] - e[finite]).abs() / unit
    worst = error.max().item() if error.numel() else 0.0
    assert worst <= ulps, f"{worst:.3g} ulp apart, allowed {ulps}"
