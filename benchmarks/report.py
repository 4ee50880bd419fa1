"""The tables of measurements in the documentation, made from benchmarks/results/*.json.

    python -m benchmarks.report [--write]

Prints the tables, or puts each between the marks of its page; a test holds the two together.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- benchmarks.report: begin -->\n", "<!-- benchmarks.report: end -->\n"
#: rows of the table of products
WHAT = {
    "least": "steps of plain Lanczos after which the ten values are good: the least any stopping rule can take",
    "cold": "`lanczos`, random start",
    "warm": "`lanczos`, from the vectors of 10 training steps earlier",
    "refresh": "`FlatProjector.refresh`, 10 training steps later; error of the span that is removed",
}

Results = dict[str, dict[str, Any]]


def steps_table(results: Results) -> str:
    """One row a comparison, times as median (20 % to 80 %) in milliseconds."""
    timed = {name: result for name, result in results.items() if "seconds" in result}
    environment = next(iter(timed.values()))["environment"]
    threads = environment["threads"]
    lines = [
        f"{threads} thread{'s' * (threads != 1)}, {environment['processor']}, torch {environment['torch']}:",
        "",
        "| | torch-ire, ms | against, ms | ratio |",
        "|---|---|---|---|",
    ]
    for name, result in timed.items():
        ours, theirs = result["seconds"].items()
        lines.append(f"| {name} | {cell(*ours)} | {cell(*theirs)} | {result['ratio']:.2f} |")
    return "\n".join(lines) + "\n"


def cell(name: str, seconds: dict[str, float]) -> str:
    return f"{1e3 * seconds['median']:.2f} ({1e3 * seconds['q20']:.2f} to {1e3 * seconds['q80']:.2f}), `{name}`"


def curvature_table(results: Results) -> str:
    """Times as above, then numbers of products: least, median and most over networks and starts."""
    lines = ["| products | least | median | most | relative error: median | worst |", "|---|---|---|---|---|---|"]
    counts, errors = results["products"]["counts"], results["products"]["relative_errors"]
    for name, found in counts.items():
        ordered = sorted(found)
        of_run = errors.get(name, [1e-5])
        accuracy = f"{statistics.median(of_run):.1e} | {max(of_run):.1e}"
        lines.append(f"| {WHAT[name]} | {ordered[0]} | {ordered[len(found) // 2]} | {ordered[-1]} | {accuracy} |")
    return steps_table(results) + "\n" + "\n".join(lines) + "\n"


def distributed_table(results: Results) -> str:
    """Times as above, of the slowest rank, then what one exact threshold sends and how far its mask is off."""
    lines = ["| | KiB a rank | in collectives | mask bits that differ from one process |", "|---|---|---|---|"]
    for name, result in results.items():
        if "payload_bytes_a_rank" in result:
            sent, ring = (result[key] / 1024 for key in ("payload_bytes_a_rank", "ring_bytes_a_rank"))
            calls, differing = result["collectives"], result["bits_that_differ"]
            lines.append(f"| {name} | {sent:.1f}, {ring:.1f} on a ring | {calls} | {differing} |")
    return steps_table(results) + "\n" + "\n".join(lines) + "\n"


#: page, results, table
PAGES: dict[Path, tuple[str, Callable[[Results], str]]] = {
    ROOT / "README.md": ("cpu", steps_table),
    ROOT / "docs" / "curvature.md": ("curvature", curvature_table),
    ROOT / "docs" / "distributed.md": ("distributed", distributed_table),
}


def table(page: Path) -> str:
    """The table of a page, in Markdown."""
    name, make = PAGES[page]
    return make(json.loads((RESULTS / f"{name}.json").read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help="into the pages")
    write = parser.parse_args().write
    for page in PAGES:
        if write:
            before, rest = page.read_text().split(BEGIN)
            page.write_text(before + BEGIN + table(page) + END + rest.split(END)[1])
        else:
            print(f"{page.relative_to(ROOT)}:\n\n{table(page)}")


if __name__ == "__main__":
    main()
