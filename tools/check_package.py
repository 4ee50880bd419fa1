"""Builds the source distribution, a wheel from it, and uses the wheel in a fresh environment.

    python tools/check_package.py [--work DIR]

The wheel is built in isolation, as `pip install` from a package index does; whatever pip is told by its environment
(PIP_CONSTRAINT and the like) holds for it.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
# kernels for several GPU architectures included
LARGEST_WHEEL = 5_000_000
FIRST_STEP = """
import warnings
import torch  # which warns where there is no numpy
warnings.simplefilter("error")
import torch_ire
assert torch_ire._native.module is not None, torch_ire._native.error
params, grads = [torch.ones(3)], [torch.tensor([1.0, -1.0, 2.0])]
state = [[torch.zeros(3)], [torch.zeros(3)], [torch.tensor(0.0)]]
torch_ire.ops.fused_adamw_flat_(
    params, grads, *state, lr=0.1, beta1=0.9, beta2=0.999, eps=0.0, weight_decay=0.0, kappa=0.0
)
torch.testing.assert_close(params[0], torch.tensor([0.9, 1.1, 0.9]))
torch_ire.show_config()
"""


def run(*command: str, cwd: Path) -> None:
    subprocess.run(command, cwd=cwd, check=True)


def only(paths: list[Path]) -> Path:
    assert len(paths) == 1, paths
    return paths[0]


def build_sdist(folder: Path) -> Path:
    """The source distribution, by the backend that pyproject.toml names."""
    run(sys.executable, "-c", f"import scikit_build_core.build as b; b.build_sdist({str(folder)!r})", cwd=ROOT)
    return only(list(folder.glob("*.tar.gz")))


def check_sdist(sdist: Path) -> None:
    """It holds what the build needs and nothing that a build left behind."""
    with tarfile.open(sdist) as archive:
        names = {str(PurePosixPath(*PurePosixPath(name).parts[1:])) for name in archive.getnames()}
    sources = [path for top in ("csrc", "cmake", "python") for path in (ROOT / top).rglob("*") if path.is_file()]
    needed = {path.relative_to(ROOT).as_posix() for path in sources if path.suffix not in (".so", ".pyc")}
    missing = (needed | {"CMakeLists.txt", "pyproject.toml", "LICENSE", "README.md"}) - names
    assert not missing, f"missing from the source distribution: {sorted(missing)}"
    left = [name for name in names if re.search(r"\.(so|pyc|o)$|^(build|\.venv|\.ci)/", name)]
    assert not left, f"does not belong into the source distribution: {left[:9]}"


def check_wheel(wheel: Path) -> None:
    """It holds the package and its metadata, is small, and names no path of this machine."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        native = [name for name in names if re.fullmatch(r"torch_ire/_C\..*(so|pyd)", name)]
        assert len(native) == 1, f"native modules: {native}"
        modules = {path.relative_to(ROOT / "python").as_posix() for path in (ROOT / "python").rglob("*.py")}
        assert modules <= set(names), f"missing from the wheel: {sorted(modules - set(names))}"
        assert "torch_ire/py.typed" in names
        foreign = [name for name in names if not re.match(r"torch_ire/|torch_ire-[^/]+\.dist-info/", name)]
        assert not foreign, f"does not belong into the wheel: {foreign}"
        for name in names:
            assert str(ROOT).encode() not in archive.read(name), f"{name} names a path of this machine"
        metadata = archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert len(required) == 1, required
    assert required[0].startswith("Requires-Dist: torch>="), required
    size = wheel.stat().st_size
    assert size < LARGEST_WHEEL, f"the wheel weighs {size} bytes"
    print(f"{wheel.name}: {len(names)} files, {size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "package", help="scratch folder, emptied first")
    work = parser.parse_args().work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    sdist = build_sdist(work)
    check_sdist(sdist)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(work), str(sdist), cwd=work)
    wheel = only(list(work.glob("*.whl")))
    check_wheel(wheel)
    venv.create(work / "venv", with_pip=True)
    fresh = str(work / "venv" / "bin" / "python")
    run(fresh, "-m", "pip", "install", "--quiet", str(wheel), cwd=work)
    run(fresh, "-c", FIRST_STEP, cwd=work)


if __name__ == "__main__":
    main()
