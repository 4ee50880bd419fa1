"""The handle of IRE around any optimizer."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from torch_ire.optim.attachment import STATE_KEYS, Attachment, attachment_of
from torch_ire.optim.ire_optimizer import IREOptimizer
from torch_ire.optim.mask_engine import Targets
from torch_ire.packed_mask import unpack
from torch_ire.replicas import check_replicas
from torch_ire.sampled_loss import LabelGenerator
from torch_ire.sharding import local_part
from torch_ire.steps.arguments import CurvatureName, Implementation, Projector, Ranking, ire_defaults
from torch_ire.steps.schedule import enhancement, past_warmup, unamplified_decay
from torch_ire.summary import Direction, summarize


class IRE:
    r"""Attaches implicit regularization enhancement to any torch optimizer, or to several.

    .. math:: \theta_{t+1} = \theta_t + (1 + \kappa n_t) \odot \Delta_t

    :math:`\Delta_t` is the displacement of the optimizer's own ``step()``. Training loops, schedulers and scalers keep
    using the optimizer itself; the handle refreshes the mask::

        opt = torch.optim.NAdam(model.parameters(), lr=2e-3)
        ire = torch_ire.IRE(opt, kappa=2.0, gamma=0.8)
        for x, y in loader:
            if ire.mask_due():
                torch_ire.sampled_cross_entropy(model(x)).backward()
                ire.update_mask()
            F.cross_entropy(model(x), y).backward()
            opt.step()
            opt.zero_grad()

    The groups hold the arguments as ``ire_kappa``, ``ire_gamma`` and so on, and a group may set its own. The
    optimizer's ``state`` holds the masks; its ``state_dict`` has both. The optimizers of one handle share one ranking.
    Copies and pickles of an optimizer keep IRE; the optimizers of one handle are copied together. A handle that goes
    out of scope leaves IRE attached; :func:`torch_ire.ire_of` returns a new one.

    Args:
        optimizers: One optimizer or several, such as Muon for matrices and AdamW for the rest.
        kappa: Enhancement of the flat coordinates, at least 0.
        gamma: Share of coordinates that is flat, in [0, 1].
        warmup_steps: T_w, the step of the first mask. No step before it is amplified.
        mask_interval: K, steps between refreshes.
        curvature: "fisher", "hutchinson", "random" or a projector, as in :class:`AdmIRE`.
        curvature_beta: Decay of the average of the estimates over refreshes, in [0, 1), bias corrected. 0 keeps no
            average, only the mask.
        kappa_follows_lr: The effective kappa is kappa lr / (largest lr so far).
        amplify_weight_decay: ``False`` leaves a decoupled weight decay at its base rate.
        ranking: One ranking over all parameters ("global"), per "group", or per "parameter".
        seed: Seed of random masks and signs. Use the same on every replica.
        capturable: Allows capture in a CUDA graph and compilation without recompilation, if the optimizer does, under
            the conditions of :class:`AdmIRE`. An argument of that name of the optimizer implies it.
        implementation: "native", "reference" (plain torch), or ``None``: native on devices that have it.

    Raises:
        ValueError: An argument is out of its range or does not fit the optimizer.
        TypeError: An argument is not an optimizer, or has not called ``torch.optim.Optimizer.__init__``.

    Cost: 20 + 1/8 bytes of traffic per float32 parameter on top of the optimizer's step, and a copy of the parameters;
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
        self.optimizers = [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers)
        if not self.optimizers:
            raise ValueError("IRE got an empty list of optimizers")
        arguments = ire_defaults(
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
        self._attachment = Attachment(arguments, capturable)
        for optimizer in self.optimizers:
            if isinstance(optimizer, IREOptimizer):
                raise ValueError(f"{type(optimizer).__name__} has IRE built in")
            self._attachment.check(optimizer)
        if len({id(optimizer) for optimizer in self.optimizers}) < len(self.optimizers):
            raise ValueError("IRE got the same optimizer twice")
        params = [id(p) for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]]
        if len(set(params)) < len(params):
            raise ValueError("IRE got a parameter that is in more than one optimizer")
        self._attach()

    def _attach(self) -> None:
        for optimizer in self.optimizers:
            self._attachment.attach(optimizer)
        self._attachment.handle = weakref.ref(self)

    @classmethod
    def of(cls, optimizer: Any) -> IRE | None:
        """The handle of an optimizer that IRE is attached to, or ``None``."""
        attachment = attachment_of(optimizer)
        if attachment is None:
            return None
        handle: IRE | None = attachment.handle() if attachment.handle is not None else None
        if handle is None:
            handle = cls.__new__(cls)
            handle.__setstate__({"optimizers": attachment.optimizers(), "_attachment": attachment})
        return handle

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._attach()

    def __repr__(self) -> str:
        return f"IRE({', '.join(type(optimizer).__name__ for optimizer in self.optimizers)})"

    def detach(self) -> None:
        """Removes hooks, masks and arguments of IRE from the optimizers; the handle cannot be used again."""
        self._attachment.detach()
        self.optimizers = []

    @property
    def label_generator(self) -> LabelGenerator:
        """As :attr:`AdmIRE.label_generator`."""
        return self._attachment.masks.label_generator

    def _targets(self) -> Targets:
        if not self.optimizers:
            raise RuntimeError("this IRE handle has been detached")
        return self._attachment.targets()

    def mask_due(self) -> bool:
        """Whether to call ``update_mask()`` before the coming step: at t = T_w, T_w + K, ... (Algorithm 1)."""
        return self._attachment.masks.due(self._targets())

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
            grad_scale: The loss scale of the gradients, for ``curvature_beta`` > 0.
            process_group: The replicas whose "hutchinson" estimates are averaged.

        Raises:
            RuntimeError: No parameter has a gradient, a gradient is sparse, or the curvature does not need this call.
        """
        self._attachment.masks.update(self._targets(), loss, num_predictions, grad_scale, process_group)

    def ire_summary(self, *, over_mesh: bool = False) -> dict[str, Any]:
        """As :meth:`AdmIRE.ire_summary`; ``displacement_share`` is that of the last step."""
        targets = self._targets()
        return summarize(
            targets.groups,
            [float(enhancement(group)) if past_warmup(group) else 0.0 for group in targets.groups],
            _state(targets),
            self._attachment.masks.thresholds,
            self._last_displacement,
            over_mesh,
        )

    def check_replicas(self, process_group: torch.distributed.ProcessGroup | None = None) -> None:
        """As :meth:`AdmIRE.check_replicas`, for the parameters, masks and estimates of all optimizers."""
        targets = self._targets()
        check_replicas("IRE", targets.groups, _state(targets), STATE_KEYS, self.label_generator, process_group)

    def _last_displacement(self, group: Mapping[str, Any], param: Tensor, state: Mapping[str, Any]) -> Direction | None:
        start = self._attachment.amplification.started.get(param)
        if "flat_mask" not in state:
            return None
        part = local_part(param)
        if start is None:  # kappa = 0 keeps no start, and adds nothing
            return (torch.zeros_like(part), 0.0) if float(enhancement(group)) == 0.0 else None
        decay = unamplified_decay(group) * start.double()
        moved = (part - start).double() + decay
        amplified = torch.where(unpack(state["flat_mask"], part), moved / (1 + float(enhancement(group))), moved)
        return amplified, -decay


def _state(targets: Targets) -> dict[Tensor, Any]:
    return {param: targets.known_state(param) for group in targets.groups for param in group["params"]}
