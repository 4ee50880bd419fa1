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

#: the first row of each kind that the README shows; the others are in docs/kernels.md
HEADLINES = ("10 training steps", "AdmIRE step, 2 M", "AdmIRE step, 58 M", "mask refresh", "SAMIRE")

Results = dict[str, dict[str, Any]]


def steps_table(results: Results) -> str:
    """One row per comparison; times as median (20 % to 80 %) in milliseconds.

    The floor is the time that the bytes of our side take at the measured bandwidth, over the other side's time.
    """
    timed = {name: result for name, result in results.items() if "seconds" in result}
    environment = next(iter(timed.values()))["environment"]
    threads = environment["threads"]
    has_floors = any("bytes_per_parameter" in result for result in timed.values()) and "memory bandwidth" in results
    lines = [
        f"{threads} thread{'s' * (threads != 1)}, {environment['processor']}, torch {environment['torch']}:",
        "",
        f"| | torch-ire, ms | against, ms | ratio |{' floor |' * has_floors}",
        f"|---|---|---|---|{'---|' * has_floors}",
    ]
    for name, result in timed.items():
        ours, theirs = result["seconds"].items()
        floor_cell = f" {floor(result, results['memory bandwidth'])} |" if has_floors else ""
        lines.append(f"| {name} | {cell(*ours)} | {cell(*theirs)} | {result['ratio']:.2f} |{floor_cell}")
    return "\n".join(lines) + "\n"


def headlines_table(results: Results) -> str:
    """The rows of the README, one per entry of :data:`HEADLINES`, with the bandwidth that floors are made from."""
    rows = [next(name for name in results if name.startswith(start)) for start in HEADLINES]
    return steps_table({name: result for name, result in results.items() if name in rows or "seconds" not in result})


def floor(result: dict[str, Any], measured: dict[str, Any]) -> str:
    """The least ratio that the bytes of a row allow; empty where a row does not say how many there are."""
    if "bytes_per_parameter" not in result:
        return ""
    rates = measured["bytes_per_second"]
    seconds = sum(count / rates[kind] for kind, count in result["bytes_per_parameter"].items()) * measured["parameters"]
    _, theirs = result["seconds"].values()
    return f"{seconds / theirs['median']:.2f}"


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
    ROOT / "README.md": ("cpu", headlines_table),
    ROOT / "docs" / "kernels.md": ("cpu", steps_table),
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
