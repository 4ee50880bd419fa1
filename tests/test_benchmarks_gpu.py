"""The GPU benchmark walks through its measuring parts on a CPU, and says so where it has nothing to measure."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from layout import ROOT


def benchmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_measuring_parts_run() -> None:
    parts = ("copy", "sam", "refresh", "selection", "labels", "norm", "graph")
    done = benchmark("--device", "cpu", "--elements", "4096", "--repeats", "2", "--only", *parts)
    assert done.returncode == 0, done.stderr
    for name in ("copy", "SAMIRE", "mask refresh", "kth_value", "flat_mask_", "sample_labels", "global_norm"):
        assert f"\n{name}" in "\n" + done.stdout
    assert "written to" not in done.stdout


def test_resnet50_has_its_161_tensors() -> None:
    sys.path.insert(0, str(ROOT))
    from benchmarks.gpu import resnet50_shapes

    shapes = resnet50_shapes()
    assert len(shapes) == 161
    assert sum(torch.Size(shape).numel() for shape in shapes) == 25_557_032


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu_is_said() -> None:
    done = benchmark()
    assert done.returncode != 0
    assert "nothing was measured" in done.stderr
