"""The refresh of flat masks: the estimate, the parameters, and the masks that it writes.

One engine serves the optimizers of this library and ``IRE(...)``. It holds no reference to an optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_ire.counter_rng import mix64
from torch_ire.layouts import is_dense, laid_out_like
from torch_ire.masks import estimates
from torch_ire.masks.ranking import Ranked, draw_random_mask, refresh_masks
from torch_ire.packed_mask import empty_mask, note_layout
from torch_ire.sampled_loss import LabelGenerator
from torch_ire.sharding import add_over_ranks, local_part, shard_group_of
from torch_ire.steps.schedule import Group, asks_for_refresh, is_due, note_refresh, on_device, refresh_step, step_number
from torch_ire.steps.tensor_lists import dense_gradient, indexed_parameters, new_state
from torch_ire.steps.update_rules import functions_of

# Streams of random numbers that start from one seed must not meet; see also perturbation.py.
_RANDOM_MASK, _HUTCHINSON = 1, 2


@dataclass(frozen=True)
class Targets:
    """The groups of one ranking and their state.

    Args:
        owner: Name for messages.
        groups: The parameter groups, of one optimizer or several.
        state_of: Returns the state of a parameter; creates an empty one if there is none.
        known_state: Returns the state of a parameter, or an empty mapping.
    """

    owner: str
    groups: Sequence[Group]
    state_of: Callable[[Tensor], dict[str, Any]]
    known_state: Callable[[Tensor], Mapping[str, Any]]

    def parameters(self, kind: str) -> Iterator[tuple[int, Group, Tensor]]:
        """The parameters of the groups with this curvature, with their positions among all parameters."""
        return (item for item in indexed_parameters(self.groups) if item[1]["curvature"] == kind)


class MaskEngine:
    """Refreshes masks, and keeps thresholds, label generator and failed projectors between refreshes."""

    def __init__(self) -> None:
        #: thresholds of the last refresh by pool and gamma: hints for the next one, and shown in summaries
        self.thresholds: dict[tuple[Hashable, float], Tensor] = {}
        #: draws the labels between ``mask_due()`` and ``update_mask()``; its position is part of the state dict
        self.label_generator = LabelGenerator()
        #: ids of the projectors whose last refresh failed: each has warned
        self.failed_projectors: set[int] = set()

    def due(self, targets: Targets) -> bool:
        """Whether a refresh by ``update_mask()`` is due at the present step; reads each counter on a device once."""
        asking = [group for group in targets.groups if asks_for_refresh(group)]
        numbers = {id(group["ire_step"]): step_number(group) for group in asking}
        due = any(is_due(group, numbers[id(group["ire_step"])]) for group in asking)
        if due and any(group["curvature"] == "fisher" for group in asking):
            self.label_generator.lend()
        else:
            self.label_generator.take_back()  # of a refresh that was due and has not been made
        return due

    @torch.no_grad()
    def update(
        self,
        targets: Targets,
        loss: Tensor | None,
        num_predictions: float,
        grad_scale: float | Tensor | None,
        process_group: torch.distributed.ProcessGroup | None,
    ) -> None:
        """The refresh of ``update_mask()``: from ``.grad`` for "fisher", from the loss for "hutchinson".

        It also refreshes the "second_moment" and "random" masks of capturable groups, whose step refreshes none.
        """
        call = f"{targets.owner}.update_mask()"
        asking = [group for group in targets.groups if asks_for_refresh(group)]
        kinds = {group["curvature"] for group in asking}
        if len(kinds) > 1:
            raise RuntimeError(f"{call}: the groups disagree on the curvature")
        kind = kinds.pop() if kinds else targets.groups[0]["curvature"]
        if not asking:
            raise RuntimeError(f"{call}: step() refreshes curvature={kind!r} itself")
        if kind == "hutchinson":
            self._update_hutchinson(targets, asking, loss, process_group)
        elif loss is not None:
            reads = " reads .grad and" if kind == "fisher" else ""
            raise RuntimeError(f"{call}: curvature={kind!r}{reads} takes no loss")
        elif kind == "fisher":
            self._update_fisher(targets, asking, num_predictions, grad_scale)
        elif kind == "random":
            due = [group for group in asking if is_due(group)]
            draw(targets, _members(targets, "random", due or asking, lambda param: param.requires_grad))
            _note_refreshes(due or asking)
        elif not self._rank_second_moment(targets, may_have_skipped=True):
            raise RuntimeError(f"{call}: there is no second moment before the first step")

    def _update_hutchinson(
        self,
        targets: Targets,
        asking: Sequence[Group],
        loss: Tensor | None,
        process_group: torch.distributed.ProcessGroup | None,
    ) -> None:
        if loss is None:
            raise RuntimeError(
                f"{targets.owner}.update_mask(): curvature='hutchinson' needs the loss: "
                "update_mask(loss), without backward()"
            )
        parameters = list(targets.parameters("hutchinson"))
        average = estimates.average_over(process_group, [param for _, _, param in parameters], targets.owner)
        key = mix64(mix64(asking[0]["seed"], _HUTCHINSON), step_number(asking[0]))
        found = estimates.hutchinson_estimates(loss, parameters, targets.state_of, key, average)
        self._rank(targets, "hutchinson", found, "abs")

    def _update_fisher(
        self,
        targets: Targets,
        asking: Sequence[Group],
        num_predictions: float,
        grad_scale: float | Tensor | None,
    ) -> None:
        if not 0.0 < num_predictions < math.inf:
            raise ValueError(f"Invalid num_predictions value: {num_predictions}")
        gradients: list[estimates.Estimate] = []
        for index, group, param in targets.parameters("fisher"):
            grad = dense_gradient(param, targets.owner)
            if grad is not None:
                part = local_part(param)
                layout = part if is_dense(part) else torch.empty_like(part)
                gradients.append((index, group, param, laid_out_like(grad, layout)))
        if not _anywhere(len(gradients), [param for _, _, param in targets.parameters("fisher")]):
            raise RuntimeError(
                f"{targets.owner}.update_mask(): no parameter has a gradient; expected the gradients of "
                "torch_ire.sampled_cross_entropy(model(x)).backward()"
            )
        if any(group["curvature_beta"] > 0 for group in asking):
            scale = None if grad_scale is None else torch.as_tensor(grad_scale, dtype=torch.float32)
            functions = functions_of(asking[0])
            averages = estimates.fold_gradients(functions, gradients, targets.state_of, num_predictions, scale)
            self._rank(targets, "fisher", averages, "abs")
        else:
            # only the mask is kept, and a common factor does not change a ranking
            self._rank(targets, "fisher", gradients, "square")
        for _, _, param in indexed_parameters(targets.groups):
            param.grad = None  # the gradients of the sampled loss
        self.label_generator.take_back()

    def before_step(self, targets: Targets, stepping: Callable[[Tensor], bool]) -> bool:
        """Draws every random mask that is due.

        Args:
            targets: The groups.
            stepping: Whether a parameter takes the step.

        Returns:
            Whether a mask was due.
        """
        due = [group for group in targets.groups if draws_itself(group) and is_due(group)]
        if due:
            draw(targets, _members(targets, "random", due, stepping))
            _note_refreshes(due)
        return bool(due)

    def after_step(self, targets: Targets, *, may_have_skipped: bool) -> None:
        """Ranks Adam's own second moment if a group is due and a parameter has one.

        Args:
            targets: The groups.
            may_have_skipped: Whether a parameter may have state although all its steps were skipped.
        """
        asking = (g for g in targets.groups if g["curvature"] == "second_moment" and not asks_for_refresh(g))
        if any(map(is_due, asking)):
            self._rank_second_moment(targets, may_have_skipped)

    def _rank_second_moment(self, targets: Targets, may_have_skipped: bool) -> bool:
        # without a gradient since the parameter changed its layout, the moment has the old one
        found = [
            (index, group, param, laid_out_like(local_part(state["exp_avg_sq"]), local_part(param)))
            for index, group, param in targets.parameters("second_moment")
            if "exp_avg_sq" in (state := targets.known_state(param))
        ]
        ready = _anywhere(len(found), [param for _, _, param in targets.parameters("second_moment")])
        if ready:
            self._rank(targets, "second_moment", found, "abs")
        for _, _, param, _ in found if may_have_skipped else ():
            state = targets.known_state(param)
            if "flat_mask" in state:  # v = 0 before the first step is no estimate: not flat
                state["flat_mask"].mul_(state["step"].to(state["flat_mask"].device) > 0)
        return ready

    def _rank(self, targets: Targets, kind: str, found: Sequence[estimates.Estimate], score: str) -> None:
        position = {id(group): i for i, group in enumerate(targets.groups)}
        groups = [group for group in targets.groups if group["curvature"] == kind]
        # a call between two due steps refreshes all masks
        due = [group for group in groups if is_due(group)] or groups
        due_ids = set(map(id, due))
        scores = {id(param): estimate for _, _, param, estimate in found}
        written = _members(targets, kind, due, lambda param: id(param) in scores)
        create_masks(targets, [(group, param) for _, group, param in written])
        ranked = []
        for index, group, param in targets.parameters(kind):
            estimate, is_due_here = scores.get(id(param)), id(group) in due_ids
            if is_due_here and estimate is not None:
                mask = targets.state_of(param)["flat_mask"]
            else:
                mask = empty_mask(local_part(param).new_empty(0))
            ranked.append(Ranked(index, group, position[id(group)], param, estimate, mask, is_due_here))
            if is_due_here and estimate is None and "flat_mask" in targets.known_state(param):
                targets.known_state(param)["flat_mask"].zero_()  # no estimate: not flat
        refresh_masks(functions_of(groups[0]), ranked, score, self.thresholds)
        for item in ranked:
            if item.due and item.score is not None:
                note_layout(item.flat_mask, local_part(item.param))
        _note_refreshes(due)


Member = tuple[int, Group, Tensor]


def draws_itself(group: Mapping[str, Any]) -> bool:
    """Whether ``step()`` draws the group's random masks."""
    return group["curvature"] == "random" and not asks_for_refresh(group)


def draw(targets: Targets, members: Sequence[Member]) -> None:
    """Draws new random masks for some parameters.

    Args:
        targets: All groups.
        members: Positions, groups and parameters.
    """
    create_masks(targets, [(group, param) for _, group, param in members])
    for index, group, param in members:
        key = mix64(mix64(mix64(group["seed"], _RANDOM_MASK), step_number(group)), index)
        mask = note_layout(targets.state_of(param)["flat_mask"], local_part(param))
        draw_random_mask(mask, param, group["gamma"], key)


def _members(targets: Targets, kind: str, groups: Sequence[Group], chosen: Callable[[Tensor], bool]) -> list[Member]:
    ids = set(map(id, groups))
    return [item for item in targets.parameters(kind) if id(item[1]) in ids and chosen(item[2])]


def _note_refreshes(groups: Sequence[Group]) -> None:
    for group in groups:
        note_refresh(group, refresh_step(group))


def create_masks(targets: Targets, members: Sequence[tuple[Group, Tensor]]) -> None:
    """Creates an empty mask for each parameter that lacks one; a group, device and dtype share one allocation."""
    missing: dict[Any, list[Tensor]] = {}
    for group, param in members:
        if "flat_mask" not in targets.known_state(param):
            kind = (id(group), local_part(param).device, param.dtype, on_device(group))
            missing.setdefault(kind, []).append(param)
    for (*_, addresses_last), params in missing.items():
        parts = list(map(local_part, params))
        for param, mask in zip(
            params, new_state("flat_mask", parts, torch.uint8, packed=not addresses_last), strict=True
        ):
            targets.state_of(param)["flat_mask"] = mask


def _anywhere(number: int, params: Sequence[Tensor]) -> bool:
    """Whether any rank has an estimate; a collective of all ranks that share a parameter."""
    shard_groups = list(dict.fromkeys(map(shard_group_of, params)))
    if shard_groups in ([], [None]):
        return number > 0
    counts = torch.full((), number, dtype=torch.int64, device=local_part(params[0]).device)
    total = add_over_ranks([(group, counts) for group in shard_groups], shard_groups, floating=False)
    return number > 0 or bool(total > 0)
