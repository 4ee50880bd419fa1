"""Documentation is true: paths, links and commands exist, public names are documented, examples run."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import cases
import processes
import torch_ire
from layout import ROOT
from trainers import need

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGE_IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]
# A path has a folder of the checkout in front or a suffix that only files have.
PATH = re.compile(r"\.?[\w<>*{},.-]+(/[\w<>*{},.-]+)*/?")
SUFFIXES = (".py", ".md", ".toml", ".txt", ".cpp", ".h", ".cu", ".cuh", ".cff", ".cmake", ".json", ".yaml")
# each needs a trainer, and says so where it is not installed (the extra `test` installs all)
NEED_TRAINERS = {"torch_ire.integrations.hugging_face": "transformers", "torch_ire.integrations.lightning": "lightning"}
MODULES = [torch_ire] + [
    importlib.import_module(info.name)
    for info in pkgutil.walk_packages(torch_ire.__path__, "torch_ire.")
    if not info.name.endswith(("._C", ".__main__")) and info.name not in NEED_TRAINERS
]
PARTS = [module for module in MODULES if hasattr(module, "__path__") and hasattr(module, "__all__")]


def fenced(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def is_path(word: str) -> bool:
    """Whether a word of the documentation means a file or folder of the checkout."""
    tops = {path.name for path in ROOT.iterdir()} | {".ci", "docs", "examples", "benchmarks"}
    return bool(PATH.fullmatch(word)) and (word.endswith(SUFFIXES) or ("/" in word and word.split("/")[0] in tops))


def exists(word: str) -> bool:
    """`<op>` stands for the name of any operator; other files are named from the top or, without folder, anywhere."""
    if "<op>" in word:
        return (ROOT / word.replace("<op>", "kth_value")).exists()
    return (ROOT / word).exists() or ("/" not in word and any(ROOT.glob(f"*/**/{word}")))


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_paths_exist(page: Path) -> None:
    words = re.findall(r"`([^`\n]+)`", prose(page)) + " ".join(fenced(page, "bash")).split()
    named = {part for word in words for part in word.split() if is_path(part)} - {".venv"}
    named = {path for path in named if not path.startswith((".venv/", "build/"))}
    assert not sorted(path for path in named if not exists(path))


def test_the_rule_finds_what_is_missing() -> None:
    assert is_path("tests/no_such_file.py")
    assert not exists("tests/no_such_file.py")
    assert not exists("no_such_file.py")
    assert not exists("tests/no_such_<op>.py")
    assert not is_path("lr/kappa")


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_links_resolve(page: Path) -> None:
    links = re.findall(r"\[[^]]*\]\(([^)\s]+)\)", prose(page))
    relative = [link.split("#")[0] for link in links if not re.match(r"https?://|#|mailto:", link)]
    assert not [link for link in relative if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_commands_of_run_py_exist(page: Path) -> None:
    usage = processes.run([sys.executable, "run.py"], cwd=ROOT).read()
    known = set(re.findall(r"python3 run\.py (\w+)", usage))
    assert known >= {"demo", "test", "lint", "setup"}
    assert set(re.findall(r"python3 run\.py (\w+)", page.read_text())) <= known


def test_parts_of_ci_exist() -> None:
    defined = set(re.findall(r"^part_(\w+)\(\)", (ROOT / ".ci/run").read_text(), flags=re.MULTILINE))
    assert set((ROOT / ".ci/run").read_text().partition("parts=(")[2].partition(")")[0].split()) == defined
    named = [match for page in PAGES for match in re.findall(r"\.ci/run ([a-z ]+)`", page.read_text())]
    assert {part for match in named for part in match.split()} <= defined


def test_the_page_on_kernels_lists_the_operators() -> None:
    table = (ROOT / "docs/kernels.md").read_text().partition("| operator | does |")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"^\| `(\w+)`", table, flags=re.MULTILINE)) == sorted(cases.OPERATORS)


def examples(page: Path) -> list[str]:
    return [block for block in fenced(page, "python") if "import torch" in block]


RUNNABLE = [(page, number) for page in PAGES for number in range(len(examples(page)))]


@pytest.mark.parametrize(("page", "number"), RUNNABLE, ids=[f"{page.name}-{number}" for page, number in RUNNABLE])
def test_python_blocks_run(page: Path, number: int) -> None:
    """Blocks with their own imports run as they stand; the others are fragments, which must at least parse."""
    block = examples(page)[number]
    exec(compile(block, f"{page.name}, block {number}", "exec"), {"__name__": "example"})


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_python_fragments_parse(page: Path) -> None:
    for block in fenced(page, "python"):
        ast.parse(block)


def public_objects() -> list[tuple[ModuleType, str]]:
    """Callables that the package and its parts list in `__all__`; those of `reference` are documented in `ops`."""
    found = {}
    for module in PARTS:
        if module.__name__ == "torch_ire.reference":
            continue
        for name in module.__all__:
            value = getattr(module, name)
            if callable(value):
                found.setdefault(id(value), (module, name))
    return list(found.values())


PUBLIC = public_objects()
PUBLIC_IDS = [f"{module.__name__}.{name}" for module, name in PUBLIC]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_all_names_exist(module: ModuleType) -> None:
    for name in getattr(module, "__all__", []):
        assert hasattr(module, name), name


# what needs no source
PLAIN_ARITHMETIC = frozenset({"global_norm"})


def sections(text: str) -> dict[str, str]:
    """The sections of a docstring: `Name:` at its left margin, and what follows."""
    parts = re.split(r"^([A-Z]\w+):", inspect.cleandoc(text), flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def documented_arguments(section: str) -> list[str]:
    """Names in front of the colons of an Args section, several of one kind separated by commas."""
    entries = re.findall(r"^ {4}(\*{0,2}\w[\w, *]*?)(?: \(.*?\))?:", section, re.MULTILINE)
    return [name for entry in entries for name in re.findall(r"\w+", entry)]


@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=PUBLIC_IDS)
def test_public_names_are_documented(module: ModuleType, name: str) -> None:
    """One line, the arguments by name, and the sections of the house; an operator has all of them."""
    value: Any = getattr(module, name)
    assert value.__doc__, "no docstring"
    found = sections(value.__doc__)
    first = found[""].splitlines()[0]
    assert first.endswith("."), f"the first line is no sentence: {first!r}"
    signature = inspect.signature(value)
    expected = [parameter for parameter in signature.parameters if parameter != "self"]
    if expected:
        assert documented_arguments(found.get("Args", "")) == expected
    required = {"Example"}
    if (
        inspect.isfunction(value)
        and signature.return_annotation not in ("None", None, signature.empty)
        and not inspect.isgeneratorfunction(inspect.unwrap(value))
    ):
        required |= {"Returns"}
    part = value.__module__.split(".")[1]
    if part in ("ops", "optim", "curvature"):
        required |= {"Raises", "Cost"} | (set() if name in PLAIN_ARITHMETIC else {"References"})
    if part == "ops":
        required |= {"Determinism"}
    assert required <= set(found), f"missing: {sorted(required - set(found))}"
    assert doctest.DocTestParser().get_examples(found["Example"]), "the example has no line that runs"


FINDER = doctest.DocTestFinder(exclude_empty=True)
DOCTESTS = [test for module in MODULES for test in FINDER.find(module) if test.examples]


@pytest.mark.parametrize("test", DOCTESTS, ids=lambda test: test.name)
def test_examples_run(test: doctest.DocTest) -> None:
    output: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert runner.run(test, out=output.append, clear_globs=False).failed == 0, "".join(output)


@pytest.mark.parametrize("name", NEED_TRAINERS)
def test_integrations_are_documented(name: str) -> None:
    need(NEED_TRAINERS[name])
    module = importlib.import_module(name)
    for public in module.__all__:
        found = sections(getattr(module, public).__doc__)
        expected = [p for p in inspect.signature(getattr(module, public)).parameters if p != "self"]
        assert documented_arguments(found["Args"]) == expected
        assert {"Raises", "Cost", "Example"} <= set(found)
    for test in FINDER.find(module):
        test_examples_run(test)
