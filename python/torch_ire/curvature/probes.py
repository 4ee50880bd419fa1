"""Seeded random vectors, the same on every device."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_ire.curvature.operator import Operator

__all__ = ["ProbeSource"]


class ProbeSource:
    """Draws random vectors from its own generator.

    The generator runs on the CPU, so a seed gives the same vectors on every device. torch's global random state does
    not change.

    Args:
        operator: gives length, dtype and device.
        seed: any integer.
    """

    def __init__(self, operator: Operator, seed: int) -> None:
        self._size, self._dtype, self._device = operator.size, operator.dtype, operator.device
        self._generator = torch.Generator("cpu").manual_seed(seed)

    def gaussian(self) -> Tensor:
        """(p,), independent N(0, 1) coordinates."""
        return torch.randn(self._size, generator=self._generator, dtype=self._dtype, device="cpu").to(self._device)

    def rademacher(self) -> Tensor:
        """(p,), independent coordinates of +1 or -1."""
        bits = torch.randint(0, 2, (self._size,), generator=self._generator, dtype=torch.int8, device="cpu")
        return bits.mul_(2).sub_(1).to(device=self._device, dtype=self._dtype)
