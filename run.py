"""Sets everything up in `.venv` and runs demo, tests or linters; needs Python >= 3.10, pip and a C++ compiler.

    python3 run.py demo [--quick]       train on real data, print a table, draw a figure
    python3 run.py test [pytest ...]    the whole test suite
    python3 run.py lint [--fix]         formatters, linters and type checks
    python3 run.py setup                the environment for development, and nothing else

The first call takes a minute or two, later ones install only what changed.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

# Before the first annotation: an older Python gets as far as this line.
if sys.version_info < (3, 10):  # noqa: UP036
    sys.exit("run.py: torch-ire needs Python >= 3.10, this is Python " + sys.version.split()[0])

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
STAMP = VENV / "torch-ire-stamp.json"
CONSTRAINTS = ROOT / "constraints.txt"
# each extra of pyproject.toml contains the one before it
EXTRAS = ("demo", "test", "dev")
BUILD_INPUTS = ("pyproject.toml", "CMakeLists.txt", "cmake", "csrc", "python")
BUILD_REQUIREMENTS = """
import json, os, sys
sys.path.insert(0, os.getcwd())
try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib
with open("pyproject.toml", "rb") as file:
    print(json.dumps(tomllib.load(file)["build-system"]["requires"]))
"""
# cmake and ninja, where the machine has none that is new enough
TOOL_REQUIREMENTS = """
import json, scikit_build_core.build
print(json.dumps(scikit_build_core.build.get_requires_for_build_wheel()))
"""


def environment() -> dict[str, str]:
    """The caller's, with the environment in front and the pinned versions binding wherever pip resolves anything."""
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    # a URI: pip splits these variables at spaces
    env["PIP_CONSTRAINT"] = env["PIP_BUILD_CONSTRAINT"] = CONSTRAINTS.as_uri()
    env["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    env["VIRTUAL_ENV"] = str(VENV)
    env["PATH"] = os.pathsep.join([str(BIN), env.get("PATH", "")])
    return env


def python(*arguments: str) -> None:
    """Runs the environment's Python at the top of the checkout and stops where it fails."""
    code = subprocess.run([str(BIN / "python"), *arguments], cwd=ROOT, env=environment(), check=False).returncode
    if code != 0:
        sys.exit(f"run.py: `python {' '.join(arguments)}` failed with exit status {code}")


def requirements(program: str) -> list[str]:
    """A list of requirements that a program in the environment prints."""
    output = subprocess.run([str(BIN / "python"), "-c", program], cwd=ROOT, env=environment(), check=True,
                            stdout=subprocess.PIPE, text=True).stdout  # fmt: skip
    return list(json.loads(output))


def pip_install(*arguments: str) -> None:
    """`pip install` into the environment."""
    python("-m", "pip", "install", "--quiet", *arguments)


def make_venv() -> None:
    """Makes `.venv`, unless one is there whose Python runs and is new enough."""
    probe = "import sys, pip; sys.exit(sys.version_info < (3, 10))"
    if (BIN / "python").exists():
        found = subprocess.run([str(BIN / "python"), "-c", probe], stderr=subprocess.DEVNULL, check=False)
        if found.returncode == 0:
            return
    print("run.py: making .venv", flush=True)
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=False)
    if made.returncode != 0:
        sys.exit("run.py: no virtual environment could be made; on Debian and Ubuntu: apt install python3-venv")


def check_compiler() -> None:
    """Stops with a message where there is no C++ compiler."""
    compiler = os.environ.get("CXX", "").split()
    if not any(map(shutil.which, compiler[:1] or ["c++", "g++", "clang++", "cl"])):
        sys.exit(
            "run.py: no C++ compiler found" + (f" (CXX={' '.join(compiler)})" if compiler else "") + "; torch-ire "
            "needs one with C++17, for example g++ >= 10 or clang++ >= 12 (Debian and Ubuntu: apt install g++)"
        )


def digest(*names: str) -> str:
    """A hash of files and folders of the checkout: names and contents, without what builds leave behind."""
    state = hashlib.sha256(sys.version.encode())
    for name in names:
        top = ROOT / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and path.suffix not in (".so", ".pyc", ".pyd"):
                state.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return state.hexdigest()


def set_up(extra: str, *, build: bool) -> None:
    """Brings `.venv` up to date: the requirements of the build and of an extra, and (`build`) the package itself."""
    make_venv()
    stamp = json.loads(STAMP.read_text()) if STAMP.exists() else {}
    requirements_now, sources_now = digest("pyproject.toml", "constraints.txt"), digest(*BUILD_INPUTS)
    if stamp.get("requirements") != requirements_now:
        stamp = {}
    installed = stamp.get("extra")
    have_extra = installed is not None and EXTRAS.index(installed) >= EXTRAS.index(extra)
    if have_extra and (stamp.get("sources") == sources_now or not build):
        return
    check_compiler()
    STAMP.unlink(missing_ok=True)
    # Everything that the build needs goes into .venv itself: an isolated build would download torch a second time.
    if not have_extra:
        print(f"run.py: installing the requirements of the build and of `{extra}` into .venv", flush=True)
        pip_install(*requirements(BUILD_REQUIREMENTS))
        tools = requirements(TOOL_REQUIREMENTS)
        if tools:
            pip_install(*tools)
    print("run.py: building and installing torch-ire", flush=True)
    if have_extra:
        pip_install("--no-build-isolation", "--no-deps", "--force-reinstall", ".")
    else:
        pip_install("--no-build-isolation", f".[{extra}]")
        remove_foreign_torchvision()
    stamp = {"requirements": requirements_now, "sources": sources_now, "extra": extra if not have_extra else installed}
    STAMP.write_text(json.dumps(stamp))


def remove_foreign_torchvision() -> None:
    """Removes a torchvision that does not fit this torch, such as one built for CUDA beside a torch without.

    It comes along with curvlinops, which runs without it; Lightning takes one that can't be imported for one that can,
    and fails.
    """
    probe = "import importlib.util as u, sys; sys.exit(0 if u.find_spec('torchvision') is None else 3)"
    if subprocess.run([str(BIN / "python"), "-c", probe], check=False).returncode != 3:
        return
    broken = subprocess.run([str(BIN / "python"), "-c", "import torchvision"], stderr=subprocess.DEVNULL, check=False)
    if broken.returncode != 0:
        python("-m", "pip", "uninstall", "--quiet", "--yes", "torchvision")


def execute(*command: str, cwd: Path | None = None) -> None:
    """Runs a command of the environment and leaves with its exit status."""
    sys.exit(subprocess.run([str(BIN / command[0]), *command[1:]], cwd=cwd, env=environment(), check=False).returncode)


def main() -> None:
    """Dispatches on the first argument; the others go to the command."""
    command, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("help", [])
    if command == "demo":
        set_up("demo", build=True)
        execute("torch-ire", "demo", *arguments)
    elif command == "test":
        set_up("test", build=True)
        # one process a core, files kept whole for their fixtures; idle threads leave the core to the other process
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        execute("python", "-m", "pytest", "-n", "auto", "--dist", "loadfile", *arguments, cwd=ROOT)
    elif command == "lint":
        set_up("dev", build=False)
        execute("python", "tools/lint.py", *arguments, cwd=ROOT)
    elif command == "setup":
        set_up("dev", build=True)
    else:
        print(__doc__)
        sys.exit(command not in ("help", "-h", "--help"))


if __name__ == "__main__":
    main()
