"""P = I - Q Q^T: algebra, following a moving Hessian, and the step of exact IRE."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from curvature_problems import linspace, rotated
from torch_ire.curvature import BlockFlatProjector, CallableOperator, FlatProjector, HessianOperator

STORAGES = [torch.float64, torch.float32, torch.bfloat16]


def two_parameters():
    torch.manual_seed(0)
    matrix = rotated([30.0, 20.0, 10.0, *linspace(0, 1, 21)])
    a = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    b = torch.randn(12, dtype=torch.float64, requires_grad=True)

    def closure():
        theta = torch.cat([a.reshape(-1), b])
        return 0.5 * theta @ matrix @ theta

    return matrix, a, b, HessianOperator(closure, [a, b])


@pytest.mark.parametrize("storage", STORAGES)
def test_idempotent_symmetric_and_orthogonal_to_the_basis(storage):
    matrix = rotated([9.0, 8.0, 7.0, *linspace(0, 1, 97)])
    projector = FlatProjector.from_operator(matrix, 3, storage=storage)
    assert projector.basis.dtype == storage
    assert projector.m == 3
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, 100, generator=generator, dtype=torch.float64)
    rounding = 1e-12 if storage == torch.float64 else 1e-5
    torch.testing.assert_close(projector(projector(x)), projector(x), rtol=0, atol=rounding)
    assert abs(float(y @ projector(x) - x @ projector(y))) <= rounding * 10
    assert (projector.basis.double() @ projector(x)).abs().max() <= rounding * 10
    eigenvectors = torch.linalg.eigh(matrix).eigenvectors[:, -3:]
    exact = x - eigenvectors @ (eigenvectors.T @ x)
    # tol = 1e-3 on the eigenvalue is about its square root on the vector; bfloat16 adds 2^-9.
    assert (projector(x) - exact).norm() <= 0.05 * x.norm()


def test_a_basis_slightly_off_orthonormal_errs_in_proportion():
    basis = torch.linalg.qr(torch.randn(50, 4, dtype=torch.float64)).Q.T
    skewed = basis + 1e-4 * torch.randn(4, 50, dtype=torch.float64)
    x = torch.randn(50, dtype=torch.float64)
    twice = FlatProjector(skewed)(FlatProjector(skewed)(x))
    error = (twice - FlatProjector(skewed)(x)).norm() / x.norm()
    gram_error = torch.linalg.matrix_norm(skewed @ skewed.T - torch.eye(4, dtype=torch.float64), 2)
    assert error <= 1.1 * gram_error


def test_empty_basis_is_the_identity():
    x = torch.randn(5)
    assert torch.equal(FlatProjector(torch.zeros(0, 5))(x), x)


def test_lists_and_flat_vectors_agree():
    _, a, b, H = two_parameters()
    projector = FlatProjector.from_operator(H, 3)
    pieces = projector([a.detach(), b.detach()])
    flat = projector(torch.cat([a.detach().reshape(-1), b.detach()]))
    assert pieces[0].shape == (3, 4)
    torch.testing.assert_close(torch.cat([p.reshape(-1) for p in pieces]), flat)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_amplify_is_the_step_of_exact_ire(storage, decay):
    _, a, b, H = two_parameters()
    projector = FlatProjector.from_operator(H, 3, storage=storage)
    previous = [a.detach().clone(), b.detach().clone()]
    with torch.no_grad():
        a.add_(0.1)
        b.mul_(1.1)
    delta = torch.cat([(p.detach() - (1 - decay) * q).reshape(-1) for p, q in zip([a, b], previous, strict=True)])
    theta = torch.cat([a.detach().reshape(-1), b.detach()])
    projector.amplify_([a, b], previous, 4.0, decay=decay)
    found = torch.cat([a.detach().reshape(-1), b.detach()])
    torch.testing.assert_close(found, theta + 4.0 * projector(delta), rtol=1e-6, atol=1e-6)


def test_amplify_leaves_strangers_alone_and_counts_the_missing_as_not_moved():
    _, a, b, H = two_parameters()
    projector = FlatProjector.from_operator(H, 3)
    stranger = torch.ones(4)
    before = [stranger.clone() - 1, b.detach().clone()]
    with torch.no_grad():
        b.add_(0.5)
    theta = torch.cat([a.detach().reshape(-1), b.detach()])
    step = torch.cat([torch.zeros(12, dtype=torch.float64), torch.full((12,), 0.5, dtype=torch.float64)])
    kept = a.detach().clone()
    projector.amplify_([stranger, b], before, 2.0)
    assert torch.equal(stranger, torch.ones(4))
    assert torch.equal(a, kept)
    torch.testing.assert_close(b.detach(), (theta + 2.0 * projector(step))[12:])


def test_amplify_with_strided_and_mixed_parameters():
    torch.manual_seed(0)
    strided = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    half = torch.randn(6, dtype=torch.bfloat16, requires_grad=True)
    basis = torch.linalg.qr(torch.randn(102, 5)).Q.T
    projector = FlatProjector(basis, params=[strided, half])
    previous = [strided.detach() - 1.0, half.detach() - 1.0]
    delta = torch.cat([torch.ones(96), (half.float() - previous[1].float()).detach()])
    theta = torch.cat([strided.detach().reshape(-1), half.detach().float()])
    projector.amplify_([strided, half], previous, 3.0)
    found = torch.cat([strided.detach().reshape(-1), half.detach().float()])
    expected = theta + 3.0 * projector(delta)
    torch.testing.assert_close(found[:96], expected[:96], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[96:], expected[96:].bfloat16().float())
    assert strided.is_contiguous(memory_format=torch.channels_last)


def test_kappa_zero_changes_no_bit():
    _, a, b, H = two_parameters()
    kept = a.detach().clone()
    FlatProjector.from_operator(H, 3).amplify_([a, b], [a.detach() * 2, b.detach() * 2], 0.0)
    assert torch.equal(a, kept)


class Moving:
    """A matrix that turns slowly."""

    def __init__(self):
        self.values = torch.tensor([30.0, 20.0, 10.0, *linspace(0, 1, 197)], dtype=torch.float64)
        self.basis = torch.linalg.qr(
            torch.randn(200, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        ).Q

    def turn(self, angle):
        generator = torch.Generator().manual_seed(1)
        skew = torch.randn(200, 200, dtype=torch.float64, generator=generator)
        self.basis = self.basis @ torch.matrix_exp(angle * (skew - skew.T) / 20)

    def operator(self):
        return CallableOperator(lambda v: self.basis @ (self.values * (self.basis.T @ v)), 200, dtype=torch.float64)

    def error(self, projector):
        sharp = self.basis[:, :3]
        return float(torch.linalg.matrix_norm(torch.stack([projector(c) for c in sharp.T]), 2))


def test_refresh_follows_with_m_products():
    moving = Moving()
    projector = FlatProjector.from_operator(moving.operator(), 3, tol=1e-8)
    moving.turn(0.02)
    stale = moving.error(projector)
    pairs = projector.refresh()
    assert pairs.num_matvecs == 3
    assert moving.error(projector) < 0.2 * stale
    assert torch.equal(projector.basis, pairs.basis)


def test_refresh_runs_lanczos_where_the_basis_is_stale_or_when_due():
    moving = Moving()
    projector = FlatProjector.from_operator(moving.operator(), 3, tol=1e-6, full_interval=3)
    moving.turn(1.0)
    assert projector.refresh().num_matvecs > 3
    assert moving.error(projector) < 1e-2
    assert projector.refresh().num_matvecs == 3
    assert projector.refresh().num_matvecs > 3  # the third
    assert projector.refresh().num_matvecs == 3
    assert projector.refresh(full=True).num_matvecs > 3


def test_refresh_refuses_an_operator_that_is_not_symmetric():
    matrix = rotated([30.0, 20.0, 10.0, *linspace(0, 1, 97)])
    projector = FlatProjector.from_operator(CallableOperator(lambda v: matrix @ v, 100, dtype=torch.float64), 3)
    kept = projector.basis.clone()
    matrix += 20.0 * torch.outer(kept[0], kept[1])
    with pytest.raises(ValueError, match="not symmetric"):
        projector.refresh()
    assert torch.equal(projector.basis, kept)


@pytest.mark.parametrize("full", [True, False])
def test_interrupted_refresh_keeps_the_basis_and_stops_the_run_around_it(full):
    calls = []

    def product(v):
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return torch.linspace(0, 1, 300, dtype=torch.float64) ** 4 * v

    stop = -1
    projector = FlatProjector.from_operator(CallableOperator(product, 300, dtype=torch.float64), 3)
    kept, pairs, stop = projector.basis.clone(), projector.eigenpairs, len(calls) + 3
    with pytest.raises(KeyboardInterrupt):
        projector.refresh(full=full)
    assert torch.equal(projector.basis, kept)
    assert projector.eigenpairs is pairs


class Failing:
    """A Hessian whose products turn bad after the projector is made."""

    def __init__(self):
        self.matrix = rotated([30.0, 20.0, 10.0, *linspace(0, 1, 97)])
        self.bad = None

    def product(self, v):
        return self.matrix @ v if self.bad is None else self.bad(v)

    def projector(self, **arguments):
        operator = CallableOperator(self.product, 100, dtype=torch.float64)
        return FlatProjector.from_operator(operator, 3, storage=torch.bfloat16, **arguments)


def raises_memory_error(v):
    raise MemoryError("out of memory")


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (lambda v: v * float("inf"), FloatingPointError, "nan or inf"),
        (lambda v: v.flip(0) * torch.arange(100.0), ValueError, "rounding of a product is"),
        (
            lambda v: 1e-9 * torch.randn(100, dtype=torch.float64),
            FloatingPointError,
            r"eigenvalues up to \d.*errors from",
        ),
        (raises_memory_error, MemoryError, "out of memory"),
    ],
)
def test_a_refresh_that_fails_leaves_the_projector_as_it_was(bad, error, message, full):
    torch.manual_seed(0)
    failing = Failing()
    projector = failing.projector(full_interval=2)
    kept, pairs = projector.basis.clone(), projector.eigenpairs
    x = torch.randn(100, dtype=torch.float64)
    before = projector(x)
    failing.bad = bad
    for _ in range(2):
        with pytest.raises(error, match=message):
            projector.refresh(full=full)
        assert torch.equal(projector.basis, kept)
        assert projector.eigenpairs is pairs
        assert torch.equal(projector(x), before)
    failing.bad = None
    assert projector.refresh().num_matvecs == 3  # the second refresh, which would run Lanczos, is yet to come
    assert projector.refresh().num_matvecs > 3


def test_blocks_follow_together_or_not_at_all():
    _, a, _, H = two_parameters()
    projector = BlockFlatProjector.from_operator(H, 2)
    kept = [single.basis for single in projector.projectors]
    projector.projectors[1]._operator = CallableOperator(lambda v: v * float("nan"), 12, dtype=torch.float64)
    with torch.no_grad():
        a.mul_(1.5)
    with pytest.raises(FloatingPointError, match="nan or inf"):
        projector.refresh()
    assert all(single.basis is basis for single, basis in zip(projector.projectors, kept, strict=True))


@pytest.mark.parametrize("method", ["reverse", "forward", "finite_difference"])
def test_a_parameter_frozen_after_construction_is_a_constant(method):
    matrix, a, b, _ = two_parameters()

    def closure():
        theta = torch.cat([a.reshape(-1), b])
        return 0.5 * theta @ matrix @ theta

    H = HessianOperator(closure, [a, b], method=method)
    projector = FlatProjector.from_operator(H, 2, tol=1e-6)
    a.requires_grad_(False)
    kept = a.detach().clone()
    expected = torch.block_diag(torch.zeros(12, 12, dtype=torch.float64), matrix[12:, 12:])
    torch.testing.assert_close(H.dense(), expected, rtol=1e-3, atol=1e-3)
    projector.refresh(full=True)
    sharp = torch.linalg.eigh(expected).eigenvectors[:, -2:]
    assert torch.stack([projector(column) for column in sharp.T]).norm(dim=1).max() < 1e-2
    assert torch.equal(a, kept)
    b.requires_grad_(False)
    with pytest.raises(ValueError, match="all 2 parameters have been frozen"):
        projector.refresh()


def test_directions_that_are_not_good_are_said():
    diagonal = torch.linspace(0.99, 1, 3000)
    with pytest.warns(UserWarning, match=r"10 of 10 directions, .* \(out of products\)"):
        FlatProjector.from_operator(torch.diag(diagonal), m=10, tol=1e-9)


def test_full_refresh_sees_what_rose_outside_the_basis():
    diagonal = torch.cat([torch.tensor([9.0, 8.0]), torch.linspace(0, 1, 98)]).double()
    projector = FlatProjector.from_operator(CallableOperator(lambda v: diagonal * v, 100, dtype=torch.float64), 2)
    diagonal[50] = 20.0
    projector.refresh(full=True)
    spike = torch.eye(100, dtype=torch.float64)[50]
    assert projector(spike).norm() < 0.05


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_project_and_say_that_they_cannot_refresh(copied):
    H = two_parameters()[3]
    projector = FlatProjector.from_operator(H, 3)
    other = copied(projector)
    x = torch.randn(24, dtype=torch.float64)
    assert torch.equal(other(x), projector(x))
    with pytest.raises(RuntimeError, match="no operator"):
        other.refresh()


def test_deepcopy_of_model_and_projector_together_keeps_them_connected():
    layer = nn.Linear(3, 2)
    pair = (layer, FlatProjector(torch.eye(8)[:2], params=list(layer.parameters())))
    other, projector = copy.deepcopy(pair)
    previous = [p.detach() - 1.0 for p in other.parameters()]
    before = other.weight.detach().clone()
    projector.amplify_(list(other.parameters()), previous, 1.0)
    assert not torch.equal(before, other.weight)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FlatProjector.from_operator(torch.eye(5), 5), "m: expected 1 to 4"),
        (lambda: FlatProjector.from_operator(torch.eye(5), 0), "m: expected 1 to 4"),
        (lambda: FlatProjector(torch.ones(5)), "shape"),
        (lambda: FlatProjector(torch.eye(3)[:1], params=[torch.ones(4)]), "3 coordinates, got 4"),
        (lambda: FlatProjector(torch.eye(3)[:1])(torch.ones(4)), "shape"),
        (lambda: FlatProjector(torch.eye(3)[:1])([torch.ones(4)]), "3 coordinates"),
        (lambda: FlatProjector(torch.eye(3)[:1]).amplify_([torch.ones(3)], [torch.ones(3)], 1.0), "params="),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_blocks_are_projected_each_on_its_own():
    matrix, a, b, H = two_parameters()
    projector = BlockFlatProjector.from_operator(H, 2, tol=1e-8)
    for piece, block in zip(projector([a.detach(), b.detach()]), (matrix[:12, :12], matrix[12:, 12:]), strict=True):
        sharp = torch.linalg.eigh(block).eigenvectors[:, -2:]
        assert (sharp.T @ piece.reshape(-1)).abs().max() < 1e-3
    previous = [a.detach() - 1.0, b.detach() - 1.0]
    expected = [
        p.detach() + 2.0 * q for p, q in zip([a, b], projector([torch.ones_like(a), torch.ones_like(b)]), strict=True)
    ]
    projector.amplify_([a, b], previous, 2.0)
    torch.testing.assert_close([a.detach(), b.detach()], expected)
    projector.refresh()


def test_blocks_of_scalars_are_sharp():
    scale = torch.tensor(2.0, requires_grad=True)
    weight = torch.randn(5, requires_grad=True)
    projector = BlockFlatProjector.from_operator(
        HessianOperator(lambda: (scale * weight**2).sum() ** 2, [scale, weight]), 1
    )
    assert torch.equal(projector([torch.tensor(3.0), torch.zeros(5)])[0], torch.tensor(0.0))
    projector.refresh()
