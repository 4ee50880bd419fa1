"""Build the native library of this checkout into python/torch_ire, for development without installing.

    python tools/build_inplace.py [--sanitize] [--cuda ON|OFF|AUTO] [--architectures 90]

Afterwards `PYTHONPATH=python` runs the checkout; a rebuild takes only what changed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11

ROOT = Path(__file__).resolve().parent.parent


def version() -> str:
    for line in (ROOT / "pyproject.toml").read_text().splitlines():
        if line.startswith("version = "):
            return line.split('"')[1]
    raise SystemExit("no version in pyproject.toml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sanitize", action="store_true", help="AddressSanitizer and UndefinedBehaviorSanitizer")
    parser.add_argument("--cuda", default="AUTO", choices=["AUTO", "ON", "OFF"])
    parser.add_argument("--architectures", default=None, help="of the GPUs, as CMake takes them: 90, or 80-real;90")
    parser.add_argument("--build-dir", type=Path, default=None)
    parser.add_argument("--dest", type=Path, default=ROOT / "python" / "torch_ire")
    args = parser.parse_args()
    build = args.build_dir or ROOT / "build" / ("sanitize" if args.sanitize else "inplace")
    configure = [
        "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
        f"-DSKBUILD_PROJECT_VERSION={version()}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DTORCH_IRE_CUDA={args.cuda}",
        f"-DTORCH_IRE_SANITIZE={'ON' if args.sanitize else 'OFF'}",
        "-DTORCH_IRE_WERROR=ON",
        *([f"-DCMAKE_CUDA_ARCHITECTURES={args.architectures}"] if args.architectures else []),
    ]  # fmt: skip
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", str(build)], check=True)
    args.dest.mkdir(parents=True, exist_ok=True)
    for module in build.glob("_C*.so"):
        shutil.copy2(module, args.dest / module.name)


if __name__ == "__main__":
    main()
