"""Stability limits against dense matrices and against what the iteration does; tracking during training."""

from __future__ import annotations

import csv
import math
import resource
import signal

import matplotlib as mpl
import pytest
import torch

from curvature_problems import linspace, rotated
from torch_ire.curvature import (
    CallableOperator,
    FlatProjector,
    HessianOperator,
    SharpnessTracker,
    amplified_operator,
    as_operator,
    stability,
)

mpl.use("Agg")


def quadratic():
    matrix = rotated([15.0, 8.0, 3.0, *linspace(0.1, 1, 5)])
    mask = torch.tensor([True, False, True, True, False, True, True, True])
    return matrix, mask


def dense_sharpness(matrix, mask, kappa):
    root = torch.diag((1 + kappa * mask.double()).sqrt())
    return float(torch.linalg.eigvalsh(root @ matrix @ root)[-1])


def test_amplified_operator():
    matrix, mask = quadratic()
    root = torch.diag((1 + 3.0 * mask.double()).sqrt())
    torch.testing.assert_close(amplified_operator(as_operator(matrix), mask, 3.0).dense(), root @ matrix @ root)
    projector = FlatProjector.from_operator(matrix, 2, tol=1e-10)
    values = torch.linalg.eigvalsh(amplified_operator(as_operator(matrix), projector, 3.0).dense())
    expected = torch.linalg.eigvalsh(matrix) * torch.tensor([4.0] * 6 + [1.0, 1.0])
    torch.testing.assert_close(values, expected.sort().values, rtol=1e-4, atol=1e-6)


def test_limits_equal_the_dense_ones():
    matrix, mask = quadratic()
    found = stability(matrix, lr=0.1, kappa=2.0, mask=mask, tol=1e-8)
    assert found.limit == pytest.approx(20.0)
    assert found.lambda_max == pytest.approx(15.0)
    assert found.lambda_max_amplified == pytest.approx(dense_sharpness(matrix, mask, 2.0), rel=1e-5)
    assert found.trace.value == pytest.approx(float(matrix.trace()), rel=1e-5)
    flat_trace = float(matrix.diagonal()[mask].sum())
    assert found.trace_flat.value == pytest.approx(flat_trace, rel=1e-5)
    assert found.trace_amplified == pytest.approx(float(matrix.trace()) + 2.0 * flat_trace, rel=1e-5)
    assert found.kappa_max_sgd == 0.0  # the trace is over the limit already
    smaller = stability(matrix, lr=0.05, kappa=2.0, mask=mask)
    assert smaller.kappa_max_sgd == pytest.approx((40 - float(matrix.trace())) / flat_trace, rel=1e-4)


def test_kappa_max_is_where_gradient_descent_turns_unstable():
    matrix, mask = quadratic()
    critical = stability(matrix, lr=0.1, mask=mask, tol=1e-8).kappa_max_gd
    assert dense_sharpness(matrix, mask, critical) == pytest.approx(20.0, rel=2e-3)

    def grows(kappa):
        theta = torch.ones(8, dtype=torch.float64)
        for _ in range(3000):
            theta = theta - 0.1 * (1 + kappa * mask.double()) * (matrix @ theta)
        return float(theta.norm()) > 1e3

    assert grows(1.02 * critical)
    assert not grows(0.98 * critical)


def test_extremes():
    matrix, mask = quadratic()
    unstable = stability(matrix, lr=1.0, mask=mask)
    assert not unstable.stable_gd
    assert not unstable.stable_sgd
    assert unstable.kappa_max_gd == 0.0
    nothing_flat = stability(matrix, lr=0.1, kappa=5.0, mask=torch.zeros(8, dtype=torch.bool))
    assert nothing_flat.kappa_max_gd == math.inf
    assert nothing_flat.lambda_max_amplified == pytest.approx(15.0, rel=1e-3)
    all_flat = stability(matrix, lr=0.1, kappa=0.2)
    assert all_flat.lambda_max_amplified == pytest.approx(18.0, rel=1e-3)
    assert all_flat.kappa_max_gd == pytest.approx(20.0 / 15.0 - 1, rel=1e-2)


@pytest.mark.parametrize("lr", [0.5, 0.5 * (1 - 1e-9), 0.5 * (1 - 1e-4), torch.tensor(0.5)])
def test_kappa_max_at_the_edge_of_stability_is_zero_to_the_tolerance(lr):
    found = stability(torch.diag(torch.tensor([4.0, 1.0])), lr=lr, tol=1e-6)
    assert 0.0 <= found.kappa_max_gd <= 1e-3
    assert found.num_matvecs <= 100
    assert type(found.lr) is float


@pytest.mark.parametrize("share", [1e-5, 1e-3, 0.5, 1.0])
def test_kappa_max_takes_few_products_for_any_flat_share(share):
    """The sharpness as a function of kappa has a corner where a flat direction takes the lead."""
    matrix = torch.diag(torch.tensor([4.0, 4.0 * share], dtype=torch.float64))
    found = stability(matrix, lr=0.4, mask=torch.tensor([False, True]))
    assert found.kappa_max_gd == pytest.approx(5.0 / (4.0 * share) - 1, rel=5e-3, abs=2e-3)
    assert found.num_matvecs <= 130


def test_masks_in_every_form_and_the_report():
    matrix, mask = quadratic()
    whole = stability(matrix, lr=0.1, kappa=1.0, mask=mask)
    pieces = stability(matrix, lr=0.1, kappa=1.0, mask=[mask[:4].reshape(2, 2), mask[4:]])
    assert pieces.lambda_max_amplified == whole.lambda_max_amplified
    exact = stability(matrix, lr=0.1, kappa=3.0, mask=FlatProjector.from_operator(matrix, 1, tol=1e-9), tol=1e-8)
    assert exact.lambda_max_amplified == pytest.approx(32.0, rel=1e-3)
    assert exact.kappa_max_gd == pytest.approx(20 / 8 - 1, rel=2e-3)
    text = str(exact)
    assert "UNSTABLE" in text
    assert "kappa_max" in text
    assert exact.plot().get_title()
    again = stability(matrix, lr=0.1, warm_start=whole.eigenpairs)
    assert again.lambda_max == pytest.approx(15.0, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 0.0}, "lr"),
        ({"lr": 0.1, "kappa": -1.0}, "kappa"),
        ({"lr": 0.1, "mask": torch.ones(5, dtype=torch.bool)}, "8 bools"),
        ({"lr": 0.1, "mask": torch.ones(8)}, "8 bools"),
        ({"lr": 0.1, "mask": FlatProjector(torch.eye(5)[:1])}, "size 8"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        stability(quadratic()[0], **arguments)


class Writer:
    def __init__(self):
        self.scalars = []

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))


def test_tracker(tmp_path):
    theta = torch.tensor([1.0, 2.0, 0.5], requires_grad=True)
    H = HessianOperator(lambda: (theta**4).sum(), [theta])
    writer, path = Writer(), tmp_path / "sharpness.csv"
    rate = [0.1]
    tracker = SharpnessTracker(
        H, every=5, k=2, trace_matvecs=9, lr=lambda: rate[0], csv_path=path, writer=writer, tol=1e-4
    )
    for step in range(11):
        record = tracker.update(step)
        assert (record is not None) == (step % 5 == 0)
        with torch.no_grad():
            theta.mul_(0.99)
        rate[0] *= 0.9
    assert [r.step for r in tracker.history] == [0, 5, 10]
    for record, decay in zip(tracker.history, (1.0, 0.99**5, 0.99**10), strict=True):
        assert record.lambda_max == pytest.approx(48.0 * decay**2, rel=1e-3)
        assert record.trace == pytest.approx((48.0 + 12.0 + 3.0) * decay**2, rel=1e-3)
    assert tracker.history[1].limit == pytest.approx(20.0 / 0.9**5)
    assert tracker.ritz_values[1] == pytest.approx(12.0 * 0.99**20, rel=1e-3)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [float(r["lambda_max"]) for r in rows] == [r.lambda_max for r in tracker.history]
    assert {name for name, _, _ in writer.scalars} == {"curvature/lambda_max", "curvature/limit", "curvature/trace"}
    assert tracker.plot().get_ylabel() == "curvature"


@pytest.mark.parametrize(
    ("lr", "limit"),
    [
        (0.0, math.inf),
        (lambda: 0.0, math.inf),
        (torch.tensor(0.1), 20.0),
        (lambda: torch.tensor([0.1]), 20.0),
        (None, math.nan),
    ],
)
def test_tracker_takes_a_zero_and_a_tensor_learning_rate(tmp_path, lr, limit):
    path, writer = tmp_path / "sharpness.csv", Writer()
    tracker = SharpnessTracker(as_operator(torch.eye(2)), every=1, lr=lr, csv_path=path, writer=writer)
    record = tracker.update(torch.tensor(0))
    assert type(record.limit) is float
    assert type(record.step) is int
    assert record.limit == pytest.approx(limit, nan_ok=True)
    assert float(next(csv.DictReader(path.read_text().splitlines()))["limit"]) == pytest.approx(limit, nan_ok=True)
    assert tracker.plot().get_ylabel() == "curvature"


def test_a_failed_write_keeps_the_old_rows_and_the_record(tmp_path):
    path = tmp_path / "sharpness.csv"
    tracker = SharpnessTracker(as_operator(torch.eye(2)), every=1, csv_path=path)
    tracker.update(0)
    kept = path.read_text()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(kept) + 10, hard))  # room for a part of the next row
    try:
        with pytest.raises(OSError, match="File too large"):
            tracker.update(1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_text() == kept
    assert [record.step for record in tracker.history] == [0, 1]
    tracker.update(2)
    assert [row["step"] for row in csv.DictReader(path.read_text().splitlines())] == ["0", "2"]


def test_a_row_cut_off_by_a_crash_does_not_spoil_the_next(tmp_path):
    path = tmp_path / "sharpness.csv"
    SharpnessTracker(as_operator(torch.eye(2)), every=1, csv_path=path).update(0)
    path.write_text(path.read_text() + "1,1.0")
    SharpnessTracker(as_operator(torch.eye(2)), every=1, csv_path=path).update(2)
    assert [row["step"] for row in csv.DictReader(path.read_text().splitlines())] == ["0", "1", "2"]


def test_interrupting_a_measurement_interrupts_training(tmp_path):
    calls = []

    def product(v):
        calls.append(1)
        if len(calls) > 5:
            raise KeyboardInterrupt
        return torch.linspace(0, 1, 300) * v

    tracker = SharpnessTracker(CallableOperator(product, 300), every=1, csv_path=tmp_path / "sharpness.csv")
    with pytest.raises(KeyboardInterrupt):
        tracker.update(0)
    assert tracker.history == []
    assert not (tmp_path / "sharpness.csv").exists()


def test_tracker_alone_and_wrong():
    theta = torch.tensor([1.0], requires_grad=True)
    tracker = SharpnessTracker(HessianOperator(lambda: (theta**2).sum(), [theta]), every=1)
    assert tracker.ritz_values == []
    record = tracker.measure(3)
    assert record.lambda_max == pytest.approx(2.0)
    assert math.isnan(record.limit)
    assert math.isnan(record.trace)
    with pytest.raises(ValueError, match="every"):
        SharpnessTracker(HessianOperator(lambda: (theta**2).sum(), [theta]), every=0)
