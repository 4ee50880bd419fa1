"""The picture: training curves on the left, flatness and learning rates on the right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from torch_ire.demo.config import Method
from torch_ire.demo.results import Estimate, PartResults, judge, mean_curve


@dataclass(frozen=True)
class Ink:
    """Colour, line style and marker of a method: each differs, so no reader depends on colour."""

    color: str
    line: str
    marker: str


# The palette of Okabe and Ito, which colour-blind readers can tell apart. Solid lines are IRE, dashed lines the plain
# optimizer, dotted lines the random mask.
_BLACK, _BLUE, _GREEN, _ORANGE, _VERMILLION, _PURPLE, _SKY = (
    "#000000",
    "#0072B2",
    "#009E73",
    "#E69F00",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
)
_INKS = {
    ("sgd", "base", None): Ink(_BLACK, "--", "o"),
    ("sgd", "enhanced", "fisher"): Ink(_BLUE, "-", "s"),
    ("sgd", "random", "random"): Ink(_SKY, ":", "v"),
    ("sam", "base", None): Ink(_PURPLE, "--", "D"),
    ("sam", "enhanced", "fisher"): Ink(_VERMILLION, "-", "^"),
    ("sam", "random", "random"): Ink(_ORANGE, ":", "P"),
    ("adamw", "base", None): Ink(_BLACK, "--", "o"),
    ("adamw", "enhanced", "fisher"): Ink(_BLUE, "-", "s"),
    ("adamw", "enhanced", "second_moment"): Ink(_GREEN, "-", "^"),
    ("adamw", "random", "random"): Ink(_ORANGE, ":", "v"),
}
_STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
}


def ink_of(method: Method) -> Ink:
    """Colour, line and marker of a method, the same in every panel."""
    return _INKS[method.optimizer, method.role, method.curvature]


def draw_curves(axes: Axes, results: PartResults) -> None:
    """Validation metric against steps at each method's best learning rate, with a band of one deviation."""
    for row in results.rows:
        ink = ink_of(row.method)
        steps, mean, deviation = mean_curve(row.runs)
        label = f"{row.method.name} (lr {row.lr:g})"
        axes.plot(steps, mean, color=ink.color, linestyle=ink.line, marker=ink.marker, markersize=4, label=label)
        axes.fill_between(steps, mean - deviation, mean + deviation, color=ink.color, alpha=0.08, linewidth=0)
    axes.set_xlabel("step")
    axes.set_title(f"{results.part.title}, training (bands: one deviation)", loc="left")
    _zoom(axes, results)
    if results.part.higher_is_better:
        axes.set_ylabel("validation accuracy, %  (up is better)")
        axes.legend(loc="lower right")
    else:
        axes.set_ylabel("validation loss, nats  (down is better)")
        axes.legend(loc="lower left")


def draw_flatness(axes: Axes, results: PartResults) -> None:
    """Test metric against Hessian trace: one small mark per seed, one large mark for their mean.

    Each method runs at the best learning rate of its base, because a lower rate alone ends in a sharper minimum.
    """
    all_traces: list[float] = []
    for method in results.part.methods:
        ink = ink_of(method)
        setting = method, results.row(results.part.control(method, "base")).lr
        traces, tests = results.traces[setting], [run.test for run in results.runs[setting]]
        axes.scatter(traces, tests, s=22, color=ink.color, marker=ink.marker, alpha=0.45, lw=0)
        means = [Estimate.over(traces).mean], [Estimate.over(tests).mean]
        axes.scatter(*means, s=110, color=ink.color, marker=ink.marker, edgecolor="white")
        all_traces += traces
    if min(all_traces) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda trace, _: f"{trace:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("Hessian trace at the end  (left is flatter)")
    axes.set_ylabel("test accuracy, %" if results.part.higher_is_better else "test loss, nats")
    axes.set_title(f"{results.part.title}, flatness at the base's best rate (small: seeds)", loc="left")


def draw_learning_rates(axes: Axes, results: PartResults) -> None:
    """Test metric against learning rate, with one deviation as error bars: shows whether IRE is only a larger step."""
    part = results.part
    for place, row in enumerate(results.rows):
        ink = ink_of(row.method)
        # Side by side, so that no bar hides another.
        shift = 1.0 + 0.03 * (place - (len(results.rows) - 1) / 2)
        scores = [results.score_at(row.method, lr) for lr in part.lrs]
        axes.errorbar(
            [lr * shift for lr in part.lrs],
            [score.mean for score in scores],
            yerr=[score.std or 0.0 for score in scores],
            color=ink.color,
            linestyle=ink.line,
            marker=ink.marker,
            markersize=6,
            capsize=3,
            label=row.method.name,
        )
    axes.set_xscale("log")
    axes.set_xticks(part.lrs, [f"{lr:g}" for lr in part.lrs])
    axes.minorticks_off()
    axes.set_xlabel("learning rate")
    axes.set_ylabel("test accuracy, %" if part.higher_is_better else "test loss, nats")
    axes.set_title(f"{part.title}, every learning rate (bars: one deviation)", loc="left")


def draw(digits: PartResults, text: PartResults, settings: str) -> Figure:
    """The whole picture as a figure of 13 by 9 inches; ``settings`` goes under its title, the verdicts below that."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(13, 9), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(2, 2)
        draw_curves(panels[0, 0], digits)
        draw_flatness(panels[0, 1], digits)
        draw_curves(panels[1, 0], text)
        draw_learning_rates(panels[1, 1], text)
        verdicts = [
            f"{v.row.method.name}: {v.outcome.value}" + (", flatter" if v.flattest else "")
            for part in (digits, text)
            for v in judge(part)
        ]
        lines = ["IRE beside its base optimizers and a random mask", settings, "Verdict:  " + ";  ".join(verdicts)]
        figure.suptitle("\n".join(lines), fontsize=12)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes the figure; the folder must exist."""
    with mpl.rc_context(_STYLE):
        figure.savefig(path, dpi=130)


def _zoom(axes: Axes, results: PartResults) -> None:
    # The first points of a curve are far from the others; with them the rest would look flat.
    curves = [mean_curve(row.runs)[1] for row in results.rows]
    late = np.concatenate([curve[len(curve) // 2 :] for curve in curves])
    late = late[np.isfinite(late)]
    if late.size and (margin := 0.08 * float(np.ptp(late))) > 0:
        axes.set_ylim(float(late.min()) - margin, float(late.max()) + margin)
        steps = results.rows[0].runs[0].curve_steps
        axes.set_xlim(left=steps[len(steps) // 3])
