"""The CUDA operators on a machine without a GPU: compiled for the host, one fiber a thread (tests/cuda_emulation).

Loading the library registers ``torch.ops.torch_ire_emulated``, which takes CPU tensors. TORCH_IRE_EMULATION=sanitize in
the environment asks for the build with AddressSanitizer and UndefinedBehaviorSanitizer, whose runtime must have been
loaded first.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TextIO

import pytest
import torch

import processes

ROOT = Path(__file__).resolve().parent.parent
SANITIZED = "sanitize"
BUILD_LIMIT = 1800.0  # seconds
SANITIZER_FLAGS = {"plain": "OFF", SANITIZED: "ON"}


def variant() -> str:
    """Which build this process uses."""
    return os.environ.get("TORCH_IRE_EMULATION", "plain")


def build(which: str) -> Path:
    """Compiles what has changed since the last call and returns the library; skips where there is no compiler."""
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    missing = [tool for tool in ("cmake", "ninja", "c++") if shutil.which(tool, path=search) is None]
    if missing:
        pytest.skip(f"CUDA emulation: {', '.join(missing)} not found")
    pybind11 = pytest.importorskip("pybind11", reason="CUDA emulation: the build files ask for pybind11")
    folder = ROOT / "build" / f"emulation-{which}"
    folder.mkdir(parents=True, exist_ok=True)
    configure = [
        "cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", "-DSKBUILD_PROJECT_VERSION=0",
        "-DTORCH_IRE_CUDA=OFF", "-DTORCH_IRE_EMULATION=ON", "-DTORCH_IRE_WERROR=ON",
        f"-DTORCH_IRE_SANITIZE={SANITIZER_FLAGS[which]}",
        f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]  # fmt: skip
    with (folder / "lock").open("w") as lock:
        countdown = processes.Countdown(BUILD_LIMIT)
        while not _is_acquired(lock):  # another process builds the same library
            assert countdown.left() > 0, f"{lock.name} has been locked for more than {BUILD_LIMIT:g} s"
            time.sleep(processes.POLL)
        for command in (
            configure,
            ["cmake", "--build", str(folder), "--parallel", "2", "--target", "torch_ire_emulated"],
        ):
            processes.run(command, env={"PATH": search}, without=("LD_PRELOAD",), limit=BUILD_LIMIT)
    return folder / "tests" / "cuda_emulation" / "libtorch_ire_emulated.so"


def _is_acquired(lock: TextIO) -> bool:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


@functools.cache
def library() -> ctypes.CDLL:
    """The library, built and loaded once a process."""
    path = build(variant())
    torch.ops.load_library(path)
    loaded = ctypes.CDLL(str(path))
    loaded.torch_ire_emulation_configure.argtypes = [ctypes.c_uint64, ctypes.c_uint]
    loaded.torch_ire_emulation_configure.restype = None
    loaded.torch_ire_emulation_launches.restype = ctypes.c_uint64
    loaded.plan.restype = ctypes.c_int64
    return loaded


def configure(seed: int = 0, max_threads: int = 64) -> None:
    """Chooses the random order of fibers and blocks, and the block size of launches that ask for a larger one.

    Two warps find what more of them would find, in less time.
    """
    library().torch_ire_emulation_configure(seed, max_threads)
