"""Every operator is complete: schema, kernels, fake, wrapper, reference, documentation, sample."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from torch.library import opcheck

import cases
import torch_ire
from layout import CSRC, PACKAGE, ROOT, native_files
from tolerances import DTYPES

SCHEMAS = sorted(
    schema.name.removeprefix("torch_ire::")
    for schema in torch._C._jit_get_all_schemas()
    if schema.name.startswith("torch_ire::")
)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def operator(name: str) -> torch._ops.OpOverload:
    return getattr(torch.ops.torch_ire, name).default


def has_kernel(name: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"torch_ire::{name}", key)


def sample(name: str, dtype: torch.dtype, device: str) -> cases.Call:
    return cases.OPERATORS[name](cases.Sample(dtype, torch.device(device)))


def test_every_schema_has_a_sample() -> None:
    assert sorted(cases.OPERATORS) == SCHEMAS


def test_every_schema_has_wrapper_and_reference() -> None:
    assert sorted(torch_ire.ops.__all__) == SCHEMAS
    assert sorted(torch_ire.reference.__all__) == SCHEMAS


@pytest.mark.parametrize("name", SCHEMAS)
def test_cpu_kernel(name: str) -> None:
    assert has_kernel(name, "CPU")


@pytest.mark.skipif(not torch_ire._native.module.with_cuda, reason="the native library was built without CUDA kernels")
@pytest.mark.parametrize("name", SCHEMAS)
def test_cuda_kernel(name: str) -> None:
    assert has_kernel(name, "CUDA")


@pytest.mark.parametrize("name", SCHEMAS)
def test_wrapper_has_the_arguments_of_the_schema(name: str) -> None:
    parameters = inspect.signature(getattr(torch_ire.ops, name)).parameters.values()
    arguments = operator(name)._schema.arguments
    assert [p.name for p in parameters] == [a.name for a in arguments]
    assert [p.kind == p.KEYWORD_ONLY for p in parameters] == [a.kwarg_only for a in arguments]


@pytest.mark.parametrize("name", SCHEMAS)
def test_defaults_of_wrapper_and_schema_agree(name: str) -> None:
    parameters = inspect.signature(getattr(torch_ire.ops, name)).parameters
    for argument in operator(name)._schema.arguments:
        if argument.has_default_value():
            given = parameters[argument.name].default
            given = list(given) if isinstance(given, tuple) else given
            assert given == argument.default_value, argument.name


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_marks_what_the_name_says(name: str) -> None:
    """A trailing underscore mutates, and nothing else does."""
    assert operator(name)._schema.is_mutable == name.endswith("_")


@pytest.mark.parametrize("name", SCHEMAS)
def test_one_file_name_through_every_layer(name: str) -> None:
    stem = name.rstrip("_")
    assert (PACKAGE / "reference" / f"{stem}.py").is_file()
    assert (ROOT / "tests" / f"test_ops_{stem}.py").is_file()
    assert native_files("kernels", stem) == {f"{stem}.h", f"{stem}_cpu.cpp", f"{stem}.cu"}
    assert native_files("ops", stem) == {f"{stem}.cpp"}


def test_an_operator_is_named_in_eight_files_at_most() -> None:
    """Its own, the list of the reference functions, the wrappers, and the table of samples."""
    native = {path.relative_to(ROOT) for path in CSRC.rglob("*") if path.suffix in (".h", ".cpp", ".cu", ".cuh")}
    for name in SCHEMAS:
        stem = name.rstrip("_")
        own = {path for path in native if path.stem in (stem, f"{stem}_cpu") and path.parts[1] != "math"}
        python = [PACKAGE / "reference" / f"{stem}.py", ROOT / "tests" / f"test_ops_{stem}.py"]
        lists = [
            path
            for path in (PACKAGE / "reference/__init__.py", PACKAGE / "ops/__init__.py", ROOT / "tests/cases.py")
            if name in path.read_text()
        ]
        assert len(own) + len(python) + len(lists) <= 8, name


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SCHEMAS)
def test_opcheck(name: str, dtype: torch.dtype, device: str) -> None:
    """Schema, fake kernel and autograd registration agree with what the operator does."""
    arguments, keywords = sample(name, dtype, device)
    opcheck(operator(name), arguments, keywords)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SCHEMAS)
def test_version_counters_advance_where_the_schema_says_so(name: str, device: str) -> None:
    """Autograd notices the stale use of what an operator overwrote, and of nothing else."""
    arguments, keywords = sample(name, torch.float32, device)
    before = copy.deepcopy(arguments)
    versions = [[t._version for t in list_] for list_ in arguments if isinstance(list_, list)]
    getattr(torch_ire.ops, name)(*arguments, **keywords)
    lists = [list_ for list_ in arguments if isinstance(list_, list)]
    written = [a.is_write for a, given in zip(positional(name), before, strict=False) if isinstance(given, list)]
    for tensors, old, is_written in zip(lists, versions, written, strict=True):
        for tensor, version in zip(tensors, old, strict=True):
            assert (tensor._version > version) == is_written


def positional(name: str) -> list[torch._C.Argument]:
    return [a for a in operator(name)._schema.arguments if not a.kwarg_only]
