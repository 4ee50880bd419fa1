"""`capturable=True`: a recorded step, run again and again, is the step of the ordinary loop under the same schedule."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

import torch_ire
from graph_replay import Recording
from optimizer_cases import CASES, IDS, IdleProjector, loss_of, small_model, train, values
from scheduled_loop import FIXED, INTERVAL, STEPS, WARMUP, Captured, Loop, around, assert_same, ours, plainly
from torch_ire.optim.ire_optimizer import IREOptimizer


@pytest.mark.parametrize("captured_at", [1, 4, 13])
@pytest.mark.parametrize("case", FIXED, ids=[case.name for case in FIXED])
def test_replays_equal_the_ordinary_loop(case, captured_at):
    """lr and kappa change in every step, refreshes fall between replays, the warm-up ends after two of the captures."""
    loop = Loop(ours(case, True), Captured(captured_at))
    expected = Loop(ours(case, False))
    assert_same(loop.run(), expected.run())
    assert loop.due == expected.due == list(range(WARMUP, STEPS, INTERVAL))
    assert loop.optimizer.param_groups[0]["ire_step"].item() == STEPS


@pytest.mark.parametrize(
    "overrides", [{"kappa_follows_lr": True}, {"curvature": "random"}, {"curvature": "hutchinson"}]
)
@pytest.mark.parametrize("case", FIXED[:5:2], ids=[case.name for case in FIXED[:5:2]])
def test_replays_equal_the_loop_for_every_kind_of_kappa_and_mask(case, overrides):
    loop, expected = Loop(ours(case, True, **overrides), Captured(2)), Loop(ours(case, False, **overrides))
    assert_same(loop.run(), expected.run())


def test_replays_equal_the_loop_with_second_moment_masks():
    """Outside the step and one call later, the mask is the one that an ordinary step makes."""
    loop = Loop(ours(CASES[0], True, curvature="second_moment"), Captured(1))
    expected = Loop(ours(CASES[0], False, curvature="second_moment"))
    assert_same(loop.run(), expected.run())
    assert loop.due == list(range(WARMUP + 1, STEPS, INTERVAL))
    assert expected.due == []


@pytest.mark.parametrize("overrides", [{}, {"kappa_follows_lr": True}, {"curvature": "random"}])
def test_replays_equal_the_loop_around_a_foreign_optimizer(overrides):
    loop, expected = Loop(around(True, **overrides), Captured(2)), Loop(around(False, **overrides))
    assert_same(loop.run(), expected.run())


def test_a_mask_before_the_warmup_has_passed_waits_for_it():
    paths = []
    for capturable in (True, False):
        loop = Loop(ours(CASES[0], capturable, warmup_steps=6), Captured(2) if capturable else plainly)
        loop.backward(100)
        loop.optimizer.update_mask()
        paths.append(loop.run())
    assert_same(*paths)


def test_refreshes_write_masks_in_place():
    loop = Loop(ours(CASES[0], True))
    loop.run(range(1))
    masks = [loop.optimizer.state[p]["flat_mask"] for p in loop.model.parameters()]
    assert all(not mask.any() for mask in masks)
    loop.run(range(1, 5))
    assert all(loop.optimizer.state[p]["flat_mask"] is m for p, m in zip(loop.model.parameters(), masks, strict=True))
    assert any(mask.any() for mask in masks)


def test_an_overflow_skips_a_replay():
    loop = Loop(ours(CASES[0], True), Captured(2))
    loop.optimizer.found_inf = torch.tensor(0.0)
    loop.run(range(5))
    before = values(loop.model)
    loop.optimizer.found_inf.fill_(1.0)
    loop.run(range(5, 6))
    assert all(torch.equal(p, q) for p, q in zip(before, values(loop.model), strict=True))
    assert loop.optimizer.param_groups[0]["ire_step"].item() == 6  # as a skipped step counts elsewhere


@pytest.mark.parametrize("case", CASES, ids=IDS)
@pytest.mark.parametrize("saved", [True, False])
def test_checkpoints_have_plain_numbers_and_load_with_and_without_capturable(case, saved):
    """Half the steps, a checkpoint, and the other half in an optimizer of the other kind: the same path."""
    whole = Loop(ours(case, saved, kappa_follows_lr=True))
    expected = whole.run()
    first = Loop(ours(case, saved, kappa_follows_lr=True))
    half = STEPS // 2
    first.run(range(half))
    state = first.optimizer.state_dict()
    group = state["param_groups"][0]
    assert [type(group[key]) for key in ("ire_step", "ire_mask_step", "ire_max_lr")] == [int, int, float]
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    second = Loop(ours(case, not saved, kappa_follows_lr=True))
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(torch.load(file, weights_only=True))
    assert second.optimizer.param_groups[0]["capturable"] is not saved
    assert isinstance(second.optimizer.param_groups[0]["ire_step"], torch.Tensor) is not saved
    assert_same(second.run(range(half, STEPS)), expected[half:])


def test_copies_and_later_groups_share_the_counter():
    model = small_model()
    first, *rest = model.parameters()
    optimizer = torch_ire.AdmIRE([first], capturable=True)
    train(model, optimizer, range(2))
    optimizer.add_param_group({"params": rest})
    a, b = optimizer.param_groups
    assert a["ire_step"] is b["ire_step"]
    assert a["ire_mask_step"] is not b["ire_mask_step"]
    train(model, optimizer, range(2, 5))
    assert b["ire_step"].item() == 5
    twin = copy.deepcopy(optimizer)
    c, d = twin.param_groups
    assert c["ire_step"] is d["ire_step"]
    assert c["ire_step"] is not a["ire_step"]
    assert c["ire_step"].item() == 5


def test_two_optimizers_in_one_handle_count_once_each():
    model = small_model()
    first, *rest = model.parameters()
    optimizers = [torch.optim.SGD([first], lr=0.1), torch.optim.SGD(rest, lr=0.1)]
    torch_ire.IRE(optimizers, curvature="random", capturable=True)
    loss_of(model, 0).backward()
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.step()
    assert [o.param_groups[0]["ire_step"].item() for o in optimizers] == [3, 3]


def test_detach_removes_the_keys_of_a_capturable_handle():
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = set(optimizer.param_groups[0])
    torch_ire.IRE(optimizer, capturable=True).detach()
    assert set(optimizer.param_groups[0]) == before


@pytest.mark.parametrize(
    ("overrides", "steps", "message"),
    [
        ({}, 0, "one step before the capture"),
        ({"capturable": False}, 1, "without capturable=True"),
        ({"curvature": IdleProjector()}, 1, "exact projector"),
    ],
)
def test_a_capture_that_would_freeze_values_raises_and_changes_nothing(overrides, steps, message):
    model = small_model()
    optimizer = torch_ire.AdmIRE(model.parameters(), **{"capturable": True, **overrides})
    loss_of(model, 0).backward()
    for _ in range(steps):
        optimizer.step()
    before = values(model)
    with Recording(), pytest.raises(RuntimeError, match=message):
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(before, values(model), strict=True))


def test_a_capture_of_a_random_perturbation_raises():
    model = small_model()
    optimizer = torch_ire.SAMIRE(model.parameters(), perturbation="random", capturable=True)
    with Recording(), pytest.raises(RuntimeError, match="draws on the host"):
        optimizer.first_step()


def test_a_handle_that_reads_the_learning_rate_on_the_host_is_not_recorded():
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.1), foreach=False)
    torch_ire.IRE(optimizer, amplify_weight_decay=False, capturable=True)
    loss_of(model, 0).backward()
    with Recording(), pytest.raises(RuntimeError, match="learning rate on the host"):
        optimizer.step()


def test_a_second_moment_mask_is_due_after_the_first_step():
    model = small_model()
    optimizer = torch_ire.AdmIRE(model.parameters(), curvature="second_moment", capturable=True)
    assert not optimizer.mask_due()
    with pytest.raises(RuntimeError, match="before the first step"):
        optimizer.update_mask()
    loss_of(model, 0).backward()
    optimizer.step()
    assert optimizer.mask_due()
    with pytest.raises(RuntimeError, match="takes no loss"):
        optimizer.update_mask(loss_of(model, 0))
    optimizer.update_mask()
    assert not optimizer.mask_due()
    assert optimizer.ire_summary()["flat_share"] == pytest.approx(0.8, abs=0.01)
    optimizer.update_mask()  # between two due steps: refreshes as it does for every curvature


@pytest.mark.parametrize("learning_rates", [0.0, torch.tensor(0.0)], ids=["float", "tensor"])
def test_a_state_init_step_does_not_count(learning_rates):
    model = small_model()
    optimizer = torch_ire.AdmIRE(model.parameters(), lr=learning_rates, capturable=True)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert optimizer.param_groups[0]["ire_step"].item() == 0


def test_the_recorder_freezes_host_numbers_and_refuses_reads_of_the_device():
    """The recorder itself: a counter of the host is frozen in it, a value read from a tensor is refused."""
    p = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    p.grad = torch.ones_like(p)
    optimizer = torch.optim.SGD([p], lr=1.0, foreach=False)
    with Recording() as record:
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 5.0
    record.replay()
    assert p.item() == -2.0
    with Recording(), pytest.raises(RuntimeError, match="wait for the device"):
        p.grad.sum().item()


class CudaGraph:
    """Captures on a side stream what :class:`Recording` records."""

    def __enter__(self):
        self.graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        self.context = torch.cuda.graph(self.graph)
        self.context.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        self.context.__exit__(*exception)

    def replay(self) -> None:
        self.graph.replay()


def device_tensors(make):
    """The optimizer of `make` with its learning rate and kappa on the device of the model."""

    def made(model: nn.Module) -> tuple[IREOptimizer, IREOptimizer]:
        device = next(model.parameters()).device
        optimizer, handle = make(model)
        for group in optimizer.param_groups:
            for name in ("lr", "kappa"):
                group[name] = group[name].to(device)
        return optimizer, handle

    return made


@pytest.mark.gpu
@pytest.mark.parametrize("overrides", [{}, {"kappa_follows_lr": True}, {"curvature": "random"}])
@pytest.mark.parametrize("case", FIXED, ids=[case.name for case in FIXED])
def test_cuda_graphs_replay_the_steps_of_the_ordinary_loop(case, overrides):
    loop = Loop(device_tensors(ours(case, True, **overrides)), Captured(2, CudaGraph), "cuda")
    expected = Loop(ours(case, False, **overrides), device="cuda")
    assert_same(loop.run(), expected.run())
    assert loop.due == expected.due


@pytest.mark.gpu
def test_cuda_graphs_refuse_scalars_of_the_host():
    loop = Loop(ours(CASES[0], True), Captured(1, CudaGraph), "cuda")
    with pytest.raises(RuntimeError, match="host memory"):
        loop.run(range(3))
