"""Lightning's Trainer with our optimizers, the callback, and SAM by closure and by hand."""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torch_ire
from trainers import need

need("lightning")

import lightning.pytorch as pl
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from torch_ire.integrations.lightning import IRECallback

pytestmark = [
    # Lightning's own, of its loader, its checkpoints and its advice
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
]


# scores of half precision tie, and ties at the threshold are all flat
FLAT = pytest.approx(0.82, abs=0.03)


@pytest.fixture(autouse=True)
def same_labels_in_any_order() -> None:
    torch_ire.default_label_generator.manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def batches(count: int = 12) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(8, 5, generator=generator)
    inputs = [torch.randn(16, 8, generator=generator) for _ in range(count)]
    return [(x, (x @ weights).argmax(1)) for x in inputs]


def network(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    # no bias before BatchNorm: its gradient is rounding alone, which Adam would take for a direction
    first = nn.Linear(8, 12, bias=False)
    return nn.Sequential(first, nn.BatchNorm1d(12), nn.Tanh(), nn.Dropout(dropout), nn.Linear(12, 5))


class Module(pl.LightningModule):
    """As people write them; the optimizer is the only thing that differs between the tests."""

    def __init__(self, optimizer: Any, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = network(dropout)
        self.optimizer = optimizer
        self.training_losses: list[float] = []

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.training_losses.append(float(loss.detach()))
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return self.optimizer(self.parameters())

    def train_dataloader(self):
        return torch.utils.data.DataLoader(batches(), batch_size=None)


def train(module: pl.LightningModule, *, ckpt_path: Any = None, **options: Any) -> pl.Trainer:
    torch.manual_seed(1)  # of dropout
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = pl.Trainer(**{"accelerator": "cpu", "max_epochs": 1, "enable_checkpointing": False, **quiet, **options})
    trainer.fit(module, ckpt_path=ckpt_path)
    return trainer


def everything(module: nn.Module) -> list[torch.Tensor]:
    return [tensor.detach().clone() for tensor in module.state_dict().values()]


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return bool(ours) and all(map(torch.equal, ours, theirs)) and len(ours) == len(theirs)


def adm_ire(**arguments: Any) -> Any:
    return lambda params: torch_ire.AdmIRE(params, lr=1e-2, **arguments)


def test_swapping_adamw_for_adm_ire_needs_no_other_change():
    plain, zero = Module(lambda params: torch.optim.AdamW(params, lr=1e-2)), Module(adm_ire(kappa=0.0))
    train(plain, gradient_clip_val=0.5)
    train(zero, gradient_clip_val=0.5)
    for p, q in zip(everything(plain), everything(zero), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    ours = Module(adm_ire(curvature="second_moment", mask_interval=4))
    trainer = train(ours, gradient_clip_val=0.5)
    assert trainer.optimizers[0].ire_summary()["flat_share"] == FLAT
    assert trainer.global_step == 12
    assert not same(everything(ours), everything(zero))


@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}, {"precision": "bf16-true"}],
    ids=["plain", "accumulation", "bf16-mixed", "bf16-true"],
)
def test_the_callback_changes_nothing_but_the_masks(options):
    """With kappa = 0 the run equals the run without it to the bit: gradients, dropout and BatchNorm."""
    without, with_masks = Module(adm_ire(kappa=0.0), 0.1), Module(adm_ire(kappa=0.0, mask_interval=3), 0.1)
    train(without, **options)
    trainer = train(with_masks, callbacks=[IRECallback()], **options)
    assert same(everything(without), everything(with_masks))
    assert trainer.optimizers[0].ire_summary()["flat_share"] == FLAT


class Plain(Module):
    def configure_optimizers(self):
        ours = self.optimizer(self.parameters())
        return {
            "optimizer": ours,
            "lr_scheduler": {
                "scheduler": torch.optim.lr_scheduler.OneCycleLR(ours, max_lr=2e-2, total_steps=12),
                "interval": "step",
            },
        }


@pytest.mark.parametrize("attached", [False, True])
def test_masks_equal_those_of_the_plain_loop(attached):
    """The README's loop on the same batches and seeds: the same parameters, statistics and masks to the bit."""

    def optimizer(params):
        if not attached:
            return torch_ire.AdmIRE(params, lr=1e-2, **arguments)
        base = torch.optim.NAdam(params, lr=1e-2)
        torch_ire.IRE(base, **arguments)
        return base

    arguments: dict[str, Any] = {"warmup_steps": 2, "mask_interval": 4, "kappa": 1.5}
    generators = [torch_ire.LabelGenerator(seed=5) for _ in range(2)]
    module = Plain(optimizer)
    trainer = train(module, callbacks=[IRECallback(generator=generators[0])], gradient_clip_val=0.5)
    net = network()
    opt = optimizer(net.parameters())
    handle = torch_ire.ire_of(opt)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=2e-2, total_steps=12)
    due = []
    for step, (x, y) in enumerate(batches()):
        if handle.mask_due():
            due.append(step)
            with torch_ire.frozen_batch_norm(net):
                torch_ire.sampled_cross_entropy(net(x), generator=generators[1]).backward()
            handle.update_mask()
        F.cross_entropy(net(x), y).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        opt.step()
        opt.zero_grad()
        schedule.step()
    assert due == [2, 6, 10]
    assert same(everything(module.net), everything(net))
    ours, theirs = trainer.optimizers[0].state_dict()["state"], opt.state_dict()["state"]
    assert same([e["flat_mask"] for e in ours.values()], [e["flat_mask"] for e in theirs.values()])


def test_a_run_resumes_to_the_bit(tmp_path: Path):
    """Saved by Lightning after an epoch, between two refreshes, and loaded by a new Trainer."""
    checkpoint = pl.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=5, save_top_k=-1)
    options = {"max_epochs": 2, "limit_train_batches": 5}
    whole = Module(adm_ire(mask_interval=4, curvature_beta=0.5))
    trainer = train(whole, callbacks=[checkpoint, IRECallback()], enable_checkpointing=True, **options)
    torch_ire.default_label_generator.manual_seed(99)
    saved = sorted(tmp_path.glob("*step=5*.ckpt"))
    resumed = Module(adm_ire(mask_interval=7))  # what the checkpoint holds counts
    again = train(resumed, ckpt_path=saved[0], callbacks=[IRECallback()], **options)
    assert len(resumed.training_losses) == 5
    assert same(everything(whole), everything(resumed))
    groups = [t.optimizers[0].state_dict()["param_groups"] for t in (trainer, again)]
    assert groups[0] == groups[1]  # the position of the labels among them
    for ours, theirs in zip(
        trainer.optimizers[0].state_dict()["state"].values(),
        again.optimizers[0].state_dict()["state"].values(),
        strict=True,
    ):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def sam(**arguments: Any) -> Any:
    return lambda params: torch_ire.SAMIRE(
        params, lr=0.1, rho=0.2, **{"momentum": 0.9, "mask_interval": 4, **arguments}
    )


class ByHand(Module):
    """Manual optimization: both passes of SAM in the training step, on Lightning's wrapper of the optimizer."""

    def __init__(self, optimizer: Any, *, form: str = "steps") -> None:
        super().__init__(optimizer)
        self.automatic_optimization = False
        self.form = form

    def training_step(self, batch, batch_idx):
        x, y = batch
        opt = self.optimizers()
        self.manual_backward(F.cross_entropy(self(x), y))
        if self.form == "steps":
            opt.first_step(zero_grad=True)
            with torch_ire.frozen_batch_norm(self):
                self.manual_backward(F.cross_entropy(self(x), y))
            opt.second_step(zero_grad=True)
        else:
            with opt.perturbed(), torch_ire.frozen_batch_norm(self):
                self.manual_backward(F.cross_entropy(self(x), y))
            opt.step()
            opt.zero_grad()


def plain_sam(module: Module, opt: torch_ire.SAMIRE, generator: torch_ire.LabelGenerator) -> None:
    net = module.net
    for x, y in batches():
        torch_ire.refresh_mask(opt, net, (x, y), generator=generator)
        F.cross_entropy(net(x), y).backward()
        opt.first_step(zero_grad=True)
        with torch_ire.frozen_batch_norm(net):
            F.cross_entropy(net(x), y).backward()
        opt.second_step(zero_grad=True)


@pytest.mark.parametrize("how", ["automatic", "steps", "perturbed"])
def test_sam_equals_the_plain_loop_to_the_bit(how):
    """By closure under automatic optimization, by hand through Lightning's wrapper: parameters and BatchNorm agree."""
    module = Module(sam()) if how == "automatic" else ByHand(sam(), form=how)
    reference = copy.deepcopy(module)
    generators = [torch_ire.LabelGenerator(seed=5) for _ in range(2)]
    trainer = train(module, callbacks=[IRECallback(generator=generators[0])])
    opt = sam()(reference.parameters())
    plain_sam(reference, opt, generators[1])
    assert trainer.global_step == 12
    assert same(everything(module.net), everything(reference.net))
    assert not trainer.optimizers[0].is_perturbed
    assert len(module.training_losses) == (24 if how == "automatic" else 0)


def test_sam_clips_the_second_gradient():
    module = Module(sam(kappa=0.0, momentum=0.0))
    before = [p.detach().clone() for p in module.parameters()]
    train(module, gradient_clip_val=1e-3, max_steps=1, callbacks=[IRECallback()])
    moved = torch.cat([(p.detach() - q).flatten() for p, q in zip(module.parameters(), before, strict=True)])
    assert float(moved.norm()) == pytest.approx(0.1 * 1e-3, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate_grad_batches": 2}, "recomputes only the last batch"),
        ({"scaler": True}, "its second gradient is never taken"),
    ],
    ids=["accumulation", "scaler"],
)
def test_sam_with_accumulation_or_a_scaler_is_refused(options, message):
    with pytest.raises(MisconfigurationException, match=message):
        train(Module(sam()), callbacks=[IRECallback()], **with_scaler(options))


def with_scaler(options: dict[str, Any]) -> dict[str, Any]:
    """Float16 with a GradScaler, which Lightning's own switch offers on GPUs alone."""
    if not options.pop("scaler", False):
        return options
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    return {**options, "plugins": [MixedPrecision("16-mixed", "cpu", scaler=scaler)]}


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("precision", [{"scaler": True}, {"precision": "bf16-mixed"}], ids=["float16", "bf16"])
def test_clipping_under_mixed_precision_matches_adamw(precision, clip):
    """Lightning refuses to clip for optimizers that unscale in their step; ours needs no callback for it."""
    modules = [Module(optimizer) for optimizer in (adm_ire(kappa=0.0), lambda params: torch.optim.AdamW(params, 1e-2))]
    for module in modules:
        train(module, gradient_clip_val=clip, **with_scaler(dict(precision)))
    for p, q in zip(*map(everything, modules), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-3)
    ours = Module(adm_ire(mask_interval=3))
    labels = torch_ire.LabelGenerator(seed=5)
    trainer = train(
        ours, callbacks=[IRECallback(generator=labels)], gradient_clip_val=clip, **with_scaler(dict(precision))
    )
    assert trainer.optimizers[0].ire_summary()["flat_share"] == FLAT
    assert sum(ours.training_losses[-3:]) < sum(ours.training_losses[:3])


def test_the_pass_has_the_loss_scale_of_the_trainer():
    norms = []
    for scaled in (False, True):
        module = Module(adm_ire())
        seen = []
        module.net[0].weight.register_hook(lambda grad, seen=seen: seen.append(float(grad.norm())))
        options = with_scaler({"scaler": scaled})
        train(module, callbacks=[IRECallback(generator=torch_ire.LabelGenerator(seed=5))], max_steps=1, **options)
        norms.append(seen)
    assert norms[1] == pytest.approx([1024.0 * norm for norm in norms[0]], rel=0.05)  # float16 rounds
    assert len(norms[0]) == 2


def test_steps_in_the_backward_pass_get_their_masks_before_it():
    """In a wrapper whose step evaluates the closure and nothing else."""

    class Stepped(torch.optim.Optimizer):
        def __init__(self, optimizer):
            super().__init__([p for group in optimizer.param_groups for p in group["params"]], {"lr": 0.0})
            self.optimizer = optimizer

        def step(self, closure=None):
            return closure()

    def in_backward(params):
        return torch_ire.StepInBackward(params, lambda one: torch_ire.AdmIRE(one, lr=1e-2, mask_interval=3))

    labels = [torch_ire.LabelGenerator(seed=5) for _ in range(2)]
    module = Module(lambda params: Stepped(in_backward(params)))
    train(module, callbacks=[IRECallback(generator=labels[0])], limit_train_batches=5)
    net = network()
    opt = in_backward(net.parameters())
    for x, y in batches()[:5]:
        torch_ire.refresh_mask(opt, net, (x, y), generator=labels[1])
        F.cross_entropy(net(x), y).backward()
    assert {group["ire_mask_step"] for group in opt.param_groups} == {3}
    assert same(everything(module.net), everything(net))


def test_the_scaler_unscales_before_the_step_so_that_lightning_can_clip():
    opt = adm_ire(curvature="second_moment")([nn.Parameter(torch.ones(3))])
    param = opt.param_groups[0]["params"][0]
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    seen = []
    opt.register_step_pre_hook(lambda opt, args, kwargs: seen.append(param.grad.tolist()))
    scaler.scale(param.sum()).backward()
    scaler.step(opt)
    assert seen == [[1.0, 1.0, 1.0]]


def test_batch_norm_thaws_if_the_perturbed_run_fails():
    class Fails(Module):
        def training_step(self, batch, batch_idx):
            if self.trainer.optimizers[0].is_perturbed:
                raise KeyError("in the perturbed run")
            return super().training_step(batch, batch_idx)

    module = Fails(sam())
    before = [p.detach().clone() for p in module.parameters()]
    with pytest.raises(KeyError):
        train(module, callbacks=[IRECallback()])
    assert module.net[1].track_running_stats
    assert int(module.net[1].num_batches_tracked) == 1
    assert same([p.detach() for p in module.parameters()], before)


def test_forward_serves_modules_without_one_and_plain_optimizers_are_refused():
    class NoForward(Module):
        forward = pl.LightningModule.forward

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch["x"]), batch["y"])

        def train_dataloader(self):
            return torch.utils.data.DataLoader([{"x": x, "y": y} for x, y in batches(3)], batch_size=None)

    module = NoForward(adm_ire())
    trainer = train(module, callbacks=[IRECallback(forward=lambda module, batch: (module.net(batch["x"]), batch["y"]))])
    assert trainer.optimizers[0].ire_summary()["flat_share"] == FLAT
    with pytest.raises(TypeError, match="expected AdmIRE, SGDIRE, SAMIRE, an optimizer that IRE"):
        train(Module(lambda params: torch.optim.AdamW(params)), callbacks=[IRECallback()])


@pytest.mark.parametrize("curvature", ["fisher", "second_moment"])
def test_lightning_logs_scalars_after_each_refresh(curvature):
    """Through log_dict() of the module, also after a refresh by step(); Lightning repeats the last numbers."""
    steps, logged = [], []

    class Logs(Module):
        def log_dict(self, numbers, **options):
            steps.append(self.trainer.global_step)
            super().log_dict(numbers, **options)

    class Remember(pl.loggers.logger.Logger):
        name, version = "remember", 0

        def log_hyperparams(self, *args, **kwargs):
            pass

        def log_metrics(self, metrics, step=None):
            logged.append((step, metrics["ire/flat_share"], metrics["ire/kappa_eff"]))

    module = Logs(adm_ire(mask_interval=4, curvature=curvature))
    trainer = train(module, callbacks=[IRECallback(log=True)], logger=Remember(), log_every_n_steps=1)
    assert steps == [1, 5, 9]
    assert logged == [(step, FLAT, 2.0) for step in range(12)]
    assert float(trainer.callback_metrics["ire/flat_share"]) == FLAT


def test_one_handle_serves_two_optimizers():
    class Two(ByHand):
        def training_step(self, batch, batch_idx):
            self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
            for opt in self.optimizers():
                opt.step()
                opt.zero_grad()

        def configure_optimizers(self):
            halves = [torch.optim.NAdam(self.net[0].parameters()), torch.optim.RMSprop(self.net[4].parameters())]
            self.ire = types.SimpleNamespace(handle=torch_ire.IRE(halves, mask_interval=5))
            return halves

    module = Two(None)
    trainer = train(module, callbacks=[IRECallback()])
    assert module.ire.handle.ire_summary()["flat_share"] == FLAT
    assert [opt.param_groups[0]["ire_mask_step"] for opt in trainer.optimizers] == [10, 10]
