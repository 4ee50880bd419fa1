"""Closed forms of the paper through the public optimizers. `torch-ire theory` runs all experiments."""

from __future__ import annotations

import math

import pytest
import torch

from torch_ire.curvature import CallableOperator, FlatProjector
from torch_ire.theory import Comparison, Curve, Outcome, draw, print_table, slope
from torch_ire.theory import average_sam as b_module
from torch_ire.theory import curved_manifold as d_module
from torch_ire.theory import single_sample_sam as c_module
from torch_ire.theory.flat_direction import PairProjector, RadialProjector, TangentProjector, lower_eigenvector
from torch_ire.theory.toy import descend, toy


def test_every_closed_form_of_the_toy():
    outcome = toy()
    assert len(outcome.comparisons) == 13
    for line in outcome.comparisons:
        assert line.holds, line
    assert outcome.paths["GD, η = 1"][-1] == pytest.approx((0.99367, 0.00459), abs=1e-5)


def test_gradient_descent_past_the_edge():
    path = descend(0.0, 2.0, 20)
    assert [round(v, 3) for _, v in path[:5]] == [0.01, -0.03, 0.09, -0.269, 0.788]
    assert abs(path[-1][1]) > 1e6


@pytest.mark.parametrize(("kappa", "tolerance"), [(0.0, 0.03), (8.0, 0.03)])
def test_average_sam_rate(kappa, tolerance):
    measured = b_module.drift_rate(0.08, 0.14, kappa, replicas=500, steps=100)
    assert measured == pytest.approx(b_module.predicted_rate(0.08, 0.14, kappa), rel=tolerance)


def test_average_sam_with_the_exact_projector():
    rho = 0.5 * math.sqrt(0.08)
    measured = b_module.drift_rate(0.08, rho, 1 / rho, replicas=500, steps=100, exact=True)
    assert measured / ((1 + 1 / rho) * 0.08 * rho**2 / 5) == pytest.approx(0.932, abs=0.03)


def test_average_sam_end_to_end():
    rho = 0.5 * math.sqrt(0.08)
    steps = b_module.halving_steps(0.08, rho, 1 / rho)
    assert steps == pytest.approx(b_module.predicted_halving(0.08, rho, 1 / rho), abs=3)


def test_standard_sam_exponents():
    radii = (0.05, 0.1, 0.2)
    base = [c_module.drift_rate(0.02, rho) for rho in radii]
    ire = [c_module.drift_rate(0.02, rho, 1 / rho - 1) for rho in radii]
    assert slope(radii, base) == pytest.approx(2.0, abs=2e-3)
    assert slope(radii, ire) == pytest.approx(1.0, abs=2e-3)
    assert base[0] == pytest.approx(c_module.predicted_rate(0.02, 0.05, 0.0), rel=1e-3)


def test_standard_sam_end_to_end():
    assert c_module.halving_steps(0.01, 0.2, 4.0) == pytest.approx(c_module.predicted_halving(0.01, 0.2, 4.0), abs=2)


@pytest.mark.parametrize("module", [b_module, c_module])
def test_a_run_far_beyond_its_prediction_raises(module, monkeypatch):
    monkeypatch.setattr(module, "predicted_halving", lambda *_: 3.0)
    with pytest.raises(RuntimeError, match="13 steps, where theory has 3, were not enough"):
        module.halving_steps(0.01, 0.2, 4.0)


def test_exact_projector_beats_the_diagonal_mask_on_the_curved_manifold():
    exact = d_module.average_share("exact", 9.0, replicas=40)
    mask = d_module.average_share("mask", 9.0, replicas=40)
    assert exact == pytest.approx(0.92, abs=0.05)
    assert mask == pytest.approx(0.61, abs=0.06)
    assert d_module.sampled_share("exact", 3.0, eta=0.005) == pytest.approx(1.0, abs=0.03)


def test_closed_form_projectors_equal_the_eigensolver():
    torch.manual_seed(0)
    u, v = torch.randn(1, dtype=torch.float64), 0.1 * torch.randn(1, 4, dtype=torch.float64)
    theta = torch.cat([u, v[0]])
    hessian = torch.func.hessian(lambda t: (1 + t[0] ** 2) * (t[1:] ** 2).sum() / 2)(theta)
    _check_projector(RadialProjector(), hessian, [u, v], 4)
    a, b = torch.randn(1, dtype=torch.float64) + 2, torch.rand(1, dtype=torch.float64)
    pair = torch.func.hessian(lambda t: (t[0] * t[1] - 1) ** 2 / 2)(torch.cat([a, b]))
    _check_projector(PairProjector(), pair, [a, b], 1)


def _check_projector(ours, hessian, previous, m):
    size = len(hessian)
    eigen = FlatProjector.from_operator(
        CallableOperator(lambda x: hessian @ x, size, dtype=torch.float64), m, tol=1e-12
    )
    step = torch.randn(size, dtype=torch.float64)
    pieces = [s.view_as(p) for s, p in zip(torch.split(step, [p.numel() for p in previous]), previous, strict=True)]
    params = [p + s for p, s in zip(previous, pieces, strict=True)]
    ours.amplify_(params, previous, 3.0)
    moved = torch.cat([(p - q).reshape(-1) for p, q in zip(params, previous, strict=True)])
    torch.testing.assert_close(moved, step + 3.0 * eigen(step), rtol=1e-6, atol=1e-8)


def test_tangent_projector():
    a, b = torch.tensor([2.0]), torch.tensor([0.5])
    along = [a + 2.0, b - 0.5]
    TangentProjector().amplify_(along, [a, b], 1.0)
    torch.testing.assert_close(along, [torch.tensor([6.0]), torch.tensor([-0.5])])


@pytest.mark.parametrize(
    "entries", [(1.0, 0.5, 3.0), (3.0, -0.5, 1.0), (2.0, 0.0, 1.0), (1.0, 0.0, 2.0), (1.0, 1e-9, 2.0)]
)
def test_lower_eigenvector(entries):
    h11, h12, h22 = (torch.tensor(x, dtype=torch.float64) for x in entries)
    x, y = lower_eigenvector(h11, h12, h22)
    matrix = torch.stack([torch.stack([h11, h12]), torch.stack([h12, h22])])
    vector = torch.stack([x, y])
    torch.testing.assert_close(matrix @ vector, torch.linalg.eigvalsh(matrix)[0] * vector)


def test_table_and_picture(tmp_path, capsys):
    outcome = Outcome(
        [Comparison("A", "something", 1.01, 1.0, 0.02), Comparison("B", "something else", 2.0, 1.0, 0.02)],
        [Curve("toy", "a law", [1, 10], [1, 10], [1, 10])],
        {"GD": [(1.0, 0.01), (0.9, -0.01)]},
    )
    print_table(outcome.comparisons)
    printed = capsys.readouterr().out
    assert "holds" in printed
    assert "off" in printed
    figure = draw(outcome, tmp_path / "theory.png")
    assert (tmp_path / "theory.png").stat().st_size > 10_000
    assert len(figure.axes) == 2
