"""BatchNorm statistics in passes other than the training pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

# These forward passes give no statistics to the kernel in training mode while ``track_running_stats`` is False, and
# the running ones in eval mode. Others may update all buffers that they find.
_FOLLOWING_THE_FLAG = (_BatchNorm.forward, nn.SyncBatchNorm.forward)
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@contextlib.contextmanager
def frozen_batch_norm(model: nn.Module) -> Iterator[None]:
    """Context in which forward passes of ``model`` update no running statistics.

    For the perturbed pass of SAM and the pass of a mask. Modules in training mode normalise by the statistics of the
    batch, modules in eval mode by the running ones, as they do outside, also if the mode changes inside. Contexts may
    be nested.

    Args:
        model: Any module. Each submodule that it has on entry is covered if it has running statistics: BatchNorm of
            any dimension, SyncBatchNorm, InstanceNorm with statistics, and modules that follow their conventions.

            Of modules with a forward pass of another kind than BatchNorm's the statistics are absent from a state dict
            that is taken inside.

    Raises:
        RuntimeError: A lazy module has no statistics yet.

    Cost: a walk over the modules. Nothing is copied.

    Example:
        >>> import torch, torch_ire
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
        >>> with torch_ire.frozen_batch_norm(model):
        ...     _ = model(torch.randn(8, 3) + 5)
        >>> model[0].running_mean.tolist(), model[0].num_batches_tracked.item()
        ([0.0, 0.0, 0.0], 0)
    """
    found: list[Any] = []  # Any: track_running_stats is no attribute of every Module
    for name, module in model.named_modules():
        # inside another such context the flag is False already, and it is that context that resets it
        if getattr(module, "track_running_stats", False) and "running_mean" in module._buffers:
            if is_lazy(module._buffers["running_mean"]):
                raise RuntimeError(
                    f"frozen_batch_norm: {name}: {type(module).__name__} has no statistics yet; run one forward pass "
                    "of the model first"
                )
            found.append(module)
    with contextlib.ExitStack() as stack:
        for module in found:
            stack.callback(setattr, module, "track_running_stats", True)
            if type(module).forward in _FOLLOWING_THE_FLAG:
                module.track_running_stats = False
            else:
                _hide_statistics(module, stack)
        yield


def _hide_statistics(module: Any, stack: contextlib.ExitStack) -> None:
    """Takes the statistics away while the module is in training mode."""
    statistics = {name: module._buffers[name] for name in _STATISTICS if name in module._buffers}

    def follow_mode(*_: Any) -> None:
        module.track_running_stats = not module.training
        module._buffers.update(dict.fromkeys(statistics) if module.training else statistics)

    # now, and not only in the hook: a compiled model does not call hooks that come later
    follow_mode()
    stack.enter_context(module.register_forward_pre_hook(follow_mode))
    stack.callback(module._buffers.update, statistics)
