"""What the demo prints: one table and, under it, what the table allows to say."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from torch_ire.demo.config import Part
from torch_ire.demo.results import Estimate, Outcome, PartResults, Row, Verdict, judge

_STYLES = {
    Outcome.HELPED: "bold green",
    Outcome.LARGER_STEP: "bold yellow",
    Outcome.NO_GAIN: "bold yellow",
    Outcome.HARMED: "bold red",
    Outcome.UNKNOWN: "bold",
}


def format_estimate(estimate: Estimate, digits: int) -> str:
    """Mean and deviation with ``digits`` after the point, e.g. ``1.950 ± 0.012``."""
    deviation = "" if estimate.std is None else f" ± {estimate.std:.{digits}f}"
    return f"{estimate.mean:.{digits}f}{deviation}"


def format_score(part: Part, estimate: Estimate) -> str:
    """A part's metric: per cent with two digits, or nats with three."""
    return format_estimate(estimate, 2) + " %" if part.higher_is_better else format_estimate(estimate, 3)


def build_table(parts: Sequence[PartResults]) -> Table:
    """The table: one section a part, one row a method, the best score of each section in bold."""
    seeds = len(parts[0].rows[0].runs)
    table = Table(title=f"Mean ± standard deviation over {seeds} seed{'s' * (seeds > 1)}", title_justify="left")
    table.add_column("method", no_wrap=True)
    table.add_column("best lr", justify="right")
    table.add_column("test score", justify="right", no_wrap=True)
    table.add_column("Hessian trace", justify="right", no_wrap=True)
    table.add_column("s/step", justify="right")
    table.add_column("bytes/param", justify="right")
    for results in parts:
        part = results.part
        direction = "higher" if part.higher_is_better else "lower"
        unit = "" if part.higher_is_better else ", nats a character"
        table.add_row(Text(part.title, style="bold cyan", overflow="fold"))
        table.add_row(Text(f"{part.metric}{unit}, {direction} is better", style="cyan"))
        best = _best(results)
        for row in results.rows:
            table.add_row(
                row.method.name,
                f"{row.lr:g}",
                Text(format_score(part, row.score), style="bold" if row is best else ""),
                f"{row.trace.mean:.3g}" + ("" if row.trace.std is None else f" ± {row.trace.std:.2g}"),
                f"{row.seconds_per_step:.4f}",
                f"{row.optimizer_bytes:.2f}",
            )
        table.add_section()
    return table


def sentences(verdict: Verdict, part: Part) -> str:
    """A verdict in plain words, with the figures that it rests on."""
    row, base, random = verdict.row, verdict.base, verdict.random
    figures = (
        f"{part.metric} {format_score(part, row.score)}, against {format_score(part, base.score)} for "
        f"{base.method.name} at its own best learning rate and {format_score(part, random.score)} with a random mask"
    )
    meaning = {
        Outcome.HELPED: "ahead of both controls by more than the seeds spread",
        Outcome.LARGER_STEP: (
            f"ahead of {base.method.name}, but so is a mask drawn at random: larger steps helped, not the curvature"
        ),
        Outcome.NO_GAIN: f"within the spread of the seeds of a tuned {base.method.name}",
        Outcome.HARMED: f"behind a tuned {base.method.name} by more than the seeds spread",
        Outcome.UNKNOWN: "one seed has no spread, so this says nothing; use --seeds 3",
    }[verdict.outcome]
    words = [f"{figures}: {meaning}."]
    if verdict.ahead_at:
        words.append(f"At the same learning rate it beat both controls at {_rates(verdict.ahead_at)}.")
    if verdict.behind_at:
        words.append(f"At the same learning rate it lost to {base.method.name} at {_rates(verdict.behind_at)}.")
    if verdict.flatter is not None:
        kind = "flatter" if verdict.flatter else "sharper"
        words.append(f"It ended in a {kind} minimum (Hessian trace {row.trace.mean:.3g}, not {base.trace.mean:.3g}).")
    return " ".join(words)


def print_report(console: Console, parts: Sequence[PartResults]) -> None:
    """Prints table, verdicts and a summary of where IRE helped."""
    console.print(build_table(parts))
    console.print("Did IRE help? Each method at its best learning rate of the grid, chosen on validation data.\n")
    helped, other = [], []
    for results in parts:
        for verdict in judge(results):
            name = verdict.row.method.name
            (helped if verdict.outcome is Outcome.HELPED else other).append(name)
            console.print(
                Text.assemble((name, "bold"), " ", (verdict.outcome.value, _STYLES[verdict.outcome]), ". "),
                Text(sentences(verdict, results.part)),
                sep="",
            )
    console.print(
        f"\nIRE helped here: {', '.join(helped) or 'nowhere'}. It did not, or not beyond doubt: "
        f"{', '.join(other) or 'nowhere'}."
    )


def _best(results: PartResults) -> Row:
    sign = -1.0 if results.part.higher_is_better else 1.0
    return min(results.rows, key=lambda row: sign * row.score.mean)


def _rates(lrs: Sequence[float]) -> str:
    return ", ".join(f"{lr:g}" for lr in lrs)
