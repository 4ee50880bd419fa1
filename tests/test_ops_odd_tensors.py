"""Tensors that no kernel may touch: every operator refuses them before its first write, or takes their true values."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import cases
import torch_ire

Path = tuple[Any, ...]


def operator(name: str) -> torch._ops.OpOverload:
    return getattr(torch.ops.torch_ire, name).default


def call_of(name: str) -> dict[str, Any]:
    """The sample call by argument names, with a tensor for each optional one."""
    arguments, keywords = cases.OPERATORS[name](cases.Sample(torch.float32, torch.device("cpu")))
    schema = operator(name)._schema.arguments
    values = dict(zip((a.name for a in schema), arguments, strict=False)) | keywords
    for argument in schema:
        if str(argument.type) == "Optional[Tensor]" and argument.name not in values:
            values[argument.name] = torch.tensor(1.0)
    return values


def tensors_of(values: dict[str, Any]) -> Iterator[tuple[Path, Tensor]]:
    for name, value in values.items():
        if isinstance(value, Tensor):
            yield (name,), value
        elif isinstance(value, list):
            for i, tensor in enumerate(value):
                yield (name, i), tensor


def replaced(values: dict[str, Any], path: Path, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """The same tensors in other lists, with one of them replaced."""
    result = {name: list(value) if isinstance(value, list) else value for name, value in values.items()}
    if len(path) == 1:
        result[path[0]] = change(result[path[0]])
    else:
        result[path[0]][path[1]] = change(result[path[0]][path[1]])
    return result


PLACES = [(name, path) for name in sorted(cases.OPERATORS) for path, _ in tensors_of(call_of(name))]
IDS = ["-".join([name, *map(str, path)]) for name, path in PLACES]


def written(name: str) -> set[str]:
    return {argument.name for argument in operator(name)._schema.arguments if argument.is_write}


def is_alone(name: str) -> bool:
    """A single tensor on meta is no mixture: the operator says what it would return."""
    return sum(1 for _ in tensors_of(call_of(name))) == 1


@pytest.mark.parametrize(("name", "path"), PLACES, ids=IDS)
def test_one_tensor_on_meta_is_refused_and_nothing_changes(name: str, path: Path) -> None:
    if is_alone(name):
        assert all(result.is_meta for result in operator(name)(**replaced(call_of(name), path, lambda t: t.to("meta"))))
        return
    values = call_of(name)
    before = copy.deepcopy(values)
    with pytest.raises(RuntimeError, match=rf"torch_ire::{name}: expected all tensors on one device, got cpu, meta"):
        operator(name)(**replaced(values, path, lambda t: t.to("meta")))
    assert_equal(values, before)


@pytest.mark.parametrize(("name", "path"), PLACES, ids=IDS)
def test_a_negated_view_is_its_value_or_refused_and_nothing_changes(name: str, path: Path) -> None:
    """A view with the negative bit holds the negatives of what lies in memory."""
    values = call_of(name)
    target = dict(tensors_of(values))[path]
    if not target.is_floating_point():
        return  # torch gives masks and counts no negative bit
    before = copy.deepcopy(values)
    negated = replaced(values, path, torch._neg_view)
    if path[0] in written(name):
        with pytest.raises(RuntimeError, match=rf"torch_ire::{name}: {path[0]}.*: expected .* negative bit"):
            operator(name)(**negated)
        assert_equal(values, before)
        return
    plain = replaced(copy.deepcopy(values), path, torch.neg)
    ours, theirs = run(name, negated), run(name, plain)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    for argument in written(name):
        torch.testing.assert_close(values[argument], plain[argument], rtol=0, atol=0, equal_nan=True)


def run(name: str, values: dict[str, Any]) -> Any:
    """What the operator returns, or its complaint: a negated norm, for one, is no norm."""
    try:
        return operator(name)(**values)
    except RuntimeError as error:
        return str(error)


def assert_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for (path, a), (_, b) in zip(tensors_of(ours), tensors_of(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=lambda text, path=path: f"{path}: {text}")


@pytest.mark.parametrize("name", sorted(cases.OPERATORS))
def test_the_wrapper_refuses_a_negated_view_too(name: str) -> None:
    for path, tensor in tensors_of(call_of(name)):
        if path[0] in written(name) and tensor.is_floating_point():
            values = call_of(name)
            with pytest.raises(RuntimeError, match="negative bit"):
                getattr(torch_ire.ops, name)(**replaced(values, path, torch._neg_view))
