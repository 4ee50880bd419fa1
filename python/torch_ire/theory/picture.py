"""One picture: Figure 1 and the scaling laws of Table 7."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from torch_ire.theory.comparison import Outcome

__all__ = ["draw"]

_PANELS = {
    "toy": ("1 + κ", "-ln u∞", "A. distance moved along the minima"),
    "average SAM": ("η", "effective rate", "B. average SAM: η² against η^1.5"),
    "steps to halve u": ("η", "steps from u = 1 to 1/2", "B. the same, end to end"),
    "standard SAM": ("ρ", "effective rate", "C. standard SAM: ρ² against ρ"),
    "curved manifold": ("η", "effective rate", "D. curved manifold, average SAM"),
}


def draw(outcome: Outcome, path: str | Path | None = None) -> Any:
    """Draw the results of the experiments.

    Args:
        outcome: results; panels without curves are omitted.
        path: file of the picture; None only returns it.

    Returns:
        the matplotlib figure.

    Raises:
        ImportError: if matplotlib is missing.

    Example:
        >>> from torch_ire.theory import Curve, Outcome, draw
        >>> len(draw(Outcome(curves=[Curve("toy", "a law", [1, 10], [1, 10], [1, 10])])).axes)
        1
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as failure:
        raise ImportError("the picture needs matplotlib: pip install matplotlib") from failure
    panels = [name for name in _PANELS if any(curve.panel == name for curve in outcome.curves)]
    count = len(panels) + bool(outcome.paths)
    columns = min(3, max(count, 1))
    figure = Figure(figsize=(5.0 * columns, 4.2 * -(-count // columns)), layout="constrained")
    axes = list(figure.subplots(-(-count // columns), columns, squeeze=False).flat)
    if outcome.paths:
        _draw_paths(axes.pop(0), outcome)
    for name in panels:
        _draw_laws(axes.pop(0), name, outcome)
    for unused in axes:
        unused.set_axis_off()
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _draw_paths(ax: Any, outcome: Outcome) -> None:
    """Figure 1: trajectories over the level lines of the loss."""
    u = torch.linspace(-0.05, 1.1, 200, dtype=torch.float64)
    v = torch.linspace(-0.016, 0.016, 200, dtype=torch.float64)
    loss = (1 + u[None, :] ** 2) * v[:, None] ** 2 / 2
    ax.contour(u, v, loss.sqrt(), levels=10, colors="0.85", linewidths=0.8)
    ax.axhline(0.0, color="0.4", linewidth=1.2, label="minima, flatter to the left")
    for number, (name, points) in enumerate(outcome.paths.items()):
        inside = [point for point in points if abs(point[1]) <= 0.016] if "2" in name else points
        ax.plot(*zip(*inside, strict=True), marker=".", markersize=3, linewidth=0.7, color=f"C{number}", label=name)
    ax.set(xlabel="u", ylabel="v", xlim=(-0.05, 1.1), ylim=(-0.016, 0.016), title="A. Figure 1: L = (1 + u²) v² / 2")
    ax.legend(fontsize=7, loc="upper left")


def _draw_laws(ax: Any, name: str, outcome: Outcome) -> None:
    horizontal, vertical, title = _PANELS[name]
    for number, curve in enumerate(c for c in outcome.curves if c.panel == name):
        ax.loglog(curve.x, curve.predicted, "-", color=f"C{number}", linewidth=1.0)
        ax.loglog(curve.x, curve.measured, "o", color=f"C{number}", markersize=5, label=curve.label)
    if name != "toy":  # less than two decades: label the points
        points = sorted({float(x) for curve in outcome.curves if curve.panel == name for x in curve.x})
        ax.set_xticks(points, [f"{x:g}" for x in points])
        ax.set_xticks([], minor=True)
    ax.set(xlabel=horizontal, ylabel=vertical, title=title)
    ax.legend(fontsize=8, title="points: measured, lines: theory", title_fontsize=7)
