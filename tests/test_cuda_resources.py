"""No CUDA kernel keeps anything in local memory, and each leaves the registers that its blocks need; asks ptxas."""

from __future__ import annotations

import sys

import pytest

from layout import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import kernel_resources

NVCC = kernel_resources.find_nvcc()
# registers of an SM, and the threads that keep enough loads in flight (csrc/kernels/tuning.h)
REGISTERS, THREADS = 65536, 768
REPORT = """ptxas info    : Compiling entry function '_Z1kPf' for 'sm_90'
ptxas info    : Function properties for _Z1kPf
    40 bytes stack frame, 36 bytes spill stores, 32 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 88 bytes smem
"""


@pytest.fixture(scope="module")
def kernels() -> list[kernel_resources.Kernel]:
    if NVCC is None:
        pytest.skip("needs nvcc to compile the kernels, none was found")
    return kernel_resources.resources(NVCC)


def test_every_source_has_kernels(kernels: list[kernel_resources.Kernel]) -> None:
    assert {kernel.source for kernel in kernels} == {path.stem for path in kernel_resources.sources()}


def test_no_local_memory(kernels: list[kernel_resources.Kernel]) -> None:
    assert not [kernel for kernel in kernels if kernel.stack or kernel.spills]


def test_enough_threads_fit_an_sm(kernels: list[kernel_resources.Kernel]) -> None:
    assert not [kernel for kernel in kernels if kernel.registers * THREADS > REGISTERS]


def test_streaming_kernels_keep_the_memory_busy(kernels: list[kernel_resources.Kernel]) -> None:
    streaming = [kernel for kernel in kernels if kernel.bytes_in_flight() is not None]
    assert {kernel.name.split("<")[0] for kernel in streaming} == set(kernel_resources.STREAMS)
    for kernel in streaming:
        needed = kernel_resources.STREAMS[kernel.name.split("<")[0]].loads * kernel_resources.BYTES_IN_FLIGHT
        assert (kernel.bytes_in_flight() or 0) >= needed, kernel


def test_a_spill_would_be_seen() -> None:
    (kernel,) = kernel_resources.parse("k", REPORT)
    assert kernel == kernel_resources.Kernel("k", "k", registers=64, stack=40, spills=68, shared=88)
