"""Formatters, linters and type checks: the one list that `run.py lint`, the pre-commit hooks and CI share.

    python tools/lint.py [--fix] [CHECK ...]

Versions are pinned in the `dev` extra of pyproject.toml.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPP_SUFFIXES = (".h", ".cpp", ".cu", ".cuh")


def cpp_files() -> list[str]:
    """Every C++ and CUDA file of the project."""
    found = [path for top in ("csrc", "tests") for path in (ROOT / top).rglob("*") if path.suffix in CPP_SUFFIXES]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def checks(fix: bool) -> dict[str, list[list[str]]]:
    """Name of each check and the commands that it runs."""
    python = [sys.executable, "-m"]
    return {
        "ruff-check": [[*python, "ruff", "check", *(["--fix"] if fix else []), "."]],
        "ruff-format": [[*python, "ruff", "format", *([] if fix else ["--check"]), "."]],
        "clang-format": [["clang-format", *(["-i"] if fix else ["--dry-run", "-Werror"]), *cpp_files()]],
        "mypy": [[*python, "mypy"], [*python, "mypy", "run.py", *sorted(map(str, Path("tools").glob("*.py")))]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fix", action="store_true", help="mend what the tools can mend")
    parser.add_argument(
        "checks", nargs="*", metavar="CHECK", help=f"of {', '.join(checks(False))}; all if none is named"
    )
    args = parser.parse_args()
    os.chdir(ROOT)
    known = checks(args.fix)
    unknown = sorted(set(args.checks) - set(known))
    if unknown:
        parser.error(f"no such check: {', '.join(unknown)}")
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    failed = []
    for name in args.checks or known:
        start = time.monotonic()
        if any(subprocess.run(command, check=False).returncode for command in known[name]):
            failed.append(name)
        print(f"{name}: {'FAILED' if name in failed else 'ok'} ({time.monotonic() - start:.1f} s)", flush=True)
    if failed:
        sys.exit(f"lint failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
