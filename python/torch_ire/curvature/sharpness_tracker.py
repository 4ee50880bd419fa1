"""Sharpness along a training run."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from torch_ire.curvature.eigenpairs import Eigenpairs
from torch_ire.curvature.estimates import trace
from torch_ire.curvature.lanczos import lanczos
from torch_ire.curvature.operator import Operator

__all__ = ["SharpnessRecord", "SharpnessTracker"]


@dataclass(frozen=True)
class SharpnessRecord:
    """One measurement.

    Args:
        step: the training step.
        lambda_max: largest Hessian eigenvalue.
        residual_norm: of that pair: an eigenvalue lies within it.
        limit: 2 / lr; inf for lr = 0, nan without a learning rate.
        trace: estimated trace, nan where it was not asked for.
        trace_error: its standard error.
        num_matvecs: products taken.

    Raises:
        TypeError: on a missing field.

    Cost: none.

    Example:
        >>> from torch_ire.curvature import SharpnessRecord
        >>> SharpnessRecord(0, 2.0, 1e-3, 20.0, 3.0, 0.1, 12).lambda_max
        2.0

    References:
        Cohen et al., Gradient descent on neural networks typically occurs at the edge of stability, ICLR 2021.
    """

    step: int
    lambda_max: float
    residual_norm: float
    limit: float
    trace: float
    trace_error: float
    num_matvecs: int


class SharpnessTracker:
    """Measures the leading eigenvalues every N steps, each time from the last eigenvectors.

    Args:
        operator: the Hessian, on a fixed batch: it is evaluated at the parameters of the moment.
        every: steps between measurements.
        k: leading eigenvalues to follow; `ritz_values` has all of the last measurement.
        tol: relative accuracy.
        trace_matvecs: products for a trace estimate each time; 0: none.
        lr: a number or one-element tensor, or a function that returns one: the learning rate for the line 2 / lr.
        csv_path: a file that gets one line a measurement, written through at once.
        writer: a TensorBoard `SummaryWriter`, or anything with `add_scalar(name, value, step)`.

    Example:
        >>> import torch
        >>> from torch_ire.curvature import HessianOperator, SharpnessTracker
        >>> theta = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> tracker = SharpnessTracker(HessianOperator(lambda: (theta**4).sum(), [theta]), every=10)
        >>> for step in range(20):
        ...     _ = tracker.update(step)
        >>> [round(record.lambda_max, 3) for record in tracker.history]
        [48.0, 48.0]

    Raises:
        ValueError: on `every` below 1.

    Cost: a warm-started `lanczos` run a measurement, and `trace_matvecs` products.

    References:
        Cohen et al., Gradient descent on neural networks typically occurs at the edge of stability, ICLR 2021.
    """

    def __init__(
        self,
        operator: Operator,
        *,
        every: int = 100,
        k: int = 1,
        tol: float = 1e-2,
        trace_matvecs: int = 0,
        lr: float | Tensor | Callable[[], float | Tensor] | None = None,
        csv_path: str | Path | None = None,
        writer: Any = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every: expected at least 1, got {every}")
        self._operator, self._every, self._k, self._tol = operator, every, k, tol
        self._trace_matvecs, self._lr, self._writer = trace_matvecs, lr, writer
        self._csv_path = None if csv_path is None else Path(csv_path)
        self._last: Eigenpairs | None = None
        self.history: list[SharpnessRecord] = []

    @property
    def ritz_values(self) -> list[float]:
        """The k leading eigenvalues of the last measurement."""
        return [] if self._last is None else list(self._last.ritz_values.tolist())

    def update(self, step: int) -> SharpnessRecord | None:
        """Measure where `step` is a multiple of `every`; to be called once a step.

        Returns:
            the new record, or None where none was due.
        """
        return self.measure(step) if step % self._every == 0 else None

    def measure(self, step: int) -> SharpnessRecord:
        """Measure now. Ctrl-C passes through, and leaves the record out."""
        before = self._operator.num_matvecs
        with self._operator.linearized():
            pairs = lanczos(self._operator, self._k, tol=self._tol, warm_start=self._last, verify=False, progress=False)
            estimate = None
            if self._trace_matvecs:
                estimate = trace(self._operator, num_matvecs=self._trace_matvecs, seed=step, progress=False)
        if pairs.interrupted or (estimate is not None and estimate.interrupted):
            raise KeyboardInterrupt  # Ctrl-C is meant for the training run around this
        self._last = pairs
        record = SharpnessRecord(
            step=int(step),
            lambda_max=float(pairs.ritz_values[0]),
            residual_norm=float(pairs.residual_norms[0]),
            limit=self._limit(),
            trace=float("nan") if estimate is None else estimate.value,
            trace_error=float("nan") if estimate is None else estimate.standard_error,
            num_matvecs=self._operator.num_matvecs - before,
        )
        self.history.append(record)
        self._write(record)
        return record

    def _limit(self) -> float:
        rate = self._lr() if callable(self._lr) else self._lr
        if rate is None:
            return math.nan
        return 2.0 / float(rate) if rate else math.inf

    def _write(self, record: SharpnessRecord) -> None:
        row = asdict(record)
        if self._csv_path is not None:
            _append_row(self._csv_path, row)
        if self._writer is not None:
            for name in ("lambda_max", "limit", "trace"):
                if row[name] == row[name]:  # nan: not asked for
                    self._writer.add_scalar(f"curvature/{name}", row[name], record.step)

    def plot(self, ax: Any = None) -> Any:
        """Sharpness over time with the edge of stability; returns the matplotlib axes."""
        from torch_ire.curvature.plots import new_axes

        ax = new_axes(ax)
        steps = [record.step for record in self.history]
        ax.plot(steps, [record.lambda_max for record in self.history], marker=".", label="λmax")
        if any(record.limit == record.limit for record in self.history):
            ax.plot(steps, [record.limit for record in self.history], "--", color="C3", label="2 / lr")
        if any(record.trace == record.trace for record in self.history):
            ax.plot(steps, [record.trace for record in self.history], marker=".", color="C2", label="trace")
        ax.set(xlabel="step", ylabel="curvature", title="sharpness")
        ax.legend()
        return ax


def _append_row(path: Path, row: dict[str, Any]) -> None:
    """Append a row, with a header in a new file; a write that fails is taken back, and the old rows stay."""
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, list(row))
    with path.open("ab+") as file:
        size = file.seek(0, io.SEEK_END)
        if size == 0:
            table.writeheader()
        else:
            file.seek(size - 1)
            if file.read(1) != b"\n":  # a row that a crash cut off
                text.write("\r\n")
        table.writerow(row)
    try:
        with path.open("ab") as file:
            file.write(text.getvalue().encode())
    except OSError:
        os.truncate(path, size)
        raise
