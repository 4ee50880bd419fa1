"""Everything that a machine with a GPU has to say about torch-ire, in one command and within a time limit.

    python -m benchmarks.gpu [--only PART ...] [--limit 570]

`build` compiles the checkout with this machine's nvcc and torch, for this GPU. The measuring parts take medians by CUDA
events, as a share of the bandwidth of a device-to-device copy, beside the time that the bytes take at that bandwidth
and beside torch. `tests` runs the tests marked gpu, `sanitizer` compute-sanitizer on a short list of them. Every part
is a process of its own, because an error on the device takes the process down, and every row goes to
benchmarks/results/gpu.json as soon as it is measured. What does not fit into `--limit` seconds is left out and named.
`--device cpu` walks through the measuring parts on small sizes without keeping anything: it shows that they run, not
how fast.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_parts import MEASURED, Bench
from benchmarks.measure import save
from torch_ire import _native

ROOT = Path(__file__).resolve().parent.parent
SANITIZED = "float32 and (aligned and (adamw or square or norm) or kth and square or labels)"
PARTS = ("build", "copy", *MEASURED, "tests", "sanitizer")
# seconds that a part may take of what is left
LIMITS = {"build": 240, "tests": 240, "sanitizer": 90}
MEASURING_LIMIT = 60
# under which a part is not worth starting
LEAST = 8


def run(title: str, arguments: list[str], limit: float) -> dict[str, Any]:
    """Runs one command, shows what it printed, and keeps how it ended and its last lines."""
    start = time.perf_counter()
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        output, _ = process.communicate(timeout=limit)
        status = process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        status = 124
        output += f"\nran past {limit:.0f} s"
    lines = output.splitlines()
    seconds = time.perf_counter() - start
    shown = lines[-60:] if status or title in MEASURED or title == "copy" else lines[-1:]
    print("\n".join(shown), flush=True)
    print(f"[{title}: {'passed' if status == 0 else f'FAILED ({status})'} in {seconds:.0f} s]", flush=True)
    return {"status": status, "seconds": seconds, "tail": lines[-5:]}


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


def measure(parts: list[str], args: argparse.Namespace) -> None:
    """The measuring parts, in this process."""
    device = torch.device(args.device)
    on_gpu = device.type == "cuda"
    if on_gpu and not _native.available(device):
        raise SystemExit("benchmarks.gpu: the native library has no CUDA kernels; nothing was measured")
    bench = Bench(device, args.elements or (2**30 if on_gpu else 2**16), args.repeats)
    if on_gpu:
        machine = gpu()

        def keep(name: str, result: dict[str, Any]) -> None:
            save("gpu", {name: {**result, **machine}})

        bench.found = keep
    bench.copy()
    for name in parts:
        if name in MEASURED:
            MEASURED[name](bench)


def command_of(part: str, args: argparse.Namespace) -> list[list[str]]:
    """The commands of one part."""
    python = [sys.executable, "-u", "-m"]
    if part == "build":
        major, minor = torch.cuda.get_device_capability()
        build = ["tools/build_inplace.py", "--cuda", "ON", "--architectures", f"{major}{minor}"]
        return [[sys.executable, *build, "--build-dir", str(ROOT / "build" / "gpu")]]
    if part == "tests":
        return [[*python, "pytest", "-q", "-m", "gpu", "-n", "8", "tests"]]
    if part == "sanitizer":
        tool = shutil.which("compute-sanitizer")
        if tool is None:
            print("sanitizer: compute-sanitizer not found, not run", flush=True)
            return []
        tests = ["tests/test_cuda_operators.py", "tests/test_cuda_selection.py"]
        pytest = [*python, "pytest", "-q", "-p", "no:xdist", "-m", "gpu", "-k", SANITIZED, *tests]
        return [[tool, "--tool", check, "--error-exitcode", "1", *pytest] for check in ("memcheck", "racecheck")]
    options = ["--device", args.device, "--repeats", str(args.repeats)]
    options += ["--elements", str(args.elements)] if args.elements else []
    return [[*python, "benchmarks.gpu", "--alone", "--only", part, *options]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--elements", type=int, default=None, help="parameters of the large lists (default 2^30)")
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--limit", type=float, default=570, help="seconds for everything")
    parser.add_argument("--alone", action="store_true", help="measure in this process")
    args = parser.parse_args()
    on_gpu = torch.device(args.device).type == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu: torch sees no CUDA device; nothing was measured")
    parts = [part for part in PARTS if part in args.only]
    if args.alone or not on_gpu:
        measure(parts, args)
        return
    end = time.monotonic() + args.limit
    failed = []
    for part in parts:
        left = end - time.monotonic()
        if left < LEAST:
            print(f"[{part}: left out, {args.limit:.0f} s are over]", flush=True)
            failed.append(part)
            continue
        for command in command_of(part, args):
            limit = min(LIMITS.get(part, MEASURING_LIMIT), max(LEAST, end - time.monotonic()))
            done = run(part, command, limit)
            if part in ("tests", "sanitizer"):
                check = f" {command[2]}" if part == "sanitizer" else ""
                save("gpu", {part + check: {**done, **gpu()}})
            if done["status"] != 0:
                failed.append(part)
        if part == "build" and failed:
            break
    if failed:
        raise SystemExit(f"benchmarks.gpu: failed or left out: {', '.join(failed)}")


if __name__ == "__main__":
    main()
