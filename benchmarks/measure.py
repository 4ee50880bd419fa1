"""Interleaved timing, peak memory, and results with what is needed to judge them."""

from __future__ import annotations

import json
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import torch_ire

RESULTS = Path(__file__).parent / "results"


# prepares one run, untimed, and returns it
Prepare = Callable[[], Callable[[], object]]


def interleaved(candidates: Mapping[str, Prepare], repeats: int) -> tuple[dict[str, dict[str, float]], float]:
    """Seconds of each candidate (median, 20 % and 80 % quantiles, least), and the ratio of the first to the second.

    The candidates take turns, each going first in every other round, and the ratio is the median of those within a
    round: what else the machine does, and where its memory bandwidth drifts, hits both alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(2):
        for prepare in candidates.values():
            prepare()()
    for round_number in range(repeats):
        order = list(candidates.items())
        for name, prepare in reversed(order) if round_number % 2 else order:
            run = prepare()
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    first, second, *_ = seconds.values()
    ratio = statistics.median(a / b for a, b in zip(first, second, strict=True))
    return {name: summary(times) for name, times in seconds.items()}, ratio


def summary(times: list[float]) -> dict[str, float]:
    low, *_, high = statistics.quantiles(times, n=5)
    return {"median": statistics.median(times), "q20": low, "q80": high, "least": min(times), "repeats": len(times)}


def peak_bytes(run: Callable[[], object]) -> int:
    """How far the resident memory of the process rises above its present level while ``run`` runs (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    run()
    return max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def environment() -> dict[str, Any]:
    processor = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        processor = names[0] if names else processor
    commit = ""
    if shutil.which("git"):
        command = ["git", "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "torch": torch.__version__,
        "torch_ire": torch_ire.__version__,
        "commit": commit or "unknown",
        "processor": processor,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }


def save(name: str, results: Mapping[str, Any]) -> Path:
    """Writes ``benchmarks/results/<name>.json``, keeping what other parts of the same file measured."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known.update({key: {**value, "environment": environment()} for key, value in results.items()})
    path.write_text(json.dumps(dict(sorted(known.items())), indent=2) + "\n")
    return path
