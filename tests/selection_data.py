"""Lists of tensors that are hard to rank: ties, NaN of both signs, infinities, signed zeros, subnormals."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from tolerances import DTYPES

CHUNK = 8192
SHAPES = [(), (0,), (1,), (7, 5), (CHUNK - 1,), (CHUNK,), (CHUNK + 1,)]
SCORES = ("value", "abs", "square")


def special_values(dtype: torch.dtype) -> Tensor:
    info = torch.finfo(dtype)
    smallest = info.smallest_normal * info.eps  # the smallest subnormal
    numbers = [0.0, 1.0, 2.0, 0.5, info.max, info.smallest_normal, smallest, 3 * smallest, torch.inf, torch.nan]
    magnitudes = torch.tensor(numbers, dtype=torch.float64).to(dtype)
    return torch.cat([magnitudes, -magnitudes])


@st.composite
def tensor_lists(draw: st.DrawFn, max_tensors: int = 6, max_numel: int = 300) -> list[Tensor]:
    """One dtype; how many distinct values there are, and whether special ones are among them, is drawn too."""
    dtype = draw(st.sampled_from(DTYPES))
    sizes = draw(st.lists(st.integers(0, max_numel), min_size=1, max_size=max_tensors))
    palette = draw(st.sampled_from(["random", "few", "one", "special", "mixed"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    special = special_values(dtype)
    tensors = []
    for n in sizes:
        x = torch.randn(n, generator=generator, dtype=torch.float64).to(dtype)
        picked = special[torch.randint(len(special), (n,), generator=generator)]
        choices = {"random": x, "few": x.round(), "one": torch.ones_like(x), "special": picked}
        mixed = torch.where(torch.rand(n, generator=generator) < 0.5, x, picked)
        tensors.append(choices.get(palette, mixed))
    return tensors


def score_of(x: Tensor, score: str) -> Tensor:
    if score == "square":
        return x.float() * x.float()
    wide = x.double()
    return wide.abs() if score == "abs" else wide


def sorted_scores(tensors: list[Tensor], score: str) -> Tensor:
    """The oracle: everything in one vector, sorted."""
    return torch.cat([score_of(x, score).flatten() for x in tensors]).sort().values


def assert_same_number(actual: Tensor, expected: Tensor) -> None:
    """Bit for bit, up to the sign of zero and the payload of NaN."""
    assert actual.shape == expected.shape
    assert torch.equal(actual.double().nan_to_num(nan=1e300), expected.double().nan_to_num(nan=1e300))
    assert torch.equal(actual.isnan(), expected.isnan())


def sampled_positions(n: int) -> Tensor:
    """Where the native operator looks first (csrc/math/selection.h), to build lists whose sample misleads."""
    m = int(n ** (2 / 3))
    j = torch.arange(m, dtype=torch.int64)
    h = j
    h = h ^ (h >> 16)
    h = (h * 0x7FEB352D) & 0xFFFFFFFF
    h = h ^ (h >> 15)
    h = (h * 0x846CA68B) & 0xFFFFFFFF
    h = h ^ (h >> 16)
    return ((j.double() + h.double() * 2.0**-32) * (n / m)).long().clamp(max=n - 1)
