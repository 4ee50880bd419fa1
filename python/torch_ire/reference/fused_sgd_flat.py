"""IRE on SGD over a list of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
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
    r"""One SGD step, amplified by ``1 + kappa`` on the flat coordinates.

    .. math::
        u = g + \lambda \theta, \qquad b \leftarrow \mu b + (1 - d) u, \qquad
        \theta \leftarrow \theta - (1 + \kappa n) \eta \, (u + \mu b \text{ with Nesterov, else } b)

    In the first step :math:`b \leftarrow u`, as in ``torch.optim.SGD``; without momentum :math:`b = u`.

    Args:
        params: Tensors to update in place; float32, float64, bfloat16 or float16, dense (any dense strides), one dtype
            and device.
        grads: Gradients; dtype, shape and strides of the parameters. Read only.
        momentum_buffers: Momenta, updated in place, zero before the first step; float64 for float64 parameters, else
            float32. Empty if ``momentum`` is 0.
        state_steps: One float32 number per tensor, the number of steps so far; incremented by one. May be empty without
            dampening (0 marks the first step) and without ``rounding_keys``.
        flat_masks: Packed masks, uint8 of ``ceil(numel / 8)``: bit ``i % 8`` of byte ``i // 8`` is coordinate ``i`` in
            memory order. Empty: nothing is flat.
        restore_from: Values from which the step starts (the backup of a SAM step). Empty: the parameters themselves.
        compensations: Rounding errors of bfloat16 or float16 parameters, in their dtype, zero before the first step.
            The step starts at the float32 sum of both and stores its own rounding error here. Updated in place.
            Empty: rounding errors are dropped.
        master_params: float32 copies of bfloat16 or float16 parameters. The step updates the copies in place and rounds
            them to the parameters. Empty: there are no copies.
        lr: Learning rate.
        momentum: Momentum factor.
        dampening: Dampening of the momentum.
        weight_decay: L2 penalty; part of the gradient, hence amplified on flat coordinates.
        nesterov: Nesterov momentum; needs a momentum and zero dampening.
        kappa: Enhancement of the flat coordinates, 0 for plain SGD.
        maximize: Ascend instead of descend.
        grad_scale: One number; gradients are divided by it first (the loss scale of AMP).
        found_inf: One number. If it is not 0, the step only copies ``restore_from`` to the parameters.
        lr_tensor: One number on the device that replaces ``lr``.
        kappa_tensor: One number on the device that replaces ``kappa``.
        rounding_keys: One integer per tensor. Results are rounded to bfloat16 stochastically, with random numbers that
            depend only on key, step and element. Empty: rounding to nearest.
        packed: If true, each non-empty list of state (all but ``params``, ``grads`` and ``restore_from``) holds one
            tensor with a segment per parameter, as :mod:`torch_ire.packed_state` lays them out; that of ``state_steps``
            holds one number per parameter without padding.

    A coordinate that is no longer the rounding of its sum or copy was written by somebody else since the last step. Its
    step starts at the parameter.

    Raises:
        RuntimeError: A list has the wrong length, or a tensor the wrong device, dtype, shape or strides. Nothing has
            been changed.

    Cost: 20 + 1/8 bytes per float32 coordinate with momentum, 12 + 1/8 without, 4 more with ``restore_from``; 14 + 1/8
    and 6 + 1/8 bytes per bfloat16 or float16 coordinate, 4 more with ``compensations``, 8 more with ``master_params``;
    no workspace.
    Determinism: elementwise; the same bits from run to run and for any number of threads.

    Example:
        >>> import torch
        >>> from torch_ire import ops
        >>> theta, g = torch.ones(2), torch.tensor([0.5, -0.5])
        >>> first_is_flat = torch.tensor([0b01], dtype=torch.uint8)
        >>> ops.fused_sgd_flat_(
        ...     [theta], [g], flat_masks=[first_is_flat],
        ...     lr=0.1, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, kappa=2.0,
        ... )
        >>> theta
        tensor([0.8500, 1.0500])

    References:
        Wang et al., "Improving Generalization and Convergence by Enhancing Implicit Regularization", arXiv:2405.20763,
        Algorithm 1.
    """
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
        gain = torch.ones_like(theta).masked_fill_(flat_bits(flat_masks, i, param), 1 + kappa)
        theta = theta - lr * gain * direction
        if state_steps:
            state_steps[i].add_(1)
        step = int(state_steps[i]) if state_steps else 0
        store_param(param, i, theta, compensations, master_params, rounding_keys, step)


__all__ = ["fused_sgd_flat_"]
