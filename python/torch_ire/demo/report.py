"""The output of the demo: a table, and the conclusions that it supports."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from torch_ire.demo.config import Part
from torch_ire.demo.results import Estimate, Outcome, PartResults, Row, Verdict, is_at_edge, judge

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
    """The metric of a part: per cent with two digits, or nats with three."""
    return format_estimate(estimate, 2) + " %" if part.higher_is_better else format_estimate(estimate, 3)


def format_trace(trace: Estimate) -> str:
    """A Hessian trace: a whole number if it is large."""
    return format_estimate(trace, 0 if trace.mean >= 10 else 1)


def build_table(parts: Sequence[PartResults]) -> Table:
    """The table: a section per part, a row per method, the best score of each section in bold; fits 80 columns."""
    seeds = len(parts[0].rows[0].runs)
    table = Table(
        title=f"Mean ± standard deviation over {seeds} seed{'s' * (seeds > 1)}", box=SIMPLE, collapse_padding=True
    )
    table.add_column("method", no_wrap=True)
    for heading in ("best\nlr", "score on\ntest data", "Hessian\ntrace", "s per\nstep", "bytes/\nparam."):
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
    """The facts behind a verdict, one per line."""
    row, base, random = verdict.row, verdict.base, verdict.random
    meaning = {
        Outcome.HELPED: "Ahead of both controls by more than the spread of the seeds.",
        Outcome.LARGER_STEP: (
            f"Ahead of {base.method.name}, but not of a random mask: larger steps helped, not the curvature."
        ),
        Outcome.NO_GAIN: f"Within the spread of the seeds of a tuned {base.method.name}.",
        Outcome.HARMED: f"Behind a tuned {base.method.name} by more than the spread of the seeds.",
        Outcome.UNKNOWN: "One seed has no spread and supports no conclusion; use --seeds 3.",
    }[verdict.outcome]
    flatness = {1: "flatter than", 0: "as flat as", -1: "sharper than"}
    trace, base_trace, random_trace = map(format_trace, verdict.traces)
    lines = [
        (
            f"{part.metric.capitalize()} {format_score(part, row.score)}; {base.method.name} "
            f"{format_score(part, base.score)}, random mask {format_score(part, random.score)}."
        ),
        meaning,
        (
            f"At equal rates: ahead of {base.method.name} at {_rates(verdict.ahead_of_base_at)}, behind it at "
            f"{_rates(verdict.behind_base_at)}, ahead of the random mask at {_rates(verdict.ahead_of_random_at)}."
        ),
        (
            f"Hessian trace at {base.lr:g}: {trace}; {flatness[verdict.flatter_than_base]} {base.method.name} "
            f"({base_trace}), {flatness[verdict.flatter_than_random]} the random mask ({random_trace})."
        ),
    ]
    if verdict.outcome is Outcome.HELPED and (is_at_edge(part, base) or is_at_edge(part, random)):
        lines.append("A control did best at the lowest or highest learning rate: with a wider range it could catch up.")
    return "\n".join(lines)


def print_report(console: Console, parts: Sequence[PartResults]) -> None:
    """Prints table, verdicts and a summary of where IRE helped."""
    console.print(build_table(parts))
    console.print("Did IRE help? Each method at its best learning rate, chosen on validation data.", style="bold")
    verdicts = [(results.part, verdict) for results in parts for verdict in judge(results)]
    for part, verdict in verdicts:
        name, outcome = verdict.row.method.name, verdict.outcome
        console.print(Text.assemble((name, "bold"), ": ", (outcome.value, _STYLES[outcome])))
        console.print(Padding(Text(sentences(verdict, part)), (0, 0, 0, 2)))
    helped = [v for _, v in verdicts if v.outcome is Outcome.HELPED]
    flattest = [v for _, v in verdicts if v.flattest]
    flatter = [v for _, v in verdicts if v.flatter_than_base > 0 and not v.flattest]
    neither = [v for _, v in verdicts if v not in helped + flattest + flatter]
    console.print(f"Better test score than both controls: {_names(helped)}.", style="bold")
    console.print(f"Flatter minimum than both controls, at equal rates: {_names(flattest)}.", style="bold")
    console.print(f"Flatter minimum than the base, but so is that of a random mask: {_names(flatter)}.", style="bold")
    console.print(f"None of these, or not beyond the spread of the seeds: {_names(neither)}.", style="bold")


def _names(verdicts: Sequence[Verdict]) -> str:
    return "; ".join(verdict.row.method.name for verdict in verdicts) or "none"


def _unit(part: Part) -> str:
    return f"{part.metric.removeprefix('test ')}, {'up' if part.higher_is_better else 'down'} is better"


def _best(results: PartResults) -> Row:
    sign = -1.0 if results.part.higher_is_better else 1.0
    return min(results.rows, key=lambda row: sign * row.score.mean)


def _rates(lrs: Sequence[float]) -> str:
    return ", ".join(f"{lr:g}" for lr in lrs) or "none"
