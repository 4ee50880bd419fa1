"""The Trainer of transformers with our optimizers, and the callback that refreshes masks."""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import torch_ire
from torch_ire.model_outputs import predict
from trainers import need

need("transformers")

import transformers

from torch_ire.integrations.hugging_face import MaskRefreshCallback

VOCABULARY, LENGTH, PADDING = 29, 10, 0
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
CALLBACK = [MaskRefreshCallback]


def language_model(**config: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SMALL, intermediate_size=24, max_position_embeddings=32, **config)
    )


@functools.cache
def texts() -> list[dict[str, torch.Tensor]]:
    """Counts of different lengths, padded; half of them with a prompt that the loss leaves out."""
    items = []
    for i in range(48):
        tokens = 1 + (i + torch.arange(LENGTH)) % (VOCABULARY - 1)
        tokens[LENGTH - i % 4 :] = PADDING
        labels = tokens.masked_fill(tokens == PADDING, -100)
        labels[: 3 * (i % 2)] = -100
        items.append({"input_ids": tokens, "attention_mask": (tokens != PADDING).long(), "labels": labels})
    return items


# scores of half precision tie, and ties at the threshold are all flat
FLAT = pytest.approx(0.82, abs=0.03)


@pytest.fixture(autouse=True)
def same_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    torch_ire.default_label_generator.manual_seed(0)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)  # which a Trainer's arguments may leave


@pytest.fixture(scope="module", autouse=True)
def quick_runs() -> Iterator[None]:
    """The Trainer collects garbage before and after each run; what has been imported until here is none."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)


class Run:
    """A run of the Trainer that remembers every batch that the model was called with."""

    def __init__(self, folder: Path, *, model: torch.nn.Module | None = None, **options: Any) -> None:
        self.model = model or language_model(attention_dropout=0.1)
        self.batches: list[dict[str, torch.Tensor]] = []
        self.model.register_forward_pre_hook(self._remember, with_kwargs=True)
        optimizer = options.pop("optimizer", None)
        trainer_options = {key: options.pop(key) for key in ("optimizer_cls_and_kwargs", "callbacks") if key in options}
        arguments = {"max_steps": 9, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "weight_decay": 0.1}
        self.trainer = transformers.Trainer(
            self.model,
            transformers.TrainingArguments(
                str(folder),
                use_cpu=True,
                report_to="none",
                disable_tqdm=True,
                **{"save_strategy": "no", "logging_steps": 3, **arguments, **options},
            ),
            train_dataset=texts(),
            optimizers=(optimizer(self.model) if optimizer else None, None),
            **trainer_options,
        )

    def _remember(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.batches.append(dict(kwargs))

    def train(self, **options: Any) -> Run:
        self.trainer.train(**options)
        return self

    @property
    def ire(self) -> Any:
        return torch_ire.ire_of(self.trainer.optimizer)

    @property
    def state(self) -> dict[str, Any]:
        return self.trainer.optimizer.state_dict()

    def parameters(self) -> list[torch.Tensor]:
        return [p.detach() for p in self.model.parameters()]

    def masks(self) -> list[torch.Tensor]:
        return [entry["flat_mask"] for entry in self.state["state"].values()]

    def losses(self) -> list[float]:
        return [entry["loss"] for entry in self.trainer.state.log_history if "loss" in entry]


def adm_ire(**arguments: Any) -> dict[str, Any]:
    return {"optimizer_cls_and_kwargs": (torch_ire.AdmIRE, {"lr": 1e-2, "weight_decay": 0.1, **arguments})}


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return bool(ours) and all(map(torch.equal, ours, theirs)) and len(ours) == len(theirs)


def test_swapping_adamw_for_adm_ire_needs_no_other_change(tmp_path):
    """No other line changes: the two decay groups, clipping and the schedule are the Trainer's."""
    plain = Run(tmp_path).train()
    zero = Run(tmp_path, **adm_ire(kappa=0.0, curvature="second_moment")).train()
    for p, q in zip(plain.parameters(), zero.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)  # torch's own variants of AdamW differ as much
    ours = Run(tmp_path, **adm_ire(curvature="second_moment", mask_interval=4)).train()
    assert [group["weight_decay"] for group in ours.ire.param_groups] == [0.1, 0.0]
    assert ours.ire.ire_summary()["flat_share"] == FLAT
    assert ours.losses()[-1] < ours.losses()[0]
    assert not same(ours.parameters(), zero.parameters())

    def two_groups(model):
        decayed = [p for p in model.parameters() if p.dim() > 1]
        others = [p for p in model.parameters() if p.dim() == 1]
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        return torch_ire.AdmIRE(groups, lr=1e-2, curvature="second_moment", mask_interval=4)

    assert same(Run(tmp_path, optimizer=two_groups).train().parameters(), ours.parameters())


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_accumulation_steps": 2}, {"bf16": True}],
    ids=["plain", "accumulation", "bf16"],
)
def test_the_callback_changes_nothing_but_the_masks(tmp_path, options):
    """With kappa = 0 the run equals the run without it to the bit: gradients, dropout and data."""
    without = Run(tmp_path, **adm_ire(kappa=0.0), **options).train()
    with_masks = Run(tmp_path, **adm_ire(kappa=0.0, mask_interval=3), callbacks=CALLBACK, **options).train()
    assert same(without.parameters(), with_masks.parameters())
    assert with_masks.losses() == without.losses()
    assert with_masks.ire.ire_summary()["flat_share"] == FLAT


def test_the_pass_goes_through_activation_checkpointing(tmp_path):
    masks = []
    for checkpointing in (False, True):
        model = language_model(attention_dropout=0.1)
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        generator = torch_ire.LabelGenerator(seed=3)
        callbacks = [MaskRefreshCallback(generator=generator)]
        masks.append(Run(tmp_path, model=model, **adm_ire(), callbacks=callbacks, max_steps=2).train().masks())
    assert same(*masks)


def test_masks_equal_those_of_the_plain_loop(tmp_path):
    """Refreshed at T_w, T_w + K, ... from the batch of that step, with shifted labels and ignored positions."""
    arguments = {"warmup_steps": 2, "mask_interval": 3, "gamma": 0.6, "kappa": 1.5}
    generators = [torch_ire.LabelGenerator(seed=5) for _ in range(2)]
    refreshed = []

    class Watch(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            refreshed.append(kwargs["optimizer"].param_groups[0]["ire_mask_step"])

    run = Run(
        tmp_path,
        model=language_model(),
        callbacks=[MaskRefreshCallback(generator=generators[0]), Watch],
        **adm_ire(**arguments),
        lr_scheduler_type="constant",
        max_grad_norm=0.5,
        max_steps=8,
    ).train()
    assert refreshed == [-1, -1, 2, 2, 2, 5, 5, 5]
    trained_on = [batch for batch in run.batches if "labels" in batch]
    assert len(trained_on) == 8
    assert len(run.batches) == 10
    model = language_model()
    names = run.trainer.get_decay_parameter_names(model)
    opt = torch_ire.AdmIRE(
        [
            {"params": [p for n, p in model.named_parameters() if n in names], "weight_decay": 0.1},
            {"params": [p for n, p in model.named_parameters() if n not in names], "weight_decay": 0.0},
        ],
        lr=1e-2,
        **arguments,
    )
    for batch in trained_on:
        ids, attention, labels = (batch[key] for key in ("input_ids", "attention_mask", "labels"))
        if opt.mask_due():
            next_tokens = F.pad(labels, (0, 1), value=-100)[:, 1:]
            logits = model(input_ids=ids, attention_mask=attention).logits
            torch_ire.sampled_cross_entropy(logits, next_tokens, generator=generators[1]).backward()
            opt.update_mask()
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        opt.step()
        opt.zero_grad()
    assert same(run.masks(), [entry["flat_mask"] for entry in opt.state_dict()["state"].values()])
    assert same(run.parameters(), [p.detach() for p in model.parameters()])


@pytest.mark.parametrize("kind", ["AdmIRE", "IRE"])
def test_a_run_resumes_to_the_bit(tmp_path, kind):
    """Saved between two refreshes, resumed by a new Trainer: parameters, moments, masks and labels."""

    def optimizer(model):
        if kind == "AdmIRE":
            return torch_ire.AdmIRE(model.parameters(), lr=1e-2, mask_interval=4)
        base = torch.optim.NAdam(model.parameters(), lr=1e-2)
        torch_ire.IRE(base, mask_interval=4)
        return base

    options = {"optimizer": optimizer, "callbacks": CALLBACK, "save_strategy": "steps", "save_steps": 6}
    whole = Run(tmp_path, **options).train()
    torch_ire.default_label_generator.manual_seed(99)
    resumed = Run(tmp_path, **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert len(resumed.batches) < len(whole.batches)
    assert same(whole.parameters(), resumed.parameters())
    assert whole.state["param_groups"] == resumed.state["param_groups"]  # the position of the labels among them
    for ours, theirs in zip(whole.state["state"].values(), resumed.state["state"].values(), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_checkpoint_of_the_trainers_adamw_goes_on_with_ire(tmp_path):
    Run(tmp_path, save_strategy="steps", save_steps=6).train()
    run = Run(tmp_path, **adm_ire(curvature="second_moment", mask_interval=4))
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert run.ire.param_groups[0]["ire_step"] == 9
    assert run.ire.param_groups[0]["ire_mask_step"] == 8
    assert float(run.state["state"][0]["step"]) == 9.0


def test_the_pass_has_the_loss_scale_of_the_trainer(tmp_path):
    """Under fp16 the gradients of the pass would underflow without it; the Trainer's own switch works on GPUs alone."""
    norms = {}
    for scale in (None, 1024.0):
        callback = MaskRefreshCallback(generator=torch_ire.LabelGenerator(seed=5))
        run = Run(tmp_path, model=language_model(), **adm_ire(curvature_beta=0.5), callbacks=[callback], max_steps=1)
        if scale is not None:
            run.trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        seen = norms.setdefault(scale, [])
        next(run.model.parameters()).register_hook(lambda grad, seen=seen: seen.append(float(grad.norm())))
        run.train()
        assert len(seen) == 2  # the training batch, and the pass of the mask
        norms[scale].append(run.state["state"][0]["hessian_diag"].sum().item())
    assert norms[1024.0][:2] == pytest.approx([1024.0 * norm for norm in norms[None][:2]])
    assert norms[1024.0][2] == pytest.approx(norms[None][2])


def test_steps_in_the_backward_pass_get_their_masks_before_it(tmp_path):
    """In a wrapper whose step does nothing, as the Trainer wants an optimizer: the run is the plain loop."""

    class Stepped(torch.optim.Optimizer):
        def __init__(self, optimizer):
            super().__init__([p for group in optimizer.param_groups for p in group["params"]], {"lr": 0.0})
            self.optimizer = optimizer

        def step(self, closure=None):
            return closure() if closure else None

    def in_backward(model):
        make = functools.partial(torch_ire.AdmIRE, lr=1e-2, mask_interval=3)
        return torch_ire.StepInBackward(model.parameters(), lambda params: make(params))

    labels = [torch_ire.LabelGenerator(seed=5) for _ in range(2)]
    callbacks = [MaskRefreshCallback(generator=labels[0])]
    run = Run(
        tmp_path,
        model=language_model(),
        optimizer=lambda model: Stepped(in_backward(model)),
        callbacks=callbacks,
        max_steps=5,
        max_grad_norm=0.0,
    ).train()
    model = language_model()
    opt = in_backward(model)
    trained_on = [batch for batch in run.batches if "labels" in batch]
    assert len(trained_on) == 5
    for batch in trained_on:
        torch_ire.refresh_mask(opt, model, batch, generator=labels[1])
        model(**batch).loss.backward()
    assert [group["ire_mask_step"] for group in run.ire.param_groups] == [3] * len(run.ire.param_groups)
    assert same(run.parameters(), [p.detach() for p in model.parameters()])


def test_ire_attached_to_the_trainers_adamw_matches_adm_ire(tmp_path):
    """The Trainer makes AdamW with its groups and schedule; with IRE attached it behaves as AdmIRE."""
    run = Run(tmp_path, callbacks=CALLBACK)
    ire = torch_ire.IRE(run.trainer.create_optimizer(), mask_interval=4)
    run.train()
    assert run.ire is ire
    torch_ire.default_label_generator.manual_seed(0)
    other = Run(tmp_path, **adm_ire(mask_interval=4), callbacks=CALLBACK).train()
    for ours, theirs in zip(run.masks(), other.masks(), strict=True):
        assert (ours == theirs).float().mean() > 0.95
    for p, q in zip(run.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0.05, atol=0.02)


def test_hutchinson_takes_the_loss_of_the_model(tmp_path):
    """Attention has a second derivative in the pass, also if a fused kernel trains."""
    run = Run(tmp_path, **adm_ire(curvature="hutchinson", mask_interval=4), callbacks=CALLBACK).train()
    assert run.ire.param_groups[0]["ire_mask_step"] == 8
    assert run.ire.ire_summary()["flat_share"] == FLAT


def test_an_optimizer_without_ire_is_refused(tmp_path):
    with pytest.raises(TypeError, match="expected AdmIRE, SGDIRE, SAMIRE, an optimizer that IRE"):
        Run(tmp_path, callbacks=CALLBACK).train()


def test_evaluation_refreshes_no_mask_and_leaves_no_hook(tmp_path):
    run = Run(tmp_path, **adm_ire(mask_interval=2), callbacks=CALLBACK, max_steps=4)
    run.trainer.eval_dataset = texts()[:4]
    run.train()
    before = run.masks()
    run.trainer.evaluate()
    assert same(run.masks(), before)
    assert len(run.model._forward_pre_hooks) == 1  # the one that this file has put there


@pytest.mark.parametrize("curvature", ["fisher", "second_moment"])
def test_the_trainer_logs_scalars_after_each_refresh(tmp_path, curvature):
    """After each step with a refreshed mask, also one that step() has refreshed itself."""
    run = Run(tmp_path, **adm_ire(mask_interval=4, curvature=curvature))
    run.trainer.add_callback(MaskRefreshCallback(log=run.trainer.log))
    run.train()
    logged = [entry for entry in run.trainer.state.log_history if "ire/flat_share" in entry]
    assert [entry["step"] for entry in logged] == [1, 5, 9]
    assert all(entry["ire/flat_share"] == FLAT and entry["ire/kappa_eff"] == 2.0 for entry in logged)


def heads() -> dict[str, Any]:
    bert = functools.partial(transformers.BertConfig, **SMALL, intermediate_size=24, max_position_embeddings=32)
    gpt2 = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=1
    )
    t5 = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    return {
        "LlamaForCausalLM": language_model,
        "GPT2LMHeadModel": lambda: transformers.GPT2LMHeadModel(gpt2),
        "BertForMaskedLM": lambda: transformers.BertForMaskedLM(bert()),
        "BertForTokenClassification": lambda: transformers.BertForTokenClassification(bert(num_labels=VOCABULARY)),
        "BertForSequenceClassification": lambda: transformers.BertForSequenceClassification(bert(num_labels=3)),
        "T5ForConditionalGeneration": lambda: transformers.T5ForConditionalGeneration(t5),
    }


@pytest.mark.parametrize("name", heads())
def test_targets_reproduce_the_loss_of_the_head(name):
    """Cross-entropy at the targets of the mask's pass equals the loss that the head computes."""
    model = heads()[name]().eval()
    batch = {key: torch.stack([item[key] for item in texts()[:6]]) for key in texts()[0]}
    if "Sequence" in name:
        batch["labels"] = torch.arange(6) % 3
    found = predict(model, batch, with_loss=False, ignore_index=-100)
    expected = model(**batch).loss
    assert found.logits.shape[:-1] == found.targets.shape
    loss = F.cross_entropy(found.logits.flatten(0, -2), found.targets.flatten())
    torch.testing.assert_close(loss, expected)
