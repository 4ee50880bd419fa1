"""Scalars under stable names, for TensorBoard and every other logger."""

from __future__ import annotations

import math
import types
import warnings

import pytest
import torch
from torch import nn

import torch_ire
from optimizer_cases import batch, loss_of, small_model, train
from torch_ire.curvature import HessianOperator, SharpnessTracker


def trained(**arguments) -> tuple[nn.Module, torch_ire.AdmIRE]:
    model = small_model()
    optimizer = torch_ire.AdmIRE(model.named_parameters(), **arguments)
    train(model, optimizer, range(3))
    return model, optimizer


def test_scalars_have_stable_names_and_the_values_of_the_summary():
    model, optimizer = trained(gamma=0.6)
    numbers = torch_ire.scalars(optimizer)
    assert list(numbers) == [
        "ire/flat_share",
        "ire/threshold",
        "ire/kappa_eff",
        "ire/displacement_share",
        "ire/flat_share/0",
        "ire/flat_share/2",
    ]
    assert {type(value) for value in numbers.values()} == {float}
    summary = optimizer.ire_summary()
    assert numbers["ire/flat_share"] == summary["flat_share"]
    assert numbers["ire/threshold"] == next(iter(summary["threshold"].values()))
    shares = summary["flat_share_by_parameter"]
    weight, bias = model[2].weight.numel(), model[2].bias.numel()
    expected = (weight * shares["2.weight"] + bias * shares["2.bias"]) / (weight + bias)
    assert numbers["ire/flat_share/2"] == pytest.approx(expected)
    assert not any(name.startswith("ire/flat_share/") for name in torch_ire.scalars(optimizer, by_layer=False))


def test_groups_that_differ_are_reported_separately():
    model = small_model()
    first, *rest = model.parameters()
    optimizer = torch_ire.SGDIRE([{"params": [first], "kappa": 5.0}, {"params": rest}], lr=0.1, ranking="group")
    train(model, optimizer, range(1))
    numbers = torch_ire.scalars(optimizer)
    assert numbers["ire/kappa_eff/0"] == 5.0
    assert numbers["ire/kappa_eff/1"] == 2.0
    assert "ire/kappa_eff" not in numbers
    assert len([name for name in numbers if name.startswith("ire/threshold/")]) == 2
    assert {"ire/flat_share/0", "ire/flat_share/1"} <= set(numbers)
    assert "ire/displacement_share" not in numbers  # SGD without momentum and gradients has no direction


def test_unknown_or_infinite_numbers_are_left_out():
    optimizer = torch_ire.AdmIRE([nn.Parameter(torch.ones(3))], warmup_steps=5)
    assert torch_ire.scalars(optimizer) == {
        "ire/flat_share": 0.0,
        "ire/kappa_eff": 0.0,
        "ire/displacement_share": 0.0,
    }
    _, optimizer = trained(gamma=0.0)  # nothing is flat: the threshold is minus infinity
    assert "ire/threshold" not in torch_ire.scalars(optimizer)


def test_a_handle_reports_all_of_its_optimizers():
    model = small_model()
    (a, b), (c, d) = list(model[0].named_parameters("0")), list(model[2].named_parameters("2"))
    optimizers = [torch.optim.SGD([a, b], lr=0.1), torch.optim.Adam([c, d])]
    handle = torch_ire.IRE(optimizers)
    loss_of(model, 0).backward()
    handle.update_mask()
    numbers = torch_ire.scalars(handle)
    assert numbers["ire/flat_share"] == pytest.approx(0.8, abs=0.01)
    assert 0.0 <= numbers["ire/flat_share/0"] <= 1.0
    assert 0.0 <= numbers["ire/flat_share/2"] <= 1.0


def test_sharpness_comes_from_the_tracker():
    model, optimizer = trained()
    hessian = HessianOperator(lambda: loss_of(model, 0), list(model.parameters()))
    tracker = SharpnessTracker(hessian, every=1, lr=0.1)
    assert torch_ire.scalars(tracker=tracker) == {}
    record = tracker.measure(0)
    assert torch_ire.scalars(tracker=tracker) == {"ire/sharpness": record.lambda_max, "ire/sharpness_limit": 20.0}
    assert math.isnan(record.trace)
    assert torch_ire.scalars(optimizer, tracker=tracker)["ire/sharpness"] == record.lambda_max


def test_everything_that_refreshes_masks_is_accepted():
    """A trainer's wrapper, and an optimizer that IRE is attached to, as refresh_mask() takes them."""
    _, optimizer = trained()
    wrapper = types.SimpleNamespace(optimizer=types.SimpleNamespace(optimizer=optimizer))
    assert torch_ire.scalars(wrapper) == torch_ire.scalars(optimizer)
    model = small_model()
    in_backward = torch_ire.StepInBackward(model.named_parameters(), lambda named: torch_ire.AdmIRE(named, gamma=0.6))
    torch_ire.refresh_mask(in_backward, model, batch(0))
    loss_of(model, 0).backward()
    assert torch_ire.scalars(in_backward)["ire/flat_share/2"] == pytest.approx(0.6, abs=0.4)
    assert torch_ire.scalars(in_backward) == torch_ire.scalars(in_backward.optimizer)
    model = small_model()
    base = torch.optim.NAdam(model.named_parameters())
    handle = torch_ire.IRE(base, curvature="random")
    train(model, base, range(2))
    got = []
    numbers = torch_ire.log_summary(base, lambda *what: got.append(what), 7)
    assert numbers == torch_ire.scalars(handle)
    assert got == [(numbers, 7)]
    with pytest.raises(TypeError, match="expected AdmIRE, SGDIRE, SAMIRE, an optimizer that IRE"):
        torch_ire.scalars(torch.optim.NAdam(model.parameters()))


class LightningLogger:
    def log_metrics(self, metrics, step=None) -> None:
        self.got = (metrics, step)


class Run:
    def log(self, data, step=None) -> None:
        self.got = (data, step)


def test_log_summary_sends_the_dictionary_to_each_kind_of_logger():
    _, optimizer = trained()
    numbers = torch_ire.scalars(optimizer)
    for logger in (LightningLogger(), Run()):
        assert torch_ire.log_summary(optimizer, logger, 7) == numbers
        assert logger.got == (numbers, 7)
    got = []
    torch_ire.log_summary(optimizer, lambda *what: got.append(what), 7)
    assert got == [(numbers, 7)]
    assert torch_ire.log_summary(optimizer, None, 7) == numbers
    with pytest.raises(
        TypeError, match="expected a logger with add_scalar, log_metrics or log, or a function, got int"
    ):
        torch_ire.log_summary(optimizer, 5, 7)


def test_tensorboard_reads_back_what_was_written(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra `trainers`")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TensorBoard's own imports
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from torch.utils.tensorboard import SummaryWriter

    _, optimizer = trained()
    with SummaryWriter(tmp_path) as writer:
        numbers = torch_ire.log_summary(optimizer, writer, 7)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == set(numbers)
    for name, value in numbers.items():
        (event,) = events.Scalars(name)
        assert event.step == 7
        assert event.value == pytest.approx(value, rel=1e-6)
