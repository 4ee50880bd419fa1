"""SAMIRE: sharpness-aware minimization with implicit regularization enhancement."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from torch_ire.optim.adm_ire import AdmIRE
from torch_ire.optim.ire_optimizer import IREOptimizer
from torch_ire.optim.sgd_ire import SGDIRE
from torch_ire.steps import perturbation as sam
from torch_ire.steps.compiled_step import (
    check_capture,
    is_traceable_perturbation,
    outside_graph,
    perturb_in_graph,
    return_in_graph,
)
from torch_ire.steps.projected import refresh_projectors
from torch_ire.steps.second_pass import check_perturbed_gradients, step_from_theta
from torch_ire.steps.update_rules import RULES, UpdateRule

_BASES: dict[str, type[SGDIRE] | type[AdmIRE]] = {"sgd": SGDIRE, "adamw": AdmIRE}


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
        **arguments_of_the_base: The arguments of :class:`SGDIRE` or :class:`AdmIRE`.

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
        arguments = {"base": base, "rho": rho, "adaptive": adaptive, "perturbation": perturbation}
        super().__init__(params, {**defaults, **arguments})

    def _begin(self) -> None:
        super()._begin()
        self._perturbation, self._runs_closure = sam.Perturbation(), False

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """A scaler that skips ``step()`` would leave the parameters perturbed; Lightning clips inside the closure."""
        return not self._runs_closure or super()._step_supports_amp_scaling

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
        super()._check_group(group)
        if not group["rho"] >= 0.0:
            raise ValueError(f"Invalid rho value: {group['rho']}")
        if group["perturbation"] not in ("gradient", "random"):
            raise ValueError(f"Invalid perturbation value: {group['perturbation']!r} (expected 'gradient' or 'random')")

    def _backup_of(self, param: Tensor) -> Tensor | None:
        return sam.buffer_for(self._perturbation.buffers, param)

    @property
    def is_perturbed(self) -> bool:
        """Whether the parameters stand at theta + e: between ``first_step()`` and the step."""
        return self._perturbation.is_active or self._perturbation.in_graph["moved"]

    def __getstate__(self) -> dict[str, Any]:
        if self.is_perturbed:
            raise RuntimeError(f"{type(self).__name__}: copied between first_step() and second_step(), away from theta")
        return super().__getstate__()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As :meth:`AdmIRE.load_state_dict`; discards a pending perturbation.

        Args:
            state_dict: Plain dict of tensors and numbers.

        Raises:
            ValueError: The state dict belongs to another model. Nothing has been changed then.
        """
        super().load_state_dict(state_dict)
        self._perturbation.take_over(self.param_groups)
        self._perturbation.discard()

    def _check_refresh(self) -> None:
        super()._check_refresh()
        if self.is_perturbed:
            owner = type(self).__name__
            raise RuntimeError(f"{owner}.update_mask(): the parameters are perturbed; call it before first_step()")

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False, *, scaler: torch.amp.GradScaler | None = None) -> None:
        """Moves the parameters to theta + e and keeps theta.

        Args:
            zero_grad: Also clear the gradients, which belong to theta.
            scaler: The scaler of the loss, whose ``step()`` takes the second pass. If the gradients of this pass
                overflow, it lowers its scale; the step is skipped either way. The gradients stay scaled, since the
                scale cancels in the perturbation; ``scaler.unscale_`` is for the second pass.

        Raises:
            RuntimeError: The parameters are perturbed already, there is no gradient, or one does not fit its parameter.
                Nothing has been changed then.

        Any exception, Ctrl-C included, leaves the parameters at theta. A norm that is not finite moves nothing. Cost:
        20 bytes of traffic per float32 parameter. For sharded parameters the norm is that over all ranks: all have to
        call, also one without a gradient.
        """
        owner, state = type(self).__name__, self._perturbation
        if torch.compiler.is_compiling():
            if not state.in_graph["moved"] and scaler is None and is_traceable_perturbation(self.param_groups):
                perturb_in_graph(self)
                if zero_grad:
                    for param in self._parameters():
                        param.grad = None
            else:
                outside_graph(functools.partial(self.first_step, zero_grad, scaler=scaler))
            return
        if self.is_perturbed:
            raise RuntimeError(f"{owner}.first_step(): called twice; call second_step() or step() first")
        check_capture(owner, self.param_groups, lambda group, param: [])
        is_random = sam.groups_agree(self.param_groups, owner)
        targets = list((sam.random_directions if is_random else sam.gradient_directions)(owner, self.param_groups))
        norm = sam.norm_of(targets, self._parameters())
        if norm is None:
            hint = "call backward() first, or use perturbation='random'"
            raise RuntimeError(f"{owner}.first_step(): no parameter has a gradient; {hint}")
        found_nonfinite = None if is_random else sam.nonfinite_directions(targets, self.param_groups)
        refresh_projectors(owner, self.param_groups, self._masks.failed_projectors)  # at theta
        state.buffers = {param: state.buffers[param] for param in self._parameters() if param in state.buffers}
        state.move(targets, norm, found_nonfinite, scaler)
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        """Returns to theta and takes the amplified base step from there with the present gradients, in one pass.

        Args:
            zero_grad: Also clear the gradients, which belong to theta + e.

        Raises:
            RuntimeError: ``first_step`` has not been called, or a gradient does not fit its parameter. The parameters
                stay where they are then.
        """
        if not self.is_perturbed:
            raise RuntimeError(f"{type(self).__name__}.second_step(): call first_step() first")
        self.step()
        if zero_grad:
            self.zero_grad()

    @contextmanager
    def perturbed(self, *, scaler: torch.amp.GradScaler | None = None) -> Iterator[None]:
        """Context in which the parameters stand at theta + e, for loops that accumulate micro-batches themselves.

        Args:
            scaler: As in :meth:`first_step`.

        Entry clears the gradients. On exit, also by an exception, the parameters are theta again; ``step()`` takes the
        step. Cost over the two calls: one more pass of 8 bytes per parameter.
        """
        self.first_step(zero_grad=True, scaler=scaler)
        state = self._perturbation
        state.take_over(self.param_groups)
        norm, found_nonfinite = state.norm, state.found_nonfinite
        try:
            yield
        except BaseException:
            state.restore()
            raise
        if state.is_active:  # otherwise a step inside has ended the perturbation
            state.restore()
            state.norm, state.found_nonfinite, state.scaler = norm, found_nonfinite, scaler
            state.has_gradients = True

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
        state = self._perturbation
        if torch.compiler.is_compiling():
            if closure is None and state.in_graph["moved"] and is_traceable_perturbation(self.param_groups):
                return_in_graph(self, getattr(self, "found_inf", None))
                return None
            return outside_graph(self.step, closure)  # type: ignore[no-any-return]
        state.take_over(self.param_groups)
        has_second_gradients = state.has_gradients and any(param.grad is not None for param in self._parameters())
        if closure is None:
            step_from_theta(self, self._perturbation)
            return None
        loss = None
        try:
            if not (has_second_gradients or state.is_active):
                if self.param_groups[0]["perturbation"] != "random":
                    loss = self._evaluate(closure)
                self.first_step(zero_grad=True)
            perturbed_loss = self._evaluate(closure)
            check_perturbed_gradients(type(self).__name__, self._parameters())
            step_from_theta(self, state)
        except BaseException:
            state.restore()
            raise
        return perturbed_loss if loss is None else loss

    @torch.enable_grad()
    def _evaluate(self, closure: Callable[[], float]) -> float:
        try:
            self._runs_closure = True
            return closure()
        finally:
            self._runs_closure = False
