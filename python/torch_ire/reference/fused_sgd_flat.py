"""IRE on SGD, one tensor at a time in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from torch_ire.packed_state import packed_mask_views
from torch_ire.reference.arithmetic import flat_bits, load_param, opmath, scalar, segments, store_param


def fused_sgd_flat_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor] = (),
    state_steps: Sequence[Tensor] = (),
    flat_masks: Sequence[Tensor] = (),
    restore_from: Sequence[Tensor] = (),
    compensations: Sequence[Tensor] = (),
    master_params: Sequence[Tensor] = (),
    *,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    kappa: float,
    maximize: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    lr_tensor: Tensor | None = None,
    kappa_tensor: Tensor | None = None,
    rounding_keys: Sequence[int] = (),
    packed: bool = False,
) -> None:
    """See :func:`torch_ire.ops.fused_sgd_flat_`, which this mirrors."""
    if packed:
        momentum_buffers = segments(momentum_buffers, params)
        compensations, master_params = segments(compensations, params), segments(master_params, params)
        flat_masks = packed_mask_views(flat_masks[0], params) if flat_masks else ()
        state_steps = state_steps[0].unbind() if state_steps else ()
    skip = found_inf is not None and bool(found_inf)
    lr, kappa = scalar(lr_tensor, lr), scalar(kappa_tensor, kappa)
    grad_factor = (-1.0 if maximize else 1.0) / scalar(grad_scale, 1.0)
    for i, param in enumerate(params):
        if restore_from:
            param.copy_(restore_from[i])
        if skip:
            continue
        first_step = bool(state_steps) and float(state_steps[i]) == 0
        theta = load_param(param, i, compensations, master_params)
        direction = opmath(grads[i]) * grad_factor + weight_decay * theta
        if momentum:
            buffer = momentum_buffers[i]
            buffer.mul_(momentum).add_(direction * (1 if first_step else 1 - dampening))
            direction = direction + momentum * buffer if nesterov else buffer
        gain = 1 + kappa * flat_bits(flat_masks, i, param).to(theta.dtype)
        theta = theta - lr * gain * direction
        if state_steps:
            state_steps[i].add_(1)
        step = int(state_steps[i]) if state_steps else 0
        store_param(param, i, theta, compensations, master_params, rounding_keys, step)


__all__ = ["fused_sgd_flat_"]
