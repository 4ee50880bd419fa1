"""What is measured on a GPU: parts by name, each a few rows of time, unavoidable bytes, and what to reach."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import torch_ire
from torch_ire import ops
from torch_ire.masks.exact_threshold import exact_threshold

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
    """Where and how large the measurements are, and who gets to know what they find."""

    device: torch.device
    elements: int
    repeats: int
    found: Callable[[str, dict[str, Any]], None] = lambda name, result: None
    bandwidth: float = field(default=float("nan"))  # of a copy, bytes read plus written in a second

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
        return float(start.elapsed_time(end))

    def copy(self) -> None:
        """The unit of everything else."""
        source = self.normal(self.elements)
        target = torch.empty_like(source)
        milliseconds = self.milliseconds(lambda: target.copy_(source))
        self.bandwidth = 8 * self.elements / (1e-3 * milliseconds["median"])
        self.found("copy", {"milliseconds": milliseconds, "bytes_per_second": self.bandwidth})
        print(f"copy: {self.bandwidth / 1e9:.0f} GB/s read and written", flush=True)

    def row(
        self,
        name: str,
        run: Callable[[], object],
        moved: float,
        against: Callable[[], object] | None = None,
        share: float | None = None,
        ratio: float | None = None,
    ) -> None:
        """Measures `run`, which cannot move fewer than `moved` bytes, beside a peer that does the same.

        `share` of the copy bandwidth is to be reached at least, `ratio` to the peer at most.
        """
        ours = self.milliseconds(run)
        got = moved / (1e-3 * ours["median"]) / self.bandwidth
        result: dict[str, Any] = {"milliseconds": ours, "bytes": moved, "share_of_copy_bandwidth": got}
        floor = 1e3 * moved / self.bandwidth
        line = f"{name}: {ours['median']:.3f} ms, floor {floor:.3f} ms, share {got:.3f}"
        if share is not None:
            result["share_to_reach"] = share
            line += f" ({'reached' if got >= share else 'NOT REACHED'}: {share:.2f})"
        if against is not None:
            theirs = self.milliseconds(against)
            result |= {"peer_milliseconds": theirs, "ratio": ours["median"] / theirs["median"]}
            line += f", peer {theirs['median']:.3f} ms, ratio {result['ratio']:.3f}"
            if ratio is not None:
                result["ratio_to_reach"] = ratio
                line += f" ({'reached' if result['ratio'] <= ratio else 'NOT REACHED'}: {ratio:.2f})"
        self.found(name, result)
        print(line, flush=True)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Random numbers on the device; never zeros, which some GPUs move faster."""
        return torch.randn(shape, device=self.device, dtype=dtype)

    def normals(self, elements: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """All elements in eight tensors."""
        return [self.normal(elements // 8, dtype=dtype) for _ in range(8)]

    def parameters(self, shapes: list[tuple[int, ...]]) -> list[torch.nn.Parameter]:
        """Parameters with gradients."""
        params = [torch.nn.Parameter(self.normal(*shape)) for shape in shapes]
        for p in params:
            p.grad = self.normal(*p.shape)
        return params

    def one_large(self) -> list[tuple[int, ...]]:
        """Shapes of eight tensors with all elements."""
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


def steps(bench: Bench) -> None:
    for label, shapes, reach in (
        ("large", bench.one_large(), {"share": 0.90, "ratio": 1.0}),
        ("ResNet-50", resnet50_shapes(), {"ratio": 0.5}),
    ):
        n = sum(torch.Size(shape).numel() for shape in shapes)
        theirs = torch.optim.AdamW(bench.parameters(shapes), lr=1e-6, fused=True)
        ours = masked(torch_ire.AdmIRE(bench.parameters(shapes), lr=1e-6))
        bench.row(f"AdmIRE step, {label}", ours.step, 28.125 * n, theirs.step, **reach)
        del ours, theirs
        sgd: dict[str, Any] = {"lr": 1e-6, "momentum": 0.9}
        peer = torch.optim.SGD(bench.parameters(shapes), fused=True, **sgd)
        mine = masked(torch_ire.SGDIRE(bench.parameters(shapes), **sgd))
        bench.row(f"SGDIRE step, {label}", mine.step, 20.125 * n, peer.step, **reach)
        del mine, peer


def sam(bench: Bench) -> None:
    optimizer = masked(torch_ire.SAMIRE(bench.parameters(bench.one_large()), lr=1e-6, momentum=0.9, rho=1e-6))

    def both() -> None:
        optimizer.first_step()
        optimizer.second_step()

    bench.row("SAMIRE first + second step", both, (4 + 16 + 24.125) * bench.elements, share=0.80)


def refresh(bench: Bench) -> None:
    params = bench.parameters(bench.one_large())
    grads = [p.grad for p in params]
    optimizer = torch_ire.AdmIRE(params, lr=1e-6)

    def update() -> None:
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        optimizer.update_mask()

    step = masked(torch_ire.AdmIRE(bench.parameters(bench.one_large()), lr=1e-6)).step
    bench.row("mask refresh (peer: the AdmIRE step)", update, 8.125 * bench.elements, step, ratio=0.8)


def selection(bench: Bench) -> None:
    """kth_value where it is easy, where it is long, and where the sample has a hard time."""

    def kth(name: str, tensors: list[Tensor], score: str) -> None:
        n = sum(t.numel() for t in tensors)
        k = round(0.8 * n)
        found = ops.kth_value(tensors, k, score=score)
        magnitude = found.double().sqrt() if score == "square" else found.double()
        if score == "abs":
            below = sum(int((t.abs() < magnitude).sum()) for t in tensors)
            up_to = sum(int((t.abs() <= magnitude).sum()) for t in tensors)
            if not below < k <= up_to:
                raise RuntimeError(
                    f"kth_value, {name}: {found.item()} has {below} below it and {up_to} up to it, k = {k}"
                )
        size = tensors[0].element_size()
        bench.row(f"kth_value, {name}", lambda: ops.kth_value(tensors, k, score=score), size * n, share=1 / 1.3)

    tensors = bench.normals(bench.elements)
    kth("squares", tensors, "square")
    kth("magnitudes", tensors, "abs")
    for i, t in enumerate(tensors):
        t.mul_(10.0 ** (i - 4))
    kth("layers of many scales", tensors, "abs")
    for t in tensors:
        t.view(-1, 64).mul_(torch.randn(t.numel() // 64, 1, device=bench.device).exp())
    kth("rows of many scales", tensors, "abs")
    for t in tensors:
        t[torch.rand_like(t) < 0.3] = 0.0
    kth("three zeros in ten", tensors, "abs")
    del tensors
    kth("bfloat16", bench.normals(bench.elements, torch.bfloat16), "abs")
    kth("float64, half as many", bench.normals(bench.elements // 2, torch.float64), "abs")
    kth("2^25 of them", bench.normals(min(bench.elements, 2**25)), "abs")
    kth("twice as many", bench.normals(2 * bench.elements), "abs")


def mask(bench: Bench) -> None:
    tensors = bench.normals(bench.elements)
    masks = [torch.zeros((t.numel() + 7) // 8, dtype=torch.uint8, device=bench.device) for t in tensors]
    threshold = torch.full((), 1.6, device=bench.device)
    bench.row("flat_mask_", lambda: ops.flat_mask_(masks, tensors, threshold, score="square"), 4.125 * bench.elements)


def histogram(bench: Bench) -> None:
    """score_histogram, and the rankings over several dtypes that it makes possible."""
    prefix = torch.full((), 253, dtype=torch.int64, device=bench.device)
    for dtype in (torch.float32, torch.bfloat16):
        tensors = bench.normals(bench.elements, dtype)
        for shift in (22, 11):

            def count(tensors: list[Tensor] = tensors, shift: int = shift) -> Tensor:
                return ops.score_histogram(tensors, prefix, shift=shift, score="abs")

            name = f"score_histogram, {str(dtype).removeprefix('torch.')}, shift {shift}"
            bench.row(name, count, tensors[0].element_size() * bench.elements)
        del tensors
    half = bench.elements // 2
    mixed = [*bench.normals(half), *bench.normals(half, torch.bfloat16)]
    k = round(0.8 * sum(t.numel() for t in mixed))
    bench.row(
        "exact_threshold over float32 and bfloat16 (peer: kth_value of a float32 copy)",
        lambda: exact_threshold(ops, mixed, 0.8, score="square"),
        3 * 6 * half,
        lambda: ops.kth_value([t.float() for t in mixed], k, score="square"),
    )


def labels(bench: Bench) -> None:
    rows = min(8192, max(1, bench.elements // 50304))
    logits = bench.normal(rows, 50304, dtype=torch.bfloat16)
    bench.row(
        f"sample_labels, {rows} x 50304 bfloat16",
        lambda: ops.sample_labels(logits, seed=1, offset=0),
        2 * logits.numel(),
        share=1 / 1.15,
    )


def norm(bench: Bench) -> None:
    tensors = bench.normals(bench.elements)
    bench.row(
        "global_norm",
        lambda: ops.global_norm(tensors),
        4 * bench.elements,
        lambda: torch.nn.utils.get_total_norm(tensors),
        share=0.90,
    )


def graph(bench: Bench) -> None:
    """A captured step replayed: the launch gaps of a list of small tensors are gone, ours and torch's."""
    if bench.device.type != "cuda":
        print("graph: needs a GPU, not measured")
        return
    shapes = resnet50_shapes()
    ours = masked(
        torch_ire.AdmIRE(bench.parameters(shapes), lr=torch.tensor(1e-6, device=bench.device), capturable=True)
    )
    theirs = torch.optim.AdamW(
        bench.parameters(shapes), lr=torch.tensor(1e-6, device=bench.device), capturable=True, fused=True
    )
    replays = []
    for optimizer in (ours, theirs):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            optimizer.step()
        torch.cuda.current_stream().wait_stream(side)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            optimizer.step()
        replays.append(captured.replay)
    n = sum(torch.Size(shape).numel() for shape in shapes)
    bench.row("AdmIRE step in a graph, ResNet-50", replays[0], 28.125 * n, replays[1])


# in the order in which they matter, should time run out
MEASURED: dict[str, Callable[[Bench], None]] = {
    "steps": steps, "refresh": refresh, "selection": selection, "labels": labels, "norm": norm, "sam": sam,
    "mask": mask, "histogram": histogram, "graph": graph,
}  # fmt: skip
