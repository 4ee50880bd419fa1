"""Everything that a machine with a GPU has to say about torch-ire, in one command and under ten minutes.

    python -m benchmarks.gpu [--only build tests sanitizer copy steps sam refresh selection labels norm graph]

`build` compiles the checkout with this machine's nvcc and torch, `tests` runs the tests marked gpu, `sanitizer`
compute-sanitizer on a short list of them; the other parts measure by CUDA events: medians, as a share of the bandwidth
of a device-to-device copy and against torch. Results go to benchmarks/results/gpu.json. `--device cpu` walks through
the measuring parts on small sizes without keeping anything: it shows that they run, not how fast.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import torch_ire
from benchmarks.measure import save
from torch_ire import _native, ops

ROOT = Path(__file__).resolve().parent.parent
SANITIZED = "cuda and (aligned or longer) and (adamw or mask or norm or kth or labels)"
# shapes of a ResNet-50: 53 convolutions, their normalisations and one linear layer
RESNET50_STAGES = ((64, 64, 3), (256, 128, 4), (512, 256, 6), (1024, 512, 3))


def resnet50_shapes() -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    for stage, (width_in, width, blocks) in enumerate(RESNET50_STAGES):
        for block in range(blocks):
            first = width_in if block == 0 else 4 * width
            for out, size in ((width, (first, 1, 1)), (width, (width, 3, 3)), (4 * width, (width, 1, 1))):
                shapes += [(out, *size), (out,), (out,)]
            if block == 0:
                shapes += [(4 * width, width_in if stage else 64, 1, 1), (4 * width,), (4 * width,)]
    return [*shapes, (1000, 2048), (1000,)]


@dataclass
class Bench:
    """Where and how large the measurements are, and what they have found."""

    device: torch.device
    elements: int
    repeats: int
    results: dict[str, Any] = field(default_factory=dict)
    bandwidth: float = float("nan")  # of a copy, bytes read plus written in a second

    def milliseconds(self, run: Callable[[], object]) -> dict[str, float]:
        """Median and 20 % and 80 % quantiles of one call, after a warm-up."""
        for _ in range(3):
            run()
        times = [self._event_time(run) if self.device.type == "cuda" else _host_time(run) for _ in range(self.repeats)]
        low, *_, high = statistics.quantiles(times, n=5)
        return {"median": statistics.median(times), "q20": low, "q80": high, "repeats": self.repeats}

    def _event_time(self, run: Callable[[], object]) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def row(
        self, name: str, run: Callable[[], object], moved: float, against: Callable[[], object] | None = None
    ) -> None:
        """Measures `run`, which cannot move fewer than `moved` bytes, beside a peer that does the same."""
        ours = self.milliseconds(run)
        result: dict[str, Any] = {"milliseconds": ours, "bytes": moved}
        result["share_of_copy_bandwidth"] = moved / (1e-3 * ours["median"]) / self.bandwidth
        line = f"{name}: {ours['median']:.3f} ms, {result['share_of_copy_bandwidth']:.3f} of the copy bandwidth"
        if against is not None:
            theirs = self.milliseconds(against)
            result |= {"peer_milliseconds": theirs, "ratio": ours["median"] / theirs["median"]}
            line += f", ratio to torch {result['ratio']:.3f} ({theirs['median']:.3f} ms)"
        self.results[name] = result
        print(line, flush=True)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Random numbers on the device; never zeros, which some GPUs move faster."""
        return torch.randn(shape, device=self.device, dtype=dtype)

    def parameters(self, shapes: list[tuple[int, ...]]) -> list[torch.nn.Parameter]:
        """Parameters with gradients."""
        params = [torch.nn.Parameter(self.normal(*shape)) for shape in shapes]
        for p in params:
            p.grad = self.normal(*p.shape)
        return params

    def one_large(self) -> list[tuple[int, ...]]:
        """All elements in eight tensors."""
        return [(self.elements // 8,)] * 8


def _host_time(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def masked(optimizer: Any) -> Any:
    """The optimizer with a mask in place, gradients as they were."""
    params = optimizer.param_groups[0]["params"]
    grads = [p.grad for p in params]
    optimizer.update_mask()
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    return optimizer


def copy(bench: Bench) -> None:
    source = bench.normal(bench.elements)
    target = torch.empty_like(source)
    time_ms = bench.milliseconds(lambda: target.copy_(source))
    bench.bandwidth = 8 * bench.elements / (1e-3 * time_ms["median"])
    bench.results["copy"] = {"milliseconds": time_ms, "bytes_per_second": bench.bandwidth}
    print(f"copy: {bench.bandwidth / 1e9:.0f} GB/s read and written", flush=True)


def steps(bench: Bench) -> None:
    for label, shapes in (("large", bench.one_large()), ("ResNet-50", resnet50_shapes())):
        n = sum(torch.Size(shape).numel() for shape in shapes)
        theirs = torch.optim.AdamW(bench.parameters(shapes), lr=1e-6, fused=True)
        ours = masked(torch_ire.AdmIRE(bench.parameters(shapes), lr=1e-6))
        bench.row(f"AdmIRE step, {label}", ours.step, 28.125 * n, theirs.step)
        del ours, theirs
        sgd: dict[str, Any] = {"lr": 1e-6, "momentum": 0.9}
        peer = torch.optim.SGD(bench.parameters(shapes), fused=True, **sgd)
        mine = masked(torch_ire.SGDIRE(bench.parameters(shapes), **sgd))
        bench.row(f"SGDIRE step, {label}", mine.step, 20.125 * n, peer.step)
        del mine, peer


def sam(bench: Bench) -> None:
    optimizer = masked(torch_ire.SAMIRE(bench.parameters(bench.one_large()), lr=1e-6, momentum=0.9, rho=1e-6))

    def both() -> None:
        optimizer.first_step()
        optimizer.second_step()

    bench.row("SAMIRE first + second step", both, (4 + 16 + 24.125) * bench.elements)


def refresh(bench: Bench) -> None:
    params = bench.parameters(bench.one_large())
    grads = [p.grad for p in params]
    optimizer = torch_ire.AdmIRE(params, lr=1e-6)

    def update() -> None:
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        optimizer.update_mask()

    step = masked(torch_ire.AdmIRE(bench.parameters(bench.one_large()), lr=1e-6)).step
    bench.row("mask refresh (peer: the AdmIRE step)", update, 8.125 * bench.elements, step)


def selection(bench: Bench) -> None:
    tensors = [bench.normal(*shape) for shape in bench.one_large()]
    k = round(0.8 * sum(t.numel() for t in tensors))
    bench.row("kth_value of squares", lambda: ops.kth_value(tensors, k, score="square"), 4 * bench.elements)
    threshold = ops.kth_value(tensors, k, score="square")
    masks = [torch.zeros((t.numel() + 7) // 8, dtype=torch.uint8, device=bench.device) for t in tensors]
    bench.row("flat_mask_", lambda: ops.flat_mask_(masks, tensors, threshold, score="square"), 4.125 * bench.elements)


def labels(bench: Bench) -> None:
    rows = min(8192, max(1, bench.elements // 50304))
    logits = bench.normal(rows, 50304, dtype=torch.bfloat16)
    bench.row(
        f"sample_labels, {rows} x 50304 bfloat16",
        lambda: ops.sample_labels(logits, seed=1, offset=0),
        2 * logits.numel(),
    )


def norm(bench: Bench) -> None:
    tensors = [bench.normal(*shape) for shape in bench.one_large()]
    bench.row(
        "global_norm",
        lambda: ops.global_norm(tensors),
        4 * bench.elements,
        lambda: torch.nn.utils.get_total_norm(tensors),
    )


def graph(bench: Bench) -> None:
    """A captured step replayed: the launch gaps of a list of small tensors are gone."""
    if bench.device.type != "cuda":
        print("graph: needs a GPU, not measured")
        return
    params = bench.parameters(resnet50_shapes())
    optimizer = masked(torch_ire.AdmIRE(params, lr=torch.tensor(1e-6, device=bench.device), capturable=True))
    optimizer.step()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        optimizer.step()
    n = sum(p.numel() for p in params)
    bench.row("AdmIRE step in a graph, ResNet-50", captured.replay, 28.125 * n)


MEASURED: dict[str, Callable[[Bench], None]] = {
    "copy": copy, "steps": steps, "sam": sam, "refresh": refresh, "selection": selection, "labels": labels,
    "norm": norm, "graph": graph,
}  # fmt: skip


def command(title: str, arguments: list[str], limit: int) -> dict[str, Any]:
    """Runs one command and keeps how it ended and its last lines."""
    start = time.perf_counter()
    try:
        done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False, timeout=limit)
        status, text = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        status, text = 124, f"ran past {limit} s"
    print(f"{title}: {'passed' if status == 0 else f'FAILED ({status})'}\n{text[-1500:] if status else ''}", flush=True)
    return {"status": status, "seconds": time.perf_counter() - start, "tail": text.splitlines()[-3:]}


def build() -> None:
    command("build", [sys.executable, "tools/build_inplace.py", "--cuda", "ON"], 300)


def tests() -> dict[str, Any]:
    return {"tests": command("tests", [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"], 300)}


def sanitizer() -> dict[str, Any]:
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        print("sanitizer: compute-sanitizer not found, not run")
        return {}
    pytest = [sys.executable, "-m", "pytest", "-q", "-k", SANITIZED]
    chosen = [*pytest, "tests/test_cuda_operators.py", "tests/test_cuda_selection.py"]
    return {
        f"sanitizer {check}": command(
            f"sanitizer {check}", [tool, "--tool", check, "--error-exitcode", "1", *chosen], 120
        )
        for check in ("memcheck", "racecheck")
    }


COMMANDS: dict[str, Callable[[], dict[str, Any]]] = {"tests": tests, "sanitizer": sanitizer}


def gpu() -> dict[str, str]:
    """What a number was measured on."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=False) if shutil.which(query[0]) else None
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": driver.stdout.split("\n")[0].strip() if driver else "unknown",
        "cuda_of_torch": str(torch.version.cuda),
        "cuda_of_kernels": str(getattr(_native.module, "cuda_version", "")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parts = ["build", *COMMANDS, *MEASURED]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--elements", type=int, default=None, help="parameters of the large lists (default 2^30)")
    parser.add_argument("--repeats", type=int, default=25)
    args = parser.parse_args()
    device = torch.device(args.device)
    on_gpu = device.type == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu: torch sees no CUDA device; nothing was measured")
    bench = Bench(device, args.elements or (2**30 if on_gpu else 2**16), args.repeats)
    if "build" in args.only:
        build()
        # a process has loaded the library that was there before; a new one loads what was built
        rest = [part for part in args.only if part != "build"]
        options = ["--device", args.device, "--repeats", str(args.repeats)]
        options += ["--elements", str(args.elements)] if args.elements else []
        if rest:
            os.execv(sys.executable, [sys.executable, "-m", "benchmarks.gpu", *options, "--only", *rest])
        return
    for name in COMMANDS:
        if name in args.only:
            bench.results |= COMMANDS[name]()
    if on_gpu and not _native.available(device):
        raise SystemExit("benchmarks.gpu: the native library has no CUDA kernels; nothing was measured")
    measured = [name for name in MEASURED if name in args.only]
    if measured and "copy" not in measured:
        measured.insert(0, "copy")  # the unit of everything else
    for name in measured:
        MEASURED[name](bench)
        if on_gpu:
            torch.cuda.empty_cache()
    if on_gpu:
        machine = gpu()
        path = save("gpu", {name: {**result, **machine} for name, result in bench.results.items()})
        print(f"written to {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
