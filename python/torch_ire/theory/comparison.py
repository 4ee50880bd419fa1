"""Measured and predicted values, and their table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

__all__ = ["Comparison", "Curve", "Outcome", "print_table", "slope"]


@dataclass(frozen=True)
class Comparison:
    """A measured number with its prediction.

    Args:
        experiment: "A" to "D".
        quantity: name of the number.
        measured: the value of the run.
        predicted: the value of the closed form.
        tolerance: relative deviation allowed for the error of the closed form and the noise of the run.

    Example:
        >>> from torch_ire.theory import Comparison
        >>> Comparison("A", "u", 1.01, 1.0, 0.02).holds
        True
    """

    experiment: str
    quantity: str
    measured: float
    predicted: float
    tolerance: float

    @property
    def deviation(self) -> float:
        """(measured - predicted) / |predicted|."""
        return (self.measured - self.predicted) / abs(self.predicted)

    @property
    def holds(self) -> bool:
        """Whether the deviation is within the tolerance."""
        return abs(self.deviation) <= self.tolerance


@dataclass(frozen=True)
class Curve:
    """A law in the picture: measured points and the predicted line.

    Args:
        panel: name of the picture's panel.
        label: legend entry.
        x: abscissas.
        measured: measured ordinates.
        predicted: predicted ordinates.

    Example:
        >>> from torch_ire.theory import Curve
        >>> Curve("toy", "a law", [1, 10], [1, 10], [1, 10]).label
        'a law'
    """

    panel: str
    label: str
    x: Sequence[float]
    measured: Sequence[float]
    predicted: Sequence[float]


@dataclass
class Outcome:
    """The results of an experiment.

    Args:
        comparisons: lines of the table.
        curves: curves of the picture.
        paths: trajectories (u, v) by name, for the picture of the toy.

    Example:
        >>> from torch_ire.theory import Outcome
        >>> outcome = Outcome()
        >>> outcome.compare("A", "u", 1.01, 1.0, 0.02)
        >>> len(outcome.comparisons)
        1
    """

    comparisons: list[Comparison] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    paths: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def compare(self, experiment: str, quantity: str, measured: float, predicted: float, tolerance: float) -> None:
        """Add a line to the table."""
        self.comparisons.append(Comparison(experiment, quantity, measured, predicted, tolerance))

    def extend(self, other: Outcome) -> None:
        """Append the results of another experiment."""
        self.comparisons += other.comparisons
        self.curves += other.curves
        self.paths.update(other.paths)


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Exponent of a power law: the least-squares slope of log y over log x.

    Args:
        x: positive numbers.
        y: positive numbers, as many as x.

    Returns:
        the exponent.

    Example:
        >>> from torch_ire.theory import slope
        >>> round(slope([1, 2, 4], [3, 12, 48]), 6)
        2.0
    """
    log_x = torch.tensor([math.log(value) for value in x], dtype=torch.float64)
    log_y = torch.tensor([math.log(value) for value in y], dtype=torch.float64)
    centred = log_x - log_x.mean()
    return float((centred * log_y).sum() / (centred**2).sum())


def print_table(comparisons: Sequence[Comparison]) -> None:
    """Print every comparison: as a rich table if rich is installed, else in columns.

    Args:
        comparisons: the lines, in order.

    Example:
        >>> from torch_ire.theory import Comparison, print_table
        >>> print_table([Comparison("A", "u", 1.01, 1.0, 0.02)])  # doctest: +SKIP
    """
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        for line in comparisons:
            columns = f"{line.measured:>12.5g}{line.predicted:>12.5g}{100 * line.deviation:>+9.2f} %"
            print(f"{line.experiment}  {line.quantity:<66}{columns}  {'holds' if line.holds else 'off'}")
        return
    table = Table(title="The theory of IRE, measured through the public optimizers")
    for heading in ("", "quantity", "measured", "predicted", "deviation", ""):
        table.add_column(heading, justify="left" if heading in ("", "quantity") else "right")
    for line in comparisons:
        mark = "[green]holds[/]" if line.holds else "[red]off[/]"
        numbers = (f"{line.measured:.5g}", f"{line.predicted:.5g}", f"{100 * line.deviation:+.2f} %")
        table.add_row(line.experiment, line.quantity, *numbers, mark)
    Console().print(table)
