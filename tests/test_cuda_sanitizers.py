"""The CUDA kernels under AddressSanitizer and UndefinedBehaviorSanitizer, through the emulation."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

import emulated_cuda
import processes

TESTS = Path(__file__).resolve().parent
PAST_THE_END = """
import ctypes, torch, emulated_cuda
data = torch.zeros(32)
emulated_cuda.library().selftest_past_the_end(ctypes.c_void_p(data.data_ptr()))
print("not noticed")
"""


def runtime(name: str) -> str:
    compiler = shutil.which("c++")
    if compiler is None:
        return name
    command = [compiler, f"-print-file-name={name}"]
    return processes.run(command).read().strip()


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """For a process that starts under the sanitizers' runtime and takes the instrumented build."""
    found = [runtime(name) for name in ("libasan.so", "libubsan.so")]
    if not all(Path(path).is_absolute() for path in found):  # the bare name comes back where there is no such file
        pytest.skip("the compiler has no shared sanitizer runtimes")
    emulated_cuda.build(emulated_cuda.SANITIZED)
    return {
        "LD_PRELOAD": ":".join(found),
        # Python's own allocations at exit are no leaks of ours
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TORCH_IRE_EMULATION": emulated_cuda.SANITIZED,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }


def test_kernels_pass_under_the_sanitizers(environment: dict[str, str]) -> None:
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--capture=no", "-k", "emulated or emulation",
        str(TESTS / "test_cuda_operators.py"), str(TESTS / "test_cuda_emulation.py"),
    ]  # fmt: skip
    assert " passed" in processes.run(command, env=environment, limit=1800.0).read()


def test_access_past_shared_memory_is_noticed(environment: dict[str, str]) -> None:
    done = processes.run([sys.executable, "-c", PAST_THE_END], env=environment, status=None)
    assert done.status() not in (0, None)
    assert "heap-buffer-overflow" in done.read("stderr")
    assert "not noticed" not in done.read()
