"""The demo: data, models, training through the real optimizers, the run as a whole."""

from __future__ import annotations

import io
import sys
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

from rich.console import Console

from torch_ire.demo import data as demo_data
from torch_ire.demo import session
from torch_ire.demo.config import DIGITS, TEXT, Method, Part, Plan
from torch_ire.demo.models import CausalSelfAttention, CharTransformer, DigitsResNet
from torch_ire.demo.sharpness import TraceJob, trace_of_run
from torch_ire.demo.training import Job, Trainer, build_model, learning_rate, train
from torch_ire.demo.workers import Workers, worker_count

TINY_DIGITS = replace(DIGITS, lrs=(0.05, 0.1), steps=5, batch_size=16, evaluate_every=2, warmup_steps=1, width=4)
TINY_TEXT = replace(
    TEXT,
    lrs=(5e-3,),
    steps=5,
    batch_size=4,
    evaluate_every=2,
    warmup_steps=1,
    width=16,
    num_layers=1,
    num_heads=2,
    context=16,
)
TINY = Plan(parts=(TINY_DIGITS, TINY_TEXT), seeds=2, probes=2, caution="Only a test.")
EVERY_METHOD = [
    pytest.param(part, method, id=f"{part.name}-{method.name}")
    for part in (TINY_DIGITS, TINY_TEXT)
    for method in part.methods
]


@pytest.fixture(scope="module")
def datasets() -> dict[str, demo_data.Dataset]:
    return {part.name: demo_data.load(part) for part in TINY.parts}


# --- data -------------------------------------------------------------------------------------------------------------


def test_digits_are_split_without_overlap():
    splits = demo_data.load_digits()
    parts = (splits.train, splits.validation, splits.test)
    assert [len(part) for part in parts] == [1000, 300, 497]
    images, targets = splits.train.examples(torch.arange(3))
    assert images.shape == (3, 1, 8, 8)
    assert images.dtype == torch.float32
    assert targets.dtype == torch.int64
    # The data set has no image twice, so as many different images as rows means that no image is in two splits.
    rows = np.concatenate([part.inputs.reshape(len(part), -1) for part in parts])
    assert len(np.unique(rows, axis=0)) == 1797
    assert set(np.concatenate([part.targets for part in parts])) == set(range(10))


def test_text_targets_are_the_next_characters():
    text = "".join(chr(97 + i % 26) for i in range(20_000))
    split = demo_data.split_text(text, window=8).train
    inputs, targets = split.examples(torch.tensor([0, 5]))
    assert inputs.shape == targets.shape == (2, 8)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert torch.equal(inputs[0], torch.from_numpy(demo_data.encode("abcdefgh")).long())


def test_text_splits_share_no_stretch():
    splits = demo_data.split_text("".join(chr(32 + i // 1000) for i in range(40_000)), window=8)
    kinds = [set(part.inputs.tolist()) for part in (splits.train, splits.validation, splits.test)]
    assert [len(kind) for kind in kinds] == [32, 4, 4]
    assert len(set.union(*kinds)) == 40


def test_spread_covers_the_split_with_windows_that_do_not_overlap():
    split = demo_data.Split(np.arange(101, dtype=np.uint8), np.arange(1, 102, dtype=np.uint8), window=10)
    assert len(split) == 92
    inputs, _ = split.spread(most=100)
    assert torch.equal(inputs.flatten(), torch.arange(100))
    assert split.spread(most=3)[0][:, 0].tolist() == [0, 40, 90]


def test_every_character_has_a_code_below_the_vocabulary():
    codes = demo_data.encode("\n ~\t€\U0001f600")
    assert codes.tolist() == [0, 1, 95, 96, 96, 96]
    assert codes.max() < demo_data.VOCABULARY


def test_real_text_is_long_enough(datasets):
    assert len(datasets["text"].train) > 10_000


def test_short_text_and_missing_topics_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="split_text: expected at least 1360 characters, got 5"):
        demo_data.split_text("abcde", window=16)
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(RuntimeError, match="without its help topics"):
        demo_data.load_text(window=16)


# --- models -----------------------------------------------------------------------------------------------------------


def test_digits_resnet_maps_images_to_ten_logits():
    model = DigitsResNet(width=4)
    assert model(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())


def test_transformer_is_causal():
    torch.manual_seed(0)
    model = CharTransformer(vocabulary=97, width=16, num_layers=2, num_heads=2, context=12).eval()
    before = torch.randint(97, (1, 12))
    after = before.clone()
    after[0, 7] = (after[0, 7] + 1) % 97
    logits, changed = model(before), model(after)
    assert torch.equal(logits[:, :7], changed[:, :7])
    assert not torch.allclose(logits[:, 7], changed[:, 7])
    # Later positions must see it, or the model would be causal by seeing nothing at all.
    assert not torch.allclose(logits[:, 11], changed[:, 11])


def test_attention_refuses_a_width_that_its_heads_cannot_share():
    with pytest.raises(ValueError, match="multiple of num_heads=3, got 16"):
        CausalSelfAttention(width=16, num_heads=3, context=4)


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("part", "method"), EVERY_METHOD)
def test_five_steps_of_every_method(part: Part, method: Method, datasets):
    steps: list[int] = []
    run = train(Job(part, method, part.lrs[0], seed=0), datasets, steps.append)
    assert steps == [2, 2, 1]
    assert run.curve_steps == (2, 4, 5)
    assert np.isfinite([*run.curve, run.test]).all()
    assert run.seconds_per_step > 0
    trained = Trainer(Job(part, method, part.lrs[0], seed=0), datasets[part.name].train).model.state_dict()
    assert all(not np.array_equal(run.weights[name], trained[name].numpy()) for name in run.weights if "weight" in name)


@pytest.mark.parametrize(("part", "method"), EVERY_METHOD)
def test_mask_is_there_exactly_where_ire_is(part: Part, method: Method, datasets):
    trainer = Trainer(Job(part, method, part.lrs[0], seed=0), datasets[part.name].train)
    for number in range(part.steps):
        trainer.step(number)
    if method.role == "base":
        assert not any(torch.any(s["flat_mask"]) for s in trainer.optimizer.state.values() if "flat_mask" in s)
        return
    flat = sum(
        int(mask.sum())
        for s in trainer.optimizer.state_dict()["state"].values()
        if (mask := s["flat_mask"]) is not None
    )
    total = sum(parameter.numel() for parameter in trainer.params)
    # Ties are all flat, so characters that a batch does not have can push the share above gamma.
    assert part.gamma - 0.01 <= flat / total < 1.0


def test_only_training_passes_move_batch_norm_statistics(datasets):
    (method,) = (m for m in TINY_DIGITS.methods if m.name == "SAM-IRE")
    run = train(Job(TINY_DIGITS, method, 0.05, seed=0), datasets, lambda steps: None)
    assert run.weights["norm.num_batches_tracked"] == TINY_DIGITS.steps


def test_optimizer_bytes_are_measured(datasets):
    measured = {
        method.name: train(Job(part, method, part.lrs[0], seed=0), datasets, lambda steps: None).optimizer_bytes
        for part in TINY.parts
        for method in part.methods
    }
    assert measured["SGD"] == 4.0
    assert 8.0 <= measured["AdamW"] < 8.1
    # One bit per parameter, and a gap of at most 64 bytes behind each tensor of moments and masks.
    assert 0.125 <= measured["AdmIRE, Fisher"] - measured["AdamW"] < 0.125 + 3 * gap(TINY_TEXT)
    # SAM keeps a copy of the unperturbed weights outside of its state.
    assert 4.0 <= measured["SAM"] - measured["SGD"] < 4.0 + 2 * gap(TINY_DIGITS)


def gap(part: Part) -> float:
    """Bytes per parameter if every tensor is followed by 64 unused bytes."""
    sizes = [param.numel() for param in build_model(part).parameters()]
    return 64 * len(sizes) / sum(sizes)


def test_methods_of_a_seed_share_weights_and_batches(datasets):
    base, enhanced = (Trainer(Job(TINY_TEXT, m, 1e-3, seed=3), datasets["text"].train) for m in TINY_TEXT.methods[:2])
    other = Trainer(Job(TINY_TEXT, TINY_TEXT.methods[0], 1e-3, seed=4), datasets["text"].train)
    for p, q, r in zip(base.params, enhanced.params, other.params, strict=True):
        assert torch.equal(p, q)
        assert p.ndim < 2 or not torch.equal(p, r)
    # Until the first mask IRE is the base optimizer, so the same batches give the same weights.
    base.step(0)
    enhanced.step(0)
    for p, q in zip(base.params, enhanced.params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("part", "method"), EVERY_METHOD)
def test_a_seed_repeats_and_another_seed_differs(part: Part, method: Method, datasets):
    first, again, other = (
        train(Job(part, method, part.lrs[0], seed), datasets, lambda steps: None).weights for seed in (0, 0, 1)
    )
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not all(np.array_equal(first[name], other[name]) for name in first)


def test_random_masks_differ_between_seeds(datasets):
    masks = []
    for seed in range(2):
        trainer = Trainer(Job(TINY_TEXT, TINY_TEXT.methods[-1], 1e-3, seed), datasets["text"].train)
        for number in range(3):
            trainer.step(number)
        masks.append(torch.cat([s["flat_mask"].flatten() for s in trainer.optimizer.state_dict()["state"].values()]))
    assert not torch.equal(*masks)


def test_learning_rate_warms_up_and_decays():
    part = replace(TEXT, steps=101, warmup_steps=10, final_lr_share=0.1)
    rates = [learning_rate(part, 2.0, step) for step in range(part.steps)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == rates[9] == rates[10] == pytest.approx(2.0)
    assert rates[-1] == pytest.approx(0.2)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))


# --- sharpness --------------------------------------------------------------------------------------------------------


def test_trace_of_a_softmax_regression_has_its_closed_form(datasets, monkeypatch):
    """Its trace is the mean over the images x of (|x|^2 + 1) sum_c p_c (1 - p_c)."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    for module in ("sharpness", "training"):
        monkeypatch.setattr(f"torch_ire.demo.{module}.build_model", lambda part: deepcopy(model))
    run = train(Job(TINY_DIGITS, TINY_DIGITS.methods[0], 0.1, seed=0), datasets, lambda steps: None)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in run.weights.items()})
    images, _ = datasets["digits"].train.spread(2 * TINY_DIGITS.batch_size)
    shares = model(images).softmax(-1)
    exact = ((images.square().sum((1, 2, 3)) + 1) * (shares * (1 - shares)).sum(-1)).mean().item()
    estimate = trace_of_run(TraceJob(run, probes=300), datasets, lambda steps: None)
    assert estimate == pytest.approx(exact, rel=0.05)


def test_trace_of_a_diverged_run_is_not_a_number(datasets):
    run = train(Job(TINY_TEXT, TINY_TEXT.methods[0], 5e-3, seed=0), datasets, lambda steps: None)
    broken = replace(run, weights={name: array * np.float32("nan") for name, array in run.weights.items()})
    assert np.isnan(trace_of_run(TraceJob(broken, probes=2), datasets, lambda steps: None))


def test_trace_of_a_run_is_reproducible(datasets):
    run = train(Job(TINY_TEXT, TINY_TEXT.methods[0], 5e-3, seed=0), datasets, lambda steps: None)
    done: list[int] = []
    first, second = (trace_of_run(TraceJob(run, probes=2), datasets, done.append) for _ in range(2))
    assert first == second
    assert np.isfinite(first)
    assert done == [1, 1]


# --- the whole -------------------------------------------------------------------------------------------------------


def test_whole_demo_in_one_process(tmp_path):
    stream = io.StringIO()
    console = Console(file=stream, width=80, color_system=None, force_terminal=False)
    threads = torch.get_num_threads()
    session.run(TINY, seeds=2, picture_path=tmp_path / "demo.png", console=console, workers=1)
    printed = stream.getvalue()
    assert torch.get_num_threads() == threads
    for method in (*TINY_DIGITS.methods, *TINY_TEXT.methods):
        assert method.name in printed
    assert printed.count("Only a test.") == 2
    assert "Better test score than both controls:" in printed
    assert "demo.png" in printed
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_jobs_keep_methods_innermost():
    jobs = session.jobs_of(TINY_DIGITS, seeds=2)
    assert len(jobs) == len(set(jobs)) == 2 * 2 * 6
    assert [job.method for job in jobs[:6]] == list(TINY_DIGITS.methods)
    assert [job.seed for job in jobs] == [0] * 12 + [1] * 12


def test_processes_give_what_one_process_gives(datasets):
    jobs = [Job(TINY_TEXT, method, 5e-3, seed=0) for method in TINY_TEXT.methods[:2]]
    steps: list[tuple[Job, int]] = []
    with Workers(datasets, count=1) as alone:
        expected = alone.run(train, jobs, lambda job, number: steps.append((job, number)))
    assert steps == [(job, number) for job in jobs for number in (2, 2, 1)]
    steps.clear()
    with Workers(datasets, count=2) as pool:
        outcomes = pool.run(train, jobs, lambda job, number: steps.append((job, number)))
        with pytest.raises(KeyError):
            pool.run(train, [Job(replace(TINY_TEXT, name="absent"), TEXT.methods[0], 1.0, 0)], lambda job, number: None)
    assert [run.curve for run in outcomes] == [run.curve for run in expected]
    assert [run.job for run in outcomes] == jobs
    assert set(steps) <= {(job, number) for job in jobs for number in (2, 1)}


def test_worker_count_is_small():
    assert 1 <= worker_count() <= 8
