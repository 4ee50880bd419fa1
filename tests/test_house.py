"""House rules that a reader of one file can't see."""

from __future__ import annotations

import re

import pytest

from layout import CSRC, PACKAGE, ROOT, project_files, pyproject

FILES = sorted(project_files())
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in FILES}
# written in two pieces, so that this file passes its own tests
OPEN_ENDS = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
LOCAL_PATHS = re.compile(r"(?<![\w.:/-])/(home|root|Users|wo" + r"rk|mnt)/\w")
VAGUE_NAMES = {"utils", "util", "common", "misc", "helpers", "new", "v2", "tmp"}


def matches(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{name}:{number}: {line.strip()}"
        for name, text in TEXTS.items()
        for number, line in enumerate(text.splitlines(), start=1)
        if pattern.search(line)
    ]


def test_the_files_are_found() -> None:
    assert {"run.py", "pyproject.toml", "csrc/module.cpp", "python/torch_ire/__init__.py", ".ci/run"} <= set(TEXTS)


def test_no_file_is_longer_than_500_lines() -> None:
    lengths = {name: text.count("\n") for name, text in TEXTS.items() if name != "LICENSE"}
    assert not {name: length for name, length in lengths.items() if length > 500}


def test_no_open_ends() -> None:
    assert not matches(OPEN_ENDS)


def test_no_local_paths() -> None:
    assert not matches(LOCAL_PATHS)


@pytest.mark.parametrize("path", ["/".join(["see ", top, "x"]) for top in ("home", "root", "mnt")])
def test_the_path_rule_rejects(path: str) -> None:
    assert LOCAL_PATHS.search(path)


def test_names_say_what_a_file_holds() -> None:
    assert not [path.name for path in FILES if set(path.stem.lower().split("_")) & VAGUE_NAMES]


def test_version_is_written_once() -> None:
    version = str(pyproject()["project"]["version"])
    pattern = re.compile(rf"(?<![\d.]){re.escape(version)}(?![\d.])")
    history = {"CHANGELOG.md", "pyproject.toml"}
    assert not [line for line in matches(pattern) if line.split(":")[0] not in history]
    assert len(pattern.findall(TEXTS["pyproject.toml"])) == 1


def test_linter_versions_are_pinned_once() -> None:
    dev = pyproject()["project"]["optional-dependencies"]["dev"]
    pins = {name: version for name, _, version in (line.partition("==") for line in dev) if version}
    assert {"ruff", "mypy", "clang-format"} <= set(pins)
    for version in pins.values():
        assert {line.split(":")[0] for line in matches(re.compile(rf"(?<![\d.]){re.escape(version)}\b"))} == {
            "pyproject.toml"
        }


def test_two_commands_and_isolated_builds_use_one_torch() -> None:
    requirements = pyproject()["build-system"]["requires"]
    pinned = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert [line for line in requirements if line.startswith("torch")] == pinned


def test_one_helper_starts_all_programs_of_the_tests() -> None:
    """A program that is started otherwise can outlive its test and keep the suite waiting."""
    starts = re.compile(r"^\s*(import|from) (subprocess|multiprocessing)|os\.(system|popen|spawn|fork)", re.MULTILINE)
    found = {
        name
        for name, text in TEXTS.items()
        if name.startswith("tests/") and name.endswith(".py") and starts.search(text)
    }
    assert found == {"tests/processes.py", "tests/ranks.py", "tests/test_processes.py"}


def test_python_files_postpone_annotations() -> None:
    """One form of annotations everywhere: `X | None` also where Python 3.10 evaluates a signature."""
    late = "from __future__ import annotations"
    with_functions = [path for path in PACKAGE.rglob("*.py") if re.search(r"^\s*def ", path.read_text(), re.MULTILINE)]
    assert not [path.name for path in with_functions if late not in path.read_text()]


def test_headers_are_guarded() -> None:
    headers = [path for path in CSRC.rglob("*") if path.suffix in (".h", ".cuh")]
    assert headers
    assert not [path.name for path in headers if "#pragma once" not in path.read_text()]
