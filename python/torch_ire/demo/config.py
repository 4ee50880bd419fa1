"""All settings of the demo: the two parts, their methods, and the learning rates that each method tries."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Role = Literal["base", "enhanced", "random"]


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Args:
        name: its name in the table; unique within a part.
        optimizer: ``"sgd"``, ``"sam"`` (on SGD) or ``"adamw"``.
        role: ``"base"``: the plain optimizer; ``"enhanced"``: with IRE; ``"random"``: with IRE and a random mask.
        curvature: the ``curvature`` argument of the optimizer; ``None`` for the base.
    """

    name: str
    optimizer: Literal["sgd", "sam", "adamw"]
    role: Role
    curvature: Literal["fisher", "second_moment", "random"] | None = None


@dataclass(frozen=True)
class Part:
    """One half of the demo: a model, its data, the methods that train it, and their common settings.

    Args:
        name: ``"digits"`` or ``"text"``; chooses data and model.
        title: headline of table and picture.
        subject: data and model in a few words.
        metric: the compared quantity, measured on the test split.
        higher_is_better: direction of ``metric``.
        methods: rows of the table; every enhanced method has a base and a random one with the same ``optimizer``.
        lrs: learning rates that every method tries; the table shows the best on the validation split. Each is
            1 + kappa times the one before, so the base also runs at the rate that IRE gives to flat coordinates.
        steps: optimizer steps per run.
        batch_size: examples (images, windows of text) per step.
        evaluate_every: steps between two points of a curve.
        warmup_steps: steps of linear warm-up of the learning rate; IRE starts after them (T_w of the paper).
        final_lr_share: the cosine schedule ends at this share of the learning rate.
        momentum: of SGD and SAM.
        betas: of AdamW.
        weight_decay: of the base optimizer.
        clip_norm: largest norm of the training gradient; ``None``: no clipping.
        rho: radius of SAM.
        kappa, gamma, mask_interval: of IRE, the same for every method with IRE.
        width: of the model.
        num_layers, num_heads, context: of the Transformer.
    """

    name: Literal["digits", "text"]
    title: str
    subject: str
    metric: str
    higher_is_better: bool
    methods: tuple[Method, ...]
    lrs: tuple[float, ...]
    steps: int
    batch_size: int
    evaluate_every: int
    warmup_steps: int
    width: int
    final_lr_share: float = 0.05
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip_norm: float | None = None
    rho: float = 0.05
    kappa: float = 2.0
    gamma: float = 0.8
    mask_interval: int = 10
    num_layers: int = 0
    num_heads: int = 0
    context: int = 0

    def control(self, method: Method, role: Role) -> Method:
        """The control of an enhanced method: its base or its random mask."""
        (found,) = (m for m in self.methods if m.optimizer == method.optimizer and m.role == role)
        return found


DIGITS = Part(
    name="digits",
    title="Digits: small ResNet",
    subject="scikit-learn's handwritten digits with a small ResNet with BatchNorm",
    metric="test accuracy",
    higher_is_better=True,
    methods=(
        Method("SGD", "sgd", "base"),
        Method("SGD-IRE", "sgd", "enhanced", "fisher"),
        Method("SGD, random mask", "sgd", "random", "random"),
        Method("SAM", "sam", "base"),
        Method("SAM-IRE", "sam", "enhanced", "fisher"),
        Method("SAM, random mask", "sam", "random", "random"),
    ),
    lrs=(0.03, 0.09, 0.27),
    steps=160,
    batch_size=64,
    evaluate_every=20,
    warmup_steps=20,
    weight_decay=5e-4,
    width=16,
)

TEXT = Part(
    name="text",
    title="Text: causal Transformer",
    subject="the text of Python's own documentation, character by character, with a two-layer causal Transformer",
    metric="test loss",
    higher_is_better=False,
    methods=(
        Method("AdamW", "adamw", "base"),
        Method("AdmIRE, Fisher", "adamw", "enhanced", "fisher"),
        Method("AdmIRE, second moment", "adamw", "enhanced", "second_moment"),
        Method("AdamW, random mask", "adamw", "random", "random"),
    ),
    lrs=(0.002, 0.006, 0.018),
    steps=300,
    batch_size=24,
    evaluate_every=30,
    warmup_steps=30,
    weight_decay=0.1,
    clip_norm=1.0,
    width=48,
    num_layers=2,
    num_heads=4,
    context=32,
)


@dataclass(frozen=True)
class Plan:
    """The extent of one run of the demo.

    Args:
        parts: digits, then text.
        seeds: runs of each setting.
        probes: Hessian-vector products per trace.
        caution: printed before and after a shortened run; else empty.
    """

    parts: tuple[Part, Part]
    seeds: int
    probes: int
    caution: str = ""


FULL = Plan(parts=(DIGITS, TEXT), seeds=3, probes=4)
QUICK = Plan(
    parts=(
        replace(DIGITS, lrs=(0.03, 0.09), steps=60, evaluate_every=10, warmup_steps=10),
        replace(TEXT, lrs=(0.002, 0.006), steps=90, evaluate_every=15, warmup_steps=10),
    ),
    seeds=2,
    probes=3,
    caution="Quick run: fewer steps, seeds and learning rates. It shows that everything works and is no evidence.",
)
