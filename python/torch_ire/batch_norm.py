"""BatchNorm statistics in passes that are not the training pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen_batch_norm(model: nn.Module) -> Iterator[None]:
    """Context in which forward passes of ``model`` leave running statistics alone, in training mode too.

    For the perturbed pass of SAM and for the pass of a mask: batches are normalised by their own statistics as in
    training, while ``running_mean``, ``running_var`` and ``num_batches_tracked`` keep what the training passes have
    put there.

    Args:
        model: Any module; every submodule with running statistics is covered (BatchNorm of any dimension,
            SyncBatchNorm, InstanceNorm with statistics, and modules that follow their conventions).

    Cost: nothing but a walk over the modules. Nothing is copied: the buffers are detached from their modules meanwhile.

    Example:
        >>> import torch, torch_ire
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
        >>> with torch_ire.frozen_batch_norm(model):
        ...     _ = model(torch.randn(8, 3) + 5)
        >>> model[0].running_mean.tolist(), model[0].num_batches_tracked.item()
        ([0.0, 0.0, 0.0], 0)
    """
    found = [
        module
        for module in model.modules()
        if module.training and getattr(module, "track_running_stats", False) and "running_mean" in module._buffers
    ]
    saved = [(module, dict(module._buffers)) for module in found]
    try:
        for module in found:
            # without buffers, batch statistics are used and nothing is tracked
            module._buffers["running_mean"] = None
            module._buffers["running_var"] = None
            setattr(module, "track_running_stats", False)  # noqa: B010 - not an attribute of every Module
        yield
    finally:
        for module, buffers in saved:
            module._buffers.update(buffers)
            setattr(module, "track_running_stats", True)  # noqa: B010
