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


def test_readme_shows_five_rows_and_the_page_on_kernels_all() -> None:
    readme, kernels = (report.table(report.ROOT / page) for page in ("README.md", "docs/kernels.md"))
    rows = [line for line in readme.splitlines()[4:] if line]
    assert len(rows) == len(report.HEADLINES) == 5
    assert set(rows) < set(kernels.splitlines())


@pytest.mark.parametrize("name", sorted({name for name, _ in report.PAGES.values()}))
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


def test_floor_is_the_time_of_the_bytes_over_the_other_side() -> None:
    bandwidth = {"bytes_per_second": {"read": 10e9, "update": 40e9}, "parameters": 1_000_000}
    row = {
        "seconds": {"ours": {"median": 9.0}, "torch": {"median": 2e-3}},
        "bytes_per_parameter": {"read": 4, "update": 24},
    }
    assert report.floor(row, bandwidth) == "0.50"  # 0.4 ms + 0.6 ms
    assert report.floor({"seconds": row["seconds"]}, bandwidth) == ""


def test_floors_have_a_column_where_the_bandwidth_is_known() -> None:
    times = {"median": 1e-3, "q20": 1e-3, "q80": 1e-3}
    environment = {"threads": 2, "processor": "P", "torch": "T"}
    row = {"seconds": {"ours": times, "torch": times}, "ratio": 1.0, "environment": environment}
    results = {"a": row | {"bytes_per_parameter": {"read": 1, "update": 0}}, "b": row}
    assert "floor" not in report.steps_table(results)
    results["memory bandwidth"] = {"bytes_per_second": {"read": 2e9, "update": 1e9}, "parameters": 1_000_000}
    header, _, a, b = report.steps_table(results).splitlines()[2:]
    assert header.endswith("| ratio | floor |")
    assert a.endswith("| 1.00 | 0.50 |")
    assert b.endswith("| 1.00 |  |")
