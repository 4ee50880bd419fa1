"""What a CUDA graph does, on CPU tensors: operator calls are recorded once and run again on the same memory.

Numbers of the host are frozen in a record as in a graph, tensors are read anew; what the host would have to wait for
(a value read from a tensor) can't be recorded. Python between the calls runs once, at the recording.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default, torch.ops.aten.equal.default)


class Recording(TorchDispatchMode):
    """Context that records; :meth:`replay` runs the record again."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __enter__(self) -> Recording:
        # what torch asks, and this library
        self._cuda = torch.cuda.is_available, torch.cuda.is_current_stream_capturing
        torch.cuda.is_available = torch.cuda.is_current_stream_capturing = lambda: True
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        torch.cuda.is_available, torch.cuda.is_current_stream_capturing = self._cuda
        super().__exit__(*exception)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in READS:
            raise RuntimeError(f"{function} while a graph is captured: the host would wait for the device")
        out = function(*args, **kwargs)
        self.calls.append((function, args, kwargs, out))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, out in self.calls:
            again = tree_flatten(function(*args, **kwargs))[0]
            for old, new in zip(tree_flatten(out)[0], again, strict=True):
                # a result has the memory that it had at the recording; a view or an argument has it already
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)
