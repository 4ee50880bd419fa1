"""What AdmIRE, SGDIRE and SAMIRE have in common: one flat ``torch.optim.Optimizer`` with a mask."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from torch_ire import _native, ops
from torch_ire.optim.arguments import (
    asks_for_refresh,
    check_ire_arguments,
    enhancement,
    join_schedule,
    note_learning_rate,
)
from torch_ire.optim.batches import Batch, dense_gradient, moved_to
from torch_ire.optim.checkpoint import (
    check_state,
    completed_groups,
    restored_tensors,
    take_label_generator,
    with_label_generator,
    with_readable_masks,
    without_tensors,
)
from torch_ire.optim.compiled_step import fill_lists, is_traceable, outside_graph, step_in_graph
from torch_ire.optim.device_schedule import (
    advance,
    check_capture,
    check_captured_state,
    ensure_mask,
    on_device,
    past_warmup,
    place_schedule,
    with_plain_counters,
)
from torch_ire.optim.estimates import ensure_saved_state
from torch_ire.optim.mask_refresh import MaskRefresh
from torch_ire.optim.projected import (
    amplify_projected,
    projected_parameters,
    refresh_projectors,
    with_curvatures,
    without_projectors,
)
from torch_ire.optim.rehearsal import is_rehearsal
from torch_ire.optim.replicas import check_replicas
from torch_ire.optim.rounding import KEPT_KEYS, rounding_keys
from torch_ire.optim.sharding import check_placements, local_part
from torch_ire.optim.skipped_steps import Flag, any_of, flags_of_list, over_all_ranks
from torch_ire.optim.summary import Direction, present_direction, summarize
from torch_ire.optim.update_rules import UpdateRule, check_base_arguments, functions_of

# State tensors with a dtype of their own, whatever the parameter's.
_DECLARED = ("step", "flat_mask", "hessian_diag", "hessian_diag_updates", *KEPT_KEYS)


class IREOptimizer(torch.optim.Optimizer):
    """Base class: parameter groups, schedule, mask, state dict. Subclasses say which update rule a group follows."""

    # position of the first parameter among all of the model, for random numbers
    first_index = 0
    # whether a step may turn out to be a rehearsal, by what the optimizer sees
    may_rehearse = True

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)

    def _rule(self, group: Mapping[str, Any]) -> UpdateRule:
        raise RuntimeError(f"{type(self).__name__} does not say which update rule a group follows")

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Tells ``torch.amp.GradScaler`` to leave unscaling and skipping to the step, which does both on the device.

        Lightning asks as well, and does not clip the gradients of an optimizer that unscales them. This one also takes
        gradients that have been unscaled, which is what Lightning does for an optimizer that it may clip.
        """
        asking = str(sys._getframe(1).f_globals.get("__name__", "")).partition(".")[0]
        return asking not in ("lightning", "lightning_fabric", "pytorch_lightning")

    # -- groups ------------------------------------------------------------------------------------------------------

    def _check_group(self, group: Mapping[str, Any]) -> None:
        """Raises ``ValueError`` for an argument out of its range; subclasses add their own."""
        check_base_arguments(group)
        self._rule(group).check(group)
        check_ire_arguments(group)
        if group["implementation"] == "native" and _native.module is None:
            raise ValueError(f"implementation='native': the native operators did not load ({_native.error})")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a parameter group, checked like those of the constructor; it joins the schedule where that stands.

        Args:
            param_group: ``{"params": ..., **arguments}``.

        Raises:
            ValueError: An argument is out of its range.
            TypeError: A parameter is complex.
        """
        if isinstance(param_group, dict):
            self._check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for param in group["params"]:
            if param.is_complex():
                self.param_groups.pop()
                raise TypeError(f"{type(self).__name__} does not support complex parameters")
        try:
            check_placements(type(self).__name__, group)
        except TypeError:
            self.param_groups.pop()
            raise
        join_schedule(group, self.param_groups[0])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for key, value in self.defaults.items():
                if key != "differentiable":  # which torch puts there, and which no group of ours has
                    group.setdefault(key, value)
        place_schedule(self.param_groups)

    # -- mask --------------------------------------------------------------------------------------------------------

    @property
    def _own(self) -> dict[str, Any]:
        """Attributes that are no state and that no copy takes along.

        A wrapper that poses as this class by inheriting from it (Lightning's) has those of the optimizer in it: some of
        its methods run on the wrapper and some on the optimizer.
        """
        inner = self.__dict__.get("_optimizer")
        return inner._own if isinstance(inner, IREOptimizer) else self.__dict__

    @property
    def _refresh(self) -> MaskRefresh:
        # made on demand: a copied or unpickled optimizer has its groups and state and nothing else
        own = self._own
        if "_mask_refresh" not in own:
            own["_mask_refresh"] = MaskRefresh(
                type(self).__name__,
                lambda: self.param_groups,
                lambda param: self.state[param],
                lambda param: self.state.get(param, {}),
                functions_of,
            )
        return own["_mask_refresh"]  # type: ignore[no-any-return]

    def mask_due(self) -> bool:
        """Whether ``update_mask()`` is to be called before the coming step: at t = T_w, T_w + K, ... (Algorithm 1).

        Always ``False`` for the curvatures that ``step()`` refreshes by itself: "second_moment" and "random", unless
        the optimizer is capturable. Cost: of a capturable optimizer, one number read from the device.
        """
        return self._refresh.due()

    def update_mask(
        self,
        loss: Tensor | None = None,
        *,
        num_predictions: float = 1.0,
        grad_scale: float | Tensor | None = None,
        process_group: torch.distributed.ProcessGroup | None = None,
    ) -> None:
        r"""Refreshes the flat mask from a curvature estimate, Eqs. (5) and (6).

        .. math::
            h \leftarrow \beta h + (1 - \beta) B g \odot g, \qquad
            n_i = [\, h_i \text{ is finite and at most the } \mathrm{round}(\gamma N)\text{-th smallest} \,]

        Args:
            loss: For ``curvature="hutchinson"``: a scalar loss with its graph. For "fisher": nothing; ``.grad`` holds
                the gradients of :func:`torch_ire.sampled_cross_entropy`.
            num_predictions: B, the number of independent predictions in the batch. It matters only to
                ``curvature_beta`` > 0 with batches of different sizes, and to who reads ``hessian_diag``.
            grad_scale: The loss scale that the gradients carry, where ``curvature_beta`` > 0; a ranking does not need
                it.
            process_group: The replicas whose estimates are averaged, for "hutchinson" alone: its products pass by the
                hooks in which ``DistributedDataParallel`` averages the gradients of "fisher".

        Raises:
            RuntimeError: No parameter has a gradient, a gradient is sparse, the curvature does not need this call, or
                "hutchinson" was not told the replicas. No tensor has been changed then.
            ValueError: ``num_predictions`` is not a positive number.

        Clears ``.grad`` ("fisher"). Cost: one to three reads of the gradients, at most 1 MiB of workspace with
        ``curvature_beta=0``. Determinism: exact and independent of the number of threads. Replicas with equal gradients
        get equal masks without communication; of sharded parameters all ranks have to call, also one without gradients,
        and each gets the threshold that one process would get: 49 KiB a rank for each way of sharding.

        References:
            Wang et al., arXiv:2405.20763, Eqs. (5) and (6).
        """
        self._refresh.from_gradients(loss, num_predictions, grad_scale, process_group)
        for group in self.param_groups:
            for param in group["params"]:
                if "flat_mask" in self.state.get(param, {}):
                    # a mask without moments would look like complete state to the base optimizer that loads it
                    self._rule(group).prepare(group, param, self.state[param])

    def ire_summary(self, *, over_mesh: bool = False) -> dict[str, Any]:
        """What IRE does at present: flat share, threshold, kappa and share of the displacement, as plain numbers.

        Args:
            over_mesh: Of sharded parameters, add up all ranks; all of them have to call then. Otherwise the shares are
                those of this rank's shards; thresholds are those of all ranks either way.

        Returns:
            ``flat_share`` (of all coordinates with a mask), ``flat_share_by_parameter`` (by name, or by
            "group.position"), ``threshold`` (of the last refresh of this process, by ranking and gamma), ``kappa_eff``
            (by group), ``displacement_share``: the share of the squared displacement, taken along the present direction
            of the base optimizer, that IRE adds; ``None`` where that direction is gone (SGD without momentum and
            gradients).

        Cost: one read of masks and moments, and a synchronisation with the device.
        """

        def direction(group: Mapping[str, Any], param: Tensor, state: Mapping[str, Any]) -> Direction | None:
            return present_direction(self._rule(group), group, param, state)

        return summarize(self.param_groups, self.state, self._refresh.thresholds, direction, over_mesh)

    def check_replicas(self, process_group: torch.distributed.ProcessGroup | None = None) -> None:
        """Raises where replicas have drifted apart: parameters, state, the schedule, or the position of the labels.

        All ranks have to call, between two steps. Of sharded parameters those ranks are compared that have the same
        shard. Without ``torch.distributed`` there is nothing to compare.

        Args:
            process_group: The ranks among which plain parameters should be equal; ``None``: all.

        Raises:
            RuntimeError: Something differs; on every rank, naming the first such tensor.

        Cost: one read of parameters and state, and a few messages of 16 bytes a tensor.
        """
        keys = dict.fromkeys(key for group in self.param_groups for key in self._rule(group).moment_keys)
        check_replicas(type(self).__name__, self.param_groups, self.state, (*_DECLARED, *keys), process_group)

    # -- step --------------------------------------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of the base optimizer, amplified by ``1 + kappa`` on the flat coordinates.

        Args:
            closure: Evaluates the model and returns the loss; called first, with gradients enabled.

        Returns:
            The closure's loss, or ``None``.

        Raises:
            RuntimeError: A gradient is sparse or of another dtype, device or shape than its parameter. No tensor has
                been changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step(None, getattr(self, "found_inf", None))
        return loss

    def _step(self, backups: Mapping[Tensor, Tensor] | None, found_inf: Tensor | None) -> None:
        """The step from the parameters as they are, or from their backups where a SAM perturbation has moved them."""
        if torch.compiler.is_compiling():
            if is_traceable(self.param_groups):
                step_in_graph(self, found_inf, restored=False)
            else:
                outside_graph(self._step, backups, found_inf)
            return
        check_capture(type(self).__name__, self.param_groups)
        self._graph_capture_check()
        for group in self.param_groups:
            note_learning_rate(group)
        # a mask that the loop refreshes stays as it is here
        curvatures = {group["curvature"] for group in self.param_groups if not asks_for_refresh(group)}
        rehearsal = self.may_rehearse and is_rehearsal(self.param_groups, self.state)
        batches = self._batches(backups)
        if rehearsal:
            for batch in batches:
                for param, state in zip(batch.owners, batch.states, strict=True):
                    ensure_saved_state(batch.group, param, state)
        found_inf = any_of([found_inf, None if rehearsal else self._found_nonfinite(batches, backups)])
        self._own["_last_step_skipped"] = None if found_inf is None else found_inf != 0
        if "random" in curvatures and not rehearsal:
            self._refresh.at_random(lambda param: param.grad is not None)
        if not rehearsal:
            refresh_projectors(self.param_groups)
        previous = {
            param: param.clone() if backups is None else backups[param]  # plain, as check_placements says
            for param in projected_parameters(self.param_groups)
            if param.grad is not None
        }
        for batch in batches:
            if batch.optimistic:
                try:
                    self._step_batch(batch, found_inf)
                except RuntimeError:
                    # the operator has checked all tensors and changed none; now with a look at each
                    for exact in self._exact_batches(batch.group, batch.indices[0], backups):
                        self._step_batch(exact, found_inf)
            else:
                self._step_batch(batch, found_inf)
        if previous:
            amplify_projected(type(self).__name__, self.param_groups, previous, found_inf)
        if "second_moment" in curvatures and not rehearsal:
            self._refresh.from_second_moment(may_have_skipped=found_inf is not None)
        if not rehearsal:
            advance(self.param_groups)

    @property
    def last_step_skipped(self) -> Tensor | None:
        """Whether the last step changed nothing since a gradient was not finite: a bool on the device.

        ``None`` before the first step, and where nobody looked: without ``skip_nonfinite=True`` and a ``GradScaler``. A
        step in a compiled graph does not say.
        """
        return self._own.get("_last_step_skipped")

    def _found_nonfinite(self, batches: list[Batch], backups: Mapping[Tensor, Tensor] | None) -> Tensor | None:
        """1 where a gradient of a group with ``skip_nonfinite`` is not finite, else 0; ``None`` where no group asks."""
        asking = [group for group in self.param_groups if group["skip_nonfinite"]]
        if not asking:
            return None
        flags = [
            flag for batch in batches if batch.group["skip_nonfinite"] for flag in self._flags_of_batch(batch, backups)
        ]
        return over_all_ranks(flags, [param for group in asking for param in group["params"]])

    def _flags_of_batch(self, batch: Batch, backups: Mapping[Tensor, Tensor] | None) -> list[Flag]:
        try:
            return flags_of_list(functions_of(batch.group), batch.owners, batch.grads)
        except RuntimeError:
            if not batch.optimistic:
                raise
            exact = self._exact_batches(batch.group, batch.indices[0], backups)
            return [flag for part in exact for flag in self._flags_of_batch(part, backups)]

    def _backup_of(self, param: Tensor) -> Tensor | None:
        """Where a parameter is kept while a perturbation has moved it."""
        return None

    def _init_group(self, group: dict[str, Any], *lists: list[Any]) -> None:
        """Fills the lists of a step for Dynamo, which knows this name."""
        fill_lists(self, group, *lists)

    def _step_batch(self, batch: Batch, found_inf: Tensor | None) -> None:
        group = batch.group
        flat_masks = batch.flat_masks() if past_warmup(group) else []
        self._rule(group).step(functions_of(group), batch, flat_masks, self._scalars(batch, found_inf))
        batch.write_back()

    def _batches(self, backups: Mapping[Tensor, Tensor] | None) -> list[Batch]:
        """All parameters with a gradient, checked and sorted into lists, before anything is written."""
        batches: list[Batch] = []
        first = self.first_index
        for group in self.param_groups:
            whole = None
            if self._whole_groups.get(id(group)) and backups is None:
                whole = Batch.of_whole_group(group, first, self.state, self._state_keys(group, group["params"][0]))
            batches += [whole] if whole is not None else self._exact_batches(group, first, backups)
            first += len(group["params"])
        return batches

    def _exact_batches(self, group: dict[str, Any], first: int, backups: Mapping[Tensor, Tensor] | None) -> list[Batch]:
        found = [
            (i, param, dense_gradient(param, type(self).__name__)) for i, param in enumerate(group["params"], first)
        ]
        rule = self._rule(group)
        batches: dict[tuple[torch.device, torch.dtype], Batch] = {}
        for index, param, grad in found:
            if grad is None:
                continue
            state = self.state[param]
            check_captured_state(type(self).__name__, state, self._state_keys(group, param))
            rule.prepare(group, param, state)
            ensure_mask(group, param, state)
            key = (local_part(param).device, param.dtype)
            if key not in batches:
                batches[key] = Batch(group)
            batches[key].add(index, param, grad, state)
            if backups is not None:
                batches[key].restore_from.append(backups[param])
        exact = list(batches.values())
        native = functions_of(group) is ops and _native.module is not None
        self._whole_groups[id(group)] = native and len(exact) == 1 and exact[0].is_whole_group()
        return exact

    def _state_keys(self, group: Mapping[str, Any], param: Tensor) -> tuple[str, ...]:
        """The state that a step of the group needs of a parameter before it starts."""
        mask = ("flat_mask",) * (on_device(group) and isinstance(group["curvature"], str))
        return (*self._rule(group).state_keys(group, param.dtype), *mask)

    @property
    def _whole_groups(self) -> dict[int, bool]:
        """Groups that were one batch as they are when last looked at; a guess, which the operator's checks correct."""
        return self._own.setdefault("_whole", {})  # type: ignore[no-any-return]

    def _scalars(self, batch: Batch, found_inf: Tensor | None) -> dict[str, Any]:
        """Learning rate, kappa and AMP scalars, each as a float or on the device of the batch."""
        group, device = batch.group, batch.params[0].device
        scalars: dict[str, Any] = {"rounding_keys": rounding_keys(batch)}
        for name, value in (("lr", group["lr"]), ("kappa", enhancement(group))):
            if isinstance(value, Tensor) and (value.device == device or on_device(group)):
                value = moved_to(device, value)
                number = value if value.dtype in (torch.float32, torch.float64) else value.float()
                scalars[name], scalars[f"{name}_tensor"] = 0.0, number.detach().reshape(())
            else:
                scalars[name] = float(value)
        for name, tensor in (("grad_scale", getattr(self, "grad_scale", None)), ("found_inf", found_inf)):
            scalars[name] = None if tensor is None else moved_to(device, tensor)
        return scalars

    def _graph_capture_check(self) -> None:
        # torch renamed it between our floor and today
        check = getattr(self, "_accelerator_graph_capture_health_check", None)
        (check or self._cuda_graph_capture_health_check)()

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """As ``torch.optim.Optimizer.state_dict``; each ``flat_mask`` is a bool tensor of its parameter's shape.

        The position of :data:`torch_ire.default_label_generator` goes along, in the groups.
        """
        state_dict = with_readable_masks(super().state_dict(), self._parameters(), self.param_groups)
        return with_label_generator(with_plain_counters(without_projectors(state_dict)))

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads what :meth:`state_dict` returned, or a checkpoint of the base optimizer from ``torch.optim``.

        Every state tensor keeps the dtype that this optimizer gives it, whatever the parameter's. What a checkpoint of
        the base optimizer lacks (the IRE arguments) stays as it is here.

        Args:
            state_dict: Plain dict of tensors and numbers.

        Raises:
            ValueError: The state dict belongs to another model: other groups, other sizes or shapes. Nothing has been
                changed then.
        """
        params = self._parameters()
        keys = [key for group in self.param_groups for key in self._rule(group).moment_keys]
        declared = {*_DECLARED, *keys}
        curvatures = [group["curvature"] for group in self.param_groups]
        full: Mapping[str, Any] = {}

        def take_out(_: torch.optim.Optimizer, loaded: dict[str, Any]) -> dict[str, Any]:
            nonlocal full
            if len(loaded["param_groups"]) != len(self.param_groups):
                return loaded  # torch says so, before it changes anything
            groups = completed_groups(loaded["param_groups"], self.param_groups, loaded)
            for group, ours in zip(groups, self.param_groups, strict=True):
                group["capturable"] = ours["capturable"]  # how this process runs the step, not where training stands
            full = {**loaded, "param_groups": groups}
            check_state(full, params, type(self).__name__)
            for group in with_curvatures(groups, curvatures):
                self._check_group(group)
            return without_tensors(full, declared)

        def put_back(_: torch.optim.Optimizer) -> None:
            for param, tensors in restored_tensors(full, params, declared).items():
                self.state[param].update(tensors)
            # now, not before: torch copies what it loads, and a projector stays the one that it is
            for group, whole in zip(self.param_groups, with_curvatures(self.param_groups, curvatures), strict=True):
                group["curvature"] = whole["curvature"]

        before = self.register_load_state_dict_pre_hook(take_out)
        after = self.register_load_state_dict_post_hook(put_back, prepend=True)
        try:
            super().load_state_dict(dict(state_dict))
        finally:
            before.remove()
            after.remove()
        take_label_generator(self.param_groups)
        self._refresh.thresholds.clear()

    def _parameters(self) -> list[Tensor]:
        return [param for group in self.param_groups for param in group["params"]]
