"""One call for the pass of the mask, anywhere in a training loop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from torch_ire.batch_norm import frozen_batch_norm
from torch_ire.curvature.preserve_state import math_attention
from torch_ire.gradient_average import all_replicas, average_gradients, total_over_replicas
from torch_ire.model_outputs import Predictions, predict, with_classes_last
from torch_ire.optim import IRE, StepInBackward
from torch_ire.optim.ire_optimizer import IREOptimizer
from torch_ire.sampled_loss import LabelGenerator, sampled_cross_entropy
from torch_ire.untouched import backward_into, put_aside, restored_buffers, restored_random_state

__all__ = ["ire_of", "refresh_mask"]


def ire_of(optimizer: Any) -> IREOptimizer | IRE | StepInBackward:
    """The object with ``mask_due()`` and ``update_mask()`` of an optimizer, also inside a trainer's wrapper.

    Args:
        optimizer: An optimizer of this library, one that :class:`IRE` is attached to, that handle, a
            :class:`StepInBackward`, or a wrapper with one of these in ``.optimizer`` (Accelerate, the Trainer,
            Lightning).

    Returns:
        The optimizer, the handle of the attached :class:`IRE`, or the :class:`StepInBackward`.

    Raises:
        TypeError: It has no IRE.

    Example:
        >>> import torch, torch_ire
        >>> opt = torch.optim.NAdam([torch.nn.Parameter(torch.ones(3))])
        >>> ire = torch_ire.IRE(opt)
        >>> torch_ire.ire_of(opt) is ire
        True
    """
    for inner in _unwrapped(optimizer):
        if isinstance(inner, (IRE, StepInBackward)):
            return inner
        attached = IRE.of(inner)
        if attached is not None:
            return attached
        # Lightning's wrapper inherits from the class of the optimizer that it wraps
        if isinstance(inner, IREOptimizer) and not inner.__dict__.keys() & set(_WRAPPED):
            return inner
    raise TypeError(
        "expected AdmIRE, SGDIRE, SAMIRE, an optimizer that IRE(...) is attached to, a StepInBackward, or a wrapper of "
        f"one, got {type(optimizer).__name__}"
    )


# Where wrappers keep the optimizer: Accelerate and most others, Lightning.
_WRAPPED = ("optimizer", "_optimizer")


def _unwrapped(optimizer: Any) -> Iterator[Any]:
    """The optimizer, and what it wraps, from outside to inside."""
    while optimizer is not None:
        yield optimizer
        attributes = getattr(optimizer, "__dict__", {})
        optimizer = next((attributes[name] for name in _WRAPPED if attributes.get(name) is not None), None)


def refresh_mask(
    optimizer: Any,
    model: nn.Module,
    batch: Any,
    *,
    forward: Callable[[Any, Any], Any] | None = None,
    class_dim: int | None = None,
    ignore_index: int = -100,
    generator: LabelGenerator | None = None,
    grad_scale: float | Tensor | None = None,
    process_group: Any = None,
) -> bool:
    """Refreshes the flat mask if it is due: forward, sampled labels, backward and ``update_mask()`` in one call.

    Call it anywhere between two steps, also while gradients are being accumulated. It computes gradients for the
    parameters of the optimizer alone and leaves every ``.grad``, all buffers of the model (BatchNorm statistics among
    them) and torch's random numbers as found, so a run with ``kappa=0`` is the run without it. With several processes
    it averages the gradients itself, so that every replica ranks the same ones, also under ``no_sync``; call it on all
    processes alike. FSDP2 with a ``reduce_dtype`` keeps unsynchronised gradients out of reach: call it before the first
    micro-batch there.

    Args:
        optimizer: As for :func:`ire_of`.
        model: In the mode that it trains in. A ``DistributedDataParallel`` around it is bypassed.
        batch: On the model's device. A tensor, or a sequence that starts with the input and, if of an integer type, the
            targets; or a mapping of keyword arguments with "labels". Targets only say which positions to leave out,
            and where the classes are. For causal language models of transformers labels are shifted by one, as in
            their loss.
        forward: ``forward(model, batch)`` in place of the model's own call. It returns logits, ``(logits, targets)``,
            or a scalar: the sampled loss itself (the training loss for ``curvature="hutchinson"``).
        class_dim: The dimension of the classes in the logits; ``None``: the one that the targets' shape leaves out.
            Needed for logits of more than two dimensions without targets, and where the targets fit two dimensions.
        ignore_index: The target of positions to leave out.
        generator: Draws the labels; ``None``: ``label_generator`` of the optimizer.
        grad_scale: Factor on the loss that keeps float16 gradients from underflow: ``scaler.get_scale()``. ``None``:
            that of the ``GradScaler`` in Accelerate's wrapper, if there is one.
        process_group: The replicas of the model; ``None``: all processes. Sharded (DTensor) gradients are left to
            FSDP2 and tensor parallelism.

    Returns:
        Whether the mask was due, and has been refreshed.

    Raises:
        TypeError: The optimizer has no IRE, or the model returns no logits.
        ValueError: Logits and targets do not fit together, or the dimension of the classes is unclear.
        RuntimeError: The model is sharded by ``FullyShardedDataParallel``, whose flat parameters have no mask.

    Cost: one forward and one backward pass, a copy of the buffers, and a second set of gradients if there is one
    already. "hutchinson" takes a product with the Hessian, with attention by its plain formula.

    Example:
        >>> import torch, torch_ire
        >>> model = torch.nn.Linear(8, 3)
        >>> opt = torch_ire.AdmIRE(model.parameters(), lr=1e-3, mask_interval=2)
        >>> x, y = torch.randn(16, 8), torch.randint(3, (16,))
        >>> for _ in range(3):
        ...     print(torch_ire.refresh_mask(opt, model, (x, y)))
        ...     torch.nn.functional.cross_entropy(model(x), y).backward()
        ...     opt.step()
        ...     opt.zero_grad()
        True
        False
        True
    """
    ire = ire_of(optimizer)
    if not ire.mask_due():
        return False
    groups = ire._targets().groups
    if not any(group["curvature"] in ("fisher", "hutchinson") for group in groups):
        ire.update_mask()  # from moments or random numbers
        return True
    module = _without_data_parallel(model)
    ranked = [param for group in groups for param in group["params"]]
    touched = list(dict.fromkeys([*ranked, *module.parameters()]))
    hutchinson = any(group["curvature"] == "hutchinson" for group in groups)
    grad_scale = _scale_of(optimizer) if grad_scale is None else grad_scale
    options: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        stack.callback(ire.label_generator.take_back)  # also after an exception
        stack.enter_context(put_aside(touched))
        stack.enter_context(restored_random_state(touched))
        stack.enter_context(restored_buffers(module))
        stack.enter_context(frozen_batch_norm(module))
        stack.enter_context(torch.enable_grad())
        if isinstance(ire, StepInBackward):
            stack.enter_context(ire.paused())
        if hutchinson:
            stack.enter_context(math_attention())
        if forward is not None:
            result = _returned(forward(module, batch), class_dim)
        else:
            result = predict(module, batch, with_loss=hutchinson, ignore_index=ignore_index, class_dim=class_dim)
        if hutchinson:
            group = process_group or all_replicas()
            options = {} if group is None else {"process_group": group}
            ire.update_mask(_training_loss(result, ignore_index), **options)
            return True
        labels = ire.label_generator if generator is None else generator
        loss, count = _sampled_loss(result, ignore_index, labels)
        backward_into(loss if grad_scale is None else loss * grad_scale, ranked)
        average_gradients(ranked, process_group)
        if any(group["curvature_beta"] > 0 for group in groups):  # a ranking alone does not depend on factors
            options["num_predictions"] = max(1.0, total_over_replicas(count, process_group))
            if grad_scale is not None:
                options["grad_scale"] = grad_scale
        ire.update_mask(**options)
    return True


def _scale_of(optimizer: Any) -> float | None:
    """The scale of the ``GradScaler`` that a wrapper of the optimizer holds."""
    for inner in _unwrapped(optimizer):
        scaler = getattr(inner, "__dict__", {}).get("scaler")
        if scaler is not None and scaler.is_enabled():
            return float(scaler.get_scale())
    return None


def _returned(result: Any, class_dim: int | None) -> Predictions:
    """What ``forward=`` returned: logits, (logits, targets), or a scalar loss."""
    logits, targets = result[:2] if isinstance(result, tuple) and len(result) > 1 else (result, None)
    if not isinstance(logits, Tensor):
        raise TypeError(f"forward=: expected logits, (logits, targets) or a scalar loss, got {type(result).__name__}")
    if logits.dim() == 0:
        return Predictions(logits, None, loss=logits)
    return with_classes_last(logits, targets, class_dim)


def _sampled_loss(result: Predictions, ignore_index: int, generator: LabelGenerator) -> tuple[Tensor, Tensor]:
    """The loss at sampled labels, and the number of predictions in it."""
    logits, targets, loss = result
    if loss is not None:
        return loss, torch.ones((), dtype=torch.float64, device=loss.device)
    loss = sampled_cross_entropy(logits, targets, ignore_index=ignore_index, generator=generator)
    if targets is None:
        return loss, torch.tensor(logits[..., 0].numel(), dtype=torch.float64, device=logits.device)
    return loss, (targets != ignore_index).sum().to(logits.device)


def _training_loss(result: Predictions, ignore_index: int) -> Tensor:
    logits, targets, loss = result
    if loss is not None:
        return loss
    if targets is None:
        raise ValueError("curvature='hutchinson' needs the targets of the batch, or forward= that returns the loss")
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=ignore_index)


def _without_data_parallel(model: nn.Module) -> nn.Module:
    inner = getattr(model, "_orig_mod", model)  # of torch.compile
    if isinstance(inner, DistributedDataParallel):
        return cast("nn.Module", inner.module)
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise RuntimeError("refresh_mask: FullyShardedDataParallel is not supported; shard with fully_shard")
    return model
