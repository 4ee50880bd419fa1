"""From a batch, as data loaders and trainers hand it out, to predictions: logits with the classes last, and targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Heads of transformers whose loss moves the labels by one position: the logits at t are for the token at t + 1. A head
# of a class without a loss of its own (None) is taken for one of them, as transformers does.
_NEXT_TOKEN_LOSSES = (None, "ForCausalLM", "ForConditionalGeneration")


class Predictions(NamedTuple):
    """What a model makes of a batch; ``loss`` is the training loss where the model computes one."""

    logits: Tensor
    targets: Tensor | None
    loss: Tensor | None = None


def predict(model: nn.Module, batch: Any, *, with_loss: bool, ignore_index: int) -> Predictions:
    """Calls the model as its batches suggest: a mapping is keyword arguments, a sequence starts with the input.

    Args:
        model: Returns logits, or something with ``logits`` (an attribute or a key).
        batch: A tensor, a sequence (input, targets, ...), or a mapping of keyword arguments, "labels" among them.
        with_loss: Whether the model is to see the labels, and so computes its own loss.
        ignore_index: Put where the next token is unknown.

    Raises:
        TypeError: The output holds no logits.
        ValueError: The targets don't fit the logits, or no integer targets do.
    """
    if isinstance(batch, Mapping):
        return _of_keywords(model, batch, with_loss, ignore_index)
    if isinstance(batch, Tensor):
        return Predictions(_logits_of(model(batch)), None)
    if not isinstance(batch, Sequence) or not batch:
        raise TypeError(f"expected a batch that is a tensor, a sequence or a mapping, got {type(batch).__name__}")
    logits = _logits_of(model(batch[0]))
    return _with_classes_last(logits, batch[1] if len(batch) > 1 else None)


def _of_keywords(model: nn.Module, batch: Mapping[str, Any], with_loss: bool, ignore_index: int) -> Predictions:
    config = getattr(model, "config", None)
    builds_inputs_from_labels = bool(getattr(config, "is_encoder_decoder", False))
    is_transformer = hasattr(model, "loss_type")
    inputs = dict(batch)
    if is_transformer and not with_loss and not builds_inputs_from_labels:
        # without labels no loss is computed, which would cost a float32 copy of the logits
        inputs = {name: value for name, value in inputs.items() if name not in ("labels", "num_items_in_batch")}
    output = model(**inputs)
    logits = _logits_of(output)
    loss = _part(output, "loss") if with_loss else None
    labels = batch.get("labels")
    if labels is None and is_transformer and not builds_inputs_from_labels:
        # a trainer that smooths labels takes them out of the batch; padding is known all the same
        attention = batch.get("attention_mask")
        if attention is not None and attention.shape == logits.shape[:-1]:
            labels = torch.zeros_like(attention, dtype=torch.int64).masked_fill(attention == 0, ignore_index)
    if labels is not None and is_transformer and not builds_inputs_from_labels:
        if model.loss_type in _NEXT_TOKEN_LOSSES and labels.shape == logits.shape[:-1]:
            labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]
        problem = getattr(config, "problem_type", None)
        if problem in ("regression", "multi_label_classification"):
            raise ValueError(f"problem_type={problem!r} has no softmax to draw labels from; pass forward=")
    return _with_classes_last(logits, labels)._replace(loss=loss)


def _logits_of(output: Any) -> Tensor:
    logits = output if isinstance(output, Tensor) else _part(output, "logits")
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"expected a model that returns logits or something with `logits`, got {type(output).__name__}; pass "
            "forward= to say where the logits are"
        )
    return logits


def _part(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def _with_classes_last(logits: Tensor, targets: Any) -> Predictions:
    """Finds the dimension of the classes: the last, or the second as ``torch.nn.functional.cross_entropy`` has it."""
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        return Predictions(logits, None)  # probabilities, as mixup makes them, leave no position out
    fits_last = targets.shape == logits.shape[:-1]
    fits_second = logits.dim() > 2 and targets.shape == (logits.shape[0], *logits.shape[2:])
    if fits_last and fits_second:
        raise ValueError(
            f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)}: the classes may be in the second or in "
            "the last dimension; pass forward= and return both with the classes last"
        )
    if not fits_last and not fits_second:
        raise ValueError(
            f"targets of shape {tuple(targets.shape)} don't fit logits of shape {tuple(logits.shape)}; pass forward= "
            "and return logits with the classes last, and targets of the same shape without them"
        )
    return Predictions(logits if fits_last else logits.movedim(1, -1), targets)
