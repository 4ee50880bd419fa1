"""One training run: the loop of the README, with timing and evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import process_time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd import backward
from torch.nn.functional import cross_entropy

import torch_ire
from torch_ire.demo.config import Method, Part
from torch_ire.demo.data import VOCABULARY, Dataset, Split
from torch_ire.demo.models import CharTransformer, DigitsResNet

# The first steps allocate the optimizer's state and warm the caches: the time per step leaves them out.
_UNTIMED_STEPS = 5
_EVALUATION_BATCH = 128
_WITH_FISHER = (torch_ire.AdmIRE, torch_ire.SGDIRE, torch_ire.SAMIRE)
# Evaluation takes about a tenth of the time: all the validation and test digits, a part of the windows of text.
_VALIDATION_EXAMPLES = {"digits": 300, "text": 160}
_TEST_EXAMPLES = {"digits": 497, "text": 512}


@dataclass(frozen=True)
class Job:
    """One run to do: a method at one learning rate with one seed."""

    part: Part
    method: Method
    lr: float
    seed: int


@dataclass(frozen=True)
class Run:
    """The outcome of a job.

    Args:
        job: the job.
        curve_steps: steps after which the validation split was evaluated.
        curve: the part's metric on the validation split after each of ``curve_steps``.
        test: the part's metric on the test split after the last step.
        seconds_per_step: mean over the steps, mask refreshes and SAM's second pass included, evaluation excluded.
            CPU time of the single thread of a run, independent of other load.
        optimizer_bytes: bytes that the optimizer holds per parameter, measured after the last step.
        weights: parameters and buffers at the end, for the measurement of sharpness.
    """

    job: Job
    curve_steps: tuple[int, ...]
    curve: tuple[float, ...]
    test: float
    seconds_per_step: float
    optimizer_bytes: float
    weights: dict[str, NDArray[np.generic]]


def build_model(part: Part) -> nn.Module:
    """The model of a part, with weights drawn from torch's global generator."""
    if part.name == "digits":
        return DigitsResNet(part.width)
    return CharTransformer(VOCABULARY, part.width, part.num_layers, part.num_heads, part.context)


def build_optimizer(job: Job, params: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The fused SGD and AdamW of torch for these two bases, our optimizers for all other methods."""
    part, method, lr = job.part, job.method, job.lr
    ire: dict[str, Any] = {
        "kappa": part.kappa,
        "gamma": part.gamma,
        "mask_interval": part.mask_interval,
        "warmup_steps": part.warmup_steps,
        "curvature": method.curvature,
        "seed": job.seed,
    }
    if method.role == "base":
        # kappa = 0 is the base optimizer: torch has no SAM.
        ire = {"kappa": 0.0}
    if method.optimizer == "adamw":
        if method.role == "base":
            return torch.optim.AdamW(params, lr, betas=part.betas, weight_decay=part.weight_decay, fused=True)
        return torch_ire.AdmIRE(params, lr, betas=part.betas, weight_decay=part.weight_decay, **ire)
    sgd: dict[str, Any] = {"momentum": part.momentum, "weight_decay": part.weight_decay}
    if method.optimizer == "sam":
        return torch_ire.SAMIRE(params, lr, base="sgd", rho=part.rho, **sgd, **ire)
    if method.role == "base":
        return torch.optim.SGD(params, lr, fused=True, **sgd)
    return torch_ire.SGDIRE(params, lr, **sgd, **ire)


def learning_rate(part: Part, lr: float, step: int) -> float:
    """Linear warm-up to ``lr``, then a cosine to ``final_lr_share * lr`` at the last step."""
    if step < part.warmup_steps:
        return lr * (step + 1) / part.warmup_steps
    progress = (step - part.warmup_steps) / max(1, part.steps - 1 - part.warmup_steps)
    return lr * (part.final_lr_share + (1 - part.final_lr_share) * 0.5 * (1 + math.cos(math.pi * progress)))


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> float:
    """Bytes of all tensors that an optimizer holds beside the parameters, per parameter.

    They are those in ``state`` and in its other attributes, such as SAM's copy of the unperturbed weights.
    """
    params = [param for group in optimizer.param_groups for param in group["params"]]
    sizes: dict[int, int] = {}
    seen: set[int] = set()
    pending: list[object] = [value for name, value in vars(optimizer).items() if name != "param_groups"]
    while pending:
        value = pending.pop()
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            sizes[storage.data_ptr()] = int(storage.nbytes())
        elif isinstance(value, Mapping):
            pending.extend(value.values())
        elif isinstance(value, list | tuple):
            pending.extend(value)
        elif type(value).__module__.startswith("torch_ire.") and id(value) not in seen:
            seen.add(id(value))
            names = (*getattr(value, "__dict__", ()), *getattr(value, "__slots__", ()))
            pending.extend(getattr(value, name, None) for name in names)
    for param in params:
        sizes.pop(param.untyped_storage().data_ptr(), None)
    num_parameters: int = sum(param.numel() for param in params)
    return sum(sizes.values()) / num_parameters


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over images, or over every character of every window."""
    return cross_entropy(model(inputs).flatten(0, -2), targets.flatten())


@torch.no_grad()
def evaluate(part: Part, model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """The part's metric: accuracy in per cent, or cross-entropy in nats per character."""
    model.eval()
    total = 0.0
    for x, y in zip(torch.split(inputs, _EVALUATION_BATCH), torch.split(targets, _EVALUATION_BATCH), strict=True):
        logits = model(x).flatten(0, -2)
        if part.higher_is_better:
            total += 100.0 * (logits.argmax(-1) == y.flatten()).sum().item()
        else:
            total += cross_entropy(logits, y.flatten(), reduction="sum").item()
    model.train()
    return total / targets.numel()


class Trainer:
    """A model, its optimizer and the batches of one job.

    Two jobs that differ only in method or learning rate start from the same weights and see the same batches.
    """

    def __init__(self, job: Job, train: Split) -> None:
        torch.manual_seed(job.seed)
        self.job = job
        self.model = build_model(job.part)
        self.params = list(self.model.parameters())
        self.optimizer = build_optimizer(job, self.params)
        self._train = train
        self._batches = torch.Generator().manual_seed(job.seed)
        self._labels = torch_ire.LabelGenerator(job.seed)

    def step(self, number: int) -> None:
        """One step of the base optimizer, after a mask refresh if one is due."""
        part, optimizer = self.job.part, self.optimizer
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(part, self.job.lr, number)
        starts = torch.randint(len(self._train), (part.batch_size,), generator=self._batches)
        inputs, targets = self._train.examples(starts)
        # Only the Fisher diagonal needs a pass of its own; step() refreshes the other masks.
        if isinstance(optimizer, _WITH_FISHER) and self.job.method.role == "enhanced" and optimizer.mask_due():
            with torch_ire.frozen_batch_norm(self.model):
                backward(torch_ire.sampled_cross_entropy(self.model(inputs), generator=self._labels))
            optimizer.update_mask()
        backward(loss_of(self.model, inputs, targets))
        if isinstance(optimizer, torch_ire.SAMIRE):
            optimizer.first_step(zero_grad=True)
            with torch_ire.frozen_batch_norm(self.model):
                backward(loss_of(self.model, inputs, targets))
            self._clip()
            optimizer.second_step(zero_grad=True)
        else:
            self._clip()
            optimizer.step()
            optimizer.zero_grad()

    def _clip(self) -> None:
        if self.job.part.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.params, self.job.part.clip_norm)


def train(job: Job, data: Mapping[str, Dataset], on_steps: Callable[[int], None]) -> Run:
    """Runs a job on the calling thread.

    Args:
        job: the job.
        data: by name of the part.
        on_steps: called after each evaluation with the number of steps since its last call.

    Returns:
        The run; the metric of a diverged run is not finite.
    """
    part = job.part
    splits = data[part.name]
    trainer = Trainer(job, splits.train)
    validation = splits.validation.spread(_VALIDATION_EXAMPLES[part.name])
    curve_steps: list[int] = []
    curve: list[float] = []
    seconds = 0.0
    for number in range(part.steps):
        start = process_time()
        trainer.step(number)
        if number >= _UNTIMED_STEPS or part.steps <= _UNTIMED_STEPS:
            seconds += process_time() - start
        done = number + 1
        if done % part.evaluate_every == 0 or done == part.steps:
            on_steps(done - (curve_steps[-1] if curve_steps else 0))
            curve_steps.append(done)
            curve.append(evaluate(part, trainer.model, *validation))
    timed = part.steps if part.steps <= _UNTIMED_STEPS else part.steps - _UNTIMED_STEPS
    return Run(
        job=job,
        curve_steps=tuple(curve_steps),
        curve=tuple(curve),
        test=evaluate(part, trainer.model, *splits.test.spread(_TEST_EXAMPLES[part.name])),
        seconds_per_step=seconds / timed,
        optimizer_bytes=optimizer_bytes(trainer.optimizer),
        weights={name: tensor.numpy() for name, tensor in trainer.model.state_dict().items()},
    )
