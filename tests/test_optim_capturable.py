"""`capturable=True`: a recorded step, run again and again, is the step of the ordinary loop under the same schedule."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

import torch_ire
from graph_replay import Recording
from optimizer_cases import CASES, IDS, batch, loss_of, small_model, train, values
from torch_ire.optim.ire_optimizer import IREOptimizer

STEPS = 30
WARMUP, INTERVAL = 3, 4


def learning_rate(step: int) -> float:
    return 0.02 * (1 + step) / 8 if step < 8 else 0.02 * 0.9 ** (step - 8)


def enhancement(step: int) -> float:
    return 0.0 if step < 5 else 0.25 * (step - 4)


def arguments(capturable: bool, **overrides):
    lr, kappa = learning_rate(0), enhancement(0)
    if capturable:
        lr, kappa = torch.tensor(lr, dtype=torch.float64), torch.tensor(kappa, dtype=torch.float64)
    schedule = {"warmup_steps": WARMUP, "mask_interval": INTERVAL, "gamma": 0.6}
    return {"lr": lr, "kappa": kappa, **schedule, **overrides}


def set_scalars(optimizer: torch.optim.Optimizer, step: int) -> None:
    for group in optimizer.param_groups:
        for name, value in (("lr", learning_rate(step)), ("kappa", enhancement(step))):
            if isinstance(group[name], torch.Tensor):
                group[name].fill_(value)
            else:
                group[name] = value


class Loop:
    """The loop of the README with static gradients; from `captured_at` on the parts of the step are replayed."""

    def __init__(self, make, *, captured_at: int | None = None, device: str = "cpu", graph=None) -> None:
        self.model = small_model(dtype=torch.float64).to(device)
        self.optimizer, self.handle = make(self.model)
        self.captured_at, self.labels = captured_at, torch_ire.LabelGenerator(seed=7)
        self.graph, self.records = graph or Recording, {}
        self.due: list[int] = []

    def loss(self, step: int) -> torch.Tensor:
        x, y = batch(step)
        p = next(self.model.parameters())
        return nn.functional.cross_entropy(self.model(x.to(p)), y.to(p.device))

    def backward(self, step: int) -> None:
        model = self.model
        for p in model.parameters():
            if p.grad is not None:
                p.grad.zero_()
        with torch.enable_grad():
            loss = self.loss(step)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        for p, g in zip(model.parameters(), grads, strict=True):
            if p.grad is None:
                p.grad = g
            else:
                p.grad.copy_(g)

    def part(self, name: str, function, step: int) -> None:
        if self.captured_at is None or step < self.captured_at:
            function()
        elif step == self.captured_at:
            with self.graph() as record:
                function()
            self.records[name] = record
            if not isinstance(record, Recording):
                record.replay()  # a CUDA graph only records
        else:
            self.records[name].replay()

    def refresh(self, step: int) -> None:
        curvature = self.handle_groups()[0]["curvature"]
        if not self.handle.mask_due():
            return
        self.due.append(step)
        if curvature in ("second_moment", "random"):
            self.handle.update_mask()
        elif curvature == "hutchinson":
            self.handle.update_mask(self.loss(step))
        else:
            grads = [p.grad for p in self.model.parameters()]
            for p in self.model.parameters():
                p.grad = None
            self.loss(step + 100).backward()
            self.handle.update_mask()
            for p, g in zip(self.model.parameters(), grads, strict=True):
                p.grad = g

    def handle_groups(self):
        return self.optimizer.param_groups

    def run(self, steps: range = range(STEPS)) -> list[list[torch.Tensor]]:
        path = []
        for step in steps:
            set_scalars(self.optimizer, step)
            self.refresh(step)
            self.backward(step)
            if isinstance(self.optimizer, torch_ire.SAMIRE):
                self.part("first", self.optimizer.first_step, step)
                self.backward(step)
                self.part("second", self.optimizer.second_step, step)
            else:
                self.part("step", self.optimizer.step, step)
            path.append(values(self.model))
        return path


def ours(case, capturable: bool, **overrides):
    def make(model: nn.Module):
        optimizer = case(model.parameters(), **arguments(capturable, **overrides), capturable=capturable)
        return optimizer, optimizer

    return make


class Momentum(torch.optim.Optimizer):
    """Somebody's optimizer, which reads its learning rate where it is."""

    def __init__(self, params, lr) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p].setdefault("buffer", torch.zeros_like(p))
                    buffer = self.state[p]["buffer"].mul_(0.9).add_(p.grad)
                    p.sub_(buffer * group["lr"])


def around(capturable: bool, **overrides):
    def make(model: nn.Module):
        whole = arguments(capturable, **overrides)
        optimizer = Momentum(model.parameters(), lr=whole.pop("lr"))
        return optimizer, torch_ire.IRE(optimizer, **whole, capturable=capturable)

    return make


def assert_same(path, other) -> None:
    for step, (ps, qs) in enumerate(zip(path, other, strict=True)):
        for p, q in zip(ps, qs, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13, msg=lambda m, s=step: f"step {s}: {m}")


FIXED = [case for case in CASES if case.name != "average-SAMIRE"]


@pytest.mark.parametrize("captured_at", [1, 4, 13])
@pytest.mark.parametrize("case", FIXED, ids=[case.name for case in FIXED])
def test_replays_are_the_steps_of_the_ordinary_loop(case, captured_at):
    """lr and kappa change in every step, refreshes fall between replays, the warm-up ends after two of the captures."""
    loop = Loop(ours(case, True), captured_at=captured_at)
    expected = Loop(ours(case, False))
    assert_same(loop.run(), expected.run())
    assert loop.due == expected.due == list(range(WARMUP, STEPS, INTERVAL))
    assert loop.optimizer.param_groups[0]["ire_step"].item() == STEPS


@pytest.mark.parametrize(
    "overrides", [{"kappa_follows_lr": True}, {"curvature": "random"}, {"curvature": "hutchinson"}]
)
@pytest.mark.parametrize("case", FIXED[:5:2], ids=[case.name for case in FIXED[:5:2]])
def test_replays_with_every_kind_of_kappa_and_mask(case, overrides):
    loop, expected = Loop(ours(case, True, **overrides), captured_at=2), Loop(ours(case, False, **overrides))
    assert_same(loop.run(), expected.run())


def test_replays_that_rank_their_own_second_moment():
    """Outside the step and one call later, the mask is the one that an ordinary step makes."""
    loop = Loop(ours(CASES[0], True, curvature="second_moment"), captured_at=1)
    expected = Loop(ours(CASES[0], False, curvature="second_moment"))
    assert_same(loop.run(), expected.run())
    assert loop.due == list(range(WARMUP + 1, STEPS, INTERVAL))
    assert expected.due == []


@pytest.mark.parametrize("overrides", [{}, {"kappa_follows_lr": True}, {"curvature": "random"}])
def test_replays_of_a_step_with_a_handle(overrides):
    loop, expected = Loop(around(True, **overrides), captured_at=2), Loop(around(False, **overrides))
    assert_same(loop.run(), expected.run())


def test_a_mask_before_the_warmup_has_passed_waits_for_it():
    paths = []
    for capturable in (True, False):
        loop = Loop(ours(CASES[0], capturable, warmup_steps=6), captured_at=2 if capturable else None)
        loop.backward(100)
        loop.optimizer.update_mask()
        paths.append(loop.run())
    assert_same(*paths)


def test_masks_stay_where_they_are():
    loop = Loop(ours(CASES[0], True))
    loop.run(range(1))
    masks = [loop.optimizer.state[p]["flat_mask"] for p in loop.model.parameters()]
    assert all(not mask.any() for mask in masks)
    loop.run(range(1, 5))
    assert all(loop.optimizer.state[p]["flat_mask"] is m for p, m in zip(loop.model.parameters(), masks, strict=True))
    assert any(mask.any() for mask in masks)


def test_an_overflow_skips_a_replay():
    loop = Loop(ours(CASES[0], True), captured_at=2)
    loop.optimizer.found_inf = torch.tensor(0.0)
    loop.run(range(5))
    before = values(loop.model)
    loop.optimizer.found_inf.fill_(1.0)
    loop.run(range(5, 6))
    assert all(torch.equal(p, q) for p, q in zip(before, values(loop.model), strict=True))
    assert loop.optimizer.param_groups[0]["ire_step"].item() == 6  # as a skipped step counts elsewhere


@pytest.mark.parametrize("case", CASES, ids=IDS)
@pytest.mark.parametrize("saved", [True, False])
def test_checkpoints_have_plain_numbers_and_fit_both_kinds(case, saved):
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


def test_detaching_takes_back_what_the_handle_gave():
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = set(optimizer.param_groups[0])
    torch_ire.IRE(optimizer, capturable=True).detach()
    assert set(optimizer.param_groups[0]) == before


class Projection:
    def refresh(self) -> None:
        pass

    def amplify_(self, params, previous, kappa) -> None:
        pass


@pytest.mark.parametrize(
    ("overrides", "steps", "message"),
    [
        ({}, 0, "one step before the capture"),
        ({"capturable": False}, 1, "without capturable=True"),
        ({"curvature": Projection()}, 1, "exact projector"),
    ],
)
def test_what_a_graph_would_freeze_is_refused(overrides, steps, message):
    model = small_model()
    optimizer = torch_ire.AdmIRE(model.parameters(), **{"capturable": True, **overrides})
    loss_of(model, 0).backward()
    for _ in range(steps):
        optimizer.step()
    before = values(model)
    with Recording(), pytest.raises(RuntimeError, match=message):
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(before, values(model), strict=True))


def test_a_random_perturbation_is_not_recorded():
    model = small_model()
    optimizer = torch_ire.SAMIRE(model.parameters(), perturbation="random", capturable=True)
    with Recording(), pytest.raises(RuntimeError, match="draws on the host"):
        optimizer.first_step()


def test_a_handle_that_reads_the_learning_rate_on_the_host_is_not_recorded():
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.1), foreach=False)
    torch_ire.IRE(optimizer, amplify_weight_decay=False, capturable=True)
    optimizer.param_groups[0]["capturable"] = True  # torch's own AdamW takes it on a GPU alone
    torch_ire.optim.device_schedule.place_schedule(optimizer.param_groups)
    loss_of(model, 0).backward()
    with Recording(), pytest.raises(RuntimeError, match="learning rate on the host"):
        optimizer.step()


def test_a_second_moment_is_asked_for_after_the_first_step():
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
def test_a_rehearsal_does_not_count(learning_rates):
    model = small_model()
    optimizer = torch_ire.AdmIRE(model.parameters(), lr=learning_rates, capturable=True)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert optimizer.param_groups[0]["ire_step"].item() == 0


def test_the_recording_notices_a_host_number():
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
    loop = Loop(device_tensors(ours(case, True, **overrides)), captured_at=2, device="cuda", graph=CudaGraph)
    expected = Loop(ours(case, False, **overrides), device="cuda")
    assert_same(loop.run(), expected.run())
    assert loop.due == expected.due


@pytest.mark.gpu
def test_cuda_graphs_refuse_scalars_of_the_host():
    loop = Loop(ours(CASES[0], True), captured_at=1, device="cuda", graph=CudaGraph)
    with pytest.raises(RuntimeError, match="host memory"):
        loop.run(range(3))
