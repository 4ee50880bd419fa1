"""What survives a process: kill -9 between two checkpoints, files of plain tensors and numbers, parameters by name."""

from __future__ import annotations

import copy
import itertools
import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

import torch_ire
from layout import ROOT
from optimizer_cases import CASES, IDS, small_model, train, values
from processes import Program

# Trains 24 steps, saves every fifth, starts from the last checkpoint where there is one; argv: folder, milliseconds
# that a step takes. Labels come from the optimizer's own generator.
TRAINING = """
import os, sys, time
from pathlib import Path
import torch
import torch_ire
from optimizer_cases import batch, loss_of, small_model

folder, pause = Path(sys.argv[1]), float(sys.argv[2]) / 1000
model = small_model()
optimizer = torch_ire.SAMIRE(model.parameters(), lr=0.05, base="adamw", kappa=2.0, mask_interval=3, curvature_beta=0.5)
torch_ire.default_label_generator.manual_seed(8)
start = 0
if (folder / "checkpoint.pt").exists():
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    start = saved["step"]
for step in range(start, 24):
    if optimizer.mask_due():
        torch_ire.sampled_cross_entropy(model(batch(step)[0])).backward()
        optimizer.update_mask()
    loss_of(model, step).backward()
    optimizer.first_step(zero_grad=True)
    loss_of(model, step).backward()
    optimizer.second_step(zero_grad=True)
    if (step + 1) % 5 == 0:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1},
                   folder / "new.pt")
        os.replace(folder / "new.pt", folder / "checkpoint.pt")
    print(start, step, flush=True)
    time.sleep(pause)
torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
            "labels": optimizer.label_generator.state_dict()}, folder / "finished.pt")
"""


def start_training(folder: Path, pause: int) -> Program:
    env = {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *sys.path]), "OMP_NUM_THREADS": "1"}
    return Program([sys.executable, "-c", TRAINING, str(folder), str(pause)], env=env)


def test_kill_9_loses_the_steps_since_the_last_checkpoint_alone(tmp_path):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    with start_training(tmp_path / "whole", 0) as whole, start_training(tmp_path / "killed", 50) as killed:
        killed.wait_for("0 12\n", 120.0)  # between the checkpoints after 10 and after 15 steps, and between two masks
        killed.kill()
        assert killed.status() == -signal.SIGKILL
        assert not (tmp_path / "killed" / "finished.pt").exists()
        with start_training(tmp_path / "killed", 0) as resumed:
            assert resumed.finish(120.0).splitlines()[0].split() == ["10", "10"]
        assert whole.finish(120.0).splitlines()[-1].split() == ["0", "23"]
    ours, theirs = (torch.load(tmp_path / name / "finished.pt", weights_only=True) for name in ("killed", "whole"))
    assert ours["labels"] == theirs["labels"] == {"seed": 8, "offset": 8}
    assert ours["optimizer"]["param_groups"] == theirs["optimizer"]["param_groups"]
    for key, value in theirs["model"].items():
        assert torch.equal(ours["model"][key], value)
    for i, entry in theirs["optimizer"]["state"].items():
        for key, value in entry.items():
            assert torch.equal(ours["optimizer"]["state"][i][key], value), key


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_state_dict_holds_only_contiguous_tensors_and_json_values(case, tmp_path):
    """A state dict is a flat table of contiguous tensors, and groups that JSON can hold: what safetensors stores."""
    model = small_model()
    optimizer = case(model.parameters(), kappa=2.0, gamma=0.6, mask_interval=4, curvature_beta=0.5)
    train(model, optimizer, range(6))
    state_dict = optimizer.state_dict()
    tensors = {f"{i}.{key}": value for i, entry in state_dict["state"].items() for key, value in entry.items()}
    for name, value in tensors.items():
        assert isinstance(value, torch.Tensor), name
        assert value.layout == torch.strided
        assert value.is_contiguous()
        assert not value.requires_grad
    stretches = sorted((value.data_ptr(), value.data_ptr() + value.nbytes) for value in tensors.values())
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(stretches))  # nothing is shared
    groups = json.dumps(state_dict["param_groups"])

    try:
        from safetensors.torch import load_file, save_file
    except ImportError:
        stored = {name: value.clone() for name, value in tensors.items()}
    else:
        save_file(tensors, tmp_path / "state.safetensors", metadata={"groups": groups})
        stored = load_file(tmp_path / "state.safetensors")
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in stored.items():
        i, key = name.split(".")
        state.setdefault(int(i), {})[key] = value
    twin = copy.deepcopy(model)
    other = case(twin.parameters(), kappa=0.5)
    other.load_state_dict({"state": state, "param_groups": json.loads(groups)})
    for network, opt in ((model, optimizer), (twin, other)):
        train(network, opt, range(6, 12), labels=torch_ire.LabelGenerator(seed=3))
    for p, q in zip(values(model), values(twin), strict=True):
        assert torch.equal(p, q)


def test_parameters_are_matched_by_name():
    """Named parameters in another order: state belongs to names, not to positions."""
    model = small_model()
    named = list(model.named_parameters())
    optimizer = torch_ire.AdmIRE(named, lr=0.05, mask_interval=4)
    train(model, optimizer, range(6))
    twin = copy.deepcopy(model)
    other = torch_ire.AdmIRE([*reversed(list(twin.named_parameters()))], lr=0.5)
    other.load_state_dict(optimizer.state_dict())
    for (name, p), (other_name, q) in zip(named, twin.named_parameters(), strict=True):
        assert name == other_name
        for key, value in optimizer.state[p].items():
            assert torch.equal(other.state[q][key], value), (name, key)
    assert other.param_groups[0]["param_names"] == [name for name, _ in reversed(named)]
    for network, opt in ((model, optimizer), (twin, other)):
        train(network, opt, range(6, 12), labels=torch_ire.LabelGenerator(seed=3))
    for p, q in zip(values(model), values(twin), strict=True):
        assert torch.equal(p, q)


def test_parameters_with_different_names_are_matched_by_position():
    model = small_model()
    optimizer = torch_ire.AdmIRE(model.named_parameters(), lr=0.05)
    train(model, optimizer, range(2))
    twin = copy.deepcopy(model)
    for named in ([(f"module.{name}", p) for name, p in twin.named_parameters()], list(twin.parameters())):
        other = torch_ire.AdmIRE(named, lr=0.5)
        other.load_state_dict(optimizer.state_dict())
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.equal(optimizer.state[p]["exp_avg"], other.state[q]["exp_avg"])
