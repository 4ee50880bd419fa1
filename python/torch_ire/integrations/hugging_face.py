"""The callback for the Trainer of Hugging Face transformers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from torch_ire.integrations.refreshes import Refreshes
from torch_ire.mask_pass import ire_of, refresh_mask
from torch_ire.optim import StepInBackward
from torch_ire.sampled_loss import LabelGenerator

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError(
        "torch_ire.integrations.hugging_face needs transformers: pip install 'torch-ire[trainers]'"
    ) from error

__all__ = ["MaskRefreshCallback"]


class MaskRefreshCallback(TrainerCallback):
    """Refreshes the flat mask when it is due, from the batch that the Trainer has just trained on.

    The pass comes right before the optimizer's step, at the parameters of that step, under the Trainer's autocast and
    loss scale, on the last micro-batch if gradients are accumulated. The accumulated and clipped training gradients,
    buffers and random numbers are left as found, so a run with ``kappa=0`` is the run without the callback. For a
    :class:`torch_ire.StepInBackward`, whose steps are part of the backward pass, it comes before the forward pass of
    the training batch.

    Args:
        forward: As for :func:`torch_ire.refresh_mask`; its batch is the mapping of arguments with which the Trainer
            calls the model. For heads without logits or with several losses.
        class_dim: As for :func:`torch_ire.refresh_mask`.
        ignore_index: The label of positions to leave out.
        generator: Draws the labels; ``None``: ``label_generator`` of the optimizer, whose position is part of the
            Trainer's checkpoints.
        log: Called with :func:`torch_ire.scalars` after each step with a refreshed mask. ``trainer.log`` sends them to
            everything that ``report_to`` names: ``trainer.add_callback(MaskRefreshCallback(log=trainer.log))``.

    Raises:
        TypeError: At the start of training, if the optimizer has no IRE.

    Cost: one forward and one backward pass every ``mask_interval`` steps, with a second set of gradients meanwhile.
    Nothing for the curvatures that need no pass ("second_moment", "random").

    Example:
        >>> from torch_ire.integrations.hugging_face import MaskRefreshCallback
        >>> callbacks = [MaskRefreshCallback()]  # for Trainer(..., callbacks=callbacks)
    """

    def __init__(
        self,
        *,
        forward: Callable[[Any, Any], Any] | None = None,
        class_dim: int | None = None,
        ignore_index: int = -100,
        generator: LabelGenerator | None = None,
        log: Callable[[dict[str, float]], Any] | None = None,
    ) -> None:
        self._options: dict[str, Any] = {
            "forward": forward,
            "class_dim": class_dim,
            "ignore_index": ignore_index,
            "generator": generator,
        }
        self._log = log
        self._refreshes: Refreshes | None = None
        self._optimizer: Any = None
        self._ire: Any = None
        self._batch: Mapping[str, Any] | None = None
        self._hook: Any = None
        self._is_refreshing = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts to watch the batches that the model is called with."""
        self._forget()
        self._optimizer = kwargs["optimizer"]
        self._ire = ire_of(self._optimizer)
        self._refreshes = Refreshes(self._ire) if self._log is not None else None
        self._hook = kwargs["model"].register_forward_pre_hook(self._look_at_batch, with_kwargs=True)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Makes the pass if it is due."""
        if self._batch is not None:
            self._refresh(kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Logs the numbers of a refreshed mask."""
        if self._log is not None and self._refreshes is not None:
            numbers = self._refreshes.poll()
            if numbers is not None:
                self._log(numbers)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Removes the hook from the model."""
        self._forget()

    def _look_at_batch(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._is_refreshing and model.training and torch.is_grad_enabled() and self._ire.mask_due():
            bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments if args else kwargs
            self._batch = dict(bound)
            if isinstance(self._ire, StepInBackward):
                self._refresh(model)

    def _refresh(self, model: Any) -> None:
        batch, self._batch, self._is_refreshing = self._batch, None, True
        try:
            # the Trainer's wrapper, not the optimizer in it: it holds the loss scale of float16
            refresh_mask(self._optimizer, model, batch, **self._options)
        finally:
            self._is_refreshing = False

    def _forget(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._optimizer = self._ire = self._batch = self._hook = self._refreshes = None
