"""Products against dense derivatives, without side effects on the model."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from curvlinops import GGNLinearOperator, HessianLinearOperator
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.utils.data import DataLoader, TensorDataset

from torch_ire.curvature import CallableOperator, GaussNewtonOperator, HessianOperator, as_operator, lanczos

METHODS = ["reverse", "forward", "finite_difference"]


class Attentive(nn.Module):
    """BatchNorm, dropout, fused attention and a parameter that nothing depends on."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.norm = nn.BatchNorm1d(16)
        self.drop = nn.Dropout(0.3)
        self.heads = nn.Linear(4, 12)
        self.out = nn.Linear(16, 4)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x):
        hidden = self.drop(torch.tanh(self.norm(self.embed(x)))).view(len(x), 4, 4)
        query, key, value = self.heads(hidden).chunk(3, -1)
        return self.out(scaled_dot_product_attention(query, key, value).reshape(len(x), 16))


@pytest.fixture
def problem():
    torch.manual_seed(0)
    return Attentive(), torch.randn(40, 6), torch.randint(0, 4, (40,))


def closure_of(model, x, y):
    return lambda: cross_entropy(model(x), y)


def dense_hessian(closure, params):
    gradients = torch.autograd.grad(closure(), params, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in gradients])
    rows = [torch.cat([r.reshape(-1) for r in torch.autograd.grad(entry, params, retain_graph=True)]) for entry in flat]
    return torch.stack(rows)


@pytest.mark.parametrize("method", METHODS)
def test_product_equals_the_dense_hessian(method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = torch.randn(20, 5, dtype=torch.float64), torch.randint(0, 3, (20,))
    closure = closure_of(model, x, y)
    params = list(model.parameters())
    H = HessianOperator(closure, params, method=method)
    accuracy = {"rtol": 1e-4, "atol": 1e-6} if method == "finite_difference" else {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(H.dense(), dense_hessian(closure, params), **accuracy)
    assert H.num_matvecs == H.size == 39


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("training", [True, False])
def test_products_do_not_change_the_model(problem, method, training):
    model, x, y = problem
    model.train(training)
    for param in model.parameters():
        param.grad = torch.full_like(param, 3.0)
    buffers = [id(b) for b in model.buffers()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    H = HessianOperator(closure_of(model, x, y), model.parameters(), method=method)
    random = torch.get_rng_state()
    lanczos(H, 2, max_matvecs=6)
    assert torch.equal(random, torch.get_rng_state())
    assert model.training == training
    assert [id(b) for b in model.buffers()] == buffers
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    for param in model.parameters():
        assert torch.equal(param.grad, torch.full_like(param, 3.0))


def test_dropout_draws_the_same_mask_in_every_product(problem):
    model, x, y = problem
    v = torch.randn(sum(p.numel() for p in model.parameters()))
    H = HessianOperator(closure_of(model, x, y), model.parameters())
    assert torch.equal(H.matvec(v), H.matvec(v))
    with H.linearized():
        torch.testing.assert_close(H.matvec(v), H.matvec(2 * v) / 2)
    another = HessianOperator(closure_of(model, x, y), model.parameters())
    torch.manual_seed(99)
    different = HessianOperator(closure_of(model, x, y), model.parameters())
    assert torch.equal(another.matvec(v), H.matvec(v))
    assert not torch.allclose(different.matvec(v), H.matvec(v))


@pytest.mark.parametrize("method", METHODS)
def test_parameter_without_influence_has_a_zero_row(problem, method):
    model, x, y = problem
    H = HessianOperator(closure_of(model, x, y), [model.unused, model.out.bias], method=method)
    product = H.matvec(torch.ones(7))
    assert torch.equal(product[:3], torch.zeros(3))
    linear = torch.ones(3, requires_grad=True)
    assert torch.equal(
        HessianOperator(lambda: linear.sum(), [linear], method=method).matvec(torch.ones(3)), torch.zeros(3)
    )


@pytest.mark.parametrize("method", METHODS)
def test_batches_average_to_the_whole(problem, method):
    model, x, y = problem
    model.eval()
    whole = HessianOperator(closure_of(model, x, y), model.parameters())
    loader = DataLoader(TensorDataset(x, y), batch_size=16)  # 16, 16, 8: weights matter
    parts = HessianOperator(
        lambda batch: cross_entropy(model(batch[0]), batch[1]), model.parameters(), data=loader, method=method
    )
    v = torch.randn(whole.size)
    tolerance = 1e-3 if method == "finite_difference" else 1e-5
    assert (parts.matvec(v) - whole.matvec(v)).norm() <= tolerance * whole.matvec(v).norm()
    loss, gradient = parts.loss_and_gradient()
    assert abs(loss - float(whole.loss_and_gradient()[0])) < 1e-6
    torch.testing.assert_close(gradient, whole.loss_and_gradient()[1], rtol=1e-4, atol=1e-7)


def test_a_shuffling_loader_raises(problem):
    model, x, y = problem
    loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)
    H = HessianOperator(lambda b: cross_entropy(model(b[0]), b[1]), model.parameters(), data=loader)
    with pytest.raises(RuntimeError, match=r"batch 0 is not the same in a second pass: its content .* shuffle=False"):
        H.matvec(torch.ones(H.size))


def test_state_outside_buffers_raises(problem):
    model, x, y = problem
    calls = []

    def closure(batch):
        calls.append(1)
        return cross_entropy(model(batch[0]), batch[1]) * len(calls)

    H = HessianOperator(closure, model.parameters(), data=[(x, y)])
    with pytest.raises(RuntimeError, match=r"its loss went from .* the model itself is random"):
        H.matvec(torch.ones(H.size))


def test_a_changing_number_of_batches_raises(problem):
    model, x, y = problem

    class Shrinking:
        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter([(x, y)] * (2 if self.passes < 3 else 1))

    H = HessianOperator(lambda b: cross_entropy(model(b[0]), b[1]), model.parameters(), data=Shrinking())
    with pytest.raises(RuntimeError, match="first pass had 2 batches, the second 1"):
        H.matvec(torch.ones(H.size))


def test_one_pass_iterators_are_refused(problem):
    model, x, y = problem
    with pytest.raises(ValueError, match="iterated many times"):
        HessianOperator(lambda b: b, model.parameters(), data=iter([(x, y)]))


def test_dict_batches_and_batch_size(problem):
    model, x, y = problem
    model.eval()
    data = [{"x": x[:10], "y": y[:10]}, {"x": x[10:], "y": y[10:]}]
    H = HessianOperator(lambda b: cross_entropy(model(b["x"]), b["y"]), model.parameters(), data=data)
    whole = HessianOperator(closure_of(model, x, y), model.parameters())
    v = torch.randn(H.size)
    torch.testing.assert_close(H.matvec(v), whole.matvec(v), rtol=1e-4, atol=1e-6)
    even = HessianOperator(
        lambda b: cross_entropy(model(b["x"]), b["y"]), model.parameters(), data=data, batch_size=lambda b: 1
    )
    assert not torch.allclose(even.matvec(v), whole.matvec(v), rtol=1e-4, atol=1e-6)


def test_mixed_dtypes():
    torch.manual_seed(0)
    single = torch.randn(4, 3, requires_grad=True)
    double = torch.randn(3, dtype=torch.float64, requires_grad=True)
    half = torch.randn(3, dtype=torch.bfloat16, requires_grad=True)

    def closure():
        return ((single.double() @ double) ** 4).sum() + (half.double() ** 2 * double).sum()

    H = HessianOperator(closure, {"single": single, "double": double, "half": half})
    assert H.dtype == torch.float64
    assert H.param_names == ["single", "double", "half"]
    dense = H.dense()
    torch.testing.assert_close(dense, dense.T, rtol=1e-2, atol=1e-2)  # a bfloat16 row and column
    torch.testing.assert_close(dense[:15, :15], dense[:15, :15].T, rtol=1e-5, atol=1e-5)
    assert set(H.blocks()) == {"single", "double", "half"}
    torch.testing.assert_close(H.blocks()["double"].dense(), dense[12:15, 12:15], rtol=1e-5, atol=1e-6)


def test_gauss_newton_equals_curvlinops(problem):
    model, x, y = problem
    model.eval()
    params = [p for name, p in model.named_parameters() if name != "unused"]

    def closure():
        outputs = model(x)
        return outputs, cross_entropy(outputs, y)

    ours = GaussNewtonOperator(closure, params)
    theirs = GGNLinearOperator(model, nn.CrossEntropyLoss(), params, [(x, y)])
    v = torch.randn(ours.size)
    torch.testing.assert_close(ours.matvec(v), theirs @ v, rtol=1e-4, atol=1e-6)
    with ours.linearized():
        torch.testing.assert_close(ours.matvec(v), theirs @ v, rtol=1e-4, atol=1e-6)
    assert torch.linalg.eigvalsh(ours.dense())[0] > -1e-6
    batched = GaussNewtonOperator(
        lambda b: ((z := model(b[0])), cross_entropy(z, b[1])), params, data=[(x[:30], y[:30]), (x[30:], y[30:])]
    )
    torch.testing.assert_close(batched.matvec(v), theirs @ v, rtol=1e-4, atol=1e-6)


def test_gauss_newton_closure_is_checked():
    theta = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match=r"expected \(outputs, loss\)"):
        GaussNewtonOperator(lambda: theta.sum(), [theta]).matvec(torch.ones(2))
    with pytest.raises(ValueError, match="does not depend on the returned outputs"):
        GaussNewtonOperator(lambda: (theta * 2, (theta**2).sum()), [theta]).matvec(torch.ones(2))


def test_wrapping_other_libraries(problem):
    model, x, y = problem
    model.eval()
    params = [p for name, p in model.named_parameters() if name != "unused"]
    with HessianOperator(closure_of(model, x, y), params).linearized() as H:
        expected = lanczos(H, 2, tol=1e-5).ritz_values
        for source in (
            H.to_scipy(),
            scipy.sparse.linalg.aslinearoperator(H.dense().numpy()),
            scipy.sparse.csr_matrix(H.dense().numpy()),
            H.dense().numpy(),
            H.dense(),
        ):
            torch.testing.assert_close(lanczos(source, 2, tol=1e-5).ritz_values, expected, rtol=1e-4, atol=0)
    theirs = HessianLinearOperator(model, nn.CrossEntropyLoss(), params, [(x, y)])
    torch.testing.assert_close(lanczos(theirs, 2, tol=1e-5).ritz_values, expected, rtol=1e-4, atol=0)
    by_function = lanczos(lambda v: theirs @ v, 2, tol=1e-5, size=len(theirs @ torch.zeros(theirs.shape[0])))
    torch.testing.assert_close(by_function.ritz_values, expected, rtol=1e-4, atol=0)


def test_as_operator_refuses():
    with pytest.raises(ValueError, match="square"):
        as_operator(torch.ones(3, 4))
    with pytest.raises(ValueError, match="size=p"):
        as_operator(lambda v: v)
    with pytest.raises(ValueError, match="real matrix"):
        as_operator(torch.eye(3, dtype=torch.complex64))
    with pytest.raises(TypeError, match="str"):
        as_operator("matrix")
    assert as_operator(np.eye(3, dtype=np.float32)).dtype == torch.float32


@pytest.mark.parametrize(
    ("vector", "message"), [(torch.ones(4), r"shape \(3,\)"), (torch.ones(3, device="meta"), "on cpu, got one on meta")]
)
def test_matvec_checks_its_vector(vector, message):
    with pytest.raises(ValueError, match=message):
        as_operator(torch.eye(3)).matvec(vector)


def test_operator_checks_sizes_and_types():
    with pytest.raises(ValueError, match="returned shape"):
        CallableOperator(lambda v: v[:2], 3).matvec(torch.ones(3))
    with pytest.raises(TypeError, match="expected a tensor"):
        CallableOperator(lambda v: 1.0, 3).matvec(torch.ones(3))
    with pytest.raises(ValueError, match="size of at least 1"):
        CallableOperator(lambda v: v, 0)
    with pytest.raises(ValueError, match="float32 or float64"):
        CallableOperator(lambda v: v, 3, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ([], "at least one"),
        ([torch.ones(2)], r"params\[0\]: expected requires_grad"),
        ([torch.ones(2, dtype=torch.complex64, requires_grad=True)], "real floating"),
        ({"a": torch.ones(2, dtype=torch.int64)}, r"params\[a\]: expected a real"),
        ([1.0], "expected a tensor"),
    ],
)
def test_parameters_are_checked(params, message):
    with pytest.raises((ValueError, TypeError), match=message):
        HessianOperator(lambda: torch.ones(()), params)


def test_a_parameter_listed_twice_is_refused():
    theta = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="listed twice"):
        HessianOperator(lambda: theta.sum(), [theta, theta])


@pytest.mark.parametrize(
    "loss",
    [lambda t: (t**2).sum().detach(), lambda t: (t**2).sum().item(), lambda t: t**2],
    ids=["detached", "number", "not scalar"],
)
def test_closure_without_a_scalar_graph_is_refused(loss):
    theta = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="closure"):
        HessianOperator(lambda: loss(theta), [theta]).matvec(torch.ones(2))


def test_backward_in_the_closure_is_explained():
    theta = torch.ones(2, requires_grad=True)

    def closure():
        loss = (theta**3).sum()
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match=r"leave \.backward"):
        HessianOperator(closure, [theta]).matvec(torch.ones(2))


def test_a_bfloat16_model_counts_as_symmetric():
    torch.manual_seed(0)
    model, x, y = nn.Linear(16, 5).bfloat16(), torch.randn(64, 16), torch.randint(0, 5, (64,))
    wide = nn.Linear(16, 5)
    wide.load_state_dict(model.state_dict())
    half = HessianOperator(lambda: cross_entropy(model(x.bfloat16()).float(), y), model.parameters())
    exact = HessianOperator(closure_of(wide, x, y), wide.parameters())
    values = lanczos(half, 3, tol=1e-2).ritz_values
    torch.testing.assert_close(values, lanczos(exact, 3, tol=1e-2).ritz_values, rtol=3e-2, atol=0)


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 2 * x * grad


def test_an_operation_without_second_derivative_is_explained():
    theta = torch.tensor([1.0, 2.0], requires_grad=True)
    H = HessianOperator(lambda: (OnceOnly.apply(theta) ** 2).sum(), [theta])
    with pytest.raises(RuntimeError, match='method="finite_difference"'):
        H.matvec(torch.ones(2))
    by_difference = HessianOperator(lambda: (OnceOnly.apply(theta) ** 2).sum(), [theta], method="finite_difference")
    torch.testing.assert_close(by_difference.matvec(torch.ones(2)), torch.tensor([12.0, 48.0]), rtol=1e-2, atol=0)


def test_finite_difference_restores_after_an_error():
    theta = torch.tensor([1.0, 2.0], requires_grad=True)
    kept = theta.detach().clone()
    calls = []

    def closure():
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return (theta**4).sum()

    H = HessianOperator(closure, [theta], method="finite_difference")
    with contextlib.suppress(KeyboardInterrupt):
        H.matvec(torch.ones(2))
    assert torch.equal(theta, kept)
    assert torch.equal(H.matvec(torch.zeros(2)), torch.zeros(2))


def test_an_interrupted_restore_of_the_parameters_is_repeated(monkeypatch):
    theta, other = (torch.tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
    H = HessianOperator(lambda: ((theta * other) ** 4).sum(), [theta, other], method="finite_difference")
    write, calls = H._write, []

    def interrupted(values):
        calls.append(1)
        if len(calls) == 3:  # plus, minus, restore
            with torch.no_grad():
                theta.copy_(values[0])
            raise KeyboardInterrupt
        write(values)

    monkeypatch.setattr(H, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        H.matvec(torch.ones(4))
    assert len(calls) == 4
    assert torch.equal(theta, torch.tensor([1.0, 2.0]))
    assert torch.equal(other, torch.tensor([1.0, 2.0]))


def test_unknown_method():
    theta = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="method"):
        HessianOperator(lambda: theta.sum(), [theta], method="symbolic")
