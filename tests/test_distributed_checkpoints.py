"""Checkpoints of sharded training: saved on so many ranks, loaded on fewer or more, resumed to the bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

import torch_ire
from optimizer_cases import CASES, IDS, small_model
from test_sharded_models import average_plain, batch, full, model_of, sharded

CASE = dict(zip(IDS, CASES, strict=True))
IRE_ARGUMENTS = {"kappa": 2.0, "gamma": 0.6, "mask_interval": 4}
AVERAGED = {**IRE_ARGUMENTS, "curvature_beta": 0.5}
# optimizer -> how it is made; the handles of IRE(...) go last
KINDS = ["AdmIRE", "SGDIRE", "SGDIRE-plain", "SAMIRE-adamw", "AdmIRE bfloat16", "IRE(NAdam)", "IRE(SGD)"]


class Run:
    """A model with its optimizer, labels from its own generator, and what a checkpoint holds of them."""

    def __init__(self, device: torch.device, kind: str, seed: int, way: str = "fsdp", **changes: Any) -> None:
        torch.manual_seed(seed)
        model = model_of(device)
        kind, _, dtype = kind.partition(" ")
        self.dtype = torch.bfloat16 if dtype else torch.float32
        model.to(self.dtype)
        with torch.no_grad():
            for p in model.parameters():
                p += 0.01 * seed
        self.device, self.way = device, way
        self.model, self.rank, self.parts = sharded(model, way, device) if way else (model, 0, 1)
        arguments = {**AVERAGED, **changes}
        if kind.startswith("IRE"):
            base = torch.optim.NAdam if "NAdam" in kind else torch.optim.SGD
            self.optimizer: Any = base(self.model.parameters(), lr=0.02)
            self.handle: Any = torch_ire.IRE(self.optimizer, **arguments)
        else:
            self.optimizer = self.handle = CASE[kind](self.model.parameters(), **arguments)

    def train(self, steps: range) -> None:
        # ranks that are tensor parallel to each other draw the same labels
        torch_ire.default_label_generator.rank = self.rank
        try:
            self._train(steps)
        finally:
            torch_ire.default_label_generator.rank = None

    def _train(self, steps: range) -> None:
        for step in steps:
            x, y = batch(step, self.rank, self.parts, self.device)
            x = x.to(self.dtype)
            if self.handle.mask_due():
                self.backward(torch_ire.sampled_cross_entropy(self.model(x)))
                self.handle.update_mask()
            if isinstance(self.optimizer, torch_ire.SAMIRE):
                self.backward(F.cross_entropy(self.model(x), y))
                self.optimizer.first_step(zero_grad=True)
            self.backward(F.cross_entropy(self.model(x), y))
            self.optimizer.step()
            self.optimizer.zero_grad()

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()
        average_plain(self.model, self.way)

    def state_dict(self, options: StateDictOptions | None = None) -> dict[str, Any]:
        return {
            "model": get_model_state_dict(self.model),
            "optimizer": get_optimizer_state_dict(self.model, self.optimizer, options=options),
        }

    def load(self, state_dict: dict[str, Any], options: StateDictOptions | None = None) -> None:
        set_model_state_dict(self.model, state_dict["model"])
        set_optimizer_state_dict(self.model, self.optimizer, state_dict["optimizer"], options=options)

    def gathered(self) -> dict[str, Any]:
        """All of it in whole tensors and plain numbers, under names that do not depend on the sharding."""
        state_dict = self.state_dict()
        numbers = [
            {key: value for key, value in group.items() if key != "params"}
            for group in state_dict["optimizer"]["param_groups"]
        ]
        tensors = {name: full(value).clone() for name, value in state_dict["model"].items()}
        for name, entry in state_dict["optimizer"]["state"].items():
            tensors |= {f"{name}.{key}": full(value).clone() for key, value in entry.items()}
        return {"tensors": tensors, "groups": numbers, "labels": self.handle.label_generator.state_dict()}


def assert_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours["tensors"].keys() == theirs["tensors"].keys()
    for name, value in ours["tensors"].items():
        expected = theirs["tensors"][name]
        assert value.dtype == expected.dtype, name
        assert torch.equal(value.cpu().nan_to_num(7.0), expected.cpu().nan_to_num(7.0)), name
    assert ours["groups"] == theirs["groups"]
    assert ours["labels"] == theirs["labels"]


def save(device: torch.device, path: str, kind: str, way: str, flatten: bool, steps: int = 6) -> tuple[Any, Any]:
    """Trains into the middle of an interval, saves, and goes on."""
    torch_ire.default_label_generator.manual_seed(5)
    run = Run(device, kind, seed=0, way=way)
    run.train(range(steps))
    dcp.save(run.state_dict(options(flatten)), checkpoint_id=path)
    saved = run.gathered()
    run.train(range(steps, steps + 5))
    return saved, run.gathered()


def options(flatten: bool) -> StateDictOptions:
    return StateDictOptions(flatten_optimizer_state_dict=flatten)


def load(
    device: torch.device, path: str, kind: str, way: str, flatten: bool, running: bool, steps: int = 6
) -> tuple[Any, Any]:
    """Loads into another model and optimizer, fresh or in the middle of something else, and goes on."""
    torch_ire.default_label_generator.manual_seed(1234)
    run = Run(device, kind, seed=1, way=way, kappa=0.5)
    if running:
        run.train(range(20, 23))
        run.handle.label_generator.manual_seed(99).draw()
    state_dict = run.state_dict(options(flatten))
    dcp.load(state_dict, checkpoint_id=path)
    run.load(state_dict, options(flatten))
    loaded = run.gathered()
    run.train(range(steps, steps + 5))
    return loaded, run.gathered()


@pytest.mark.parametrize("kind", KINDS)
def test_resume_on_as_many_ranks_is_bit_exact(ranks, tmp_path, kind):
    saved, finished = ranks(2).run(save, str(tmp_path / "checkpoint"), kind, "fsdp", False)[0]
    assert any(name.endswith("flat_mask") and bool(value.any()) for name, value in saved["tensors"].items())
    assert saved["labels"]["offset"] == 2
    for running in (False, True):
        for loaded, resumed in ranks(2).run(load, str(tmp_path / "checkpoint"), kind, "fsdp", False, running):
            assert_equal(loaded, saved)
            assert_equal(resumed, finished)


@pytest.mark.parametrize(
    ("before", "after"),
    [((4, "fsdp"), (2, "fsdp")), ((4, "fsdp"), (1, "fsdp")), ((1, "fsdp"), (4, "fsdp")),
     ((4, "fsdp x tensor"), (2, "tensor")), ((2, "fsdp"), (4, "hybrid"))],
)  # fmt: skip
def test_other_numbers_of_ranks_load_the_same_bits(ranks, tmp_path, before, after):
    (old_size, old_way), (new_size, new_way) = before, after
    saved, _ = ranks(old_size).run(save, str(tmp_path / "checkpoint"), "AdmIRE", old_way, False)[0]
    results = ranks(new_size).run(load, str(tmp_path / "checkpoint"), "AdmIRE", new_way, False, False)
    for loaded, resumed in results:
        assert_equal(loaded, saved)
        assert resumed["groups"][0]["ire_step"] == 11
        assert resumed["groups"][0]["ire_mask_step"] == 8


@pytest.mark.parametrize("steps", [1, 6])
def test_a_flattened_state_dict(ranks, tmp_path, steps):
    saved, finished = ranks(2).run(save, str(tmp_path / "checkpoint"), "AdmIRE", "fsdp", True, steps)[0]
    for loaded, resumed in ranks(2).run(load, str(tmp_path / "checkpoint"), "AdmIRE", "fsdp", True, False, steps):
        assert_equal(loaded, saved)
        assert_equal(resumed, finished)


def before_the_first_mask(device: torch.device, path: str, kind: str) -> None:
    """A checkpoint of the warm-up has what a fresh optimizer looks for, and the other way round."""
    run = Run(device, kind, seed=0, warmup_steps=3)
    run.train(range(2))
    dcp.save(run.state_dict(), checkpoint_id=path)
    other = Run(device, kind, seed=1, warmup_steps=3)
    state_dict = other.state_dict()
    assert all(float(p.grad is None) for p in other.model.parameters())
    dcp.load(state_dict, checkpoint_id=path)
    other.load(state_dict)
    assert_equal(run.gathered(), other.gathered())


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_of_the_warmup(ranks, tmp_path, kind):
    ranks(2).run(before_the_first_mask, str(tmp_path / "checkpoint"), kind)


def full_state_dict(device: torch.device, kind: str) -> dict[str, Any] | None:
    """What rank 0 saves with torch.save, and every rank loads from rank 0."""
    whole = StateDictOptions(full_state_dict=True)
    torch_ire.default_label_generator.manual_seed(5)
    run = Run(device, kind, seed=0)
    run.train(range(6))
    gathered = run.gathered()
    state_dict = get_optimizer_state_dict(run.model, run.optimizer, options=whole)
    model = get_model_state_dict(run.model, options=whole)
    saved = copy.deepcopy({"model": model, "optimizer": state_dict, "gathered": gathered})  # loading empties it
    other = Run(device, kind, seed=1)
    from_rank_0 = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(other.model, model, options=from_rank_0)
    set_optimizer_state_dict(
        other.model, other.optimizer, state_dict if dist.get_rank() == 0 else {}, options=from_rank_0
    )
    for name, value in gathered["tensors"].items():
        assert torch.equal(other.gathered()["tensors"][name].nan_to_num(7.0), value.nan_to_num(7.0)), name
    return saved if dist.get_rank() == 0 else None


@pytest.mark.parametrize("kind", ["AdmIRE", "SAMIRE-adamw"])
def test_a_full_state_dict_loads_in_one_process(ranks, tmp_path, kind):
    saved, _ = ranks(2).run(full_state_dict, kind)
    torch.save(saved, tmp_path / "checkpoint.pt")
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    run = Run(torch.device("cpu"), kind, seed=1, way="")
    run.load(saved)
    assert_equal(run.gathered(), saved["gathered"])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_sharded_checkpoint_loads_in_one_process_without_ranks(ranks, tmp_path):
    saved, _ = ranks(4).run(save, str(tmp_path / "checkpoint"), "AdmIRE", "fsdp", False)[0]
    run = Run(torch.device("cpu"), "AdmIRE", seed=1, way="")
    state_dict = run.state_dict()
    dcp.load(state_dict, checkpoint_id=str(tmp_path / "checkpoint"), no_dist=True)
    run.load(state_dict)
    assert_equal(run.gathered(), saved)


def test_the_step_that_makes_state_changes_nothing():
    """DCP takes a step with lr = 0 and gradients of zeros on a fresh optimizer."""
    model = small_model()
    for case in CASES:
        before = [p.detach().clone() for p in model.parameters()]
        optimizer = case(model.parameters(), **IRE_ARGUMENTS)
        state_dict = get_optimizer_state_dict(model, optimizer)
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
        assert (optimizer.param_groups[0]["ire_step"], optimizer.param_groups[0]["ire_mask_step"]) == (0, -1)
        assert not any(entry["flat_mask"].any() for entry in state_dict["state"].values())
        assert len(state_dict["state"]) == 4
