"""What the demo prints: one table and, under it, what the table allows to say."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.padding import Padding
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


def format_trace(trace: Estimate) -> str:
    """A Hessian trace: whole numbers where it is large."""
    return format_estimate(trace, 0 if trace.mean >= 10 else 1)


def build_table(parts: Sequence[PartResults]) -> Table:
    """The table: one section a part, one row a method, the best score of each section in bold; fits 80 columns."""
    seeds = len(parts[0].rows[0].runs)
    table = Table(
        title=f"Mean ± standard deviation over {seeds} seed{'s' * (seeds > 1)}", box=SIMPLE, collapse_padding=True
    )
    table.add_column("method", no_wrap=True)
    for heading in ("best\nlr", "score on\ntest data", "Hessian\ntrace", "s per\nstep", "bytes per\nparam."):
        table.add_column(heading, justify="right", no_wrap=True)
    for results in parts:
        part = results.part
        best = _best(results)
        table.add_row(Text(part.title, style="bold cyan"))
        table.add_row(Text(_unit(part), style="cyan"))
        for row in results.rows:
            table.add_row(
                row.method.name,
                f"{row.lr:g}",
                Text(format_score(part, row.score), style="bold" if row is best else ""),
                format_trace(row.trace),
                f"{row.seconds_per_step:.4f}",
                f"{row.optimizer_bytes:.2f}",
            )
        table.add_section()
    return table


def sentences(verdict: Verdict, part: Part) -> str:
    """What a verdict rests on, in plain words."""
    row, base, random = verdict.row, verdict.base, verdict.random
    meaning = {
        Outcome.HELPED: "Ahead of both controls by more than the seeds spread.",
        Outcome.LARGER_STEP: (
            f"Ahead of {base.method.name}, but not of a mask drawn at random: larger steps helped, not the curvature."
        ),
        Outcome.NO_GAIN: f"Within the spread of the seeds of a tuned {base.method.name}.",
        Outcome.HARMED: f"Behind a tuned {base.method.name} by more than the seeds spread.",
        Outcome.UNKNOWN: "One seed has no spread, so this says nothing; use --seeds 3.",
    }[verdict.outcome]
    scores = (
        f"{part.metric.capitalize()} {format_score(part, row.score)}; {base.method.name} "
        f"{format_score(part, base.score)}, random mask {format_score(part, random.score)}."
    )
    words = [scores, meaning]
    words.append(
        f"At equal learning rates it is ahead of {base.method.name} at {_rates(verdict.ahead_of_base_at)}, "
        f"behind it at {_rates(verdict.behind_base_at)}, "
        f"ahead of the random mask at {_rates(verdict.ahead_of_random_at)}."
    )
    if verdict.flatter is not None:
        kind = "flatter" if verdict.flatter else "sharper"
        words.append(f"Its minimum is {kind}: Hessian trace {format_trace(row.trace)}, not {format_trace(base.trace)}.")
    return " ".join(words)


def print_report(console: Console, parts: Sequence[PartResults]) -> None:
    """Prints table, verdicts and a summary of where IRE helped."""
    console.print(build_table(parts))
    console.print("Did IRE help? Each method at its best learning rate, chosen on validation data.", style="bold")
    helped: list[str] = []
    not_helped: list[str] = []
    for results in parts:
        for verdict in judge(results):
            name = verdict.row.method.name
            (helped if verdict.outcome is Outcome.HELPED else not_helped).append(name)
            console.print(Text.assemble((name, "bold"), ": ", (verdict.outcome.value, _STYLES[verdict.outcome])))
            console.print(Padding(Text(sentences(verdict, results.part)), (0, 0, 0, 2)))
    console.print(f"IRE helped: {'; '.join(helped) or 'nowhere'}.", style="bold")
    console.print(f"IRE did not help, or not beyond doubt: {'; '.join(not_helped) or 'nowhere'}.", style="bold")


def _unit(part: Part) -> str:
    return f"{part.metric.removeprefix('test ')}, {'up' if part.higher_is_better else 'down'} is better"


def _best(results: PartResults) -> Row:
    sign = -1.0 if results.part.higher_is_better else 1.0
    return min(results.rows, key=lambda row: sign * row.score.mean)


def _rates(lrs: Sequence[float]) -> str:
    return ", ".join(f"{lr:g}" for lr in lrs) or "no rate"
