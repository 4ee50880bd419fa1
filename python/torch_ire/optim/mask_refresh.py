"""The mask refresh shared by the optimizers and by ``IRE(...)``: which estimate, which parameters, which masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from torch_ire.counter_rng import mix64
from torch_ire.optim import estimates
from torch_ire.optim.arguments import asks_for_refresh, is_due, refresh_step
from torch_ire.optim.batches import dense_gradient, indexed_parameters, is_dense, laid_out_like
from torch_ire.optim.device_schedule import note_refresh, step_number
from torch_ire.optim.flat_masks import Ranked, draw_random_mask, refresh_masks
from torch_ire.optim.sharding import add_over_ranks, local_part, spread_of
from torch_ire.packed_mask import empty_mask

StateOf = Callable[[Tensor], dict[str, Any]]

# Streams of random numbers that start from one seed must not meet.
_RANDOM_MASK, _HUTCHINSON = 1, 2


class MaskRefresh:
    """Refreshes the masks of some parameter groups.

    Args:
        owner: Name for messages.
        groups: Returns the parameter groups; of several optimizers, all of them.
        state_of: Returns the state dict of a parameter, where ``flat_mask`` is kept; makes one where there is none.
        known_state: The same, but makes nothing: a parameter that was never looked at has an empty one.
        functions: :mod:`torch_ire.ops` or :mod:`torch_ire.reference` for a group.
    """

    def __init__(
        self,
        owner: str,
        groups: Callable[[], Sequence[dict[str, Any]]],
        state_of: StateOf,
        known_state: StateOf,
        functions: Callable[[Mapping[str, Any]], ModuleType],
    ) -> None:
        self.owner = owner
        self.groups = groups
        self.state_of = state_of
        self.known_state = known_state
        self.functions = functions
        #: thresholds of the last refresh by pool and gamma: hints for the next one, and what a summary shows
        self.thresholds: dict[tuple[Hashable, float], Tensor] = {}

    def due(self) -> bool:
        """Whether a refresh by ``update_mask()`` is due at the present step; reads each counter on a device once."""
        asking = [group for group in self.groups() if asks_for_refresh(group)]
        numbers = {id(group["ire_step"]): step_number(group) for group in asking}
        return any(is_due(group, numbers[id(group["ire_step"])]) for group in asking)

    @torch.no_grad()
    def from_gradients(
        self,
        loss: Tensor | None,
        num_predictions: float,
        grad_scale: float | Tensor | None,
        process_group: torch.distributed.ProcessGroup | None,
    ) -> None:
        """The refresh of ``update_mask()``: from ``.grad`` for "fisher", from the loss for "hutchinson".

        Where the step is capturable also that of the curvatures which ``step()`` refreshes by itself elsewhere.
        """
        groups = self.groups()
        asking = [group for group in groups if asks_for_refresh(group)]
        kinds = {group["curvature"] for group in asking}
        if len(kinds) > 1:
            raise RuntimeError(f"{self.owner}.update_mask(): the groups disagree on the curvature")
        kind = kinds.pop() if kinds else groups[0]["curvature"]
        if kind == "hutchinson":
            if loss is None:
                raise RuntimeError(
                    f"{self.owner}.update_mask(): curvature='hutchinson' needs the loss: "
                    "update_mask(loss), without backward()"
                )
            parameters = list(self._parameters(kind))
            average = estimates.average_over(process_group, [param for _, _, param in parameters], self.owner)
            key = mix64(mix64(asking[0]["seed"], _HUTCHINSON), step_number(asking[0]))
            found = estimates.hutchinson_estimates(loss, parameters, self.state_of, key, average)
            self._rank(kind, found, "abs")
        elif kind == "fisher":
            self._fisher(asking, loss, num_predictions, grad_scale)
        elif asking:
            if loss is not None:
                raise RuntimeError(f"{self.owner}.update_mask(): curvature={kind!r} takes no loss")
            if kind == "random":
                self._draw([group for group in asking if is_due(group)] or asking, lambda param: param.requires_grad)
            elif not self._rank_second_moment(may_have_skipped=True):
                raise RuntimeError(f"{self.owner}.update_mask(): there is no second moment before the first step")
        else:
            raise RuntimeError(f"{self.owner}.update_mask(): curvature={kind!r} is refreshed by step() itself")

    def _fisher(
        self,
        groups: Sequence[dict[str, Any]],
        loss: Tensor | None,
        num_predictions: float,
        grad_scale: float | Tensor | None,
    ) -> None:
        if loss is not None:
            raise RuntimeError(f"{self.owner}.update_mask(): curvature='fisher' reads .grad, it takes no loss")
        if not 0.0 < num_predictions < math.inf:
            raise ValueError(f"Invalid num_predictions value: {num_predictions}")
        gradients: list[estimates.Estimate] = []
        for index, group, param in self._parameters("fisher"):
            grad = dense_gradient(param, self.owner)
            if grad is not None:
                part = local_part(param)
                layout = part if is_dense(part) else torch.empty_like(part)
                gradients.append((index, group, param, laid_out_like(grad, layout)))
        if not self._anywhere(len(gradients), [param for _, _, param in self._parameters("fisher")]):
            raise RuntimeError(
                f"{self.owner}.update_mask(): no parameter has a gradient; expected the gradients of "
                "torch_ire.sampled_cross_entropy(model(x)).backward()"
            )
        if any(group["curvature_beta"] > 0 for group in groups):
            scale = None if grad_scale is None else torch.as_tensor(grad_scale, dtype=torch.float32)
            functions = self.functions(groups[0])
            averages = estimates.fold_gradients(functions, gradients, self.state_of, num_predictions, scale)
            self._rank("fisher", averages, "abs")
        else:
            # nothing is kept but the bits, and a common factor does not change a ranking
            self._rank("fisher", gradients, "square")
        for _, _, param in indexed_parameters(self.groups()):
            param.grad = None  # of the sampled loss, whoever ranks it

    @torch.no_grad()
    def from_second_moment(self, may_have_skipped: bool) -> None:
        """Ranks Adam's own second moment, where a group is due and a parameter has one.

        Args:
            may_have_skipped: Whether there may be parameters with state all of whose steps have been skipped.
        """
        if any(is_due(group) for group in self.groups() if group["curvature"] == "second_moment"):
            self._rank_second_moment(may_have_skipped)

    def _rank_second_moment(self, may_have_skipped: bool) -> bool:
        found = [
            (index, group, param, local_part(self.known_state(param)["exp_avg_sq"]))
            for index, group, param in self._parameters("second_moment")
            if "exp_avg_sq" in self.known_state(param)
        ]
        ready = self._anywhere(len(found), [param for _, _, param in self._parameters("second_moment")])
        if ready:
            self._rank("second_moment", found, "abs")
        for _, _, param, _ in found if may_have_skipped else ():
            state = self.known_state(param)
            if "flat_mask" in state:  # v = 0 before the first step is no estimate: not flat
                state["flat_mask"].mul_(state["step"].to(state["flat_mask"].device) > 0)
        return ready

    @torch.no_grad()
    def at_random(self, stepping: Callable[[Tensor], bool] = lambda param: param.requires_grad) -> None:
        """Draws every random mask that is due anew, of the parameters that may take the coming step: the control."""
        due = [group for group in self.groups() if group["curvature"] == "random" and is_due(group)]
        if due:
            self._draw(due, stepping)

    def _draw(self, due: Sequence[dict[str, Any]], stepping: Callable[[Tensor], bool]) -> None:
        for index, group, param in self._parameters("random"):
            if stepping(param) and any(group is g for g in due):
                key = mix64(mix64(mix64(group["seed"], _RANDOM_MASK), step_number(group)), index)
                draw_random_mask(self._mask_of(param), param, group["gamma"], key)
        for group in due:
            note_refresh(group, refresh_step(group))

    def _anywhere(self, number: int, params: Sequence[Tensor]) -> bool:
        """Whether any rank has something to rank: all that share a parameter ask, and those that have nothing wait."""
        spreads = list(dict.fromkeys(map(spread_of, params)))
        if spreads in ([], [None]):
            return number > 0
        counts = torch.full((), number, dtype=torch.int64, device=local_part(params[0]).device)
        total = add_over_ranks([(spread, counts) for spread in spreads], spreads, floating=False)
        return number > 0 or bool(total > 0)

    def _parameters(self, kind: str) -> Iterator[tuple[int, dict[str, Any], Tensor]]:
        """The parameters of the groups with this curvature, with their positions among all."""
        return (item for item in indexed_parameters(self.groups()) if item[1]["curvature"] == kind)

    def _mask_of(self, param: Tensor) -> Tensor:
        state = self.state_of(param)
        if "flat_mask" not in state:
            state["flat_mask"] = empty_mask(local_part(param))
        return state["flat_mask"]  # type: ignore[no-any-return]

    def _rank(self, kind: str, found: Sequence[estimates.Estimate], score: str) -> None:
        position = {id(group): i for i, group in enumerate(self.groups())}
        groups = [group for group in self.groups() if group["curvature"] == kind]
        # a call between two due steps refreshes everything
        due = [group for group in groups if is_due(group)] or groups
        scores = {id(param): estimate for _, _, param, estimate in found}
        ranked = []
        for index, group, param in self._parameters(kind):
            estimate = scores.get(id(param))
            is_due_here = any(group is g for g in due)
            is_written = is_due_here and estimate is not None
            mask = self._mask_of(param) if is_written else empty_mask(local_part(param).new_empty(0))
            ranked.append(Ranked(index, group, position[id(group)], param, estimate, mask, is_due_here))
            if is_due_here and estimate is None and "flat_mask" in self.known_state(param):
                self.known_state(param)["flat_mask"].zero_()  # no estimate: not flat
        refresh_masks(self.functions(groups[0]), ranked, score, self.thresholds)
        for group in due:
            note_refresh(group, refresh_step(group))
