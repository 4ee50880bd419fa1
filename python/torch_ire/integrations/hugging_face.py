"""For the Trainer of Hugging Face transformers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from torch_ire.integrations.refreshes import Refreshes
from torch_ire.mask_pass import ire_of, refresh_mask
from torch_ire.sampled_loss import LabelGenerator

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError(
        "torch_ire.integrations.hugging_face needs transformers: pip install 'torch-ire[trainers]'"
    ) from error

__all__ = ["MaskRefreshCallback"]


class MaskRefreshCallback(TrainerCallback):
    """Refreshes the flat mask where it is due, from the batch that the Trainer has just trained on.

    The pass comes right before the optimizer's step, at the parameters of that step, on the last micro-batch where
    gradients are accumulated, under the Trainer's autocast. The accumulated and clipped training gradients, BatchNorm
    statistics and random numbers are left as they are, so that a run with ``kappa=0`` is the run without the callback.

    Args:
        forward: As for :func:`torch_ire.refresh_mask`, with the mapping of arguments that the Trainer calls the model
            with as batch; for heads without logits or with several losses.
        ignore_index: The label of positions to leave out.
        generator: Where the labels' random numbers come from; ``None``: ``torch_ire.sampled_loss``'s own, whose
            position the Trainer's checkpoints hold as part of the optimizer.
        log: Gets :func:`torch_ire.scalars` after each step with a refreshed mask. The Trainer's own, which goes to
            everything that ``report_to`` names: ``trainer.add_callback(MaskRefreshCallback(log=trainer.log))``.

    Raises:
        TypeError: At the start of training, if the optimizer has no IRE.

    Cost: one forward and one backward pass every ``mask_interval`` steps, and one more set of gradients meanwhile.
    Nothing for the curvatures that need no pass ("second_moment", "random").

    Example:
        >>> from torch_ire.integrations.hugging_face import MaskRefreshCallback
        >>> callbacks = [MaskRefreshCallback()]  # for Trainer(..., callbacks=callbacks)
    """

    def __init__(
        self,
        *,
        forward: Callable[[Any, Any], Any] | None = None,
        ignore_index: int = -100,
        generator: LabelGenerator | None = None,
        log: Callable[[dict[str, float]], Any] | None = None,
    ) -> None:
        self._options: dict[str, Any] = {"forward": forward, "ignore_index": ignore_index, "generator": generator}
        self._log = log
        self._refreshes: Refreshes | None = None
        self._ire: Any = None
        self._batch: Mapping[str, Any] | None = None
        self._hook: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts to look at the batches that the model is called with."""
        self._forget()
        self._ire = ire_of(kwargs["optimizer"])
        self._refreshes = Refreshes(self._ire) if self._log is not None else None
        self._hook = kwargs["model"].register_forward_pre_hook(self._look_at_batch, with_kwargs=True)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The pass, where it is due."""
        batch, self._batch = self._batch, None
        if batch is not None:
            refresh_mask(self._ire, kwargs["model"], batch, **self._options)
            self._batch = None  # what the pass itself has called the model with

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What a refreshed mask has changed, to the log."""
        if self._log is not None and self._refreshes is not None:
            numbers = self._refreshes.news()
            if numbers is not None:
                self._log(numbers)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leaves the model as it was."""
        self._forget()

    def _look_at_batch(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if model.training and torch.is_grad_enabled() and self._ire.mask_due():
            bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments if args else kwargs
            self._batch = dict(bound)

    def _forget(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._ire = self._batch = self._hook = self._refreshes = None
