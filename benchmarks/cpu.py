"""Steps, mask refresh, SAM and label sampling on the CPU, against what torch offers, in one process.

    python -m benchmarks.cpu [--only bandwidth steps rounding training refresh sam sampling memory] [--repeats 25]

Every ratio is ours over theirs within one round of interleaved runs, the median over the rounds. Rows of the large
model carry the least number of bytes that they move per parameter, from which and from the measured bandwidth the
report computes the floor of the ratio. Results go to benchmarks/results/cpu.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import torch_ire
from benchmarks.measure import interleaved, peak_bytes, save
from torch_ire.demo.config import TEXT
from torch_ire.demo.models import CharTransformer
from torch_ire.demo.training import loss_of


def transformer_shapes(vocabulary: int, width: int, layers: int, biases: bool) -> list[tuple[int, ...]]:
    """Parameters of a GPT-like model: the mixture of large matrices and small vectors that optimizers meet."""
    shapes: list[tuple[int, ...]] = [(vocabulary, width), (1024, width), (width,)]
    for _ in range(layers):
        shapes += [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width), (width,), (width,)]
        shapes += [(3 * width,), (width,), (4 * width,)] * biases
    return shapes


MODELS = {
    "58 M in 75 tensors": transformer_shapes(38_000, 512, 12, False),
    "2 M in 166 tensors": [*transformer_shapes(256, 96, 18, True), (96,)],
    "1 M in 1,000 tensors": [(1000,)] * 1000,
}


def parameters(name: str, dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in MODELS[name]]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(dtype)
    return params


def masked(optimizer: Any) -> Any:
    """The optimizer with a mask of its gradients in place, as it runs between two refreshes."""
    grads = [p.grad for p in optimizer.param_groups[0]["params"]]
    optimizer.update_mask()
    for p, g in zip(optimizer.param_groups[0]["params"], grads, strict=True):
        p.grad = g
    return optimizer


def repeated(run: Callable[[], object]) -> Callable[[], Callable[[], object]]:
    return lambda: run


def bandwidth(repeats: int) -> dict[str, Any]:
    """The fastest read, and the fastest update in place, of as many numbers as the large model has.

    A read of one tensor alone can stay below what the memory gives to several streams. Floors need the best rate, so a
    read counts at the rate of the update where that is higher.
    """
    x = torch.randn(sum(torch.Size(shape).numel() for shape in MODELS["58 M in 75 tensors"]))
    times, _ = interleaved({"read": repeated(x.sum), "update": repeated(lambda: x.mul_(1.0))}, repeats)
    moved = {"read": 4 * x.numel(), "update": 8 * x.numel()}
    rates = {name: moved[name] / t["least"] for name, t in times.items()}
    rates["read"] = max(rates.values())
    print(f"memory bandwidth: read {rates['read'] / 1e9:.1f} GB/s, update in place {rates['update'] / 1e9:.1f} GB/s")
    return {"memory bandwidth": {"bytes_per_second": rates, "parameters": x.numel()}}


def steps(repeats: int) -> dict[str, Any]:
    results = {}
    for model in MODELS:
        large = model == "58 M in 75 tensors"
        sgd = {"lr": 1e-6, "momentum": 0.9}
        ours, theirs = (
            masked(torch_ire.AdmIRE(parameters(model), lr=1e-6)),
            torch.optim.AdamW(parameters(model), lr=1e-6, fused=True),
        )
        measured = interleaved({"AdmIRE": repeated(ours.step), "torch AdamW fused": repeated(theirs.step)}, repeats)
        results[f"AdmIRE step, {model}"] = report(
            f"AdmIRE step, {model}", *measured, moved=(4.125, 24) if large else None
        )
        del ours, theirs
        ours, theirs = (
            masked(torch_ire.SGDIRE(parameters(model), **sgd)),
            torch.optim.SGD(parameters(model), fused=True, **sgd),
        )
        measured = interleaved({"SGDIRE": repeated(ours.step), "torch SGD fused": repeated(theirs.step)}, repeats)
        results[f"SGDIRE step, {model}"] = report(
            f"SGDIRE step, {model}", *measured, moved=(4.125, 16) if large else None
        )
    return results


def rounding(repeats: int) -> dict[str, Any]:
    """bfloat16 weights, of which torch rounds the moments too; then a look at gradients for what is not finite."""
    model = "58 M in 75 tensors"
    results = {}
    for kind, updated in {"nearest": 20, "stochastic": 20, "kahan": 24, "master": 28}.items():
        ours = masked(torch_ire.AdmIRE(parameters(model, torch.bfloat16), lr=1e-6, rounding=kind))
        theirs = torch.optim.AdamW(parameters(model, torch.bfloat16), lr=1e-6, fused=True)
        measured = interleaved({"AdmIRE": repeated(ours.step), "torch AdamW fused": repeated(theirs.step)}, repeats)
        name = f'AdmIRE step, bfloat16, rounding="{kind}", {model}'
        results[name] = report(name, *measured, moved=(2.125, updated))
        del ours, theirs
    ours = masked(torch_ire.AdmIRE(parameters(model), lr=1e-6, skip_nonfinite=True))
    theirs = torch.optim.AdamW(parameters(model), lr=1e-6, fused=True)
    measured = interleaved({"AdmIRE": repeated(ours.step), "torch AdamW fused": repeated(theirs.step)}, repeats)
    name = f"AdmIRE step, skip_nonfinite=True, {model}"
    results[name] = report(name, *measured, moved=(8.125, 24))
    return results


def training(repeats: int) -> dict[str, Any]:
    """Rounds of ten training steps of the demo's Transformer, each with one refresh, on one thread as in the demo."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    x = torch.randint(97, (TEXT.batch_size, TEXT.context), generator=torch.Generator().manual_seed(0))

    # One model for both: where its tensors happen to lie changes forward and backward by more than the step takes.
    torch.manual_seed(0)
    model = CharTransformer(97, TEXT.width, TEXT.num_layers, TEXT.num_heads, TEXT.context)

    def trained_by(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        def ten_steps() -> None:
            for _ in range(10):
                loss_of(model, x, x).backward()
                optimizer.step()
                optimizer.zero_grad()

        return ten_steps

    ours = trained_by(torch_ire.AdmIRE(model.parameters(), lr=1e-4, curvature="second_moment", mask_interval=10))
    theirs = trained_by(torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True))
    measured = interleaved({"AdmIRE": repeated(ours), "torch AdamW fused": repeated(theirs)}, repeats)
    torch.set_num_threads(threads)
    name = "10 training steps of the demo's Transformer, second_moment, one thread"
    return {name: report(name, *measured)}


def refresh(repeats: int) -> dict[str, Any]:
    """The call alone: the batches keep their gradients, so that the refresh drops references and frees no memory."""
    model = "58 M in 75 tensors"
    results = {}
    for beta in (0.0, 0.9):
        params = parameters(model)
        ours = torch_ire.AdmIRE(params, curvature_beta=beta)
        theirs = torch.optim.AdamW(parameters(model), fused=True)
        # two batches in turn: the threshold of the last refresh is a hint for the next, not its answer
        batches = [[p.grad.clone() for p in params], [1.1 * p.grad.roll(1) for p in params]]

        def prepare(ours: Any = ours, params: list[Any] = params, batches: list[list[Tensor]] = batches) -> Any:
            batches.reverse()
            for p, g in zip(params, batches[0], strict=True):
                p.grad = g
            return ours.update_mask

        measured = interleaved({"update_mask": prepare, "torch AdamW fused": repeated(theirs.step)}, repeats)
        name = f"mask refresh without freeing the gradients, curvature_beta={beta:g}, {model}"
        results[name] = report(name, *measured, moved=(4.125, 0) if beta == 0.0 else (8.125, 8))
        if beta == 0.0:
            run = prepare()
            results[name]["peak_bytes"] = peak_bytes(run)
            print(f"    memory at the peak of a refresh: {results[name]['peak_bytes'] / 2**20:.1f} MiB")
    return results


def sam(repeats: int) -> dict[str, Any]:
    model = "58 M in 75 tensors"
    sgd = {"lr": 1e-6, "momentum": 0.9}
    ours = masked(torch_ire.SAMIRE(parameters(model), rho=1e-6, **sgd))
    theirs = torch.optim.SGD(parameters(model), fused=True, **sgd)

    def both() -> None:
        ours.first_step()
        ours.second_step()

    measured = interleaved(
        {"SAMIRE first + second step": repeated(both), "torch SGD fused": repeated(theirs.step)}, repeats
    )
    name = f"SAMIRE first + second step, {model}"
    return {name: report(name, *measured)}


def sampling(repeats: int) -> dict[str, Any]:
    logits = torch.randn(4096, 50304, generator=torch.Generator().manual_seed(0))

    def ours() -> None:
        torch_ire.ops.sample_labels(logits, seed=1, offset=0)

    def theirs() -> None:
        torch.distributions.Categorical(logits=logits).sample()

    measured = interleaved(
        {"sample_labels": repeated(ours), "torch Categorical": repeated(theirs)}, max(5, repeats // 5)
    )
    name = "sample_labels, 4096 x 50304 float32"
    result = report(name, *measured)
    result["peak_bytes"] = {"sample_labels": peak_bytes(ours), "torch Categorical": peak_bytes(theirs)}
    result["peak_ratio"] = result["peak_bytes"]["sample_labels"] / result["peak_bytes"]["torch Categorical"]
    print(f"    peak memory: {result['peak_bytes']['sample_labels'] / 2**20:.2f} MiB against "
          f"{result['peak_bytes']['torch Categorical'] / 2**20:.0f} MiB, ratio {result['peak_ratio']:.5f}")  # fmt: skip
    return {name: result}


def memory(_: int) -> dict[str, Any]:
    """State after a step, in bytes a parameter; no time is taken."""
    model = "58 M in 75 tensors"
    bytes_of = {}
    for name, make in {
        "AdmIRE": lambda p: masked(torch_ire.AdmIRE(p)),
        "torch AdamW": lambda p: torch.optim.AdamW(p, fused=True),
        "SGDIRE": lambda p: masked(torch_ire.SGDIRE(p, momentum=0.9)),
        "torch SGD": lambda p: torch.optim.SGD(p, momentum=0.9, fused=True),
    }.items():
        params = parameters(model)
        optimizer = make(params)
        optimizer.step()
        state = [value for entry in optimizer.state.values() for key, value in entry.items() if key != "step"]
        bytes_of[name] = sum(t.numel() * t.element_size() for t in state if isinstance(t, Tensor)) / sum(
            p.numel() for p in params
        )
    for ours, base in (("AdmIRE", "torch AdamW"), ("SGDIRE", "torch SGD")):
        print(f"{ours}: {bytes_of[ours]:.4f} bytes a parameter, {bytes_of[ours] - bytes_of[base]:.4f} beyond {base}")
    return {"optimizer state, bytes a parameter": bytes_of}


def report(
    name: str, times: dict[str, dict[str, float]], ratio: float, moved: tuple[float, float] | None = None
) -> dict[str, Any]:
    """Prints and returns a row. ``moved``: bytes per parameter that are read only, and that are read and written."""
    shown = [
        f"{who} {1e3 * t['median']:.2f} ms ({1e3 * t['q20']:.2f} to {1e3 * t['q80']:.2f})" for who, t in times.items()
    ]
    print(f"{name}: {', '.join(shown)}, ratio {ratio:.3f}")
    row: dict[str, Any] = {"seconds": times, "ratio": ratio}
    return row if moved is None else row | {"bytes_per_parameter": {"read": moved[0], "update": moved[1]}}


PARTS = {
    "bandwidth": bandwidth,
    "steps": steps,
    "rounding": rounding,
    "training": training,
    "refresh": refresh,
    "sam": sam,
    "sampling": sampling,
    "memory": memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=25)
    args = parser.parse_args()
    for part in args.only:
        path = save("cpu", PARTS[part](args.repeats))
    print(f"written to {path.relative_to(path.parents[2])}")


if __name__ == "__main__":
    main()
