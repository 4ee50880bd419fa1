"""What ptxas says about every CUDA kernel: registers, stack, spills. Needs nvcc, no GPU.

    python tools/kernel_resources.py [--arch 90]

Prints the table of docs/kernels.md; tests/test_cuda_resources.py holds streaming kernels to it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
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


@dataclass(frozen=True)
class Kernel:
    """One entry function of one source file."""

    source: str
    name: str
    registers: int
    stack: int
    spills: int
    shared: int


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
        nvcc, "-std=c++17", f"-arch=sm_{arch}", "--expt-relaxed-constexpr", f"-I{CSRC}", "-cubin", "-Xptxas", "-v",
        "-Werror", "all-warnings", "-o", str(folder / f"{source.stem}.cubin"), str(source),
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


if __name__ == "__main__":
    main()
