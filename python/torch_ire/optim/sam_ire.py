"""SAMIRE: sharpness-aware minimization with implicit regularization enhancement."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from torch_ire.counter_rng import as_int64, mix64
from torch_ire.optim.adm_ire import AdmIRE
from torch_ire.optim.batches import buffer_for, dense_gradient, indexed_parameters, is_dense, laid_out_like
from torch_ire.optim.compiled_step import (
    is_traceable_perturbation,
    outside_graph,
    perturb_in_graph,
    return_in_graph,
)
from torch_ire.optim.device_schedule import capturing, check_capture, step_number
from torch_ire.optim.ire_optimizer import IREOptimizer
from torch_ire.optim.sgd_ire import SGDIRE
from torch_ire.optim.sharding import add_over_ranks, are_plain, drawn, local_part, note_mutation, spread_of
from torch_ire.optim.skipped_steps import FirstPass, flags_of, over_all_ranks
from torch_ire.optim.update_rules import RULES, UpdateRule, functions_of

_BASES: dict[str, type[SGDIRE] | type[AdmIRE]] = {"sgd": SGDIRE, "adamw": AdmIRE}
# Stream of random numbers of the random perturbation; those of the masks are in mask_refresh.py.
_PERTURBATION = 3


def _check_base(base: str) -> None:
    if base not in _BASES:
        raise ValueError(f"Invalid base value: {base!r} (expected 'sgd' or 'adamw')")


class SAMIRE(IREOptimizer):
    r"""SAM, ASAM or average SAM whose step is ``1 + kappa`` times longer along the flat coordinates of the loss.

    .. math::
        e_t = \rho \frac{g_t}{\lVert g_t \rVert}, \qquad
        \theta_{t+1} = \theta_t + (1 + \kappa n_t) \odot \Delta_t\big(\nabla L(\theta_t + e_t)\big)

    :math:`\Delta_t` is the displacement of SGD or AdamW for the gradient at the perturbed parameters, taken from the
    unperturbed ones. Each step takes two gradients::

        loss(model(x), y).backward()
        opt.first_step(zero_grad=True)         # to theta + e
        loss(model(x), y).backward()           # under torch_ire.frozen_batch_norm(model) if it has BatchNorm
        opt.second_step(zero_grad=True)        # back to theta, and the step from there

    or ``opt.step(closure)``. With gradient accumulation, accumulate the same micro-batches before each of the two
    calls. With ``GradScaler``, scale both losses, call ``first_step(scaler=scaler)`` without unscaling (the scale
    cancels) and ``scaler.step(opt)`` in place of ``second_step``: a non-finite gradient in either pass skips the step,
    restores, and lowers the scale. ``skip_nonfinite=True`` skips without a scaler.

    Args:
        params: Parameters, named parameters, or groups; every argument may differ by group.
        lr: Learning rate, float or one-element tensor.
        base: "sgd" or "adamw".
        rho: Radius of the perturbation, at least 0.
        adaptive: ASAM: e = rho theta^2 g / || |theta| g ||.
        perturbation: "gradient", or "random": average SAM, e = rho xi / ||xi|| with xi normal, the same on every
            replica. It needs no gradient, so ``first_step`` comes before the only backward pass.
        **arguments_of_the_base: Those of :class:`SGDIRE` or :class:`AdmIRE`.

    Raises:
        ValueError: An argument is out of its range.
        TypeError: An argument is unknown to the base, or a parameter is complex.

    Cost: the base step and 24 bytes of traffic a float32 parameter; 4 bytes for the backup, which is no part of
    the state.

    Example:
        >>> import torch, torch_ire
        >>> model = torch.nn.Linear(8, 3)
        >>> opt = torch_ire.SAMIRE(model.parameters(), lr=0.1, momentum=0.9, rho=0.05, kappa=2.0)
        >>> x, y = torch.randn(16, 8), torch.randint(3, (16,))
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = torch.nn.functional.cross_entropy(model(x), y)
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)

    References:
        Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", arXiv:2010.01412.
        Kwon et al., "ASAM", arXiv:2102.11600.
        Wang et al., arXiv:2405.20763, Algorithm 1 and Theorems 5.5 and 5.6.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        base: Literal["sgd", "adamw"] = "sgd",
        rho: float = 0.05,
        adaptive: bool = False,
        perturbation: Literal["gradient", "random"] = "gradient",
        **arguments_of_the_base: Any,
    ) -> None:
        _check_base(base)
        # the base says which arguments it knows, what they default to and what they may be
        defaults = _BASES[base]([torch.zeros(1)], lr=lr, **arguments_of_the_base).defaults
        sam = {"base": base, "rho": rho, "adaptive": adaptive, "perturbation": perturbation}
        super().__init__(params, {**defaults, **sam})
        self._begin_passes()

    def _begin_passes(self) -> None:
        # what a compiled first_step leaves for the second; Dynamo follows what happens to a dict that is there
        self._pass_in_graph: dict[str, Any] = {"moved": False, "norm": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._begin_passes()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As :meth:`AdmIRE.add_param_group`; a group with a base of its own gets the defaults of that base."""
        if isinstance(param_group, dict):
            base = param_group.get("base", self.defaults["base"])
            _check_base(base)
            for key, value in RULES[base].defaults.items():
                if key not in self.defaults:
                    param_group.setdefault(key, value)
        super().add_param_group(param_group)

    def _rule(self, group: Mapping[str, Any]) -> UpdateRule:
        return RULES[group["base"]]

    def _check_group(self, group: Mapping[str, Any]) -> None:
        # a checkpoint of the base optimizer has no SAM arguments: completed_groups has put them in
        super()._check_group(group)
        if not group["rho"] >= 0.0:
            raise ValueError(f"Invalid rho value: {group['rho']}")
        if group["perturbation"] not in ("gradient", "random"):
            raise ValueError(f"Invalid perturbation value: {group['perturbation']!r} (expected 'gradient' or 'random')")

    def _backup_of(self, param: Tensor) -> Tensor | None:
        return buffer_for(self._buffers, param)

    @property
    def is_perturbed(self) -> bool:
        """Whether the parameters stand at theta + e: between ``first_step()`` and the step."""
        return bool(self._perturbed)

    @property
    def _perturbed(self) -> dict[Tensor, Tensor]:
        """Parameters that stand at theta + e, with theta; empty between steps. No state: it does not outlive a step."""
        moved: dict[Tensor, Tensor] = self._own.setdefault("_moved", {})
        if self._pass_in_graph["moved"]:  # a compiled first_step moves all trainable parameters, and notes no more
            params = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
            moved.update({param: self._buffers[param] for param in params})
            norm = self._pass_in_graph["norm"]
            self._own["_first_norm"], self._own["_first_pass"] = norm, FirstPass(norm, None, None)
            self._pass_in_graph.update(moved=False, norm=None)
        return moved

    @property
    def _is_perturbed(self) -> bool:
        # not whether there are backups: of sharded parameters this rank may have no part that moved
        return self._pass_in_graph["moved"] or "_first_norm" in self._own

    @property
    def _buffers(self) -> dict[Tensor, Tensor]:
        """Memory of the backups, kept from step to step."""
        return self._own.setdefault("_backups", {})  # type: ignore[no-any-return]

    def __getstate__(self) -> dict[str, Any]:
        if self._perturbed:
            raise RuntimeError(f"{type(self).__name__}: copied between first_step() and second_step(), away from theta")
        return super().__getstate__()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As :meth:`AdmIRE.load_state_dict`; a step that was begun is forgotten, for its weights are of another time.

        Args:
            state_dict: Plain dict of tensors and numbers.

        Raises:
            ValueError: The state dict belongs to another model. Nothing has been changed then.
        """
        super().load_state_dict(state_dict)
        self._forget_perturbation()
        self._own.pop("_gradients_taken", None)

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False, *, scaler: torch.amp.GradScaler | None = None) -> None:
        """Moves the parameters to theta + e and keeps theta.

        Args:
            zero_grad: Also clear the gradients, which belong to theta.
            scaler: The scaler of the loss, whose ``step()`` will be called for the second pass: where the gradients of
                this one overflow, it skips the step either way, and told so it lowers its scale too. The gradients stay
                scaled, since the scale of the perturbation cancels; ``scaler.unscale_`` is for the second pass.

        Raises:
            RuntimeError: The parameters are perturbed already, there is no gradient, or one is sparse. Nothing has been
                changed then.

        A norm that is not finite moves nothing. Cost: 20 bytes of traffic a float32 parameter. Of sharded parameters
        the norm is that over all ranks: all have to call, also one without a gradient.
        """
        if torch.compiler.is_compiling():
            perturbed = self._pass_in_graph["moved"]
            if not perturbed and scaler is None and is_traceable_perturbation(self.param_groups):
                perturb_in_graph(self)
                if zero_grad:
                    for _, _, param in indexed_parameters(self.param_groups):
                        param.grad = None
            else:
                outside_graph(functools.partial(self.first_step, zero_grad, scaler=scaler))
            return
        if self._is_perturbed:
            raise RuntimeError(f"{type(self).__name__}.first_step(): called twice; call second_step() or step() first")
        check_capture(type(self).__name__, self.param_groups)
        random = {group["perturbation"] == "random" for group in self.param_groups}
        if len(random) > 1:
            raise RuntimeError(f"{type(self).__name__}.first_step(): the groups disagree on the perturbation")
        is_random = random.pop()
        targets = list(self._random_directions() if is_random else self._gradients())
        norm = self._norm(targets)
        if norm is None:
            raise RuntimeError(
                f"{type(self).__name__}.first_step(): no parameter has a gradient; call backward() first, or use "
                "perturbation='random'"
            )
        found_nonfinite = None if is_random else self._found_nonfinite_among(targets)
        calls: dict[Any, tuple[list[Tensor], list[Tensor], list[Tensor]]] = {}
        for group, owner, direction in targets:
            backup = buffer_for(self._buffers, owner)
            self._perturbed[owner] = backup
            param = local_part(owner)
            if not is_dense(param):
                backup.copy_(param)
                scale = torch.where(norm.isfinite(), group["rho"] / (norm + 1e-12), 0.0).to(param.device, param.dtype)
                move = direction * param.square() if group["adaptive"] else direction
                param.add_(torch.where(scale != 0, scale * move, torch.zeros_like(move)))
                continue
            key = (param.device, param.dtype, group["rho"], group["adaptive"], functions_of(group))
            params, directions, backups = calls.setdefault(key, ([], [], []))
            params.append(param)
            directions.append(laid_out_like(direction, param))
            backups.append(backup)
        for (device, dtype, rho, adaptive, functions), (params, directions, backups) in calls.items():
            on_device = norm.to(device, torch.float64 if dtype == torch.float64 else torch.float32)
            functions.sam_perturb_(params, directions, backups, on_device, rho=rho, adaptive=adaptive)
        note_mutation([owner for _, owner, _ in targets])
        self._own["_first_norm"] = norm
        self._own["_first_pass"] = FirstPass(norm, found_nonfinite, scaler)
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        """Returns to theta and takes the amplified base step from there with the present gradients, in one pass.

        Args:
            zero_grad: Also clear the gradients, which belong to theta + e.

        Raises:
            RuntimeError: ``first_step`` has not been called.
        """
        if not self._pass_in_graph["moved"] and not self._is_perturbed:
            raise RuntimeError(f"{type(self).__name__}.second_step(): call first_step() first")
        self.step()
        if zero_grad:
            self.zero_grad()

    @contextmanager
    def perturbed(self, *, scaler: torch.amp.GradScaler | None = None) -> Iterator[None]:
        """Context in which the parameters stand at theta + e, for loops that own their micro-batches.

        Args:
            scaler: As in :meth:`first_step`.

        Gradients are cleared on entry and may be accumulated inside; on exit, also by an exception, the parameters are
        theta again, and ``step()`` takes the step. Cost over the two calls: one more pass of 8 bytes a parameter.
        """
        self.first_step(zero_grad=True, scaler=scaler)
        first_pass = self._own["_first_pass"]
        try:
            yield
        finally:
            self._restore()
        self._own["_gradients_taken"], self._own["_first_pass"] = True, first_pass

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Both passes of a SAM step with a closure; without one the second, or a base step if nothing is perturbed.

        Args:
            closure: Clears the gradients, evaluates the model, calls backward and returns the loss. It is called twice
                (once for a random perturbation, and after ``first_step()`` or ``perturbed()``); freeze BatchNorm in the
                perturbed call with :func:`torch_ire.frozen_batch_norm`.

        Returns:
            The loss of the first call, or ``None``.

        Raises:
            RuntimeError: The perturbed call of the closure left no gradient. The parameters are theta then.
        """
        if torch.compiler.is_compiling():
            if closure is None and self._pass_in_graph["moved"] and is_traceable_perturbation(self.param_groups):
                return_in_graph(self, getattr(self, "found_inf", None))
                return None
            return outside_graph(self.step, closure)  # type: ignore[no-any-return]
        # whether the gradients of the perturbed pass are there, or are up to one call of the closure
        second = self._own.pop("_gradients_taken", False) or self._is_perturbed
        if closure is None:
            self._step_from_backups()
            return None
        loss = None
        try:
            if not second:
                if self.param_groups[0]["perturbation"] != "random":
                    with torch.enable_grad():
                        loss = closure()
                self.first_step(zero_grad=True)
            with torch.enable_grad():
                perturbed_loss = closure()
            self._check_perturbed_gradients()
            self._step_from_backups()
        except BaseException:
            self._restore()
            raise
        return perturbed_loss if loss is None else loss

    def _check_perturbed_gradients(self) -> None:
        if all(param.grad is None for group in self.param_groups for param in group["params"]):
            raise RuntimeError(
                f"{type(self).__name__}.step(closure): the closure left no gradient at the perturbed parameters; it "
                "has to call backward() each time. Where a trainer passes a closure that computes nothing "
                "(Lightning's manual optimization), call first_step() and second_step()"
            )

    def _step_from_backups(self) -> None:
        found_inf = getattr(self, "found_inf", None)
        moved = dict(self._perturbed)
        first_pass = self._own.get("_first_pass")
        if first_pass is not None:  # one that is not finite skips the step as a second one does
            found_inf = first_pass.found_inf(self, found_inf)
        if not self._is_perturbed:
            self._step(None, found_inf)
            self._forget_perturbation()
            return
        for param, backup in moved.items():
            # a parameter that the second pass gave no gradient takes no step, but has to come back; one with gaps in
            # memory steps through a copy of itself
            part = local_part(param)
            if param.grad is None or not is_dense(part):
                part.copy_(backup)
        for _, _, param in indexed_parameters(self.param_groups):
            if param.grad is not None and param not in moved:
                moved[param] = local_part(param).clone()  # a gradient in the second pass only: a step from where it is
        self._step(moved, found_inf)
        self._forget_perturbation()

    def _restore(self) -> None:
        with torch.no_grad():
            for param, backup in self._perturbed.items():
                local_part(param).copy_(backup)
        self._forget_perturbation()

    def _forget_perturbation(self) -> None:
        self._perturbed.clear()
        for key in ("_first_norm", "_first_pass"):
            self._own.pop(key, None)

    def _found_nonfinite_among(self, gradients: list[tuple[Mapping[str, Any], Tensor, Tensor]]) -> Tensor | None:
        """What :meth:`_found_nonfinite` says of the second pass, of the first."""
        asking = [group for group in self.param_groups if group["skip_nonfinite"]]
        if not asking:
            return None
        flags = flags_of(functions_of, (item for item in gradients if item[0]["skip_nonfinite"]))
        return over_all_ranks(flags, [param for group in asking for param in group["params"]])

    def _gradients(self) -> Iterator[tuple[Mapping[str, Any], Tensor, Tensor]]:
        for _, group, param in indexed_parameters(self.param_groups):
            grad = dense_gradient(param, type(self).__name__)
            if grad is not None:
                yield group, param, grad

    def _random_directions(self) -> Iterator[tuple[Mapping[str, Any], Tensor, Tensor]]:
        if capturing():
            raise RuntimeError(
                f"{type(self).__name__}.first_step(): perturbation='random' draws on the host; a CUDA graph would "
                "repeat one direction"
            )
        for index, group, param in indexed_parameters(self.param_groups):
            if param.requires_grad:
                key = mix64(mix64(mix64(group["seed"], _PERTURBATION), step_number(group)), index)
                yield group, param, drawn(param, param.dtype, _normal(param, key))

    def _norm(self, targets: list[tuple[Mapping[str, Any], Tensor, Tensor]]) -> Tensor | None:
        """|| direction || over all parameters, || |theta| direction || over those of adaptive groups; on one device.

        ``None`` where no rank has a direction. Squares of shards are added over their mesh in the order of the ranks,
        so that every rank gets the same bits.
        """
        calls: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
        for group, owner, direction in targets:
            param = local_part(owner)
            key = (param.device, param.dtype, group["adaptive"], functions_of(group), spread_of(owner))
            tensors, weights = calls.setdefault(key, ([], []))
            dense = param if is_dense(param) else torch.empty_like(param).copy_(param)
            tensors.append(laid_out_like(direction, dense))
            if group["adaptive"]:
                weights.append(dense)
        norms = [(spread, f.global_norm(ts, ws)) for (*_, f, spread), (ts, ws) in calls.items()]
        params = self._parameters()
        spreads = [None] if are_plain(params) else list(dict.fromkeys(map(spread_of, params)))
        if spreads == [None] and len(norms) <= 1:
            return norms[0][1] if norms else None
        # of each square, that there is one: a rank without directions learns whether there are any
        device = local_part(params[0]).device
        nothing = torch.zeros(2, dtype=torch.float64, device=device)
        squares = [(spread, torch.stack([n.double().square(), torch.ones_like(n.double())])) for spread, n in norms]
        total, number = add_over_ranks([(None, nothing), *squares], spreads, floating=True)
        return total.sqrt() if norms or number > 0 else None


def _normal(param: Tensor, key: int) -> Callable[[int, int], Tensor]:
    generator = torch.Generator(param.device)

    def random(begin: int, count: int) -> Tensor:
        generator.manual_seed(as_int64(mix64(key, begin)) & 0x7FFFFFFFFFFFFFFF)
        return torch.empty(count, dtype=param.dtype, device=param.device).normal_(generator=generator)

    return random
