"""Steps that are not made because a gradient is not finite: who says so, as one number on the device.

The operators take that number as ``found_inf``: where it is not 0 they change nothing but what a SAM perturbation has
moved. The host never reads it, so what the host counts goes on counting.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from torch_ire.optim.batches import is_dense, moved_to
from torch_ire.optim.sharding import Spread, add_over_ranks, are_plain, local_part, spread_of

#: (over which ranks the parameters are spread, 1 where a local gradient of theirs is not finite, else 0)
Flag = tuple[Spread | None, Tensor]


def flags_of_list(functions: ModuleType, params: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Flag]:
    """Flags of dense local gradients of one dtype and device.

    Args:
        functions: :mod:`torch_ire.ops` or :mod:`torch_ire.reference`.
        params: The parameters.
        grads: The local parts of their gradients.

    Cost: one read of the gradients.
    """
    if are_plain(params):
        return [(None, functions.found_nonfinite(grads))] if grads else []
    lists: dict[Spread | None, list[Tensor]] = {}
    for param, grad in zip(params, grads, strict=True):
        lists.setdefault(spread_of(param), []).append(grad)
    return [(spread, functions.found_nonfinite(tensors)) for spread, tensors in lists.items()]


def flags_of(
    functions_of: Callable[[Mapping[str, Any]], ModuleType],
    gradients: Iterable[tuple[Mapping[str, Any], Tensor, Tensor]],
) -> list[Flag]:
    """The same for gradients of any dtypes, devices and layouts: (group, parameter, local gradient)."""
    lists: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for group, param, grad in gradients:
        params, grads = lists.setdefault((grad.device, grad.dtype, functions_of(group)), ([], []))
        params.append(param)
        grads.append(grad if is_dense(grad) else grad.contiguous())
    return [flag for (*_, functions), pair in lists.items() for flag in flags_of_list(functions, *pair)]


def over_all_ranks(flags: Sequence[Flag], params: Sequence[Tensor]) -> Tensor:
    """1 where any flag of any rank is set, else 0: the one place where ranks agree on whether a step is made.

    Args:
        flags: Those of this rank, possibly none.
        params: All parameters that may have a gradient, possibly none; on every rank in the same order.

    Cost: one number on the wire for each way to shard; replicas, whose gradients are equal, send nothing.
    """
    spreads = [None] if are_plain(params) else list(dict.fromkeys(map(spread_of, params)))
    if spreads == [None] and len(flags) == 1:
        return flags[0][1]
    nothing = torch.zeros((), device=local_part(params[0]).device if params else None)
    total = add_over_ranks([(None, nothing), *flags], spreads, floating=False)
    return (total != 0).to(torch.float32)


def any_of(flags: Iterable[Tensor | None]) -> Tensor | None:
    """Whether one of several numbers is not 0, on the device of the first; ``None`` where there is none."""
    present = [flag for flag in flags if flag is not None]
    return functools.reduce(lambda a, b: torch.maximum(a, moved_to(a.device, b).to(a)), present) if present else None


@dataclass(frozen=True)
class FirstPass:
    """What the first pass of a SAM step leaves for the step besides the perturbation.

    Args:
        norm: That of the direction; not finite where nothing was moved.
        found_nonfinite: 1 where a gradient was not finite, else 0; ``None`` where no group asks.
        scaler: The ``GradScaler`` that has to hear of it, if any.
    """

    norm: Tensor
    found_nonfinite: Tensor | None
    scaler: Any

    def found_inf(self, optimizer: torch.optim.Optimizer, of_second_pass: Tensor | None) -> Tensor | None:
        """The flag of both passes, from that which a scaler has given the optimizer for the second, if there is one."""
        overflow = None if of_second_pass is None else (~self.norm.isfinite()).to(of_second_pass)
        if overflow is not None and self.scaler is not None:
            # the scaler has looked at the gradients of the second pass alone; update() reads what is written here
            for found in self.scaler._found_inf_per_device(optimizer).values():
                found.copy_(torch.maximum(found, moved_to(found.device, overflow).to(found)))
        return any_of([of_second_pass, overflow, self.found_nonfinite])
