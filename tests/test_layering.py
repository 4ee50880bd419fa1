"""Every file knows its room: numbers, raw pointers, tensors; in Python reference, ops and what is built on them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from layout import CSRC, PACKAGE

STANDARD = re.compile(r"[a-z_]+")  # <cstdint>: no folder, no suffix
CUDA = re.compile(r"cuda_[a-z0-9_]+\.h(pp)?|vector_types\.h|driver_types\.h")
# the headers that stand between CUDA's and the files that are compiled without CUDA too
CUDA_HEADERS = ("cuda_types.h", "cuda_stream.h")
TORCH_STABLE = re.compile(r"torch/(csrc/stable|csrc/inductor/aoti_torch/c|headeronly)/.+")


def included(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', path.read_text(), flags=re.MULTILINE)


def allowed(path: Path, header: str) -> bool:
    """Whether a file of csrc may include a header: math <- kernels <- ops, and torch in ops alone."""
    folder = path.relative_to(CSRC).parts[0]
    cuda_file = path.suffix in (".cu", ".cuh") or path.name in CUDA_HEADERS
    if STANDARD.fullmatch(header) or header.startswith("math/"):
        return folder != "module.cpp"
    if folder == "kernels":
        return header.startswith("kernels/") or (cuda_file and bool(CUDA.fullmatch(header)))
    if folder == "ops":
        return (
            header.startswith(("kernels/", "ops/"))
            or bool(TORCH_STABLE.fullmatch(header))
            or (cuda_file and bool(CUDA.fullmatch(header)))
        )
    return folder == "module.cpp" and header.startswith("pybind11/")


NATIVE = sorted(path for path in CSRC.rglob("*") if path.suffix in (".h", ".cpp", ".cu", ".cuh"))


@pytest.mark.parametrize("path", NATIVE, ids=lambda path: path.relative_to(CSRC).as_posix())
def test_includes_point_down_the_layers(path: Path) -> None:
    astray = [header for header in included(path) if not allowed(path, header)]
    assert not astray, f"{path.relative_to(CSRC)} may not include {astray}"


@pytest.mark.parametrize(
    ("path", "header"),
    [
        ("math/sgd.h", "kernels/target_clones.h"),
        ("math/sgd.h", "cuda_runtime.h"),
        ("kernels/sgd.h", "ops/checks.h"),
        ("kernels/sgd_cpu.cpp", "torch/headeronly/util/BFloat16.h"),
        ("kernels/sgd_cpu.cpp", "cuda_runtime_api.h"),
        ("ops/sgd.cpp", "ATen/ATen.h"),
        ("ops/sgd.cpp", "c10/util/Half.h"),
        ("ops/sgd.cpp", "torch/extension.h"),
        ("ops/sgd.cpp", "torch/library.h"),
        ("ops/sgd.cpp", "cuda_runtime_api.h"),
        ("module.cpp", "torch/csrc/stable/library.h"),
    ],
)
def test_the_rule_rejects(path: str, header: str) -> None:
    assert not allowed(CSRC / path, header)


def imported(path: Path) -> set[str]:
    """Names of the modules that a file imports, wherever in the file; `from a import b` counts as a and a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            names.add(str(node.module))
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


# Each part of the package imports itself and these; what is not named here (entry points, the demo) may import anything
# but the native module.
LEAVES = ("counter_rng", "dtensors", "interrupts", "layouts", "packed_mask", "packed_state")
OPERATORS = (*LEAVES, "_native", "reference", "ops")
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(LEAVES, LEAVES),
    "_native": ("_C",),
    "reference": LEAVES,
    "ops": (*LEAVES, "_native", "reference"),
    "sampled_loss": OPERATORS,
    "curvature": OPERATORS,
    "sharding": LEAVES,
    "summary": (*LEAVES, "sharding"),
    "replicas": (*LEAVES, "sharding", "sampled_loss"),
    "masks": (*OPERATORS, "sharding"),
    "steps": (*OPERATORS, "sharding", "summary", "curvature", "masks"),
    "optim": (*OPERATORS, "sharding", "summary", "curvature", "sampled_loss", "replicas", "masks", "steps"),
}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_down_the_layers(path: Path) -> None:
    part = part_of(path)
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("torch_ire.")}
    forbidden = ours - {part, *MAY_IMPORT[part]} if part in MAY_IMPORT else ours & {"_C"}
    assert not forbidden, f"{part} may not import {sorted(forbidden)}"


def names_the_dispatcher(path: Path) -> bool:
    return any(
        isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.ops.torch_ire"
        for node in ast.walk(ast.parse(path.read_text()))
    )


def test_only_ops_reaches_for_the_dispatcher() -> None:
    assert {part_of(path) for path in PACKAGE.rglob("*.py") if names_the_dispatcher(path)} == {"ops"}
