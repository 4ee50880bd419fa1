"""One call for the pass of a mask, wherever in a training loop it comes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from torch_ire.batch_norm import frozen_batch_norm
from torch_ire.curvature.preserve_state import math_attention
from torch_ire.gradient_average import all_replicas, average_gradients, total_over_replicas
from torch_ire.model_outputs import Predictions, predict
from torch_ire.optim import IRE
from torch_ire.optim.ire_optimizer import IREOptimizer
from torch_ire.sampled_loss import LabelGenerator, sampled_cross_entropy

__all__ = ["ire_of", "refresh_mask"]


def ire_of(optimizer: Any) -> IREOptimizer | IRE:
    """The object with ``mask_due()`` and ``update_mask()`` behind an optimizer, however trainers have wrapped it.

    Args:
        optimizer: An optimizer of this library, one that :class:`IRE` is attached to, that handle itself, or a wrapper
            with the optimizer in ``.optimizer`` (Accelerate, the Trainer, Lightning).

    Returns:
        The optimizer, or the handle of the attached :class:`IRE`.

    Raises:
        TypeError: There is no IRE in it.

    Example:
        >>> import torch, torch_ire
        >>> opt = torch.optim.NAdam([torch.nn.Parameter(torch.ones(3))])
        >>> ire = torch_ire.IRE(opt)
        >>> torch_ire.ire_of(opt) is ire
        True
    """
    inner = optimizer
    while inner is not None:
        if isinstance(inner, IRE):
            return inner
        attached = IRE.of(inner)
        if attached is not None:
            return attached
        attributes = getattr(inner, "__dict__", {})
        wrapped = attributes.get("optimizer", attributes.get("_optimizer"))
        if isinstance(inner, IREOptimizer) and wrapped is None:
            return inner
        inner = wrapped
    raise TypeError(
        f"expected AdmIRE, SGDIRE, SAMIRE, an optimizer that IRE(...) is attached to, or a wrapper of one, got "
        f"{type(optimizer).__name__}"
    )


def refresh_mask(
    optimizer: Any,
    model: nn.Module,
    batch: Any,
    *,
    forward: Callable[[Any, Any], Any] | None = None,
    ignore_index: int = -100,
    generator: LabelGenerator | None = None,
    grad_scale: float | Tensor | None = None,
    process_group: Any = None,
) -> bool:
    """Refreshes the flat mask where it is due: forward, sampled labels, backward, ``update_mask()`` in one call.

    It may stand anywhere between two steps, also where gradients are being accumulated: ``.grad``, BatchNorm statistics
    and torch's random numbers are left as found, so that a run with ``kappa=0`` is the run without it. Over several
    processes the gradients are averaged here, not by ``DistributedDataParallel``, so that every replica ranks the same
    ones under ``no_sync`` too; call it on all processes alike.

    Args:
        optimizer: As for :func:`ire_of`.
        model: In the mode that it trains in; ``DistributedDataParallel`` around it is passed by.
        batch: On the model's device. A tensor, or a sequence whose first item is the input and whose second, if of an
            integer type, is the targets; or a mapping of keyword arguments with "labels". Targets only say which
            positions to leave out. For causal language models of transformers labels are moved by one, as in their
            loss.
        forward: ``forward(model, batch)`` in place of the model's own call. It returns logits with the classes last,
            ``(logits, targets)``, or a scalar: the sampled loss itself (the training loss for
            ``curvature="hutchinson"``).
        ignore_index: The target of positions to leave out.
        generator: Where the labels' random numbers come from; ``None``: :data:`default_label_generator`.
        grad_scale: Factor on the loss, so that gradients of float16 don't underflow: ``scaler.get_scale()``.
        process_group: The replicas of the model; ``None``: all processes. Sharded (DTensor) gradients are averaged by
            who sharded them.

    Returns:
        Whether the mask was due, and is refreshed now.

    Raises:
        TypeError: The optimizer has no IRE, or the model returns no logits.
        ValueError: Logits and targets don't fit together.
        RuntimeError: The model is sharded by ``FullyShardedDataParallel``, whose flat parameters have no mask.

    Cost: one forward and one backward pass, and one more set of gradients where there are some already. "hutchinson"
    takes a product with the Hessian, with attention by its plain formula.

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
    module = _without_data_parallel(model)
    groups = ire._targets().groups
    ranked = [param for group in groups for param in group["params"]]
    touched = list(dict.fromkeys([*ranked, *module.parameters()]))
    hutchinson = any(group["curvature"] == "hutchinson" for group in groups)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_gradients_put_aside(touched))
        stack.enter_context(_random_numbers_put_back(touched))
        stack.enter_context(frozen_batch_norm(module))
        stack.enter_context(torch.enable_grad())
        if hutchinson:
            stack.enter_context(math_attention())
        if forward is not None:
            result = forward(module, batch)
        else:
            result = predict(module, batch, with_loss=hutchinson, ignore_index=ignore_index)
        if hutchinson:
            ire.update_mask(_training_loss(result, ignore_index), process_group=process_group or all_replicas())
            return True
        loss, count = _sampled_loss(result, ignore_index, generator)
        (loss if grad_scale is None else loss * grad_scale).backward()  # type: ignore[no-untyped-call]
        average_gradients(ranked, process_group)
        averaging = any(group["curvature_beta"] > 0 for group in groups)
        ire.update_mask(
            num_predictions=max(1.0, total_over_replicas(count, process_group)) if averaging else 1.0,
            grad_scale=grad_scale,
        )
    return True


def _sampled_loss(result: Any, ignore_index: int, generator: LabelGenerator | None) -> tuple[Tensor, Tensor]:
    """The loss at sampled labels, and the number of predictions in it."""
    logits, targets = _logits_and_targets(result)
    if logits.dim() == 0:
        return logits, torch.ones((), device=logits.device)
    loss = sampled_cross_entropy(logits, targets, ignore_index=ignore_index, generator=generator)
    count = torch.tensor(float(logits[..., 0].numel())) if targets is None else (targets != ignore_index).sum()
    return loss, count.to(logits.device)


def _training_loss(result: Any, ignore_index: int) -> Tensor:
    if isinstance(result, Predictions) and result.loss is not None:
        return result.loss
    logits, targets = _logits_and_targets(result)
    if logits.dim() == 0:
        return logits
    if targets is None:
        raise ValueError("curvature='hutchinson' needs the targets of the batch, or forward= that returns the loss")
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=ignore_index)


def _logits_and_targets(result: Any) -> tuple[Tensor, Tensor | None]:
    if isinstance(result, Tensor):
        return result, None
    if isinstance(result, tuple) and len(result) >= 2 and isinstance(result[0], Tensor):
        return result[0], result[1]
    raise TypeError(f"forward=: expected logits, (logits, targets) or a scalar loss, got {type(result).__name__}")


def _without_data_parallel(model: nn.Module) -> nn.Module:
    inner = getattr(model, "_orig_mod", model)  # of torch.compile
    if isinstance(inner, DistributedDataParallel):
        return cast("nn.Module", inner.module)
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise RuntimeError("refresh_mask: FullyShardedDataParallel is not supported; shard with fully_shard")
    return model


@contextlib.contextmanager
def _gradients_put_aside(params: Iterable[Tensor]) -> Iterator[None]:
    """Context that starts without gradients and ends with those that there were."""
    saved = [(param, param.grad) for param in params]
    try:
        for param, _ in saved:
            param.grad = None
        yield
    finally:
        for param, grad in saved:
            param.grad = grad


@contextlib.contextmanager
def _random_numbers_put_back(params: Iterable[Tensor]) -> Iterator[None]:
    """Context after which torch's generators stand where they stood, of the CPU and of the parameters' GPUs."""
    devices = {param.device for param in params if param.device.type in ("cuda", "xpu")}
    kinds = {device.type for device in devices}
    with torch.random.fork_rng(
        devices=[device.index for device in devices], device_type=kinds.pop() if len(kinds) == 1 else "cuda"
    ):
        yield
