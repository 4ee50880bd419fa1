"""The GPU benchmark walks through its measuring parts on a CPU, and says so where it has nothing to measure."""

from __future__ import annotations

import sys

import pytest
import torch

import processes
from layout import ROOT


def benchmark(*arguments: str, status: int = 0) -> processes.Program:
    return processes.run([sys.executable, "-m", "benchmarks.gpu", *arguments], cwd=ROOT, status=status, limit=300.0)


def test_measuring_parts_run() -> None:
    parts = ("copy", "sam", "refresh", "selection", "mask", "labels", "norm", "histogram", "graph")
    done = benchmark("--device", "cpu", "--elements", "4096", "--repeats", "2", "--only", *parts)
    for name in (
        "copy",
        "SAMIRE",
        "mask refresh",
        "kth_value",
        "flat_mask_",
        "sample_labels",
        "global_norm",
        "score_histogram",
        "exact",
    ):
        assert f"\n{name}" in "\n" + done.read()
    assert "written to" not in done.read()


def test_resnet50_has_its_161_tensors() -> None:
    sys.path.insert(0, str(ROOT))
    from benchmarks.gpu_parts import resnet50_shapes

    shapes = resnet50_shapes()
    assert len(shapes) == 161
    assert sum(torch.Size(shape).numel() for shape in shapes) == 25_557_032


def test_a_part_that_hangs_or_fails_leaves_time_for_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    sys.path.insert(0, str(ROOT))
    from benchmarks.gpu import run

    hanging = run("tests", [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"], 2)
    assert hanging["status"] == 124
    assert hanging["seconds"] < 30
    assert hanging["tail"][0] == "begun"
    assert run("copy", [sys.executable, "-c", "raise SystemExit('no such device')"], 60)["tail"] == ["no such device"]
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu_is_said() -> None:
    done = benchmark(status=1)
    assert "nothing was measured" in done.read("stderr")
