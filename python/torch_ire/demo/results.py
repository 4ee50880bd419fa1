"""From runs to rows: the best learning rate of each method, means, spreads, and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray

from torch_ire.demo.config import Method, Part
from torch_ire.demo.training import Run

# A method at one learning rate.
Setting = tuple[Method, float]


@dataclass(frozen=True)
class Estimate:
    """Mean and sample standard deviation over the seeds; the deviation of a single seed is ``None``."""

    mean: float
    std: float | None

    @classmethod
    def over(cls, values: Sequence[float]) -> Estimate:
        """The estimate from one value per seed; nan and nan if a seed diverged."""
        if not np.isfinite(values).all():
            return cls(float("nan"), float("nan"))
        return cls(fmean(values), stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class Row:
    """A method at its best learning rate on the validation split.

    Args:
        method: the method.
        lr: that learning rate.
        runs: one per seed.
        score: the part's metric on the test split.
        trace: Hessian trace over the seeds.
        seconds_per_step: over the runs of every learning rate.
        optimizer_bytes: bytes per parameter.
    """

    method: Method
    lr: float
    runs: tuple[Run, ...]
    score: Estimate
    trace: Estimate
    seconds_per_step: float
    optimizer_bytes: float


@dataclass(frozen=True)
class PartResults:
    """All measurements of one part.

    Args:
        part: its settings.
        rows: one per method, in the order of ``part.methods``.
        runs: one per method, learning rate and seed.
        traces: Hessian traces at the ``traced`` settings, one per seed.
        resolution: smallest difference of the metric that the test split can show.
    """

    part: Part
    rows: tuple[Row, ...]
    runs: Mapping[Setting, tuple[Run, ...]]
    traces: Mapping[Setting, tuple[float, ...]]
    resolution: float

    def row(self, method: Method) -> Row:
        """The row of a method."""
        (found,) = (row for row in self.rows if row.method == method)
        return found

    def score_at(self, method: Method, lr: float) -> Estimate:
        """The part's metric on the test split at one learning rate of the grid."""
        return Estimate.over([run.test for run in self.runs[method, lr]])


def best_lrs(part: Part, runs: Sequence[Run]) -> dict[Method, float]:
    """The best learning rate of each method: best mean over the seeds, on the validation split.

    A learning rate at which any seed diverged is the last choice; between equals the smaller one wins.
    """
    by_setting = by_settings(runs)

    def penalty(setting: Setting) -> float:
        metric = fmean(run.curve[-1] for run in by_setting[setting])
        if not np.isfinite(metric):
            return float("inf")
        return -metric if part.higher_is_better else metric

    return {method: min(part.lrs, key=lambda lr: penalty((method, lr))) for method in part.methods}


def traced(part: Part, runs: Sequence[Run]) -> list[Setting]:
    """The settings to measure the Hessian trace at: each method at its best learning rate and at that of its base.

    A lower rate alone ends in a sharper minimum, so flatness is compared at equal rates.
    """
    best = best_lrs(part, runs)
    own = [(method, lr) for method, lr in best.items()]
    at_base = [(method, best[part.control(method, "base")]) for method in part.methods]
    return list(dict.fromkeys(own + at_base))


def collect(
    part: Part, runs: Sequence[Run], traces: Mapping[Setting, Sequence[float]], resolution: float
) -> PartResults:
    """The results of a part from all its runs and the traces at the ``traced`` settings."""
    by_setting = by_settings(runs)
    rows = []
    for method, lr in best_lrs(part, runs).items():
        mine = [run for run in runs if run.job.method == method]
        at_best = by_setting[method, lr]
        rows.append(
            Row(
                method=method,
                lr=lr,
                runs=at_best,
                score=Estimate.over([run.test for run in at_best]),
                trace=Estimate.over(traces[method, lr]),
                seconds_per_step=float(np.median([run.seconds_per_step for run in mine])),
                optimizer_bytes=max(run.optimizer_bytes for run in mine),
            )
        )
    return PartResults(
        part, tuple(rows), by_setting, {key: tuple(values) for key, values in traces.items()}, resolution
    )


def by_settings(runs: Sequence[Run]) -> dict[Setting, tuple[Run, ...]]:
    """Runs by method and learning rate, in the order of their seeds."""
    settings: dict[Setting, tuple[Run, ...]] = {}
    for run in runs:
        key = run.job.method, run.job.lr
        settings[key] = (*settings.get(key, ()), run)
    return settings


def mean_curve(runs: Sequence[Run]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Steps, mean and standard deviation over the seeds of the validation metric; the deviation of one seed is 0."""
    curves = np.array([run.curve for run in runs], dtype=np.float64)
    deviation = curves.std(axis=0, ddof=1) if len(runs) > 1 else np.zeros(curves.shape[1])
    return np.array(runs[0].curve_steps, dtype=np.float64), curves.mean(axis=0), deviation


class Outcome(Enum):
    """The conclusion about IRE on one optimizer that the seeds support."""

    HELPED = "helped"
    LARGER_STEP = "no better than a random mask"
    NO_GAIN = "no gain"
    HARMED = "did harm"
    UNKNOWN = "one seed, no verdict"


@dataclass(frozen=True)
class Verdict:
    """An enhanced method against both of its controls.

    Args:
        row, base, random: the three rows.
        outcome: at the best learning rate of each.
        ahead_of_base_at: learning rates at which the method beats the base run at that same rate.
        behind_base_at: learning rates at which the base beats it.
        ahead_of_random_at: learning rates at which it beats the random mask run at that same rate.
        traces: Hessian traces of method, base and random mask, all at the base's best learning rate.
        flatter_than_base: 1 if its trace is below that of the base by more than the spread of the seeds, -1 if it is
            above by more, else 0.
        flatter_than_random: the same against the random mask.
    """

    row: Row
    base: Row
    random: Row
    outcome: Outcome
    ahead_of_base_at: tuple[float, ...]
    behind_base_at: tuple[float, ...]
    ahead_of_random_at: tuple[float, ...]
    traces: tuple[Estimate, Estimate, Estimate]
    flatter_than_base: int
    flatter_than_random: int

    @property
    def flattest(self) -> bool:
        """Whether the minimum is flatter than those of both controls."""
        return self.flatter_than_base > 0 and self.flatter_than_random > 0


def compare(better: Estimate, worse: Estimate, higher_is_better: bool, resolution: float = 0.0) -> int:
    """+1 if the first beats the second by more than the spread of the seeds, -1 if it loses by more, else 0.

    The spread is the larger of the two standard deviations, and at least ``resolution``. A finite mean beats a diverged
    one. Without deviations (one seed) the answer is 0.
    """
    finite = np.isfinite([better.mean, worse.mean])
    if not finite.all():
        return int(finite[0]) - int(finite[1])
    if better.std is None or worse.std is None:
        return 0
    gain = (better.mean - worse.mean) * (1 if higher_is_better else -1)
    spread = max(better.std, worse.std, resolution)
    return int(gain > spread) - int(gain < -spread)


def judge(results: PartResults) -> list[Verdict]:
    """One verdict for each enhanced method of a part."""
    part = results.part

    def beats(first: Estimate, second: Estimate) -> int:
        return compare(first, second, part.higher_is_better, results.resolution)

    verdicts = []
    for method in (m for m in part.methods if m.role == "enhanced"):
        base, random = part.control(method, "base"), part.control(method, "random")
        row, base_row, random_row = results.row(method), results.row(base), results.row(random)
        against_base = {lr: beats(results.score_at(method, lr), results.score_at(base, lr)) for lr in part.lrs}
        against_random = {lr: beats(results.score_at(method, lr), results.score_at(random, lr)) for lr in part.lrs}
        mine, of_base, of_random = (Estimate.over(results.traces[m, base_row.lr]) for m in (method, base, random))
        verdicts.append(
            Verdict(
                row=row,
                base=base_row,
                random=random_row,
                outcome=_outcome(row.score, beats(row.score, base_row.score), beats(row.score, random_row.score)),
                ahead_of_base_at=tuple(lr for lr in part.lrs if against_base[lr] > 0),
                behind_base_at=tuple(lr for lr in part.lrs if against_base[lr] < 0),
                ahead_of_random_at=tuple(lr for lr in part.lrs if against_random[lr] > 0),
                traces=(mine, of_base, of_random),
                flatter_than_base=compare(mine, of_base, higher_is_better=False),
                flatter_than_random=compare(mine, of_random, higher_is_better=False),
            )
        )
    return verdicts


def _outcome(score: Estimate, against_base: int, against_random: int) -> Outcome:
    if score.std is None:
        return Outcome.UNKNOWN
    if against_base < 0:
        return Outcome.HARMED
    if against_base == 0:
        return Outcome.NO_GAIN
    return Outcome.HELPED if against_random > 0 else Outcome.LARGER_STEP


def is_at_edge(part: Part, row: Row) -> bool:
    """Whether a method did best at an end of the grid, where a wider grid could do better."""
    return row.lr in (part.lrs[0], part.lrs[-1])
