"""A backward pass beside the training: gradients of the parameters asked for, everything else left as found."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

# Elements; counters and tables of indices are smaller, quantized weights larger.
_LARGE = 1 << 20


def backward_into(loss: Tensor, params: Iterable[Tensor]) -> None:
    """``loss.backward()`` that changes ``.grad`` of ``params`` alone.

    Where the graph shows all of them, the backward pass is restricted to them: gradients of other leaves are not
    computed and their hooks do not run. FSDP2 and reentrant checkpoints keep parameters out of the graph and work only
    with an unrestricted pass, after which the gradients of the other leaves are put back. Tensors that only the inside
    of a reentrant checkpoint closes over cannot be told from the graph.

    Args:
        loss: Scalar with its graph.
        params: Leaves; their gradients accumulate as in an ordinary backward pass.

    Cost: a walk over the graph in Python, about a microsecond per node, and the backward pass.
    """
    wanted = {id(param): param for param in params if param.requires_grad}
    leaves, hides_leaves = _leaves(loss)
    if wanted and not hides_leaves and wanted.keys() <= leaves.keys():
        loss.backward(inputs=list(wanted.values()))  # type: ignore[no-untyped-call]
        return
    with put_aside([leaf for key, leaf in leaves.items() if key not in wanted]):
        loss.backward()  # type: ignore[no-untyped-call]


def _leaves(loss: Tensor) -> tuple[dict[int, Tensor], bool]:
    """The leaves of a graph by id, and whether a reentrant checkpoint may hide others."""
    leaves: dict[int, Tensor] = {}
    hides_leaves = False
    seen = set()
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            leaves[id(leaf)] = leaf
        hides_leaves = hides_leaves or node.name() == "CheckpointFunctionBackward"
        waiting += [following for following, _ in node.next_functions]
    return leaves, hides_leaves


@contextlib.contextmanager
def put_aside(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Context that starts without the gradients of ``tensors`` and puts the same gradient objects back at its end."""
    saved = [(tensor, tensor.grad) for tensor in tensors]
    try:
        for tensor, _ in saved:
            tensor.grad = None
        yield
    finally:
        for tensor, grad in saved:
            tensor.grad = grad


@contextlib.contextmanager
def restored_buffers(model: nn.Module) -> Iterator[None]:
    """Context after which the buffers of ``model`` are the same objects with the same values.

    Values are copied back only if the version counter shows that they have changed: a graph that was built before may
    hold a buffer. Large buffers of integers or single bytes are quantized weights, which no forward pass changes.

    Cost: a copy of the other buffers.
    """
    saved = [
        (module, name, buffer, buffer._version, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and not buffer.is_inference() and not _is_quantized_weight(buffer)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, version, copy in saved:
                module._buffers[name] = buffer
                if buffer._version != version:
                    buffer.copy_(copy)


def _is_quantized_weight(buffer: Tensor) -> bool:
    return buffer.numel() > _LARGE and not (buffer.is_floating_point() and buffer.element_size() > 1)


@contextlib.contextmanager
def restored_random_state(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Context after which torch's generators are where they were: those of the CPU and of the GPUs of ``tensors``."""
    devices = {tensor.device for tensor in tensors if tensor.device.type in ("cuda", "xpu")}
    kinds = {device.type for device in devices}
    with torch.random.fork_rng(
        devices=[device.index for device in devices], device_type=kinds.pop() if len(kinds) == 1 else "cuda"
    ):
        yield
