"""IRE on AdamW, one tensor at a time in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from torch_ire.packed_state import packed_mask_views
from torch_ire.reference.arithmetic import flat_bits, load_param, opmath, scalar, segments, store_param


def fused_adamw_flat_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    state_steps: Sequence[Tensor],
    flat_masks: Sequence[Tensor] = (),
    restore_from: Sequence[Tensor] = (),
    compensations: Sequence[Tensor] = (),
    master_params: Sequence[Tensor] = (),
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    kappa: float,
    amplify_weight_decay: bool = True,
    maximize: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    lr_tensor: Tensor | None = None,
    kappa_tensor: Tensor | None = None,
    rounding_keys: Sequence[int] = (),
    packed: bool = False,
) -> None:
    """See :func:`torch_ire.ops.fused_adamw_flat_`, which this mirrors."""
    if packed:
        exp_avgs, exp_avg_sqs = segments(exp_avgs, params), segments(exp_avg_sqs, params)
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
        state_steps[i].add_(1)
        t = float(state_steps[i])
        theta = load_param(param, i, compensations, master_params)
        g = opmath(grads[i]) * grad_factor
        m, v = exp_avgs[i], exp_avg_sqs[i]
        m.add_((g - m) * (1 - beta1))
        v.mul_(beta2).add_((1 - beta2) * g * g)
        denominator = v.sqrt() / (1 - beta2**t) ** 0.5 + eps
        gain = 1 + kappa * flat_bits(flat_masks, i, param).to(theta.dtype)
        decay = lr * weight_decay * (gain if amplify_weight_decay else 1.0)
        theta = theta * (1 - decay) - gain * (lr / (1 - beta1**t)) * m / denominator
        store_param(param, i, theta, compensations, master_params, rounding_keys, int(t))


__all__ = ["fused_adamw_flat_"]
