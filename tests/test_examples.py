"""Runs the files of examples/ as users start them, on several ranks if they train in parallel."""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path

import pytest

import processes
from layout import ROOT
from trainers import need

EXAMPLES = ROOT / "examples"
LIMIT = 240.0  # seconds
VARIABLES = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run(name: str, *arguments: str, folder: Path) -> str:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    with processes.reserved_port() as port:  # for those that start ranks of their own
        env = {**VARIABLES, "MASTER_PORT": str(port)}
        return processes.run(command, cwd=folder, env=env, limit=LIMIT).read()


def torchrun(name: str, *arguments: str, folder: Path) -> str:
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    return processes.run([*launcher, str(EXAMPLES / name), *arguments], cwd=folder, env=VARIABLES, limit=LIMIT).read()


def as_ranks(name: str, *arguments: str, folder: Path, ranks: int) -> str:
    """What torchrun starts, without torchrun, which takes longer than the example."""
    command = (sys.executable, str(EXAMPLES / name), *arguments)
    with processes.reserved_port() as port, contextlib.ExitStack() as stack:
        env = {**VARIABLES, "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        started = [
            stack.enter_context(
                processes.Program(command, cwd=folder, env={**env, "RANK": str(r), "LOCAL_RANK": str(r)})
            )
            for r in range(ranks)
        ]
        processes.finish_all(started, LIMIT)
    return started[0].read()


def number(pattern: str, printed: str) -> float:
    found = re.search(pattern, printed)
    assert found, printed
    return float(found[1])


def test_every_example_is_run_and_linked() -> None:
    names = {path.name for path in EXAMPLES.glob("*.py")}
    here = Path(__file__).read_text()
    pages = (ROOT / "README.md").read_text() + (ROOT / "docs/trainers.md").read_text()
    assert names
    assert not [name for name in names if f'"{name}"' not in here]
    assert not [name for name in names if f"examples/{name}" not in pages]


def test_the_trainer_of_transformers_trains_on_two_ranks(tmp_path: Path) -> None:
    """The pass of the mask bypasses the Trainer's DDP; the example compares the replicas."""
    need("transformers")
    printed = torchrun("hf_trainer.py", "--steps", "40", folder=tmp_path)
    first, last = (number(pattern, printed) for pattern in (r"loss ([\d.]+) ->", r"-> ([\d.]+) in 40 steps"))
    assert last < 0.8 * first
    assert number(r"flat share ([\d.]+)", printed) == pytest.approx(0.6, abs=0.002)


def test_lightning_trains_with_sam_on_two_ranks(tmp_path: Path) -> None:
    need("lightning")
    printed = run("lightning_trainer.py", "--sam", "--devices", "2", "--epochs", "2", folder=tmp_path)
    assert number(r"test accuracy ([\d.]+) after", printed) > 0.85
    assert number(r"flat share ([\d.]+)", printed) == pytest.approx(0.8, abs=0.002)


@pytest.mark.parametrize("arguments", [(), ("--sam",)])
def test_the_loss_falls_under_accelerate(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    need("accelerate")
    printed = run("accelerate_loop.py", "--epochs", "2", *arguments, folder=tmp_path)
    losses = [float(loss) for loss in re.findall(r"epoch \d: loss ([\d.]+)", printed)]
    assert losses[1] < 0.5 * losses[0]
    assert number(r"flat share ([\d.]+)", printed) == pytest.approx(0.8, abs=0.002)


def test_a_resumed_torchrun_script_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    """Stopped between two refreshes of the mask and started again: the same parameters to the bit."""
    stopped = as_ranks("torchrun_ddp.py", "--steps", "6", "--save-every", "6", folder=tmp_path, ranks=2)
    assert "steps 0 to 6" in stopped
    resumed = as_ranks("torchrun_ddp.py", "--steps", "10", folder=tmp_path, ranks=2)
    assert "steps 6 to 10" in resumed
    whole = as_ranks("torchrun_ddp.py", "--steps", "10", "--output", "other", folder=tmp_path, ranks=2)
    assert "steps 0 to 10" in whole
    assert resumed.splitlines()[1:] == whole.splitlines()[1:]
    assert re.search(r"parameters [0-9a-f]{12}$", whole.strip())
    assert number(r"loss ([\d.]+)", whole) < number(r"loss ([\d.]+)", stopped)


def test_fsdp2_resumes_on_another_number_of_ranks(tmp_path: Path) -> None:
    first = as_ranks("fsdp2.py", "--steps", "10", folder=tmp_path, ranks=2)
    second = as_ranks("fsdp2.py", "--steps", "20", folder=tmp_path, ranks=1)
    assert "steps 10 to 20" in second
    assert number(r"loss ([\d.]+)", second) < 0.7 * number(r"loss ([\d.]+)", first)
    for printed in (first, second):
        assert number(r"flat share ([\d.]+)", printed) == pytest.approx(0.8, abs=0.002)
