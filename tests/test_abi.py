"""The native library needs the stable ABI of torch alone, and nothing of the machine that built it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

import processes
import torch_ire
from layout import ROOT, pyproject

LIBRARY = Path(str(torch_ire._native.module.__file__))
# C names (aoti_torch_*, Python's) and the C++ runtime may be asked for; C++ names of torch change with it.
FORBIDDEN = re.compile(r"(?<![\w:])(at|c10|caffe2|torch)::|(?<!\w)_ZN?K?(2at|3c10|6caffe2|5torch)")


def run(*command: str) -> str:
    tool = shutil.which(command[0])
    assert tool is not None, f"{command[0]} (binutils) is needed by this test and comes with every C++ compiler"
    return processes.run([tool, *command[1:]]).read()


def undefined_symbols() -> list[str]:
    lines = run("nm", "--dynamic", "--undefined-only", "--demangle", str(LIBRARY)).splitlines()
    return [line.split(maxsplit=1)[1] for line in lines if line.strip()]


def test_no_cxx_symbol_of_torch_is_needed() -> None:
    symbols = undefined_symbols()
    assert any(symbol.startswith("aoti_torch_") for symbol in symbols), "the C shims of torch are missing: wrong file?"
    assert not [symbol for symbol in symbols if FORBIDDEN.search(symbol)]


@pytest.mark.parametrize(
    "symbol",
    [
        "at::native::foo(long)",
        "typeinfo for c10::Error",
        "void std::f<at::Tensor>()",
        "torch::Library::def(int)",
        "_ZN2at6TensorE",
    ],
)
def test_the_rule_rejects(symbol: str) -> None:
    assert FORBIDDEN.search(symbol)


def test_the_rule_accepts_c_shims() -> None:
    assert not FORBIDDEN.search("aoti_torch_get_sizes")
    assert not FORBIDDEN.search("torch_library_impl")
    assert not FORBIDDEN.search("std::basic_string::at(unsigned long)")


def test_floor_of_the_binary_is_the_floor_of_the_package() -> None:
    version = re.search(
        r"set\(TORCH_IRE_TARGET_VERSION 0x(\w\w)(\w\w)0{12}\)", (ROOT / "cmake/TorchStable.cmake").read_text()
    )
    assert version is not None
    dependencies = pyproject()["project"]["dependencies"]
    assert f"torch>={int(version[1], 16)}.{int(version[2], 16)}" in dependencies


def test_no_path_of_the_build_machine() -> None:
    dynamic = run("readelf", "--dynamic", str(LIBRARY))
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic


def test_library_is_small() -> None:
    """CUDA kernels of three architectures take 5 MB; a static torch or debug information would not fit."""
    assert LIBRARY.stat().st_size < 7e6


def test_only_the_module_is_exported() -> None:
    """Names of ours that other libraries could bind to by accident."""
    lines = run("nm", "--dynamic", "--defined-only", "--demangle", str(LIBRARY)).splitlines()
    exported = [line.split(maxsplit=2)[2] for line in lines]
    assert "PyInit__C" in exported
    assert not [name for name in exported if name.startswith("torch_ire::")]
