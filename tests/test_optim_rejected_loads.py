"""A checkpoint is loaded whole or not at all, and what it holds beside the optimizer's own state is kept."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_ire
from every_optimizer import (
    AROUND,
    EVERY,
    FOREIGN,
    IRE_ARGUMENTS,
    OWN,
    Run,
    Subject,
    assert_equal,
    changes,
    name_of,
    same_bits,
    snapshot,
)
from optimizer_cases import loss_of, small_model

ERRORS = (ValueError, TypeError, RuntimeError, KeyError)


@pytest.fixture(autouse=True)
def _labels() -> Iterator[None]:
    """Loading a checkpoint may move the generator that all tests share."""
    yield
    torch_ire.default_label_generator.manual_seed(0)


@dataclass(frozen=True)
class Damage:
    """What is wrong with a checkpoint, and the word that the error names."""

    name: str
    do: Callable[[dict[str, Any]], None]
    word: str


def _state(key: str, value: Callable[[Tensor], Any]) -> Callable[[dict[str, Any]], None]:
    """Replaces one entry of the third parameter's state."""

    def do(checkpoint: dict[str, Any]) -> None:
        entry = checkpoint["state"][2]
        entry[key] = value(entry[key])

    return do


def _group(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def do(checkpoint: dict[str, Any]) -> None:
        checkpoint["param_groups"][1][key] = value

    return do


def _of(key: str) -> list[Damage]:
    return [
        Damage(f"{key} on meta", _state(key, lambda tensor: tensor.to("meta")), key),
        Damage(f"{key} that is a list", _state(key, lambda tensor: tensor.tolist()), key),
        Damage(f"{key} of another shape", _state(key, lambda tensor: torch.ones(3, 7)), key),
        Damage(f"{key} that is sparse", _state(key, lambda tensor: tensor.float().to_sparse()), key),
    ]


STEP = [
    Damage("step that is a word", _state("step", lambda step: "three"), "step"),
    Damage("step of two elements", _state("step", lambda step: torch.ones(2)), "step"),
    Damage("step on meta", _state("step", lambda step: step.to("meta")), "step"),
]
MISSING = [Damage("missing exp_avg_sq", lambda checkpoint: checkpoint["state"][2].pop("exp_avg_sq"), "exp_avg_sq")]
GROUPS = [
    Damage("lr that is a word", _group("lr", "fast"), "lr|learning rate|float"),
    Damage("negative lr", _group("lr", -1.0), "lr|learning rate"),
    Damage("one group", lambda checkpoint: checkpoint["param_groups"].pop(), "parameter groups"),
    Damage("a group too short", lambda checkpoint: checkpoint["param_groups"][1]["params"].pop(), "size|parameter"),
    Damage("no groups", lambda checkpoint: checkpoint.pop("param_groups"), "param_groups"),
    Damage("no state", lambda checkpoint: checkpoint.pop("state"), "state"),
]
BETAS = [
    Damage("betas of one element", _group("betas", (0.9,)), "beta"),
    Damage("betas of three elements", _group("betas", (0.9, 0.9, 0.9)), "beta"),
    Damage("betas out of their range", _group("betas", (0.9, 1.5)), "beta"),
]


def damages_of(subject: Subject) -> list[Damage]:
    if subject.is_foreign:  # what torch's optimizers keep is theirs to check
        return [*_of("flat_mask"), *GROUPS[2:]]
    found = [*_of("flat_mask"), *GROUPS]
    if "Adm" in subject.name or "adamw" in subject.name:
        return [*found, *_of("exp_avg"), *_of("exp_avg_sq"), *STEP, *MISSING, *BETAS]
    if "plain" in subject.name or "ASAMIRE" in subject.name:
        return found
    return [*found, *_of("momentum_buffer"), *(() if "nesterov" in subject.name else STEP)]


def checkpoint_of(subject: Subject, steps: int = 5) -> dict[str, Any]:
    run = Run(subject)
    run.train(range(steps))
    return copy.deepcopy(run.optimizer.state_dict())


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize(
    ("subject", "damage"),
    [(subject, damage) for subject in EVERY if "native" in subject.name for damage in damages_of(subject)],
    ids=lambda item: item.name,
)
def test_a_damaged_checkpoint_is_refused_and_changes_nothing(subject, damage, after):
    """Parameters, state, groups and the steps that follow are those of a run without the attempt."""
    run, twin = Run(subject), Run(subject)
    for each in (run, twin):
        each.train(range(after))
    checkpoint = checkpoint_of(subject)
    damage.do(checkpoint)
    before = snapshot(run.optimizer)
    with pytest.raises(ERRORS, match=damage.word):
        run.optimizer.load_state_dict(checkpoint)
    assert changes(before, snapshot(run.optimizer)) == []
    for each in (run, twin):
        each.train(range(after, after + 4))
    assert_equal(run.params, twin.params)
    assert changes(snapshot(twin.optimizer), snapshot(run.optimizer)) == []


@pytest.mark.parametrize("subject", [s for s in EVERY if "native" in s.name], ids=name_of)
def test_a_rejected_checkpoint_is_not_kept(subject):
    """Nothing holds its tensors after the error."""
    run = Run(subject)
    run.train(range(2))
    checkpoint = checkpoint_of(subject)
    checkpoint["state"][2]["flat_mask"] = torch.ones(3, 7)
    kept = weakref.ref(checkpoint["state"][0]["flat_mask"])
    with pytest.raises(ERRORS) as caught:
        run.optimizer.load_state_dict(checkpoint)
    del checkpoint, caught
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize("position", ["many", -3, None, 1.5])
@pytest.mark.parametrize("subject", [s for s in EVERY if "native" in s.name], ids=name_of)
def test_a_bad_position_of_the_labels_is_never_half_loaded(subject, position):
    checkpoint = checkpoint_of(subject)
    for group in checkpoint["param_groups"]:
        for key in [*(key for key in group if "label" in key), "ire_label_offset"]:
            group[key] = position
    run = Run(subject)
    run.train(range(3))
    before = snapshot(run.optimizer)
    drawn = torch_ire.default_label_generator.state_dict()
    try:
        run.optimizer.load_state_dict(checkpoint)
    except (ValueError, TypeError):
        assert changes(before, snapshot(run.optimizer)) == []
        assert torch_ire.default_label_generator.state_dict() == drawn
    run.train(range(3, 5))


@pytest.mark.parametrize("subject", [s for s in OWN if s.is_sam and "native" in s.name], ids=name_of)
def test_a_rejected_load_between_the_two_passes_keeps_the_perturbation(subject):
    run, twin = Run(subject), Run(subject)
    for each in (run, twin):
        each.train(range(2))
        each.backward(2)
        each.optimizer.first_step()
    checkpoint = checkpoint_of(subject)
    checkpoint["state"][2]["flat_mask"] = torch.ones(3, 7)
    with pytest.raises(ERRORS):
        run.optimizer.load_state_dict(checkpoint)
    assert run.optimizer.is_perturbed
    for each in (run, twin):
        each.backward(2)
        each.optimizer.second_step()
    assert_equal(run.params, twin.params)


def test_a_checkpoint_that_step_in_backward_rejects_loads_into_no_parameter():
    def make() -> tuple[nn.Module, torch_ire.StepInBackward]:
        model = small_model()
        return model, torch_ire.StepInBackward(model.parameters(), lambda params: torch_ire.AdmIRE(params, lr=0.02))

    (model, opt), (other, _) = make(), make()
    for number in range(3):
        loss_of(model, number).backward()
        loss_of(other, number).backward()
    checkpoint = copy.deepcopy(opt.state_dict())
    loss_of(model, 3).backward()
    loss_of(other, 3).backward()
    checkpoint["state"][3]["exp_avg"] = torch.ones(7)
    with pytest.raises(ValueError, match="exp_avg"):
        opt.load_state_dict(checkpoint)
    for number in range(4, 7):
        loss_of(model, number).backward()
        loss_of(other, number).backward()
    assert [group["ire_step"] for group in opt.param_groups] == [7]
    assert_equal(list(model.parameters()), list(other.parameters()))


# NAdam of torch does not resume exactly in bfloat16: loading rounds its product of momentum factors
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize(
    ("cls", "arguments", "dtype"),
    [
        (*item, dtype)
        for item in FOREIGN
        for dtype in (torch.float32, torch.bfloat16)
        if item[0] is not torch.optim.NAdam or dtype == torch.float32
    ],
    ids=lambda item: getattr(item, "__name__", ""),
)
def test_a_checkpoint_with_masks_may_be_loaded_before_ire_is_attached(cls, arguments, steps, dtype):
    """The usual order of a script: make the optimizer, load, then wrap it."""

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
        for number in numbers:
            optimizer.zero_grad()
            loss_of(model, number).backward()
            optimizer.step()

    whole = small_model(dtype=dtype)
    optimizer = cls(whole.parameters(), **arguments)
    torch_ire.IRE(optimizer, **IRE_ARGUMENTS)
    train(whole, optimizer, range(steps))
    file = io.BytesIO()
    torch.save({"model": whole.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(whole, optimizer, range(steps, steps + 4))

    file.seek(0)
    checkpoint = torch.load(file, weights_only=True)
    resumed = small_model(seed=1, dtype=dtype)
    resumed.load_state_dict(checkpoint["model"])
    optimizer = cls(resumed.parameters(), **arguments)
    optimizer.load_state_dict(checkpoint["optimizer"])
    handle = torch_ire.IRE(optimizer, **IRE_ARGUMENTS)
    train(resumed, optimizer, range(steps, steps + 4))
    assert_equal(list(resumed.parameters()), list(whole.parameters()))
    assert 0.3 < handle.ire_summary()["flat_share"] < 0.7


@pytest.mark.parametrize("subject", OWN, ids=name_of)
def test_capturable_is_not_saved(subject):
    """It says how a process runs the step, not where training stands: the base optimizer of torch steps on the CPU."""
    run = Run(subject, capturable=True, curvature="fisher")
    run.train(range(2))
    checkpoint = run.optimizer.state_dict()
    assert [group.get("capturable", False) for group in checkpoint["param_groups"]] == [False, False]
    has_moments = "exp_avg" in run.optimizer.state[run.params[0]]
    model = small_model()
    params = list(model.parameters())
    groups = [{"params": params[:2]}, {"params": params[2:]}]
    base = torch.optim.AdamW(groups) if has_moments else torch.optim.SGD(groups)
    base.load_state_dict(checkpoint)
    loss_of(model, 0).backward()
    base.step()


class Note:
    """Something that is no tensor."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Note) and other.text == self.text

    __hash__ = None


@pytest.mark.parametrize(
    "value",
    ["text", 3, [1, 2], {"a": 1}, {"buffer": torch.arange(3.0)}, Note("text"), None],
    ids=lambda v: repr(v)[:12],
)
@pytest.mark.parametrize("subject", [*OWN[::2], *AROUND[::2]], ids=name_of)
def test_state_under_a_key_that_is_no_parameter_is_kept(subject, value):
    """torch saves and loads such an entry as it is."""
    run = Run(subject)
    run.optimizer.state["note"] = value
    run.train(range(3))
    run.handle.ire_summary()
    other = Run(subject)
    checkpoint = copy.deepcopy(run.optimizer.state_dict())
    other.optimizer.load_state_dict(checkpoint)
    for kept in (checkpoint["state"]["note"], other.optimizer.state["note"]):
        if isinstance(value, dict):
            assert kept.keys() == value.keys()
            assert all(same_bits(kept[key], value[key]) for key in value)
        else:
            assert kept == value
    other.model.load_state_dict(run.model.state_dict())
    for each in (run, other):
        each.train(range(3, 6))
    assert_equal(run.params, other.params)


@pytest.mark.parametrize("subject", [*OWN[::2], *AROUND[::2]], ids=name_of)
def test_what_others_keep_in_the_state_of_a_parameter_is_kept(subject):
    """A tensor of any shape and dtype, and an object that is none, as torch's own optimizers keep them."""
    run, plain = Run(subject), torch.optim.SGD(small_model().parameters(), momentum=0.9)
    run.train(range(2))
    entries = {"rows": torch.arange(4.0), "count": 5, "note": Note("text"), "flags": torch.tensor([True, False])}
    targets = [(run.optimizer, run.params[0]), (plain, plain.param_groups[0]["params"][0])]
    loaded = []
    for optimizer, param in targets:
        optimizer.state[param].update(copy.deepcopy(entries))
        checkpoint = copy.deepcopy(optimizer.state_dict())
        optimizer.state[param].update(rows=None, count=None, note=None, flags=None)
        optimizer.load_state_dict(checkpoint)
        loaded.append({key: optimizer.state[param][key] for key in entries})
    ours, theirs = loaded
    for key in entries:
        assert same_bits(ours[key], theirs[key]), f"{key}: {ours[key]}, not {theirs[key]}"
    run.train(range(2, 4))
