"""The table of CPU measurements in the README, made from benchmarks/results/cpu.json.

    python -m benchmarks.report [--write]

Prints the table, or puts it between the marks in README.md; a test holds the two together.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- benchmarks.report: begin -->\n", "<!-- benchmarks.report: end -->\n"


def table() -> str:
    """Markdown: one row a comparison, times as median (20 % to 80 %) in milliseconds."""
    results: dict[str, dict[str, Any]] = json.loads((RESULTS / "cpu.json").read_text())
    timed = {name: result for name, result in results.items() if "seconds" in result}
    environment = next(iter(timed.values()))["environment"]
    lines = [
        f"{environment['threads']} threads, {environment['processor']}, torch {environment['torch']}:",
        "",
        "| | torch-ire, ms | torch, ms | ratio |",
        "|---|---|---|---|",
    ]
    for name, result in timed.items():
        ours, theirs = result["seconds"].items()
        lines.append(f"| {name} | {cell(*ours)} | {cell(*theirs)} | {result['ratio']:.2f} |")
    return "\n".join(lines) + "\n"


def cell(name: str, seconds: dict[str, float]) -> str:
    return f"{1e3 * seconds['median']:.2f} ({1e3 * seconds['q20']:.2f} to {1e3 * seconds['q80']:.2f}), `{name}`"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help="into README.md")
    if not parser.parse_args().write:
        print(table(), end="")
        return
    before, rest = README.read_text().split(BEGIN)
    README.write_text(before + BEGIN + table() + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
