"""sampled_cross_entropy equals torch's cross-entropy at the drawn labels, and its gradients estimate the curvature."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import torch_ire
from processes import run_python
from tolerances import DTYPES
from torch_ire import ops
from torch_ire.counter_rng import as_int64, mix64
from torch_ire.sampled_loss import LabelGenerator, sampled_cross_entropy

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 4e-3, torch.float16: 5e-4}


def drawn_labels(logits: Tensor, seed: int, class_dim: int = -1) -> Tensor:
    """The labels of a generator's first call in a process without peers."""
    return ops.sample_labels(logits.movedim(class_dim, -1), seed=as_int64(mix64(seed, 0)), offset=0)[0]


def check_against_torch(logits: Tensor, targets: Tensor | None, class_dim: int = -1) -> None:
    seed = 17
    mine = logits.clone().requires_grad_()
    loss = sampled_cross_entropy(mine, targets, class_dim=class_dim, generator=LabelGenerator(seed))
    (3.0 * loss).backward()
    labels = drawn_labels(logits, seed, class_dim)
    if targets is not None:
        labels = labels.where(targets != -100, -100)
    theirs = logits.double().clone().requires_grad_()
    rows = theirs.movedim(class_dim, -1).flatten(0, -2) if theirs.dim() > 1 else theirs.unsqueeze(0)
    expected = F.cross_entropy(rows, labels.reshape(-1))
    (3.0 * expected).backward()
    assert loss.dtype == (torch.float64 if logits.dtype == torch.float64 else torch.float32)
    assert loss.shape == ()
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=1e-6)
    assert mine.grad is not None
    assert theirs.grad is not None
    assert mine.grad.dtype == logits.dtype
    assert mine.grad.stride() == mine.stride()
    tolerance = TOLERANCE[logits.dtype]
    largest = theirs.grad.abs().max().item()
    torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6,), (8, 10), (1, 1), (4, 9, 31), (600, 700), (2, 3, 4, 5)])
@pytest.mark.parametrize("ignoring", [False, True])
def test_equals_cross_entropy_at_the_drawn_labels(dtype: torch.dtype, shape: tuple[int, ...], ignoring: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (2 * torch.randn(shape, generator=generator)).to(dtype)
    targets = None
    if ignoring and len(shape) > 1 and shape != (1, 1):
        targets = torch.zeros(shape[:-1], dtype=torch.int64)
        targets[torch.rand(shape[:-1], generator=generator) < 0.4] = -100
        targets.view(-1)[0] = 0
    check_against_torch(logits, targets)


@pytest.mark.parametrize("dtype", DTYPES)
def test_class_dim_selects_the_dimension_of_the_classes(dtype: torch.dtype) -> None:
    logits = torch.randn(3, 5, 6, 7, generator=torch.Generator().manual_seed(1)).to(dtype)
    targets = torch.zeros(3, 6, 7, dtype=torch.int64)
    targets[0] = -100
    check_against_torch(logits, None, class_dim=1)
    check_against_torch(logits, targets, class_dim=1)


def test_chunked_backward_equals_cross_entropy() -> None:
    logits = torch.randn(2, 50, 9000, generator=torch.Generator().manual_seed(2))
    check_against_torch(logits, None)
    check_against_torch(logits.transpose(0, 1), None)


def test_positions_with_the_ignore_index_are_left_out() -> None:
    logits = torch.randn(5, 4)
    targets = torch.tensor([0, 7, 1, 7, 2])
    loss = sampled_cross_entropy(logits, targets, ignore_index=7, generator=LabelGenerator(1))
    keep = [0, 2, 4]
    expected = F.cross_entropy(logits[keep], drawn_labels(logits, 1)[keep])
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("logits", [torch.randn(4, 3), torch.zeros(0, 3), torch.full((2, 3), torch.nan)])
def test_loss_and_gradients_are_zero_if_every_position_is_ignored(logits: Tensor) -> None:
    x = logits.clone().requires_grad_()
    loss = sampled_cross_entropy(x, torch.full(x.shape[:-1], -100), generator=LabelGenerator(0))
    loss.backward()
    assert loss.item() == 0.0
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_the_loss_of_no_rows_is_zero() -> None:
    assert sampled_cross_entropy(torch.zeros(0, 3), generator=LabelGenerator(0)).item() == 0.0


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_non_finite_row_makes_the_loss_non_finite_unless_ignored(value: float) -> None:
    x = torch.randn(3, 4)
    x[1, 2] = value
    assert not sampled_cross_entropy(x, generator=LabelGenerator(0)).isfinite()
    y = x.clone().requires_grad_()
    loss = sampled_cross_entropy(y, torch.tensor([0, -100, 0]), generator=LabelGenerator(0))
    loss.backward()
    assert loss.isfinite()
    assert y.grad is not None
    assert torch.equal(y.grad[1], torch.zeros(4))
    assert y.grad.isfinite().all()


def test_a_row_of_minus_infinity_makes_the_loss_non_finite() -> None:
    assert not sampled_cross_entropy(torch.full((1, 3), -torch.inf), generator=LabelGenerator(0)).isfinite()


def test_squared_gradients_average_to_the_gauss_newton_diagonal() -> None:
    """The mean of B g^2 is the diagonal of the Gauss-Newton matrix; with fixed labels it is not."""
    torch.manual_seed(0)
    batch, features, classes, draws = 32, 6, 5, 4000
    inputs = torch.randn(batch, features)
    weight = torch.randn(classes, features, requires_grad=True)
    p = (inputs @ weight.detach().T).softmax(-1)
    exact = torch.einsum("bc,bf->cf", p * (1 - p), inputs**2) / batch
    h = torch.zeros_like(exact)
    generator = LabelGenerator(5)
    for _ in range(draws):
        (g,) = torch.autograd.grad(sampled_cross_entropy(inputs @ weight.T, generator=generator), weight)
        h += batch * g**2 / draws
    ratio = h / exact
    # one draw has a relative deviation of about sqrt(2), so 4000 draws 2.2 % a coordinate
    assert abs(ratio.mean().item() - 1) < 0.02
    assert bool(((ratio > 0.88) & (ratio < 1.12)).all())


def test_resume_draws_the_same_labels() -> None:
    x = torch.randn(20, 50)
    generator = LabelGenerator()
    for _ in range(3):
        sampled_cross_entropy(x, generator=generator)
    state = generator.state_dict()
    assert state == {"seed": torch_ire.default_label_generator.state_dict()["seed"], "offset": 3}
    expected = [sampled_cross_entropy(x, generator=generator) for _ in range(3)]
    for resumed in (LabelGenerator(), LabelGenerator(99)):
        resumed.load_state_dict(pickle.loads(pickle.dumps(state)))
        assert [sampled_cross_entropy(x, generator=resumed).item() for _ in range(3)] == [e.item() for e in expected]
    twin = copy.deepcopy(generator)
    assert twin.draw() == generator.draw()
    assert generator.manual_seed(4).state_dict() == {"seed": 4, "offset": 0}
    assert repr(generator) == "LabelGenerator(seed=4, offset=0)"


def test_a_lent_generator_serves_calls_without_one_until_it_is_taken_back() -> None:
    """An optimizer lends its generator while its mask is due; other threads and explicit generators are not served."""
    x = torch.randn(20, 50)
    ours, theirs, default = LabelGenerator(1), LabelGenerator(2), torch_ire.default_label_generator
    before = repr(default)
    ours.lend()
    sampled_cross_entropy(x)
    sampled_cross_entropy(x, generator=theirs)
    assert (ours.state_dict()["offset"], theirs.state_dict()["offset"], repr(default)) == (1, 1, before)
    theirs.take_back()  # was not lent
    theirs.lend()  # the one lent last serves
    ours.take_back()
    sampled_cross_entropy(x)
    assert (ours.state_dict()["offset"], theirs.state_dict()["offset"], repr(default)) == (1, 2, before)
    thread = threading.Thread(target=sampled_cross_entropy, args=(x,))
    thread.start()
    thread.join()
    theirs.take_back()
    assert (ours.state_dict()["offset"], theirs.state_dict()["offset"]) == (1, 2)
    assert default.state_dict()["offset"] == int(before.partition("offset=")[2][:-1]) + 1


def test_a_lent_generator_that_is_gone_serves_nobody() -> None:
    LabelGenerator(1).lend()
    offset = torch_ire.default_label_generator.state_dict()["offset"]
    sampled_cross_entropy(torch.randn(4, 5))
    assert torch_ire.default_label_generator.state_dict()["offset"] == offset + 1


def test_an_invalid_position_is_refused_and_changes_nothing() -> None:
    generator = LabelGenerator(seed=3)
    for state in ({"seed": 1, "offset": -1}, {"seed": 1, "offset": "many"}, {"seed": None, "offset": 1}):
        with pytest.raises(ValueError, match=r"expected seed and offset as integers, offset at least 0, got"):
            generator.load_state_dict(state)  # type: ignore[arg-type]
    assert generator.state_dict() == {"seed": 3, "offset": 0}


def test_the_rank_of_the_default_generator_holds_for_all_that_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data parallel rank is a property of the process: one line sets it for every optimizer's labels."""
    as_rank_5 = LabelGenerator(3, rank=5).draw()
    monkeypatch.setattr(torch_ire.default_label_generator, "rank", 5)
    assert LabelGenerator(3).draw() == as_rank_5
    assert LabelGenerator(3, rank=0).draw() != as_rank_5


def test_the_seed_is_that_of_the_default_generator_whose_own_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_ire.default_label_generator, "_seed", None)
    assert LabelGenerator().state_dict()["seed"] == torch.initial_seed()
    monkeypatch.setattr(torch_ire.default_label_generator, "_seed", 12)
    assert LabelGenerator().state_dict()["seed"] == 12


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_the_default_dtype_changes_no_label_and_no_loss(default: torch.dtype) -> None:
    logits = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    targets = torch.zeros(40, dtype=torch.int64).masked_fill(torch.arange(40) % 3 == 0, -100)

    def loss_and_gradient() -> tuple[Tensor, Tensor]:
        x = logits.clone().requires_grad_()
        loss = sampled_cross_entropy(x, targets, generator=LabelGenerator(3))
        return loss.detach(), torch.autograd.grad(loss, x)[0]

    expected = loss_and_gradient()
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        found = loss_and_gradient()
    finally:
        torch.set_default_dtype(before)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype == torch.float32
        assert torch.equal(ours, theirs)


def test_torch_generators_are_untouched_and_calls_differ() -> None:
    before = torch.get_rng_state()
    x = torch.zeros(400, 30)
    y = torch.randn(400, 30, generator=torch.Generator().manual_seed(0))
    losses = {sampled_cross_entropy(y).item() for _ in range(5)}
    assert len(losses) == 5
    sampled_cross_entropy(x)
    assert torch.equal(before, torch.get_rng_state())
    offset = torch_ire.default_label_generator.state_dict()["offset"]
    sampled_cross_entropy(x)
    assert torch_ire.default_label_generator.state_dict()["offset"] == offset + 1


def test_ranks_draw_different_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = LabelGenerator(3).draw()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    keys = set()
    for rank in range(4):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        keys.add(LabelGenerator(3).draw())
    assert len(keys) == 4
    assert alone in keys  # rank 0 draws what a process without peers draws


@pytest.mark.parametrize("ignoring", [False, True])
def test_second_derivatives_equal_those_of_cross_entropy(ignoring: bool) -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    targets = torch.tensor([0, -100, 0]) if ignoring else None
    labels = drawn_labels(x, 0)
    if targets is not None:
        labels = labels.where(targets != -100, -100)

    def mine(logits: Tensor) -> Tensor:
        return sampled_cross_entropy(logits, targets, generator=LabelGenerator(0))

    hessian = torch.autograd.functional.hessian(mine, x)
    expected = torch.autograd.functional.hessian(lambda logits: F.cross_entropy(logits, labels), x)
    torch.testing.assert_close(hessian, expected)
    y = x.clone().requires_grad_()
    (with_graph,) = torch.autograd.grad(mine(y), y, create_graph=True)
    (without,) = torch.autograd.grad(mine(y), y)
    torch.testing.assert_close(with_graph, without)


def test_forward_allocates_nothing_of_the_size_of_the_logits() -> None:
    logits = torch.randn(256, 8000, requires_grad=True)  # 8 MB
    for x, class_dim in ((logits, -1), (logits.view(4, 64, 8000), 1)):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            loss = sampled_cross_entropy(x, class_dim=class_dim)
        allocated = sum(max(0, event.self_cpu_memory_usage) for event in profile.events())
        assert 0 < allocated < 2_000_000
        del loss


PEAK = """
import resource, torch
from torch_ire import ops
logits = torch.randn(1024, 50304)  # 206 MB
ops.sample_labels(logits[:4], seed=0, offset=0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ops.sample_labels(logits, seed=0, offset=1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_sampling_labels_needs_no_memory_of_the_size_of_the_logits() -> None:
    assert int(run_python(PEAK)) < 2048  # KiB


def test_errors_name_argument_expectation_and_value() -> None:
    with pytest.raises(
        ValueError, match=r"targets: expected shape \(2, 3\), that of logits without the classes, got \(6,\)"
    ):
        sampled_cross_entropy(torch.zeros(2, 3, 4), torch.zeros(6, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"logits: expected at least one dimension"):
        sampled_cross_entropy(torch.zeros(()))
    with pytest.raises(RuntimeError, match=r"logits: expected float32, .* got int64"):
        sampled_cross_entropy(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"expected keys seed and offset, got \['seed'\]"):
        LabelGenerator().load_state_dict({"seed": 1})
