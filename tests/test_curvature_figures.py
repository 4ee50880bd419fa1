"""Numbers of products for the top 10 eigenvalues of the digits network, against its dense Hessian."""

from __future__ import annotations

import copy

import pytest
import torch
from benchmarks.curvature import plain_steps
from scipy.sparse.linalg import eigsh

from curvature_problems import Digits
from torch_ire.curvature import FlatProjector, lanczos


@pytest.fixture(scope="module")
def before_and_after():
    digits = Digits.trained()
    early = copy.deepcopy(digits)
    early_values = early.eigenvalues()
    # One dense Hessian is enough: scipy, shown to agree with it, gives the values after the further steps.
    assert relative_errors(arpack(early), early_values).max() <= 1e-9
    digits.train(10)
    return early, early_values, digits, arpack(digits)


def arpack(digits):
    values = eigsh(digits.hessian().to_scipy(), k=12, which="LA", tol=1e-13, return_eigenvectors=False)
    return torch.from_numpy(values.copy()).sort(descending=True).values


def relative_errors(found, exact):
    return ((found - exact[: len(found)]) / exact[: len(found)]).abs()


def test_cold_lanczos_takes_at_most_24_products(before_and_after):
    early, values, _, _ = before_and_after
    H = early.hessian()
    top = lanczos(H, 10, tol=1e-5)
    assert H.size == 2410
    assert top.converged
    assert relative_errors(top.ritz_values, values).max() <= 1e-5
    assert top.num_matvecs == H.num_matvecs <= 24


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_rule_could_stop_three_products_earlier(before_and_after, seed):
    """Other starts take up to 25 on this network; that many are needed, for plain Lanczos is not good before."""
    early, values, _, _ = before_and_after
    least = plain_steps(early.hessian(), seed, values[:10])
    top = lanczos(early.hessian(), 10, tol=1e-5, seed=seed)
    assert relative_errors(top.ritz_values, values).max() <= 1e-5
    assert 20 <= least <= top.num_matvecs <= least + 2


def test_warm_lanczos_takes_at_most_19_products(before_and_after):
    early, _, later, values = before_and_after
    old = lanczos(early.hessian(), 10, tol=1e-5)
    H = later.hessian()
    top = lanczos(H, 10, tol=1e-5, warm_start=old)
    assert top.converged
    assert relative_errors(top.ritz_values, values).max() <= 1e-5
    assert top.num_matvecs == H.num_matvecs <= 19


def test_refresh_takes_10_products_and_its_span_is_good_to_1e_3(before_and_after):
    _, _, later, values = before_and_after
    moving = Digits.trained()
    H = moving.hessian()
    projector = FlatProjector.from_operator(H, 10)
    moving.train(10)
    before = H.num_matvecs
    pairs = projector.refresh()
    assert pairs.num_matvecs == H.num_matvecs - before <= 10
    assert relative_errors(pairs.ritz_values, values).max() <= 1.1e-3  # of the old span, by Rayleigh-Ritz
    # The span that the projector now removes, by products that are the test's own.
    basis = projector.basis
    small = basis @ torch.stack([later.hessian().matvec(row) for row in basis]).T
    span = torch.linalg.eigvalsh((small + small.T) / 2).flip(0)
    assert relative_errors(span, values).max() <= 5e-4


def test_error_bounds_hold(before_and_after):
    early, values, _, _ = before_and_after
    for tol in (1e-2, 1e-3, 1e-5):
        top = lanczos(early.hessian(), 10, tol=tol)
        errors = (top.ritz_values - values[:10]).abs()
        assert top.converged
        assert (errors <= top.error_bounds * 1.5 + 1e-12).all()
        assert relative_errors(top.ritz_values, values).max() <= tol


def test_float32_reaches_the_same_accuracy(before_and_after):
    early, values, _, _ = before_and_after
    single = Digits(copy.deepcopy(early.model).float(), early.images.float(), early.labels)
    top = lanczos(single.hessian(), 10, tol=1e-5)
    assert top.converged
    assert top.num_matvecs <= 26
    assert relative_errors(top.ritz_values, values).max() <= 1e-5


def test_a_bfloat16_basis_reaches_1e_4_in_24_products(before_and_after):
    early, values, _, _ = before_and_after
    single = Digits(copy.deepcopy(early.model).float(), early.images.float(), early.labels)
    top = lanczos(single.hessian(), 10, tol=1e-4, storage=torch.bfloat16)
    assert top.converged
    assert top.num_matvecs <= 24
    assert relative_errors(top.ritz_values, values).max() <= 1e-4
    assert top.residual_norms.max() >= 1e-4 * values[0]  # what rounding leaves, a thousand times that of float32
