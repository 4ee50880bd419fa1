"""What every operator has in Python, derived from its reference function and its schema.

The typed wrapper, the shape function for compilers and meta tensors, version counters, and what happens to tensors with
the negative bit.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from torch_ire import _native
from torch_ire.counter_rng import as_int64

P = ParamSpec("P")
R = TypeVar("R")

# Where the operators are looked up. Tests put the CUDA operators as compiled for the host here.
namespace = torch.ops.torch_ire

# Implementations for dispatch keys; torch removes them when this object is freed.
_library: Any = torch.library.Library("torch_ire", "IMPL")  # type: ignore[no-untyped-call]


def operator(reference: Callable[P, R]) -> Callable[P, R]:
    """The typed wrapper of the native operator with the name, signature and documentation of ``reference``.

    It calls ``reference`` where no native operator runs, and where there is no tensor to work on.
    """
    name = reference.__name__
    written: list[tuple[int, str]] = []
    lists: list[tuple[int, str]] = []
    returns = True
    if _native.module is not None:
        schema = getattr(torch.ops.torch_ire, name).default._schema
        written = [(i, a.name) for i, a in enumerate(schema.arguments) if a.is_write]
        lists = [(i, a.name) for i, a in enumerate(schema.arguments) if str(a.type) == "List[Tensor]"]
        returns = bool(schema.returns)
        _register_meta(name, getattr(sys.modules[reference.__module__], "meta", None))
        _register_negative(name, schema)

    @functools.wraps(reference)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        device = _device_of((*args, *kwargs.values()), lists_alone=not returns)
        on_meta = device is not None and device.type == "meta" and _native.module is not None
        if device is None or not (_native.available(device) or on_meta):
            return reference(*args, **kwargs)
        if name == "sample_labels":  # its key is 64 bits, which a schema takes as a signed number
            kwargs.update({key: as_int64(kwargs[key]) for key in ("seed", "offset") if key in kwargs})
        for i, argument in lists:  # of which a schema has no defaults
            if i >= len(args):
                kwargs.setdefault(argument, ())
        result = getattr(namespace, name).default(*args, **kwargs)
        if not torch.compiler.is_compiling():  # a compiler sees the mutation in the schema
            for i, argument in written:
                tensors = args[i] if i < len(args) else kwargs.get(argument)
                if isinstance(tensors, Tensor) or tensors:
                    torch.autograd.graph.increment_version(tensors)
        return result

    wrapper.__module__ = "torch_ire.ops"
    return cast("Callable[P, R]", wrapper)


def _device_of(values: Iterable[Any], *, lists_alone: bool) -> torch.device | None:
    """The device of the first tensor: an operator that returns nothing has nothing to do for empty lists."""
    for value in values:
        if isinstance(value, Tensor):
            if not lists_alone:
                return value.device
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
            return value[0].device
    return None


def _tensors_of(names: Iterable[str], values: Iterable[Any]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor among the arguments, with its name in messages."""
    for name, value in zip(names, values, strict=True):
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, (list, tuple)):
            yield from ((f"{name}[{i}]", tensor) for i, tensor in enumerate(value) if isinstance(tensor, Tensor))


def _register_meta(name: str, meta: Callable[..., Any] | None) -> None:
    """Registers the shape function of an operator.

    The dispatcher calls it for any mixture with a meta tensor too, which is refused: nothing would be computed.
    """

    def fake(*args: Any, **kwargs: Any) -> Any:
        values = (*args, *kwargs.values())
        devices = sorted({str(tensor.device) for _, tensor in _tensors_of(map(str, range(len(values))), values)})
        if len(devices) > 1:
            raise RuntimeError(f"torch_ire::{name}: expected all tensors on one device, got {', '.join(devices)}")
        return None if meta is None else meta(*args, **kwargs)

    torch.library.register_fake(f"torch_ire::{name}", fake)


def _register_negative(name: str, schema: torch._C.FunctionSchema) -> None:
    """Registers what an operator does with tensors that have the negative bit, whose memory holds negated values.

    torch's own way copies such arguments and copies results back for one argument only, after the operator has run.
    """
    written = {argument.name for argument in schema.arguments if argument.is_write}
    names = [argument.name for argument in schema.arguments]

    def resolved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.resolve_neg()
        return [tensor.resolve_neg() for tensor in value] if isinstance(value, (list, tuple)) else value

    def negative(*args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        for argument, tensor in _tensors_of(given, given.values()):
            if argument.partition("[")[0] in written and tensor.is_neg():
                raise RuntimeError(
                    f"torch_ire::{name}: {argument}: expected a tensor without the negative bit, which is written in "
                    "place, got a negated view; call resolve_neg() first"
                )
        given = {key: value if key in written else resolved(value) for key, value in given.items()}
        return getattr(torch.ops.torch_ire, name).default(**given)

    _library.impl(name, negative, "Negative")
