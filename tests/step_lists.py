"""Lists of tensors as the step operators take them, in every layout that counts as dense."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tolerances import opmath_dtype
from torch_ire.packed_mask import pack

CHUNK = 8192  # elements that a CPU thread takes at once
SHAPES = [(), (0,), (1,), (7, 5), (CHUNK - 1,), (CHUNK,), (CHUNK + 1,), (3 * CHUNK + 5,), (2, 3, 4, 4)]


@dataclass
class Lists:
    """A generator of lists over the same shapes; call a method as often as lists are needed."""

    dtype: torch.dtype
    device: torch.device
    seed: int = 0

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self.opmath = opmath_dtype(self.dtype)

    def normal(self, dtype: torch.dtype | None = None) -> list[Tensor]:
        tensors = [torch.randn(s, generator=self.generator, dtype=torch.float64) for s in SHAPES]
        tensors = [t.to(self.device, dtype or self.dtype) for t in tensors]
        tensors[3] = tensors[3].t().contiguous().t()
        tensors[8] = tensors[8].contiguous(memory_format=torch.channels_last)
        return tensors

    def squares(self) -> list[Tensor]:
        return [t.square_() for t in self.normal(self.opmath)]

    def masks(self) -> list[Tensor]:
        return [pack(t < 0.3) for t in self.normal(torch.float32)]

    def steps(self, value: float) -> list[Tensor]:
        return [torch.tensor(value, device=self.device) for _ in SHAPES]

    def number(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=self.opmath, device=self.device)


def clones(*lists: list[Tensor]) -> list[list[Tensor]]:
    return [[t.clone() for t in tensors] for tensors in lists]
