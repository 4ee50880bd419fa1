"""Notices refreshes of masks, for callbacks that log them."""

from __future__ import annotations

from torch_ire.monitoring import scalars
from torch_ire.optim import IRE, StepInBackward
from torch_ire.optim.ire_optimizer import IREOptimizer


class Refreshes:
    """Notices refreshes of a handle's masks, also those that ``step()`` makes itself.

    Args:
        handle: An optimizer of this library, a ``StepInBackward``, or the handle of ``IRE(...)``.
    """

    def __init__(self, handle: IREOptimizer | IRE | StepInBackward) -> None:
        self._handle = handle
        self._seen = self._steps()

    def poll(self) -> dict[str, float] | None:
        """:func:`torch_ire.scalars` if a mask has been refreshed since the last call; all ranks have to call."""
        steps = self._steps()
        if steps == self._seen:
            return None
        self._seen = steps
        return scalars(self._handle, over_mesh=True)

    def _steps(self) -> list[int]:
        return [int(group["ire_mask_step"]) for group in self._handle._targets().groups]
