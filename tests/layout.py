"""Where the checkout keeps what, for the tests that read its files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
PACKAGE = ROOT / "python" / "torch_ire"
TOPS = (".ci", "benchmarks", "cmake", "csrc", "docs", "examples", "python", "tests", "tools")
BUILT = (".so", ".pyc", ".png", ".json")


def project_files() -> Iterator[Path]:
    """Every text file that somebody wrote."""
    for path in ROOT.iterdir():
        if path.is_file() and path.suffix not in BUILT and path.name not in (".git", ".coverage"):
            yield path
    for top in TOPS:
        for path in (ROOT / top).rglob("*"):
            if path.is_file() and path.suffix not in BUILT:
                yield path


def pyproject() -> dict[str, object]:
    """The contents of pyproject.toml."""
    try:
        import tomllib
    except ImportError:  # Python 3.10
        from pip._vendor import tomli as tomllib
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def native_files(folder: str, name: str) -> set[str]:
    """Files of csrc/<folder> that belong to the operator `name`."""
    pattern = re.compile(rf"{name}(_cpu|_cuda)?\.(h|cpp|cu|cuh)")
    return {path.name for path in (CSRC / folder).iterdir() if pattern.fullmatch(path.name)}
