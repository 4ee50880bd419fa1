"""lanczos and power_iteration against dense eigenvalues."""

from __future__ import annotations

import matplotlib as mpl
import pytest
import torch

from curvature_problems import SPECTRA, linspace, rotated
from torch_ire.curvature import CallableOperator, Eigenpairs, lanczos, power_iteration


def expected(matrix, k, which):
    values = torch.linalg.eigvalsh(matrix.double()).flip(0)
    top = {"largest": k, "smallest": 0, "both": (k + 1) // 2}[which]
    return torch.cat([values[:top], values[len(values) - (k - top) :]])


def check(pairs, matrix, k, which, rtol):
    scale = matrix.abs().max()
    torch.testing.assert_close(
        pairs.ritz_values, expected(matrix, k, which), rtol=rtol, atol=float(scale) * 1e-9 + 1e-120
    )
    assert pairs.basis.shape == (k, len(matrix))
    assert pairs.ritz_vectors.shape == (len(matrix), k)
    gram = pairs.basis @ pairs.basis.T
    torch.testing.assert_close(gram, torch.eye(k, dtype=gram.dtype), rtol=0, atol=1e-10)
    residuals = (pairs.basis @ matrix - pairs.ritz_values[:, None].to(matrix) * pairs.basis).norm(dim=1)
    rounding = float(scale) * 1e-9 + 1e-120
    assert (residuals <= 1.01 * pairs.residual_norms + rounding).all()
    assert (residuals >= 0.5 * pairs.residual_norms - rounding).all()


@pytest.mark.parametrize("which", ["largest", "smallest", "both"])
@pytest.mark.parametrize("name", SPECTRA)
def test_every_spectrum_and_end(name, which):
    matrix = rotated(SPECTRA[name])
    pairs = lanczos(matrix, 6, which=which, tol=1e-7)
    assert pairs.converged
    check(pairs, matrix, 6, which, 1e-6)


@pytest.mark.parametrize("name", ["simple", "clustered", "indefinite"])
def test_no_ghost_copies_after_many_steps(name):
    matrix = rotated(SPECTRA[name])
    pairs = lanczos(matrix, 40, tol=1e-10, max_basis=80)
    assert pairs.num_matvecs <= 81
    check(pairs, matrix, 40, "largest", 1e-9)


@pytest.mark.parametrize("which", ["largest", "smallest", "both"])
def test_thick_restart_in_a_short_basis(which):
    matrix = rotated(linspace(-3, 4, 300))
    pairs = lanczos(matrix, 3, which=which, tol=1e-6, max_basis=12, max_matvecs=3000)
    assert pairs.converged
    check(pairs, matrix, 3, which, 1e-5)


def test_float32():
    matrix = rotated(linspace(0, 10, 60), dtype=torch.float32)
    pairs = lanczos(matrix, 4, tol=1e-4)
    torch.testing.assert_close(pairs.ritz_values, expected(matrix, 4, "largest"), rtol=1e-4, atol=0)


def test_all_eigenpairs_of_a_small_matrix():
    matrix = rotated([3.0, 2.0, 2.0, 1.0, -1.0])
    pairs = lanczos(matrix, 5, tol=1e-9)
    assert pairs.num_matvecs == 5
    check(pairs, matrix, 5, "largest", 1e-9)


def test_identity_breaks_down_at_step_one_and_goes_on():
    pairs = lanczos(torch.eye(400, dtype=torch.float64), 5, verify=False)
    assert pairs.num_matvecs == 6
    torch.testing.assert_close(pairs.ritz_values, torch.ones(5, dtype=torch.float64))


def test_repeated_eigenvalue_needs_the_second_search():
    matrix = rotated([5.0, 5.0, 4.0, *linspace(0, 1, 200)])
    hasty = lanczos(matrix, 3, tol=1e-1, verify=False)
    careful = lanczos(matrix, 3, tol=1e-2)
    assert hasty.ritz_values[1] < 4.5
    assert not hasty.verified
    assert careful.verified
    torch.testing.assert_close(
        careful.ritz_values, torch.tensor([5.0, 5.0, 4.0], dtype=torch.float64), rtol=1e-2, atol=0
    )


def test_products_are_counted_and_seeded():
    calls = []

    def product(v):
        calls.append(1)
        return torch.arange(200.0, dtype=torch.float64) * v

    def run(seed):
        calls.clear()
        pairs = lanczos(CallableOperator(product, 200, dtype=torch.float64), 3, seed=seed)
        assert pairs.num_matvecs == len(calls)
        return pairs

    first, again, other = run(1), run(1), run(2)
    assert torch.equal(first.basis, again.basis)
    assert not torch.equal(first.basis, other.basis)


def test_running_out_of_products_is_said():
    matrix = rotated(linspace(0, 1, 300))
    pairs = lanczos(matrix, 10, tol=1e-8, max_matvecs=15)
    assert not pairs.converged
    assert pairs.num_matvecs == 15
    assert len(pairs.ritz_values) == len(pairs.residual_norms) == 10
    assert pairs.residual_norms.max() > 1e-4
    few = lanczos(matrix, 10, max_matvecs=4)
    assert not few.converged
    assert len(few.ritz_values) == 4


def test_keyboard_interrupt_returns_what_there_is():
    matrix = rotated(linspace(0, 1, 300))
    calls = []

    def product(v):
        calls.append(1)
        if len(calls) > 12:
            raise KeyboardInterrupt
        return matrix @ v

    pairs = lanczos(CallableOperator(product, 300, dtype=torch.float64), 5, tol=1e-10)
    assert pairs.interrupted
    assert not pairs.converged
    assert len(pairs.ritz_values) == 5
    with pytest.raises(KeyboardInterrupt):  # nothing to return
        lanczos(CallableOperator(product, 300, dtype=torch.float64), 5)


@pytest.mark.parametrize("solver", [lanczos, power_iteration])
def test_asymmetry_is_detected_and_said(solver):
    matrix = rotated(linspace(0, 1, 100))
    matrix[3, 7] += 0.5
    with pytest.raises(ValueError, match=r"not symmetric: v\d \. H v"):
        solver(matrix, 3)


def rounded_to_bfloat16(matrix):
    """Products of a closure under autocast are good to a few per mille."""
    return CallableOperator(lambda v: (matrix @ v).bfloat16().double(), len(matrix), dtype=torch.float64)


def cancelling(matrix):
    """Products of norm 5e-4 from float32 terms of norm 1: an error of 1e-7, as late in training."""
    large = rotated(linspace(-1, 1, len(matrix)), seed=3, dtype=torch.float32)
    difference = large - 5e-4 * matrix.float()
    return CallableOperator(lambda v: large @ v - difference @ v, len(matrix))


@pytest.mark.parametrize(("rounded", "scale"), [(rounded_to_bfloat16, 1.0), (cancelling, 5e-4)])
@pytest.mark.parametrize("solver", [lanczos, power_iteration])
def test_rounding_of_the_products_is_no_asymmetry_and_is_in_the_error_bounds(rounded, scale, solver):
    matrix = rotated([1.0, 0.8, 0.6, *linspace(-0.1, 0.1, 97)])
    operator = rounded(matrix)
    operator.symmetry_tolerance = 1e-7
    pairs = solver(operator, 3, tol=2e-2)
    assert pairs.converged
    assert pairs.num_matvecs == operator.num_matvecs <= 100
    errors = (pairs.ritz_values - scale * expected(matrix, 3, "largest")).abs()
    assert (errors <= pairs.error_bounds).all()
    assert (errors <= 2e-2 * scale).all()
    assert pairs.error_bounds.min() >= 1e-6 * scale


@pytest.mark.parametrize("rounded", [rounded_to_bfloat16, cancelling])
def test_a_tolerance_below_the_rounding_of_the_products_is_not_claimed(rounded):
    operator = rounded(rotated([1.0, 0.8, 0.6, *linspace(-0.1, 0.1, 97)]))
    operator.symmetry_tolerance = 1e-7
    pairs = lanczos(operator, 3, tol=1e-5)
    assert not pairs.converged
    assert pairs.num_matvecs <= 80


@pytest.mark.parametrize("solver", [lanczos, power_iteration])
@pytest.mark.parametrize("rounded", [rounded_to_bfloat16, cancelling])
def test_an_asymmetry_beyond_the_rounding_is_refused_with_its_numbers(solver, rounded):
    matrix = rotated([1.0, 0.8, 0.6, *linspace(-0.1, 0.1, 97)])
    matrix += 0.1 * torch.randn(100, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with pytest.raises(
        ValueError, match=r"not symmetric: v\d+ \. H v.*differ by .* norm of H .* rounding of a product is \d"
    ):
        solver(rounded(matrix), 3)


@pytest.mark.parametrize("solver", [lanczos, power_iteration])
def test_nan_is_detected_and_said(solver):
    with pytest.raises(FloatingPointError, match=r"matvec \d: .* nan or inf"):
        solver(lambda v: v * float("nan"), 2, size=10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k: expected 1 to 9"),
        ({"k": 10}, "k: expected 1 to 9"),
        ({"which": "middle"}, "which"),
        ({"tol": 0.0}, "tol"),
        ({"tol": float("nan")}, "tol"),
        ({"k": 3, "max_basis": 4}, "max_basis"),
        ({"warm_start": torch.ones(8, 2)}, "warm_start"),
        ({"warm_start": torch.full((9, 2), float("nan"))}, "warm_start"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        lanczos(torch.eye(9), **{"k": 2, **arguments})


def test_warm_start_from_pairs_or_columns():
    old = rotated([*linspace(0, 1, 295), 3.0, 4.0, 5.0, 6.0, 7.0])
    new = old + 1e-3 * rotated(linspace(-1, 1, 300), seed=1)
    before = lanczos(old, 5, tol=1e-8, verify=False)
    cold = lanczos(new, 5, tol=1e-8, verify=False)
    warm = lanczos(new, 5, tol=1e-8, verify=False, warm_start=before)
    columns = lanczos(new, 5, tol=1e-8, verify=False, warm_start=before.ritz_vectors)
    assert warm.num_matvecs < cold.num_matvecs
    assert columns.num_matvecs == warm.num_matvecs
    torch.testing.assert_close(warm.ritz_values, cold.ritz_values, rtol=1e-7, atol=0)


def test_warm_start_finds_a_direction_that_the_old_basis_lacks():
    diagonal = torch.cat([torch.tensor([9.0, 8.0, 7.0]), torch.linspace(0, 1, 297)]).double()
    basis = torch.eye(300, dtype=torch.float64)[:, :3]
    diagonal[200] = 20.0
    pairs = lanczos(torch.diag(diagonal), 3, tol=1e-6, warm_start=basis, verify=False)
    leading = torch.tensor([20.0, 9.0, 8.0], dtype=torch.float64)
    torch.testing.assert_close(pairs.ritz_values, leading, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["repeated", "identity", "zero", "indefinite", "low rank"])
@pytest.mark.parametrize("which", ["largest", "smallest"])
def test_power_iteration(name, which):
    matrix = rotated(SPECTRA[name])
    pairs = power_iteration(matrix, 3, which=which, tol=1e-4, max_matvecs=20000)
    assert pairs.converged
    torch.testing.assert_close(pairs.ritz_values, expected(matrix, 3, which), rtol=1e-3, atol=1e-6)
    gram = pairs.basis @ pairs.basis.T
    torch.testing.assert_close(gram, torch.eye(3, dtype=gram.dtype), rtol=0, atol=1e-9)


def test_power_iteration_tells_largest_from_largest_in_magnitude():
    matrix = rotated([4.0, *linspace(-1, 1, 50), -9.0])
    assert abs(power_iteration(matrix).ritz_values[0] - 4.0) < 0.01
    assert abs(power_iteration(matrix, which="magnitude").ritz_values[0] + 9.0) < 0.01


def test_power_iteration_of_everything_and_out_of_products():
    matrix = rotated([3.0, 2.0, 1.0])
    torch.testing.assert_close(
        power_iteration(matrix, 3).ritz_values, torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    )
    short = power_iteration(rotated(linspace(0, 1, 100)), 3, tol=1e-8, max_matvecs=20)
    assert isinstance(short, Eigenpairs)
    assert not short.converged
    assert len(short.ritz_values) == 3
    assert short.num_matvecs <= 20


def random_matrix(kind, generator):
    entries = torch.randn(60, 60, generator=generator, dtype=torch.float64)
    return (entries + entries.T) / 2 if kind == "GOE" else entries @ entries.T / 60


@pytest.mark.parametrize("tol", [1e-2, 1e-3])
@pytest.mark.parametrize("kind", ["GOE", "Wishart"])
def test_error_bounds_and_converged_hold_in_999_of_1000_random_matrices(kind, tol):
    """Without gaps in the spectrum, where Ritz values next to the wanted one are far from settled."""
    generator = torch.Generator().manual_seed(0)
    beyond_bound = beyond_tol = products = 0
    for seed in range(1000):
        matrix = random_matrix(kind, generator)
        exact = float(torch.linalg.eigvalsh(matrix)[-1])
        pairs = lanczos(matrix, 1, tol=tol, seed=seed)
        error = abs(float(pairs.ritz_values[0]) - exact)
        beyond_bound += error > float(pairs.error_bounds[0]) + 1e-13 * exact
        beyond_tol += pairs.converged and error > tol * exact
        products += pairs.num_matvecs
    assert beyond_bound <= 1
    assert beyond_tol <= 1
    assert products / 1000 <= (33 if kind == "GOE" else 24)


@pytest.mark.parametrize("arguments", [{"k": 0}, {"k": 10}, {"which": "both"}, {"tol": -1.0}])
def test_power_iteration_bad_arguments(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        power_iteration(torch.eye(9), **arguments)


def test_pairs_plot():
    mpl.use("Agg")
    axes = lanczos(rotated(linspace(0, 1, 30)), 3).plot()
    assert axes.get_ylabel() == "eigenvalue"
