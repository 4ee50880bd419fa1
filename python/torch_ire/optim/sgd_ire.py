"""SGDIRE: SGD with implicit regularization enhancement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from torch_ire.optim.ire_optimizer import IREOptimizer
from torch_ire.steps.arguments import CurvatureName, Implementation, Projector, Ranking, Rounding, ire_defaults
from torch_ire.steps.update_rules import SGD, UpdateRule


class SGDIRE(IREOptimizer):
    r"""SGD whose step is ``1 + kappa`` times longer along the flat coordinates of the loss.

    .. math::
        \theta_{t+1} = \theta_t + (1 + \kappa n_t) \odot \Delta_t, \qquad
        n_{t,i} = [\, h_{t,i} \text{ is among the } \gamma N \text{ smallest} \,]

    :math:`\Delta_t` is the displacement of ``torch.optim.SGD``, momentum and L2 decay included, and :math:`h_t` an
    estimate of the diagonal curvature that is refreshed every ``mask_interval`` steps. ``kappa=0`` is SGD.

    Args:
        params: Parameters, named parameters, or groups. Every argument can be set per group.
        lr: Learning rate, float or one-element tensor.
        momentum: Momentum factor, at least 0.
        dampening: Dampening of the momentum.
        weight_decay: L2 penalty, at least 0.
        nesterov: Nesterov momentum.
        kappa: Enhancement of the flat coordinates, at least 0. A one-element tensor is read on the device.
        gamma: Share of coordinates that is flat, in [0, 1].
        warmup_steps: T_w, the step of the first mask. No step before it is amplified.
        mask_interval: K, steps between refreshes.
        curvature: "fisher" reads ``.grad`` of :func:`torch_ire.sampled_cross_entropy` in :meth:`update_mask`.
            "hutchinson" needs ``update_mask(loss)``. "random" draws a random mask of the same share: the control of any
            claim. An object such as :class:`torch_ire.curvature.FlatProjector` amplifies along its exact projector and
            ignores ``gamma``.
        curvature_beta: Decay of the average of the estimates over refreshes, in [0, 1), bias corrected. 0 keeps no
            average, only the mask.
        kappa_follows_lr: The effective kappa is kappa lr / (largest lr so far).
        amplify_weight_decay: Must be ``True`` with a weight decay, which SGD adds to the gradient and its momentum.
        ranking: One ranking over all parameters ("global"), per "group", or per "parameter".
        rounding: Treatment of the bits that a bfloat16 or float16 parameter cannot hold. "nearest" drops them, which
            loses small steps; "stochastic" (bfloat16) keeps them on average; "kahan" keeps them in a second tensor of
            the parameter's dtype, "master" in a float32 copy. It does not affect float32 and float64 parameters.
        seed: Seed of random masks, random signs and stochastic rounding. Use the same on every replica.
        skip_nonfinite: An infinite or NaN gradient in a group with this argument makes the step change nothing, in any
            group; :attr:`last_step_skipped` reports it. Costs one more read of the gradients, and for sharded
            parameters one message of one number per shard group.
        maximize: Ascend instead of descend.
        capturable: Allows capture of the step in a CUDA graph, after one step outside it, and
            ``torch.compile(fullgraph=True)``. Pass lr and kappa as tensors on the device if they change. The device
            counts the schedule, and the step refreshes no mask: call :meth:`mask_due` and :meth:`update_mask` outside
            the graph, for "random" too.
        implementation: "native", "reference" (plain torch), or ``None``: native on devices that have it.

    Raises:
        ValueError: An argument is out of its range.
        TypeError: A parameter is complex.

    Cost: 20 + 1/8 bytes of traffic and 4 + 1/8 bytes of state per float32 parameter, with momentum.

    Example:
        >>> import torch, torch_ire
        >>> model = torch.nn.Linear(8, 3)
        >>> opt = torch_ire.SGDIRE(model.parameters(), lr=0.1, momentum=0.9, kappa=4.0, curvature="random")
        >>> torch.nn.functional.cross_entropy(model(torch.randn(16, 8)), torch.randint(3, (16,))).backward()
        >>> opt.step()

    References:
        Wang et al., "Improving Generalization and Convergence by Enhancing Implicit Regularization", arXiv:2405.20763,
        Algorithm 1.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
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
        rounding: Rounding = "nearest",
        seed: int = 0,
        skip_nonfinite: bool = False,
        maximize: bool = False,
        capturable: bool = False,
        implementation: Implementation | None = None,
    ) -> None:
        base = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        ire = ire_defaults(
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
        own = {"rounding": rounding, "skip_nonfinite": skip_nonfinite, "maximize": maximize, "capturable": capturable}
        super().__init__(params, {**base, **ire, **own})

    def _rule(self, group: Mapping[str, Any]) -> UpdateRule:
        return SGD
