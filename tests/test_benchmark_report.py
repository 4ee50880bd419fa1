"""The README's table is the one that the stored measurements give."""

from __future__ import annotations

from benchmarks import report


def test_the_table_of_the_readme_is_that_of_the_results():
    shown = report.README.read_text().split(report.BEGIN)[1].split(report.END)[0]
    assert shown == report.table()
    assert shown.count("\n") > 8
