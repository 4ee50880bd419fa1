"""Estimates of the diagonal curvature from gradients and Hessian products: the scores that are ranked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from torch_ire.counter_rng import as_int64, mix64
from torch_ire.dtensors import is_dtensor
from torch_ire.layouts import is_dense, laid_out_like, opmath_dtype
from torch_ire.sharding import drawn, local_part, local_part_like, wrapped_like

#: (position in the optimizer, its group, parameter, estimate)
Estimate = tuple[int, Mapping[str, Any], Tensor, Tensor]
StateOf = Callable[[Tensor], dict[str, Any]]


def effective_beta(beta: float, updates: int) -> float:
    """The decay b that makes ``h <- b h + (1 - b) s`` the bias-corrected average of ``updates`` estimates, s included.

    With weights proportional to beta^(age): b = beta (1 - beta^(n-1)) / (1 - beta^n), so the first estimate replaces h.
    """
    return beta * (1 - beta ** (updates - 1)) / (1 - beta**updates)


def fold_gradients(
    functions: ModuleType,
    gradients: Sequence[Estimate],
    state_of: StateOf,
    num_predictions: float,
    grad_scale: Tensor | None,
) -> list[Estimate]:
    """Folds B g^2 into the average of every parameter with a gradient (Eq. 6); returns the averages."""
    averages: list[Estimate] = []
    calls: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for index, group, param, grad in gradients:
        h, updates = _average(state_of(param) if group["curvature_beta"] > 0 else {}, param)
        beta = effective_beta(group["curvature_beta"], updates)
        key = (grad.device, grad.dtype, h.dtype, beta)
        hs, gs = calls.setdefault(key, ([], []))
        hs.append(h)
        gs.append(grad)
        averages.append((index, group, param, h))
    for (device, _, _, beta), (hs, gs) in calls.items():
        scale = None if grad_scale is None else grad_scale.to(device)
        functions.hessian_diag_(hs, gs, beta=beta, num_predictions=float(num_predictions), grad_scale=scale)
    return averages


def _average(state: dict[str, Any], param: Tensor) -> tuple[Tensor, int]:
    """The average of a parameter, and the number of its estimates, including the coming one."""
    ensure_average(param, state)
    state["hessian_diag_updates"] += 1
    part = local_part(param)
    kept = local_part(state["hessian_diag"])
    h = laid_out_like(kept, part if is_dense(part) else torch.empty_like(part))
    if h is not kept:  # the parameter has changed its memory format
        state["hessian_diag"] = wrapped_like(h, param)
    return h, int(state["hessian_diag_updates"])


def ensure_average(param: Tensor, state: dict[str, Any]) -> None:
    """Creates the average of a parameter if it has none; NaN marks coordinates without an estimate, which are sharp."""
    if "hessian_diag" not in state:
        part, dtype = local_part(param), opmath_dtype(param.dtype)
        nothing = torch.full_like(part, torch.nan, dtype=dtype, memory_format=torch.preserve_format)
        state["hessian_diag"] = wrapped_like(nothing, param)
        state["hessian_diag_updates"] = torch.zeros((), dtype=torch.float32, device="cpu")


def hutchinson_estimates(
    loss: Tensor,
    parameters: Sequence[tuple[int, Mapping[str, Any], Tensor]],
    state_of: StateOf,
    seed_key: int,
    average: Callable[[Tensor], Tensor],
) -> list[Estimate]:
    """Products z * Hz with random signs z; their mean is the diagonal of the Hessian (Bekas, Kokiopoulou, Saad 2007).

    Args:
        loss: Scalar with its graph.
        parameters: Position in the optimizer, group, parameter.
        state_of: The state of a parameter, where the average is kept if ``curvature_beta`` > 0.
        seed_key: Seed of the signs; the same key gives the same signs on every replica.
        average: Averages a tensor over the replicas, in place.

    Cost: one gradient with graph and one Hessian-vector product.
    """
    chosen = [(i, group, p) for i, group, p in parameters if p.requires_grad]
    params = [p for _, _, p in chosen]
    with torch.enable_grad():
        gradients = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
    used = [(item, g) for item, g in zip(chosen, gradients, strict=True) if g is not None and g.requires_grad]
    if not used:
        raise RuntimeError("update_mask(loss): the loss does not depend on the parameters to second order")
    signs = [_random_signs(p, mix64(seed_key, i)) for (i, _, p), _ in used]
    products = torch.autograd.grad([g for _, g in used], [p for (_, _, p), _ in used], signs, allow_unused=True)
    estimates: list[Estimate] = []
    for ((index, group, param), _), z, product in zip(used, signs, products, strict=True):
        part = local_part(param)
        z_times_product = 0.0 if product is None else local_part(z) * local_part_like(product, param)
        estimate = laid_out_like(torch.zeros_like(part) + z_times_product, part)
        if not is_dtensor(param):
            estimate = average(estimate)
        if group["curvature_beta"] > 0:
            h, updates = _average(state_of(param), param)
            beta = effective_beta(group["curvature_beta"], updates)
            latest = estimate.to(h.dtype)  # before the average: half precision would round it away
            new = torch.where(h.isfinite(), beta * h + (1 - beta) * latest, latest)
            estimate = h.copy_(new.where(latest.isfinite(), h))
        estimates.append((index, group, param, estimate))
    return estimates


def average_over(
    process_group: torch.distributed.ProcessGroup | None, params: Sequence[Tensor], owner: str
) -> Callable[[Tensor], Tensor]:
    """A function that averages an estimate over the replicas, in place.

    Raises:
        RuntimeError: There are several processes, and ``process_group`` does not say which of them are replicas.
    """
    if process_group is None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if distributed and torch.distributed.get_world_size() > 1 and not all(map(is_dtensor, params)):
            raise RuntimeError(
                f"{owner}.update_mask(): curvature='hutchinson' under torch.distributed needs the replicas: "
                "update_mask(loss, process_group=torch.distributed.group.WORLD). Without averaging, which "
                "DistributedDataParallel does for gradients alone, their masks would differ"
            )
        return lambda estimate: estimate
    world_size = torch.distributed.get_world_size(process_group)

    def average(estimate: Tensor) -> Tensor:
        torch.distributed.all_reduce(estimate, group=process_group)
        return estimate.div_(world_size)

    return average


def _random_signs(param: Tensor, key: int) -> Tensor:
    generator = torch.Generator(param.device)

    def random(begin: int, count: int) -> Tensor:
        generator.manual_seed(as_int64(mix64(key, begin)) & 0x7FFFFFFFFFFFFFFF)
        bits = torch.randint(0, 2, (count,), generator=generator, device=param.device, dtype=param.dtype)
        return bits * 2 - 1

    return wrapped_like(drawn(param, param.dtype, random), param)
