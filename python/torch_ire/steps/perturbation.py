"""The perturbation of a SAM step: its direction and norm, the move to theta + e, and the way back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torch_ire import reference
from torch_ire.counter_rng import as_int64, mix64
from torch_ire.interrupts import DeferredInterrupts, run_all
from torch_ire.layouts import is_dense, laid_out_like, opmath_dtype, to_device
from torch_ire.packed_mask import memory_order
from torch_ire.sharding import add_over_ranks, are_plain, drawn, local_part, mark_local_writes, shard_group_of
from torch_ire.steps.compiled_step import capturing
from torch_ire.steps.schedule import Group, step_number
from torch_ire.steps.skipped_steps import any_of, nonfinite_flag
from torch_ire.steps.tensor_lists import TensorLists, dense_gradient, indexed_parameters
from torch_ire.steps.update_rules import functions_of

# Stream of random numbers of the random perturbation; those of the masks are in mask_engine.py.
_STREAM = 3

#: (group, parameter, direction of its local part)
Target = tuple[Group, Tensor, Tensor]


def buffer_for(buffers: dict[Tensor, Tensor], param: Tensor) -> Tensor:
    """Memory for a copy of a parameter's local part, kept from step to step; new if the parameter has changed."""
    kept = buffers.get(param)
    part = local_part(param)
    fits = (
        kept is not None
        and (kept.shape, kept.dtype, kept.device) == (part.shape, part.dtype, part.device)
        and kept.stride() == (part if is_dense(part) else torch.empty_like(part, device="meta")).stride()
    )
    if kept is None or not fits:
        kept = buffers[param] = torch.empty_like(part)
    return kept


@dataclass
class Perturbation:
    """The position of the parameters within a SAM step. It is not saved, because it does not outlive a step."""

    #: theta of the parameters that stand at theta + e; empty between steps
    moved: dict[Tensor, Tensor] = field(default_factory=dict)
    #: whether the parameters stand at theta + e; a rank may hold no part of any parameter that moved
    is_active: bool = False
    #: versions of the perturbed parameters right after the move; a parameter written later is not restored
    versions: dict[Tensor, int] = field(default_factory=dict)
    #: whether the step from theta has begun to write
    is_stepping: bool = False
    #: whether the gradients at theta + e are in ``.grad`` although the parameters are theta again
    has_gradients: bool = False
    #: norm of the direction, not finite if nothing moved; flag of non-finite gradients, ``None`` without skip_nonfinite
    norm: Tensor | None = None
    found_nonfinite: Tensor | None = None
    #: the ``GradScaler`` to inform of an overflow
    scaler: Any = None
    #: memory of the backups, kept from step to step
    buffers: dict[Tensor, Tensor] = field(default_factory=dict)
    #: position after a compiled first_step; a dict, because Dynamo can follow writes to one that exists
    in_graph: dict[str, Any] = field(default_factory=lambda: {"moved": False, "norm": None})

    def take_over(self, groups: Iterable[Group]) -> None:
        """Records the move of a compiled first_step, which moves all trainable parameters."""
        if self.in_graph["moved"]:
            params = [param for group in groups for param in group["params"] if param.requires_grad]
            self.moved = {param: self.buffers[param] for param in params}
            self.is_active, self.norm = True, self.in_graph["norm"]
            self.in_graph.update(moved=False, norm=None)

    def move(self, targets: Sequence[Target], norm: Tensor, found_nonfinite: Tensor | None, scaler: Any) -> None:
        """Moves the parameters by rho direction / norm and keeps theta; a norm that is not finite moves nothing.

        An exception leaves the parameters at theta.
        """
        moves = list(_moves(targets, self.buffers, norm))
        versions = {owner: local_part(owner)._version for _, owner, _ in targets}
        with DeferredInterrupts():
            try:
                run_all([move.call for move in moves])
                mark_local_writes([owner for _, owner, _ in targets])
                self.moved = {owner: self.buffers[owner] for owner in versions}
                self.versions = {owner: local_part(owner)._version for owner in versions}
                self.norm, self.found_nonfinite, self.scaler = norm, found_nonfinite, scaler
                self.is_active = True
            except BaseException:
                # parameters that were not written have no valid backup
                written = {owner for owner, old in versions.items() if local_part(owner)._version != old}
                written.update(*(move.owners for move in moves if move.is_made()))
                self.moved = {owner: self.buffers[owner] for owner in written}
                self.restore()
                raise

    def restore(self) -> None:
        """Moves the parameters back to theta."""
        with torch.no_grad(), DeferredInterrupts():
            run_all([functools.partial(local_part(param).copy_, theta) for param, theta in self.moved.items()])
            self.forget()

    def discard(self) -> None:
        """Moves the parameters back to theta, except those that have been written since, by loading a model say."""
        unchanged = {p: t for p, t in self.moved.items() if local_part(p)._version == self.versions.get(p)}
        self.moved = unchanged
        self.restore()

    def forget(self) -> None:
        """Discards a pending perturbation."""
        self.is_active = self.has_gradients = self.is_stepping = False
        self.moved, self.versions = {}, {}
        self.norm = self.found_nonfinite = self.scaler = None
        self.in_graph.update(moved=False, norm=None)

    def begin_step(self) -> None:
        """Records that the operators of the step may have written parameters from now on."""
        self.is_stepping = True

    def found_inf(self, optimizer: torch.optim.Optimizer, of_second_pass: Tensor | None) -> Tensor | None:
        """The skip flag of both passes, from the flag that a scaler has set for the second one, if any."""
        if self.norm is None:
            return of_second_pass
        overflow = None if of_second_pass is None else (~self.norm.isfinite()).to(of_second_pass)
        if overflow is not None and self.scaler is not None:
            # the scaler has checked the gradients of the second pass only; update() reads these flags
            for found in self.scaler._found_inf_per_device(optimizer).values():
                found.copy_(torch.maximum(found, to_device(found.device, overflow).to(found)))
        return any_of([of_second_pass, overflow, self.found_nonfinite])


@dataclass
class _Move:
    """One operator call that moves some parameters."""

    owners: list[Tensor]
    call: Callable[[], Any]
    # the first element of a backup, if the call writes all of its parameters or none
    mark: Tensor | None

    def is_made(self) -> bool:
        """Whether the call has written its parameters, although it or the call after it raised."""
        return self.mark is not None and not bool(self.mark.isnan())


def _moves(targets: Sequence[Target], buffers: dict[Tensor, Tensor], norm: Tensor) -> Iterator[_Move]:
    """The calls that move the parameters, one per device and dtype; strided parameters move one by one."""
    found: dict[Any, tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]] = {}
    for group, owner, direction in targets:
        param, backup = local_part(owner), buffer_for(buffers, owner)
        if not is_dense(param):
            yield _Move([owner], functools.partial(_move_strided, group, param, direction, backup, norm), None)
            continue
        key = (param.device, param.dtype, group["rho"], group["adaptive"], functions_of(group))
        lists = found.setdefault(key, ([], [], [], []))
        for tensors, tensor in zip(lists, (param, laid_out_like(direction, param), backup, owner), strict=True):
            tensors.append(tensor)
    for (device, dtype, rho, adaptive, functions), (params, directions, backups, owners) in found.items():
        here = norm.to(device, torch.float64 if dtype == torch.float64 else torch.float32)
        call = functools.partial(functions.sam_perturb_, params, directions, backups, here, rho=rho, adaptive=adaptive)
        mark = next((memory_order(backup)[:1] for backup in backups if backup.numel()), None)
        if mark is None or functions is reference or device.type == "meta" or capturing():
            yield _Move(owners, call, None)
        else:
            yield _Move(owners, call, mark.fill_(torch.nan))


def _move_strided(group: Group, param: Tensor, direction: Tensor, backup: Tensor, norm: Tensor) -> None:
    backup.copy_(param)
    dtype = opmath_dtype(param.dtype)
    scale = torch.where(norm.isfinite(), group["rho"] / (norm.to(dtype) + 1e-12), 0.0).to(param.device)
    theta, move = param.to(dtype), direction.to(dtype)
    move = move * theta.square() if group["adaptive"] else move
    param.copy_(theta + torch.where(scale != 0, scale * move, torch.zeros_like(move)))


# -- directions ------------------------------------------------------------------------------------------------------


def gradient_directions(owner: str, groups: Iterable[Group]) -> Iterator[Target]:
    """The gradients of all parameters that have one.

    Raises:
        RuntimeError: A gradient does not fit its parameter.
    """
    for _, group, param in indexed_parameters(groups):
        grad = dense_gradient(param, owner)
        if grad is not None:
            yield group, param, grad


def random_directions(owner: str, groups: Iterable[Group]) -> Iterator[Target]:
    """Normal random directions of all trainable parameters, the same on every replica."""
    if capturing():
        raise RuntimeError(
            f"{owner}.first_step(): perturbation='random' draws on the host; a CUDA graph would repeat one direction"
        )
    for index, group, param in indexed_parameters(groups):
        if param.requires_grad:
            key = mix64(mix64(mix64(group["seed"], _STREAM), step_number(group)), index)
            if param.is_meta:
                yield group, param, torch.empty_like(param)
                continue
            yield group, param, drawn(param, param.dtype, _normal(param, key))


def _normal(param: Tensor, key: int) -> Callable[[int, int], Tensor]:
    generator = torch.Generator(param.device)

    def random(begin: int, count: int) -> Tensor:
        generator.manual_seed(as_int64(mix64(key, begin)) & 0x7FFFFFFFFFFFFFFF)
        return torch.empty(count, dtype=param.dtype, device=param.device).normal_(generator=generator)

    return random


def norm_of(targets: Sequence[Target], params: Sequence[Tensor]) -> Tensor | None:
    """|| direction || over all parameters, || |theta| direction || over those of adaptive groups; on one device.

    The squares of shards are summed over their mesh in the order of the ranks, so that every rank gets the same bits.

    Args:
        targets: The directions on this rank.
        params: All parameters of the optimizer.

    Returns:
        A number, or ``None`` if no rank has a direction.
    """
    calls: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for group, owner, direction in targets:
        param = local_part(owner)
        key = (param.device, param.dtype, group["adaptive"], functions_of(group), shard_group_of(owner))
        tensors, weights = calls.setdefault(key, ([], []))
        dense = param if is_dense(param) else torch.empty_like(param).copy_(param)
        tensors.append(laid_out_like(direction, dense))
        if group["adaptive"]:
            weights.append(dense)
    norms = [(shard_group, f.global_norm(ts, ws)) for (*_, f, shard_group), (ts, ws) in calls.items()]
    shard_groups = [None] if are_plain(params) else list(dict.fromkeys(map(shard_group_of, params)))
    if shard_groups == [None] and len(norms) <= 1:
        return norms[0][1] if norms else None
    # each square comes with a count, so that a rank without directions learns whether there are any
    nothing = torch.zeros(2, dtype=torch.float64, device=local_part(params[0]).device)
    squares = [(group, torch.stack([n.double().square(), torch.ones_like(n.double())])) for group, n in norms]
    total, number = add_over_ranks([(None, nothing), *squares], shard_groups, floating=True)
    return total.sqrt() if norms or number > 0 else None


def groups_agree(groups: Iterable[Mapping[str, Any]], owner: str) -> bool:
    """Whether the perturbation is random; raises ``RuntimeError`` if the groups disagree."""
    random = {group["perturbation"] == "random" for group in groups}
    if len(random) > 1:
        raise RuntimeError(f"{owner}.first_step(): the groups disagree on the perturbation")
    return True in random


def nonfinite_directions(targets: Sequence[Target], groups: Sequence[Group]) -> Tensor | None:
    """The flag of :func:`nonfinite_flag` for the gradients of the first pass."""
    dense = ((group, param, g if is_dense(g) else g.contiguous()) for group, param, g in targets)
    lists = [TensorLists(group, [param], grads=[grad]) for group, param, grad in dense]
    return nonfinite_flag(functions_of, lists, groups)
