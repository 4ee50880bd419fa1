"""IRE around any optimizer, through its step hooks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from torch_ire.optim.arguments import (
    CurvatureName,
    Implementation,
    Projector,
    Ranking,
    asks_for_refresh,
    check_ire_arguments,
    enhancement,
    ire_defaults,
    join_schedule,
    note_learning_rate,
    unamplified_decay,
)
from torch_ire.optim.batches import buffer_for, is_dense, moved_to
from torch_ire.optim.checkpoint import (
    check_state,
    completed_groups,
    restored_tensors,
    take_label_generator,
    with_label_generator,
    with_readable_masks,
    without_tensors,
)
from torch_ire.optim.device_schedule import (
    advance,
    check_capture,
    check_captured_state,
    ensure_mask,
    on_device,
    past_warmup,
    place_schedule,
    plain_counters,
    with_plain_counters,
)
from torch_ire.optim.estimates import ensure_saved_state
from torch_ire.optim.ire_optimizer import IREOptimizer
from torch_ire.optim.mask_refresh import MaskRefresh
from torch_ire.optim.projected import (
    amplify_projected,
    projected_parameters,
    projector_of,
    refresh_projectors,
    with_curvatures,
    without_projectors,
)
from torch_ire.optim.rehearsal import is_rehearsal
from torch_ire.optim.replicas import check_replicas
from torch_ire.optim.sharding import check_placements, local_part
from torch_ire.optim.summary import Direction, summarize
from torch_ire.optim.update_rules import functions_of
from torch_ire.packed_mask import unpack

_STATE_KEYS = ("flat_mask", "hessian_diag", "hessian_diag_updates")
# Optimizers of torch.optim, and Lion, whose weight decay multiplies the parameter by 1 - lr weight_decay.
_DECOUPLED = {"AdamW", "Adafactor", "Muon", "Lion"}


class IRE:
    r"""Implicit regularization enhancement for the optimizers that it is attached to.

    .. math:: \theta_{t+1} = \theta_t + (1 + \kappa n_t) \odot \Delta_t

    with :math:`\Delta_t` whatever displacement the optimizer's own ``step()`` makes. Training loops, schedulers and
    scalers go on using the optimizer itself; the handle refreshes the mask::

        opt = torch.optim.NAdam(model.parameters(), lr=2e-3)
        ire = torch_ire.IRE(opt, kappa=2.0, gamma=0.8)
        for x, y in loader:
            if ire.mask_due():
                torch_ire.sampled_cross_entropy(model(x)).backward()
                ire.update_mask()
            F.cross_entropy(model(x), y).backward()
            opt.step()
            opt.zero_grad()

    The arguments are put into the parameter groups, where a group that has one already keeps it, and the masks into the
    optimizer's ``state``, so that its ``state_dict`` carries both. The optimizers in one handle share one ranking.

    Args:
        optimizers: One optimizer or several (Muon for matrices with AdamW for the rest, say).
        kappa: Enhancement of the flat coordinates, at least 0.
        gamma: Share of the coordinates that is flat, in [0, 1].
        warmup_steps: T_w, the step of the first mask; before it nothing is amplified.
        mask_interval: K, steps between refreshes.
        curvature: "fisher", "hutchinson", "random" or a projector, as in :class:`AdmIRE`.
        curvature_beta: Averaging of the estimates over refreshes, in [0, 1), bias corrected; 0 keeps nothing but the
            bits.
        kappa_follows_lr: kappa_eff = kappa lr / (largest lr seen).
        amplify_weight_decay: ``False`` leaves a decoupled weight decay at its base rate.
        ranking: One ranking over all parameters ("global"), over the group, or within each parameter.
        seed: Of random masks and signs; the same on every replica.
        capturable: The step may be captured in a CUDA graph and compiled without recompilation, as far as the optimizer
            allows, with the conditions of :class:`AdmIRE`. Implied by an argument of that name of the optimizer.
        implementation: "native", "reference", or ``None`` for native where it runs.

    Raises:
        ValueError: An argument is out of its range or does not fit the optimizer.
        TypeError: Something is not an optimizer.

    Cost: 20 + 1/8 bytes of traffic a float32 parameter on top of the optimizer's step, and a copy of the parameters;
    the classes of this library need neither.

    Example:
        >>> import torch, torch_ire
        >>> model = torch.nn.Linear(8, 3)
        >>> opt = torch.optim.NAdam(model.parameters())
        >>> ire = torch_ire.IRE(opt, kappa=2.0, gamma=0.5, curvature="random")
        >>> model(torch.randn(4, 8)).sum().backward()
        >>> opt.step()
        >>> ire.detach()

    References:
        Wang et al., arXiv:2405.20763, Algorithm 1.
    """

    def __init__(
        self,
        optimizers: Optimizer | Iterable[Optimizer],
        *,
        kappa: float | Tensor = 2.0,
        gamma: float = 0.8,
        warmup_steps: int = 0,
        mask_interval: int = 10,
        curvature: CurvatureName | Projector = "fisher",
        curvature_beta: float = 0.0,
        kappa_follows_lr: bool = False,
        amplify_weight_decay: bool = True,
        ranking: Ranking = "global",
        seed: int = 0,
        capturable: bool = False,
        implementation: Implementation | None = None,
    ) -> None:
        self._capturable = capturable
        self.optimizers = [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers)
        self._defaults = ire_defaults(
            kappa=kappa,
            gamma=gamma,
            warmup_steps=warmup_steps,
            mask_interval=mask_interval,
            curvature=curvature,
            curvature_beta=curvature_beta,
            kappa_follows_lr=kappa_follows_lr,
            amplify_weight_decay=amplify_weight_decay,
            ranking=ranking,
            seed=seed,
            implementation=implementation,
        )
        if not self.optimizers:
            raise ValueError("IRE got an empty list of optimizers")
        for optimizer in self.optimizers:
            _check_optimizer(optimizer, self._defaults)
        if len({id(optimizer) for optimizer in self.optimizers}) < len(self.optimizers):
            raise ValueError("IRE got the same optimizer twice")
        # estimates of parameters whose optimizer has no state yet: most optimizers take any state for a complete one
        self._pending: dict[Tensor, dict[str, Any]] = {}
        # arguments that groups had before, by positions of optimizer and group: detach() gives them back
        self._given: dict[tuple[int, int], dict[str, Any]] = {}
        self._attach()

    def _attach(self) -> None:
        self._owner = {p: o for o in self.optimizers for group in o.param_groups for p in group["params"]}
        self._previous: dict[Tensor, Tensor] = {}
        self._started: dict[Tensor, Tensor] = {}
        self._rehearsing = False  # of the step between its two hooks
        self._refresh = MaskRefresh("IRE", self._groups, self._state_of, self._state_of, functions_of)
        self._hooks = []
        for optimizer in self.optimizers:
            optimizer._torch_ire_handle = self  # type: ignore[attr-defined]
            self._complete(optimizer)
            self._hooks += [
                optimizer.register_step_pre_hook(self._before_step),
                optimizer.register_step_post_hook(self._after_step),
                optimizer.register_state_dict_post_hook(self._after_state_dict),
                optimizer.register_load_state_dict_pre_hook(self._before_load),
                optimizer.register_load_state_dict_post_hook(self._after_load, prepend=True),
            ]

    def __getstate__(self) -> dict[str, Any]:
        kept = ("optimizers", "_defaults", "_capturable", "_pending", "_given")
        return {key: self.__dict__[key] for key in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._attach()

    def detach(self) -> None:
        """Undoes the attachment: the optimizers are what they were, without masks or arguments of IRE.

        The handle is of no further use.
        """
        for hook in self._hooks:
            hook.remove()
        for number, optimizer in enumerate(self.optimizers):
            del optimizer._torch_ire_handle  # type: ignore[attr-defined]
            for position, group in enumerate(optimizer.param_groups):
                for key in self._defaults:
                    group.pop(key, None)
                group.update(self._given.get((number, position), {}))
                group.pop("ire_capturable", None)
                for param in group["params"]:
                    for key in _STATE_KEYS:
                        optimizer.state.get(param, {}).pop(key, None)
        self._hooks, self._pending, self._previous, self._started = [], {}, {}, {}
        self.optimizers, self._owner = [], {}

    # -- mask --------------------------------------------------------------------------------------------------------

    def mask_due(self) -> bool:
        """Whether ``update_mask()`` is to be called before the coming step: at t = T_w, T_w + K, ... (Algorithm 1)."""
        return self._refresh.due()

    def update_mask(
        self,
        loss: Tensor | None = None,
        *,
        num_predictions: float = 1.0,
        grad_scale: float | Tensor | None = None,
        process_group: torch.distributed.ProcessGroup | None = None,
    ) -> None:
        """Refreshes the masks of all optimizers from one ranking; see :meth:`AdmIRE.update_mask`.

        Args:
            loss: For ``curvature="hutchinson"``: a scalar loss with its graph. For "fisher": nothing.
            num_predictions: B, the number of independent predictions in the batch.
            grad_scale: The loss scale that the gradients carry, where ``curvature_beta`` > 0.
            process_group: The replicas whose "hutchinson" estimates are averaged.

        Raises:
            RuntimeError: No parameter has a gradient, a gradient is sparse, or the curvature does not need this call.
        """
        self._refresh.from_gradients(loss, num_predictions, grad_scale, process_group)

    def ire_summary(self, *, over_mesh: bool = False) -> dict[str, Any]:
        """As :meth:`AdmIRE.ire_summary`; ``displacement_share`` is that of the last step."""
        groups = self._groups()
        state = {param: self._state_of(param) for param in self._owner}
        return summarize(groups, state, self._refresh.thresholds, self._last_displacement, over_mesh)

    def check_replicas(self, process_group: torch.distributed.ProcessGroup | None = None) -> None:
        """As :meth:`AdmIRE.check_replicas`, for the parameters, masks and estimates of all optimizers."""
        groups = self._groups()
        state = {param: self._state_of(param) for param in self._owner}
        check_replicas("IRE", groups, state, _STATE_KEYS, process_group)

    def _last_displacement(self, group: Mapping[str, Any], param: Tensor, state: Mapping[str, Any]) -> Direction | None:
        if param not in self._started or "flat_mask" not in state:
            return None
        part = local_part(param)
        decay = unamplified_decay(group) * self._started[param].double()
        moved = (part - self._started[param]).double() + decay
        amplified = torch.where(unpack(state["flat_mask"], part), moved / (1 + float(enhancement(group))), moved)
        return amplified, -decay

    # -- hooks -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        groups = self._groups()
        check_capture("IRE", optimizer.param_groups, host_decay=True)
        for group in optimizer.param_groups:
            note_learning_rate(group)
        beside = (param for param, owner in self._owner.items() if owner is not optimizer)
        self._rehearsing = is_rehearsal(optimizer.param_groups, optimizer.state, beside)
        if not self._rehearsing:
            if any(group["curvature"] == "random" and not asks_for_refresh(group) for group in groups):
                self._refresh.at_random()
            refresh_projectors(optimizer.param_groups)
        now = projected_parameters(optimizer.param_groups)
        for group in optimizer.param_groups:
            for param in group["params"]:
                if param.grad is not None and on_device(group):
                    check_captured_state("IRE", self._state_of(param), ["flat_mask"])
                    ensure_mask(group, param, self._state_of(param))
            if past_warmup(group):
                now += [param for param in group["params"] if "flat_mask" in self._state_of(param)]
        for param in self._params_of(optimizer):
            self._started.pop(param, None)
        started = {param: buffer_for(self._previous, param) for param in now}
        if now:
            torch._foreach_copy_(list(started.values()), list(map(local_part, now)))
        self._started.update(started)  # what the other optimizers started from stays: a summary shows all of them

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        found_inf = getattr(optimizer, "found_inf", None)
        for group in optimizer.param_groups:
            for param in group["params"]:
                pending = self._pending.get(param)
                if pending is not None and (param.grad is not None or optimizer.state.get(param)):
                    optimizer.state[param].update(self._pending.pop(param))
                if self._rehearsing and param.grad is not None:
                    ensure_saved_state(group, param, self._state_of(param))
            if projector_of(group) is not None:
                continue
            kappa = enhancement(group)
            decay = unamplified_decay(group)
            if decay and found_inf is not None:
                kappa = torch.where(found_inf != 0, 0.0, kappa)  # no step, hence no decay to be taken out of it
            calls: dict[Any, list[Tensor]] = {}
            for param in group["params"]:
                if param not in self._started or (decay and param.grad is None):
                    continue
                part = local_part(param)
                if not is_dense(part):
                    dense = self._previous[param].clone().copy_(part)
                    self._amplify(group, [param], [dense], kappa, decay)
                    part.copy_(dense)
                else:
                    calls.setdefault((part.device, part.dtype), []).append(param)
            for params in calls.values():
                self._amplify(group, params, list(map(local_part, params)), kappa, decay)
        amplify_projected("IRE", optimizer.param_groups, self._started, found_inf)
        if not self._rehearsing:
            advance(optimizer.param_groups)

    def _amplify(
        self, group: Mapping[str, Any], params: list[Tensor], moved: list[Tensor], kappa: float | Tensor, decay: float
    ) -> None:
        if on_device(group) and isinstance(kappa, Tensor):
            kappa = moved_to(moved[0].device, kappa)
        in_place = isinstance(kappa, Tensor) and kappa.device == moved[0].device
        functions_of(group).displacement_flat_(
            moved,
            [self._started[p] for p in params],
            [self._state_of(p)["flat_mask"] for p in params],
            kappa=0.0 if in_place else float(kappa),
            decay=decay,
            kappa_tensor=kappa.detach().reshape(()) if isinstance(kappa, Tensor) and in_place else None,
        )

    def _after_state_dict(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        params = [param for group in optimizer.param_groups for param in group["params"]]
        state = dict(state_dict["state"])
        for i, param in enumerate(params):
            if self._pending.get(param):
                state[i] = {**state.get(i, {}), **self._pending[param]}
        state_dict = with_readable_masks({**state_dict, "state": state}, params, optimizer.param_groups)
        return with_label_generator(with_plain_counters(without_projectors(state_dict)))

    def _before_load(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        if len(state_dict["param_groups"]) != len(optimizer.param_groups):
            return state_dict  # torch says so, before it changes anything
        self._complete(optimizer)
        groups = completed_groups(state_dict["param_groups"], optimizer.param_groups, state_dict)
        for group, ours in zip(groups, optimizer.param_groups, strict=True):
            group.pop("ire_capturable", None)
            group.update({key: ours[key] for key in ("ire_capturable",) if key in ours})
        self._curvatures = [group["curvature"] for group in optimizer.param_groups]
        self._loading = {**state_dict, "param_groups": groups}
        check_state(self._loading, self._params_of(optimizer), "IRE", _STATE_KEYS)
        for group in with_curvatures(groups, self._curvatures):
            check_ire_arguments(group)
        return without_tensors(self._loading, _STATE_KEYS)

    def _after_load(self, optimizer: Optimizer) -> None:
        params = self._params_of(optimizer)
        for param, tensors in restored_tensors(self._loading, params, _STATE_KEYS).items():
            self._pending.pop(param, None)
            if optimizer.state.get(param):
                optimizer.state[param].update(tensors)
            else:
                optimizer.state.pop(param, None)
                self._pending[param] = dict(tensors)
        for group, whole in zip(
            optimizer.param_groups, with_curvatures(optimizer.param_groups, self._curvatures), strict=True
        ):
            group["curvature"] = whole["curvature"]
        place_schedule(optimizer.param_groups)
        take_label_generator(optimizer.param_groups)
        del self._loading, self._curvatures

    # -- state -------------------------------------------------------------------------------------------------------

    def _groups(self) -> list[dict[str, Any]]:
        if not self.optimizers:
            raise RuntimeError("this IRE handle has been detached")
        for optimizer in self.optimizers:
            self._complete(optimizer)
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def _params_of(self, optimizer: Optimizer) -> list[Tensor]:
        return [param for group in optimizer.param_groups for param in group["params"]]

    def _state_of(self, param: Tensor) -> dict[str, Any]:
        state = self._owner[param].state.get(param)
        return state if state else self._pending.setdefault(param, {})

    def _complete(self, optimizer: Optimizer) -> None:
        """Gives the groups that have come since their arguments, and a place in the schedule."""
        for position, group in enumerate(optimizer.param_groups):
            if "ire_step" in group:
                continue
            whole = {**self._defaults, **group}
            _check_group(type(optimizer), whole)
            given = {key: value for key, value in group.items() if key in self._defaults}
            self._given[self.optimizers.index(optimizer), position] = given
            if self._capturable:
                whole["ire_capturable"] = True
            first = self.optimizers[0].param_groups[0]
            if "ire_step" in first:
                join_schedule(whole, {**first, **plain_counters(first)})
            group.update(whole)
            for param in group["params"]:
                self._owner[param] = optimizer
            place_schedule(optimizer.param_groups[: position + 1])


def _check_optimizer(optimizer: Any, defaults: Mapping[str, Any]) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"IRE is attached to torch.optim.Optimizer objects, got {type(optimizer).__name__}")
    if isinstance(optimizer, IREOptimizer):
        raise ValueError(f"{type(optimizer).__name__} has IRE built in")
    if hasattr(optimizer, "_torch_ire_handle"):
        raise ValueError(f"this {type(optimizer).__name__} has an IRE handle already; detach() that first")
    for group in optimizer.param_groups:
        _check_group(type(optimizer), {**defaults, **group})


def _check_group(owner: type[Optimizer], group: Mapping[str, Any]) -> None:
    check_ire_arguments(group)
    check_placements("IRE", group)
    if group["curvature"] == "second_moment":
        raise ValueError("curvature='second_moment' is for AdmIRE and SAMIRE(base='adamw'), whose moments it ranks")
    if group["amplify_weight_decay"] or group.get("weight_decay", 0) == 0:
        return
    if not (group.get("decoupled_weight_decay") or any(base.__name__ in _DECOUPLED for base in owner.__mro__)):
        raise ValueError(
            "amplify_weight_decay=False needs a decoupled weight decay; that of "
            f"{owner.__name__} is part of the gradient"
        )
