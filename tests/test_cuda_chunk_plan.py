"""csrc/kernels/chunk_plan.h: every element in exactly one chunk, within the limits of a launch."""

from __future__ import annotations

import ctypes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import emulated_cuda

CAPACITY = 4096


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    emulated_cuda.library()  # outside of the time that hypothesis allows an example


def plan(numels: list[int], chunk: int, max_slices: int, max_chunks: int) -> list[tuple[int, ...]]:
    """Rows of (launch, tensor, begin, end, chunks of the launch)."""
    out = (ctypes.c_int64 * (5 * CAPACITY))()
    sizes = (ctypes.c_int64 * max(1, len(numels)))(*numels)
    rows = emulated_cuda.library().plan(
        sizes, ctypes.c_int64(len(numels)), ctypes.c_int64(chunk), ctypes.c_int64(max_slices),
        ctypes.c_int64(max_chunks), out, ctypes.c_int64(CAPACITY),
    )  # fmt: skip
    assert rows <= CAPACITY
    return [tuple(out[5 * r : 5 * r + 5]) for r in range(rows)]


@given(
    numels=st.lists(st.integers(0, 200) | st.integers(0, 3), max_size=60),
    chunk=st.sampled_from([8, 16, 64]),
    max_slices=st.integers(1, 9),
    max_chunks=st.integers(1, 12),
)
@example(numels=[], chunk=8, max_slices=1, max_chunks=1)
@example(numels=[0, 0], chunk=8, max_slices=1, max_chunks=1)
@example(numels=[2**40, 5, 2**33 + 1], chunk=8192, max_slices=383, max_chunks=2**31 - 1)
def test_every_element_is_in_one_chunk(numels: list[int], chunk: int, max_slices: int, max_chunks: int) -> None:
    rows = plan(numels, chunk, max_slices, max_chunks)
    reached = [0] * len(numels)
    for _, tensor, begin, end, _ in rows:
        assert begin == reached[tensor]
        assert begin % chunk == 0
        assert begin < end
        reached[tensor] = end
    assert reached == numels
    for launch in range(rows[-1][0] + 1 if rows else 0):
        slices = [row for row in rows if row[0] == launch]
        assert 1 <= len(slices) <= max_slices
        chunks = sum(-(-(end - begin) // chunk) for _, _, begin, end, _ in slices)
        assert {row[4] for row in slices} == {chunks}
        assert chunks <= max_chunks
    assert [row[:2] for row in rows] == sorted(row[:2] for row in rows)


def test_no_launch_is_wasted() -> None:
    assert {row[0] for row in plan([100] * 10, 8, 5, 1000)} == {0, 1}
    assert {row[0] for row in plan([80], 8, 5, 4)} == {0, 1, 2}
