"""Accuracy of a Lanczos basis in bfloat16, and of its error bounds."""

from __future__ import annotations

import pytest
import torch

from curvature_problems import linspace, rotated
from torch_ire.curvature import basis_rows, lanczos


def check_claims(pairs, matrix, exact):
    """Residual norms are those of the returned vectors, the bounds hold, and the vectors are orthonormal."""
    vectors, values = pairs.basis.double(), pairs.ritz_values
    assert pairs.basis.dtype == torch.float32
    gram = vectors @ vectors.T
    torch.testing.assert_close(gram, torch.eye(len(gram), dtype=torch.float64), rtol=0, atol=1e-5)
    residuals = (vectors @ matrix.double() - values[:, None] * vectors).norm(dim=1)
    rounding = 1e-6 * float(exact.abs().max())
    assert (residuals <= 1.3 * pairs.residual_norms + rounding).all()
    assert (residuals >= 0.4 * pairs.residual_norms - rounding).all()
    assert ((values - exact).abs() <= 1.5 * pairs.error_bounds + rounding).all()


LEADING = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0]


@pytest.mark.parametrize("tol", [1e-3, 1e-4])
@pytest.mark.parametrize("aligned_with_coordinates", [False, True], ids=["rotated", "diagonal"])
def test_accuracy_and_products_are_those_of_the_wide_basis(tol, aligned_with_coordinates):
    """Where eigenvectors are single coordinates, rounding is anything but random: it must be measured, not assumed."""
    spectrum = [*LEADING, *linspace(-1, 1, 1194)]
    matrix = torch.diag(torch.tensor(spectrum)) if aligned_with_coordinates else rotated(spectrum, dtype=torch.float32)
    exact = torch.tensor(LEADING[:5], dtype=torch.float64)
    wide = lanczos(matrix, 5, tol=tol, verify=False)
    half = lanczos(matrix, 5, tol=tol, verify=False, storage=torch.bfloat16)
    assert half.converged
    assert half.num_matvecs <= wide.num_matvecs + 1
    assert ((half.ritz_values - exact).abs() / exact).max() <= tol
    check_claims(half, matrix, exact)


def test_a_tolerance_out_of_reach_is_not_claimed():
    matrix = rotated([*LEADING, *linspace(-1, 1, 594)], dtype=torch.float32)
    exact = torch.tensor(LEADING[:5], dtype=torch.float64)
    pairs = lanczos(matrix, 5, tol=1e-7, verify=False, storage=torch.bfloat16, max_matvecs=30)
    assert not pairs.converged
    assert 1e-4 <= pairs.residual_norms[0] / 9.0 <= 1.6e-3  # a float32 basis has 1e-6 by then
    assert ((pairs.ritz_values - exact).abs() / exact).max() <= 1e-5
    check_claims(pairs, matrix, exact)


@pytest.mark.parametrize("which", ["largest", "smallest", "both"])
def test_thick_restart(which):
    matrix = rotated([*LEADING, *linspace(-1, 1, 288), *(-x for x in reversed(LEADING))], dtype=torch.float32)
    values = torch.linalg.eigvalsh(matrix.double()).flip(0)
    exact = {"largest": values[:4], "smallest": values[-4:], "both": values[[0, 1, -2, -1]]}[which]
    pairs = lanczos(matrix, 4, which=which, tol=2e-3, max_basis=10, verify=False, storage=torch.bfloat16)
    assert pairs.num_matvecs > 10
    assert pairs.converged
    assert ((pairs.ritz_values - exact) / exact).abs().max() <= 2e-3
    assert ((pairs.ritz_values - exact).abs() <= 1.5 * pairs.error_bounds + 1e-5).all()


def test_repeated_eigenvalues_and_an_invariant_space():
    repeated = lanczos(rotated([5.0, 5.0, 4.0, *linspace(0, 1, 200)], dtype=torch.float32), 3, tol=1e-2,
                       storage=torch.bfloat16, verify=True)  # fmt: skip
    assert repeated.verified
    torch.testing.assert_close(
        repeated.ritz_values, torch.tensor([5.0, 5.0, 4.0], dtype=torch.float64), rtol=1e-2, atol=0
    )
    identity = lanczos(torch.eye(400), 5, verify=False, storage=torch.bfloat16)
    torch.testing.assert_close(identity.ritz_values, torch.ones(5, dtype=torch.float64), rtol=1e-5, atol=0)


def test_only_the_basis_is_in_bfloat16(monkeypatch):
    seen = set()
    step = basis_rows.lanczos_step_

    def spy(basis, product, *, count):
        seen.add((basis.dtype, product.dtype))
        return step(basis, product, count=count)

    monkeypatch.setattr(basis_rows, "lanczos_step_", spy)
    products = set()

    def multiply(v):
        products.add(v.dtype)
        return torch.arange(300.0) * v

    lanczos(multiply, 2, size=300, storage=torch.bfloat16)
    assert seen == {(torch.bfloat16, torch.float32)}
    assert products == {torch.float32}


def test_asymmetry_is_still_detected():
    matrix = rotated(linspace(0, 1, 100), dtype=torch.float32)
    matrix[3, 7] += 2.0
    with pytest.raises(ValueError, match="not symmetric"):
        lanczos(matrix, 3, storage=torch.bfloat16)


@pytest.mark.parametrize("storage", [torch.float16, torch.float64])
def test_other_dtypes_are_refused(storage):
    with pytest.raises(ValueError, match="storage"):
        lanczos(torch.eye(9), 2, storage=storage)
    with pytest.raises(ValueError, match="storage"):
        lanczos(torch.eye(9, dtype=torch.float64), 2, storage=torch.bfloat16)
