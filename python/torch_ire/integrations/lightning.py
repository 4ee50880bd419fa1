"""The callback for Lightning's Trainer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from torch_ire.batch_norm import frozen_batch_norm
from torch_ire.integrations.refreshes import Refreshes
from torch_ire.mask_pass import ire_of, refresh_mask
from torch_ire.optim import IRE, SAMIRE, StepInBackward
from torch_ire.optim.ire_optimizer import IREOptimizer
from torch_ire.sampled_loss import LabelGenerator

try:
    from lightning.pytorch import Callback
    from lightning.pytorch.utilities.exceptions import MisconfigurationException
except ImportError as error:
    raise ImportError("torch_ire.integrations.lightning needs lightning: pip install 'torch-ire[trainers]'") from error

__all__ = ["IRECallback"]


class IRECallback(Callback):
    """Refreshes the flat masks when they are due, and freezes BatchNorm in the second pass of SAM.

    The pass comes before the training step of a batch and uses this batch, under the Trainer's precision and loss
    scale. Training gradients, buffers and random numbers are left as found, so a run with ``kappa=0`` is the run
    without the callback.

    With :class:`torch_ire.SAMIRE` under automatic optimization the Trainer's closure runs twice per step; BatchNorm
    statistics are frozen in the second, perturbed run. Accumulated batches and a GradScaler do not work that way: both
    are refused, with the way to do it.

    Args:
        forward: ``forward(module, batch)`` in place of ``module(inputs)``, for a LightningModule without a ``forward``
            that returns logits; as for :func:`torch_ire.refresh_mask`.
        class_dim: As for :func:`torch_ire.refresh_mask`.
        ignore_index: The target of positions to leave out.
        generator: Draws the labels; ``None``: ``label_generator`` of each optimizer, whose position is part of the
            Trainer's checkpoints.
        log: Whether to log :func:`torch_ire.scalars` through ``log_dict`` of the module, after each batch with a
            refreshed mask.

    Raises:
        TypeError: At the start of training, if no optimizer has IRE.
        MisconfigurationException: For SAM with accumulated batches or a GradScaler under automatic optimization.

    Cost: one forward and one backward pass every ``mask_interval`` steps. Nothing for the curvatures that need no pass
    ("second_moment", "random").

    Example:
        >>> from torch_ire.integrations.lightning import IRECallback
        >>> callbacks = [IRECallback()]  # for lightning.Trainer(callbacks=callbacks)
        >>> named = IRECallback(forward=lambda module, batch: module.network(batch["pixels"]))
    """

    def __init__(
        self,
        *,
        forward: Callable[[Any, Any], Any] | None = None,
        class_dim: int | None = None,
        ignore_index: int = -100,
        generator: LabelGenerator | None = None,
        log: bool = False,
    ) -> None:
        self._options: dict[str, Any] = {
            "forward": forward,
            "class_dim": class_dim,
            "ignore_index": ignore_index,
            "generator": generator,
        }
        self._log = log
        self._handles: list[IREOptimizer | IRE | StepInBackward] = []
        self._refreshes: list[Refreshes] = []
        self._frozen = contextlib.ExitStack()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Finds the optimizers that have IRE, and refuses combinations with the Trainer's options that do not work."""
        self._handles = []
        for optimizer in trainer.optimizers:
            with contextlib.suppress(TypeError):
                handle = ire_of(optimizer)
                if not any(handle is known for known in self._handles):
                    self._handles.append(handle)
        if not self._handles:
            ire_of(trainer.optimizers[0])  # raises
        self._refreshes = [Refreshes(handle) for handle in self._handles] if self._log else []
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        for handle in self._handles:
            if isinstance(handle, SAMIRE) and pl_module.automatic_optimization:
                _refuse_half_sam(scaler, trainer.accumulate_grad_batches)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Makes the pass if it is due."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        for handle in self._handles:
            with trainer.precision_plugin.train_step_context():
                refresh_mask(
                    handle, pl_module, batch, grad_scale=scaler.get_scale() if scaler else None, **self._options
                )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Logs the numbers of a refreshed mask."""
        for i, refreshes in enumerate(self._refreshes):
            numbers = refreshes.poll()
            if numbers is not None:
                prefix = f"{i}/" if len(self._refreshes) > 1 else ""
                pl_module.log_dict({prefix + name: value for name, value in numbers.items()})

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Freezes BatchNorm after the first run of a SAM step's closure, thaws it after the second."""
        if not (isinstance(optimizer, SAMIRE) and pl_module.automatic_optimization):
            return
        if optimizer.is_perturbed:
            self._frozen.close()
        else:
            self._frozen.enter_context(frozen_batch_norm(pl_module))

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Thaws BatchNorm if the perturbed run has failed."""
        self._frozen.close()


def _refuse_half_sam(scaler: Any, accumulated: int) -> None:
    if scaler is not None:
        raise MisconfigurationException(
            "SAMIRE under automatic optimization with a GradScaler: Lightning gives the optimizer no closure then, so "
            "that its second gradient is never taken. Use precision='bf16-mixed', or manual optimization with "
            "first_step() and second_step()."
        )
    if accumulated > 1:
        raise MisconfigurationException(
            "SAMIRE under automatic optimization with accumulate_grad_batches > 1: the closure recomputes only the "
            "last batch at the perturbed parameters. Use manual optimization with first_step() and second_step()."
        )
