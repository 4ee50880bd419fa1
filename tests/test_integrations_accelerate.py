"""Accelerate: prepared optimizers, accumulation, clipping, checkpoints, SAM by closure and by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torch_ire
from trainers import need

need("accelerate")

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch.utils.data import DataLoader, TensorDataset

STEPS = 8


# scores of half precision tie, and ties at the threshold are all flat
FLAT = pytest.approx(0.82, abs=0.03)


@pytest.fixture(autouse=True)
def same_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    torch_ire.default_label_generator.manual_seed(0)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)  # which a Trainer's arguments may leave


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps one state a process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12, bias=False), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 5))


def loader() -> DataLoader[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(16 * 2 * STEPS, 8, generator=generator)
    return DataLoader(TensorDataset(x, (x @ torch.randn(8, 5, generator=generator)).argmax(1)), batch_size=16)


def everything(module: nn.Module) -> list[torch.Tensor]:
    return [tensor.detach().clone() for tensor in module.state_dict().values()]


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return bool(ours) and all(map(torch.equal, ours, theirs)) and len(ours) == len(theirs)


def states(optimizer: Any) -> list[torch.Tensor]:
    return [entry[key] for entry in optimizer.state_dict()["state"].values() for key in sorted(entry)]


class Loop:
    """The loop of Accelerate's documentation, with one line more: the mask."""

    def __init__(self, optimizer: Any, **options: Any) -> None:
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, **options)
        model = network()
        self.model, self.optimizer, self.loader = self.accelerator.prepare(
            model, optimizer(model.parameters()), loader()
        )
        self.labels = torch_ire.LabelGenerator(seed=5)
        self.refreshed: list[int] = []

    def run(self, first: int = 0, last: int = 2 * STEPS) -> Loop:
        for i, (x, y) in enumerate(self.loader):
            if not first <= i < last:
                continue
            with self.accelerator.accumulate(self.model):
                if torch_ire.refresh_mask(self.optimizer, self.model, (x, y), generator=self.labels):
                    self.refreshed.append(i)
                self.accelerator.backward(F.cross_entropy(self.model(x), y))
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), 0.5)
                self.optimizer.step()
                self.optimizer.zero_grad()
        return self


def plain(optimizer: Any) -> tuple[nn.Module, Any]:
    model = network()
    opt = optimizer(model.parameters())
    labels = torch_ire.LabelGenerator(seed=5)
    for i, (x, y) in enumerate(loader()):
        if torch_ire.ire_of(opt).mask_due():
            with torch_ire.frozen_batch_norm(model):
                torch_ire.sampled_cross_entropy(model(x), generator=labels).backward()
            torch_ire.ire_of(opt).update_mask()
        (F.cross_entropy(model(x), y) / 2).backward()
        if i % 2:
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            opt.step()
            opt.zero_grad()
    return model, opt


def adm_ire(**arguments: Any) -> Any:
    return lambda params: torch_ire.AdmIRE(params, lr=1e-2, **{"mask_interval": 3, **arguments})


def attached(params: Any) -> torch.optim.Optimizer:
    base = torch.optim.NAdam(params, lr=1e-2)
    torch_ire.IRE(base, mask_interval=3)
    return base


@pytest.mark.parametrize("optimizer", [adm_ire(), attached], ids=["AdmIRE", "IRE"])
def test_an_accelerated_loop_equals_the_plain_loop_to_the_bit(optimizer):
    loop = Loop(optimizer).run()
    assert loop.refreshed == [0, 6, 12]  # at the first micro-batch of steps 0, 3 and 6
    model, opt = plain(optimizer)
    assert same(everything(loop.model), everything(model))
    assert same(states(loop.optimizer), states(opt))


def test_swapping_adamw_for_adm_ire_needs_no_other_change():
    zero = Loop(adm_ire(kappa=0.0, curvature="second_moment")).run()
    ours = Loop(adm_ire(curvature="second_moment")).run()
    assert zero.refreshed == ours.refreshed == []
    model = network()
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for i, (x, y) in enumerate(loader()):
        (F.cross_entropy(model(x), y) / 2).backward()
        if i % 2:
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            opt.step()
            opt.zero_grad()
    for p, q in zip(everything(zero.model), everything(model), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    assert torch_ire.ire_of(ours.optimizer).ire_summary()["flat_share"] == FLAT
    assert not same(everything(zero.model), everything(ours.model))


def test_prepare_leaves_a_fresh_optimizer_alone():
    """Accelerate loads the optimizer's own state dict into it."""
    model = network()
    opt = torch_ire.AdmIRE([{"params": model[0].parameters(), "kappa": 1.0}, {"params": model[3].parameters()}])
    groups = [{k: v for k, v in group.items() if k != "params"} for group in opt.param_groups]
    prepared = Accelerator(cpu=True).prepare(opt)
    assert [{k: v for k, v in group.items() if k != "params"} for group in opt.param_groups] == groups
    assert not opt.state
    assert torch_ire.ire_of(prepared) is opt
    assert opt.mask_due()


@pytest.mark.parametrize("optimizer", [adm_ire(curvature_beta=0.5), attached], ids=["AdmIRE", "IRE"])
def test_a_run_resumes_to_the_bit(tmp_path: Path, optimizer):
    """save_state() between two refreshes; the labels continue at the position in the optimizer's checkpoint."""
    torch_ire.default_label_generator.manual_seed(11)
    whole = Loop(optimizer)
    whole.labels = None
    whole.run(0, 8)
    whole.accelerator.save_state(str(tmp_path))
    whole.run(8)
    torch_ire.default_label_generator.manual_seed(99)
    resumed = Loop(optimizer)
    resumed.labels = None
    resumed.accelerator.load_state(str(tmp_path))
    resumed.run(8)
    assert resumed.refreshed == whole.refreshed[-1:] == [12]
    assert same(everything(whole.model), everything(resumed.model))
    assert same(states(whole.optimizer), states(resumed.optimizer))


@pytest.mark.parametrize("form", ["closure", "steps"])
def test_sam_equals_the_plain_loop_to_the_bit(form):
    """By a closure through Accelerate's wrapper, and by two calls of the optimizer in it."""

    def optimizer(params):
        return torch_ire.SAMIRE(params, lr=0.1, momentum=0.9, rho=0.2, mask_interval=3)

    loop = Loop(optimizer)
    loop.accelerator.gradient_accumulation_steps = 1
    model = network()
    opt = optimizer(model.parameters())
    labels = torch_ire.LabelGenerator(seed=5)
    for (x, y), (u, v) in zip(loop.loader, loader(), strict=True):
        torch_ire.refresh_mask(loop.optimizer, loop.model, (x, y), generator=loop.labels)
        torch_ire.refresh_mask(opt, model, (u, v), generator=labels)
        F.cross_entropy(model(u), v).backward()
        opt.first_step(zero_grad=True)
        with torch_ire.frozen_batch_norm(model):
            F.cross_entropy(model(u), v).backward()
        opt.second_step(zero_grad=True)
        sam = loop.optimizer.optimizer

        def gradients(x=x, y=y):
            loss = F.cross_entropy(loop.model(x), y)
            loop.accelerator.backward(loss)
            return loss

        if form == "closure":

            def closure(gradients=gradients, sam=sam):
                sam.zero_grad()
                if not sam.is_perturbed:
                    return gradients()
                with torch_ire.frozen_batch_norm(loop.model):
                    return gradients()

            loop.optimizer.step(closure)
            loop.optimizer.zero_grad()
        else:
            gradients()
            sam.first_step(zero_grad=True)
            with torch_ire.frozen_batch_norm(loop.model):
                gradients()
            loop.optimizer.step()
            loop.optimizer.zero_grad()
    assert same(everything(loop.model), everything(model))
    assert same(states(loop.optimizer), states(opt))


def test_bf16_autocast_reaches_the_pass_of_the_mask():
    """Accelerate puts autocast into the model's forward, which the pass goes through."""
    seen = []
    loop = Loop(adm_ire(), mixed_precision="bf16")
    loop.model[3].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    loop.run(0, 2)
    assert loop.refreshed == [0]
    assert seen == [torch.bfloat16] * 3
    assert torch_ire.ire_of(loop.optimizer).ire_summary()["flat_share"] == FLAT


def test_log_summary_writes_to_the_trackers_of_accelerate(tmp_path: Path):
    """TensorBoard, by Accelerate's own log()."""
    need("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loop = Loop(adm_ire(), log_with="tensorboard", project_dir=str(tmp_path))
    loop.accelerator.init_trackers("run")
    loop.run(0, 2)
    torch_ire.log_summary(torch_ire.ire_of(loop.optimizer), loop.accelerator, step=1)
    loop.accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("ire/flat_share")] == [(1, FLAT)]


def test_the_pass_has_the_loss_scale_of_the_accelerator():
    """The prepared optimizer holds the GradScaler; Accelerate's own switch for float16 works on GPUs alone."""
    from accelerate.optimizer import AcceleratedOptimizer

    Accelerator(cpu=True)
    norms = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=1024.0)):
        model = network()
        prepared = AcceleratedOptimizer(torch_ire.AdmIRE(model.parameters()), scaler=scaler)
        model[0].weight.register_hook(lambda grad: norms.append(float(grad.norm())))
        batch = next(iter(loader()))
        assert torch_ire.refresh_mask(prepared, model, batch, generator=torch_ire.LabelGenerator(seed=5))
    assert norms[1] == pytest.approx(1024.0 * norms[0])


def test_an_overflow_changes_nothing_and_the_next_step_is_taken():
    from accelerate.optimizer import AcceleratedOptimizer

    Accelerator(cpu=True)
    model = network()
    opt = torch_ire.AdmIRE(model.parameters(), lr=1e-2, curvature="second_moment")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    prepared = AcceleratedOptimizer(opt, scaler=scaler)
    x, y = next(iter(loader()))
    before = everything(model)
    scaler.scale(F.cross_entropy(model(x).double(), y) * 1e5).backward()  # infinite in float32
    prepared.step()
    prepared.zero_grad()
    assert same([p.detach() for p in model.parameters()], before[:1] + before[1:3] + before[6:])
    assert scaler.get_scale() == 2.0**126
    scaler.update(2.0**10)
    scaler.scale(F.cross_entropy(model(x), y)).backward()
    prepared.step()
    assert [float(entry["step"]) for entry in opt.state.values()] == [1.0] * 5
    assert not same([p.detach() for p in model.parameters()], before[:1] + before[1:3] + before[6:])
