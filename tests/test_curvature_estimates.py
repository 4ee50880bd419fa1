"""Trace, Frobenius norm, diagonal and spectral density against dense matrices."""

from __future__ import annotations

import math

import matplotlib as mpl
import pytest
import torch

from curvature_problems import linspace, rotated
from torch_ire.curvature import CallableOperator, diagonal, frobenius_norm, spectral_density, trace

mpl.use("Agg")

MATRIX = rotated([20.0, 10.0, 5.0, *linspace(-1, 2, 97)])


def coverage(estimates, exact):
    """Mean squared error in units of the stated one: near 1 where standard errors are honest."""
    return sum(((e.value - exact) / e.standard_error) ** 2 for e in estimates) / len(estimates)


def test_hutchinson_trace_is_unbiased_with_a_correct_standard_error():
    exact = float(MATRIX.trace())
    estimates = [trace(MATRIX, method="hutchinson", num_matvecs=40, seed=s) for s in range(40)]
    assert abs(sum(e.value for e in estimates) / 40 - exact) < 4 * estimates[0].standard_error / math.sqrt(40)
    assert 0.6 < coverage(estimates, exact) < 1.6
    assert all(e.num_matvecs == 40 and len(e.samples) == 40 for e in estimates)


def test_hutchpp_beats_hutchinson_on_a_decaying_spectrum():
    matrix = rotated([100.0 / (i + 1) ** 2 for i in range(200)])
    exact = float(matrix.trace())

    def error(method):
        found = [trace(matrix, method=method, num_matvecs=60, seed=s) for s in range(20)]
        return math.sqrt(sum((e.value - exact) ** 2 for e in found) / 20)

    assert error("hutch++") < 0.1 * error("hutchinson")
    assert trace(matrix, num_matvecs=60).num_matvecs == 60


def test_hutchpp_is_exact_if_it_spans_the_space():
    found = trace(torch.diag(torch.arange(5.0)))
    assert found.value == pytest.approx(10.0, abs=1e-4)
    assert found.standard_error == 0.0
    low_rank = trace(rotated([3.0, -2.0, *([0.0] * 60)]), num_matvecs=30)
    assert low_rank.value == pytest.approx(1.0, abs=1e-9)


def test_frobenius_norm():
    exact = float(MATRIX.norm())
    estimates = [frobenius_norm(MATRIX, num_matvecs=60, seed=s) for s in range(30)]
    assert 0.5 < coverage(estimates, exact) < 1.8
    assert float(estimates[0]) == estimates[0].value
    assert frobenius_norm(torch.zeros(4, 4)).value == 0.0


def test_diagonal():
    found = diagonal(MATRIX, num_matvecs=400)
    deviation = (found.value - MATRIX.diagonal()) / found.standard_error
    assert 0.8 < float(deviation.std()) < 1.2
    exact = diagonal(torch.diag(torch.arange(6.0)), num_matvecs=2)
    assert torch.equal(exact.value, torch.arange(6.0))
    assert torch.equal(exact.standard_error, torch.zeros(6))


@pytest.mark.parametrize("estimator", [trace, frobenius_norm, lambda *a, **k: diagonal(*a, **k)])
def test_seeds(estimator):
    random = torch.get_rng_state()
    first, again, other = (estimator(MATRIX, num_matvecs=12, seed=s).value for s in (1, 1, 2))
    assert torch.equal(torch.as_tensor(first), torch.as_tensor(again))
    assert not torch.equal(torch.as_tensor(first), torch.as_tensor(other))
    assert torch.equal(random, torch.get_rng_state())


def test_spectral_density_moments_and_mass():
    values = torch.linalg.eigvalsh(MATRIX)
    found = spectral_density(MATRIX, num_probes=30, num_steps=30)
    for power in (1, 2, 3):
        mean, error = found.mean(lambda x, power=power: x**power)
        assert abs(mean - float((values**power).mean())) < 4 * error
    assert torch.trapezoid(found.density, found.grid) == pytest.approx(1.0, abs=1e-3)
    assert found.num_matvecs == 900


def test_spectral_density_has_no_ghosts():
    # An outlying eigenvalue must have one node after any number of steps.
    matrix = rotated([50.0, *linspace(-1, 1, 99)])
    found = spectral_density(matrix, num_probes=3, num_steps=90)
    for nodes, weights in zip(found.nodes, found.weights, strict=True):
        assert int((nodes > 10).sum()) == 1
        assert float(weights.sum()) == pytest.approx(1.0)


def test_spectral_density_of_the_identity():
    found = spectral_density(torch.eye(30), num_probes=2)
    assert [len(nodes) for nodes in found.nodes] == [1, 1]
    assert found.num_matvecs == 2
    assert float(found.grid[found.density.argmax()]) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: trace(MATRIX, num_matvecs=5), "at least 2, and 6"),
        (lambda: trace(MATRIX, method="exact"), "method"),
        (lambda: frobenius_norm(MATRIX, num_matvecs=1), "at least 2"),
        (lambda: diagonal(MATRIX, num_matvecs=1), "at least 2"),
        (lambda: spectral_density(MATRIX, num_steps=0), "num_steps"),
        (lambda: spectral_density(MATRIX, broadening=0.0), "broadening"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("estimator", [trace, frobenius_norm, diagonal, spectral_density])
def test_nan_products_raise(estimator):
    with pytest.raises(FloatingPointError, match="nan or inf"):
        estimator(lambda v: v * float("nan"), size=10)


@pytest.mark.parametrize("estimator", [trace, frobenius_norm, diagonal, spectral_density])
def test_interrupt_returns_the_samples_so_far(estimator):
    calls = []

    def product(v):
        calls.append(1)
        if len(calls) > 80:
            raise KeyboardInterrupt
        return MATRIX @ v

    found = estimator(CallableOperator(product, 100, dtype=torch.float64))
    assert found.interrupted
    assert found.num_matvecs == 81


@pytest.mark.parametrize("estimator", [trace, frobenius_norm, diagonal, spectral_density])
def test_results_plot_themselves(estimator):
    assert estimator(MATRIX).plot().get_title()


def test_progress_bar_shows_on_request(capfd):
    trace(MATRIX, method="hutchinson", num_matvecs=5, progress=True)
    assert "trace" in capfd.readouterr().err
    trace(MATRIX, method="hutchinson", num_matvecs=5)
    assert capfd.readouterr().err == ""
