"""The tables of the documentation are those that the stored measurements give."""

from __future__ import annotations

import json

import pytest
from benchmarks import measure, report


@pytest.mark.parametrize("page", report.PAGES, ids=lambda page: page.name)
def test_the_table_of_a_page_is_that_of_the_results(page):
    shown = page.read_text().split(report.BEGIN)[1].split(report.END)[0]
    assert shown == report.table(page)
    assert shown.count("\n") > 8


@pytest.mark.parametrize("name", [name for name, _ in report.PAGES.values()])
def test_what_is_compared_keeps_its_order_and_its_environment(name):
    """Ours first, what it is held against second: a file that is sorted by name would swap some."""
    results = json.loads((measure.RESULTS / f"{name}.json").read_text())
    for result in results.values():
        assert {"torch", "torch_ire", "commit", "processor", "threads", "python"} <= set(result["environment"])
        if "seconds" in result:
            ours, theirs = result["seconds"]
            assert not ours.startswith(("torch ", "v - ", "float32 bytes"))
            assert theirs.startswith(("torch ", "v - ", "float32 bytes"))


def test_saving_keeps_the_order(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    measure.save("a", {"second": {"seconds": {"zebra": 1, "ant": 2}}})
    path = measure.save("a", {"first": {"seconds": {"b": 1, "a": 2}}})
    saved = json.loads(path.read_text())
    assert list(saved) == ["first", "second"]
    assert list(saved["second"]["seconds"]) == ["zebra", "ant"]
