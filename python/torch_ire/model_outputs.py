"""Logits with the classes last, and targets, from a model and a batch of a data loader or trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Heads of transformers whose loss shifts the labels by one position: the logits at t predict the token at t + 1. Like
# transformers, we take a head without a loss of its own (None) for one of them.
_NEXT_TOKEN_LOSSES = (None, "ForCausalLM", "ForConditionalGeneration")


class Predictions(NamedTuple):
    """Logits with the classes last, integer targets of their shape without the classes, and a loss if there is one."""

    logits: Tensor
    targets: Tensor | None
    loss: Tensor | None = None


def predict(
    model: nn.Module, batch: Any, *, with_loss: bool, ignore_index: int, class_dim: int | None = None
) -> Predictions:
    """Calls the model as the batch suggests: a mapping holds keyword arguments, a sequence starts with the input.

    Args:
        model: Returns logits, or an object with ``logits`` (an attribute or a key).
        batch: A tensor, a sequence (input, targets, ...), or a mapping of keyword arguments with "labels".
        with_loss: Whether the model gets the labels, and so computes its own loss.
        ignore_index: The target of positions whose next token is unknown.
        class_dim: As for :func:`with_classes_last`.

    Raises:
        TypeError: The output holds no logits.
        ValueError: Targets and logits do not fit together, or the dimension of the classes is unclear.
    """
    if isinstance(batch, Mapping):
        return _of_keywords(model, batch, with_loss, ignore_index, class_dim)
    if isinstance(batch, Tensor):
        return with_classes_last(_logits_of(model(batch)), None, class_dim)
    if not isinstance(batch, Sequence) or not batch:
        raise TypeError(f"expected a batch that is a tensor, a sequence or a mapping, got {type(batch).__name__}")
    logits = _logits_of(model(batch[0]))
    return with_classes_last(logits, batch[1] if len(batch) > 1 else None, class_dim)


def _of_keywords(
    model: nn.Module, batch: Mapping[str, Any], with_loss: bool, ignore_index: int, class_dim: int | None
) -> Predictions:
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
    if loss is not None:
        return Predictions(logits, None, loss)
    labels = batch.get("labels")
    if labels is None and is_transformer and not builds_inputs_from_labels:
        # a trainer that smooths labels takes them out of the batch; the attention mask still tells the padding
        attention = batch.get("attention_mask")
        if attention is not None and attention.shape == logits.shape[:-1]:
            labels = torch.zeros_like(attention, dtype=torch.int64).masked_fill(attention == 0, ignore_index)
    if labels is not None and is_transformer and not builds_inputs_from_labels:
        if model.loss_type in _NEXT_TOKEN_LOSSES and labels.shape == logits.shape[:-1]:
            labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]
        problem = getattr(config, "problem_type", None)
        if problem in ("regression", "multi_label_classification"):
            raise ValueError(f"problem_type={problem!r} has no softmax to draw labels from; pass forward=")
    if class_dim is None and is_transformer and logits.dim() == 3:
        class_dim = -1  # (batch, position, class), also with as many positions as classes
    return with_classes_last(logits, labels, class_dim)


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


def with_classes_last(logits: Tensor, targets: Any, class_dim: int | None) -> Predictions:
    """Moves the classes of the logits to the last dimension.

    Args:
        logits: At least one dimension.
        targets: Integers of the logits' shape without the classes, which may be in the last dimension or, as
            ``torch.nn.functional.cross_entropy`` has them, in dimension 1. Anything else (``None``, the probabilities
            of mixup) leaves no position out, and does not say where the classes are.
        class_dim: Their dimension; ``None``: the one that the targets show, the last for up to two dimensions.

    Raises:
        ValueError: The targets fit no dimension, or nothing shows where the classes are.
    """
    shape = tuple(logits.shape)
    if class_dim is not None and not -logits.dim() <= class_dim < logits.dim():
        raise ValueError(f"class_dim={class_dim}: logits of shape {shape} have no such dimension")
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        if class_dim is None and logits.dim() > 2:
            raise ValueError(
                f"logits {shape} without integer targets: the classes may be in any dimension; pass class_dim= (1 for "
                "images, -1 for tokens)"
            )
        return Predictions(logits.movedim(-1 if class_dim is None else class_dim, -1), None)
    candidates = [
        logits.movedim(dim, -1) for dim in ((-1, 1) if class_dim is None else (class_dim,)) if dim < len(shape)
    ]
    fitting = [moved for moved in candidates if moved.shape[:-1] == targets.shape]
    if not fitting:
        said = "" if class_dim is None else f" with class_dim={class_dim}"
        raise ValueError(
            f"targets of shape {tuple(targets.shape)} do not fit logits of shape {shape}{said}; expected the logits' "
            "shape without the classes, in the last dimension or in dimension 1 (else pass class_dim=)"
        )
    if len(fitting) > 1 and logits.dim() > 2:
        raise ValueError(
            f"logits {shape} and targets {tuple(targets.shape)}: the classes may be in dimension 1 or the last; pass "
            "class_dim="
        )
    return Predictions(fitting[0], targets)
