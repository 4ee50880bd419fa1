"""What ptxas says about every CUDA kernel: registers, stack, spills. Needs nvcc, no GPU.

    python tools/kernel_resources.py [--arch 90]

Prints registers of every kernel, and for those that stream the bytes that an SM of an H200 can have asked for at once.
docs/kernels.md has both tables; tests/test_cuda_resources.py holds the kernels to them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>[^']+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?:[^\n]*?(?P<shared>\d+) bytes smem)?",
    re.DOTALL,
)
# An SM of compute capability 9.0.
REGISTERS, THREADS, SHARED_BYTES = 65536, 2048, 233472
STREAM_THREADS = 256
# 4.8 TB/s over the 132 SMs of an H200 for the 0.8 microseconds that a load takes: what an SM must have asked for.
BYTES_IN_FLIGHT = 4.8e12 / 132 * 0.8e-6


@dataclass(frozen=True)
class Stream:
    """What a thread of a streaming kernel loads before it uses any of it, and the share of loads in its traffic."""

    bytes_asked: Callable[[int, int, str], int]  # bytes of T, of its opmath, the template's arguments
    loads: float  # for float32


def _vectors(_: int, __: int, arguments: str) -> int:
    return 32 if "true" in arguments else 64  # with weights two arrays are read in step


def _sgd(own: int, opmath: int, arguments: str) -> int:
    return (2 * own + (opmath if not arguments.endswith("0") else 0)) * 16 // opmath


STREAMS = {
    "fused_adamw_flat_kernel": Stream(lambda own, opmath, _: (2 * own + 2 * opmath) * 16 // opmath, 16 / 28),
    "fused_sgd_flat_kernel": Stream(_sgd, 12 / 20),
    "displacement_flat_kernel": Stream(lambda *_: 32, 8 / 12),
    "sam_perturb_kernel": Stream(lambda *_: 32, 8 / 16),
    "hessian_diag_kernel": Stream(lambda own, opmath, _: (own + opmath) * 16 // opmath, 8 / 12),
    "flat_mask_kernel": Stream(_vectors, 4 / 4.125),
    "sum_of_squares_kernel": Stream(_vectors, 1.0),
    "found_nonfinite_kernel": Stream(_vectors, 1.0),
    "score_histogram_kernel": Stream(_vectors, 1.0),
    "bracket_pass_kernel": Stream(_vectors, 1.0),
    "radix_pass_kernel": Stream(_vectors, 1.0),
    "sample_labels_kernel": Stream(_vectors, 1.0),
}
SIZES = {"float": 4, "double": 8, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Kernel:
    """One entry function of one source file."""

    source: str
    name: str
    registers: int
    stack: int
    spills: int
    shared: int

    def threads_on_sm(self, threads: int = STREAM_THREADS) -> int:
        """Threads of an SM in such blocks: registers are given out in eights, shared memory with 1 KiB a block."""
        by_registers = REGISTERS // (-(-self.registers // 8) * 8 * threads)
        return threads * min(by_registers, THREADS // threads, SHARED_BYTES // (self.shared + 1024))

    def bytes_in_flight(self) -> int | None:
        """Bytes that an SM full of this streaming kernel asks for at a time; None for other kernels."""
        base, _, arguments = self.name.partition("<")
        if base not in STREAMS:
            return None
        arguments = arguments.rstrip(">")
        own = SIZES[arguments.split(",")[0]]
        return self.threads_on_sm() * STREAMS[base].bytes_asked(own, max(own, 4), arguments)


def find_nvcc() -> str | None:
    """The compiler that cmake/Cuda.cmake would take."""
    folders = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    in_folders = [shutil.which("nvcc", path=str(Path(folder) / "bin")) for folder in folders if folder]
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or next((path for path in in_folders if path), None)


def sources() -> list[Path]:
    """Every file with kernels."""
    return sorted((CSRC / "kernels").glob("*.cu"))


def compile_verbosely(nvcc: str, source: Path, arch: str, folder: Path) -> str:
    """What ptxas prints for one file."""
    command = [
        nvcc, "-std=c++17", f"-arch=sm_{arch}", "--expt-relaxed-constexpr", f"-I{CSRC}", "-DTORCH_IRE_WITH_CUDA",
        "-cubin", "-Xptxas", "-v", "-Werror", "all-warnings", "-o", str(folder / f"{source.stem}.cubin"), str(source),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return done.stderr


def readable(names: Sequence[str]) -> list[str]:
    """Names of the functions without namespaces and parameters."""
    done = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True)
    names = [re.sub(r"torch_ire::|\(anonymous namespace\)::|^void ", "", name) for name in done.stdout.splitlines()]
    names = [re.sub(r"\((SgdMomentum|Score)\)(\d)", r"\2", name) for name in names]
    return [name.split("(")[0] for name in names]


def parse(source: str, text: str) -> list[Kernel]:
    """The kernels in what ptxas printed."""
    found = list(ENTRY.finditer(text))
    names = readable([entry["name"] for entry in found])
    return [
        Kernel(
            source,
            name,
            int(e["registers"]),
            int(e["stack"]),
            int(e["stores"]) + int(e["loads"]),
            int(e["shared"] or 0),
        )
        for name, e in zip(names, found, strict=True)
    ]


def resources(nvcc: str, arch: str = "90") -> list[Kernel]:
    """All kernels, compiled anew only where a source has changed since the last call."""
    folder = ROOT / "build" / "resources"
    folder.mkdir(parents=True, exist_ok=True)
    headers = sorted(p for p in CSRC.glob("*/*") if p.suffix in (".h", ".cuh"))
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in (*headers, *sources()))).hexdigest()
    cache = folder / f"sm_{arch}.json"
    if cache.exists() and (stored := json.loads(cache.read_text()))["digest"] == digest:
        return [Kernel(**kernel) for kernel in stored["kernels"]]
    with ThreadPoolExecutor(max_workers=2) as pool:
        texts = list(pool.map(lambda source: compile_verbosely(nvcc, source, arch, folder), sources()))
    kernels = [k for path, text in zip(sources(), texts, strict=True) for k in parse(path.stem, text)]
    cache.write_text(json.dumps({"digest": digest, "kernels": [asdict(kernel) for kernel in kernels]}))
    return kernels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--arch", default="90")
    args = parser.parse_args()
    nvcc = find_nvcc()
    if nvcc is None:
        raise SystemExit("no nvcc found")
    print(f"| kernel (sm_{args.arch}) | registers | shared bytes | stack | spills |\n|---|---|---|---|---|")
    for k in resources(nvcc, args.arch):
        print(f"| `{k.name}` | {k.registers} | {k.shared} | {k.stack} | {k.spills} |")
    print("\n| kernel | threads of an SM | KB in flight | needed |\n|---|---|---|---|")
    streams: dict[str, list[Kernel]] = defaultdict(list)
    for k in resources(nvcc, args.arch):
        if k.bytes_in_flight() is not None:
            streams[k.name.split("<")[0]].append(k)
    for name, kernels in streams.items():
        threads = [k.threads_on_sm() for k in kernels]
        kilobytes = [(k.bytes_in_flight() or 0) / 1000 for k in kernels]
        needed = STREAMS[name].loads * BYTES_IN_FLIGHT / 1000
        columns = [
            f"{min(threads)} to {max(threads)}",
            f"{min(kilobytes):.0f} to {max(kilobytes):.0f}",
            f"{needed:.0f}",
        ]
        print(f"| `{name}` | {' | '.join(columns)} |")


if __name__ == "__main__":
    main()
