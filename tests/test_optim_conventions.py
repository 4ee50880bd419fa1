"""The conventions of torch.optim.Optimizer, and every error message."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import torch_ire
from optimizer_cases import CASES, IDS, batch, loss_of, small_model, train, values


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_step_without_gradients_is_legal_and_changes_nothing(case):
    model = small_model()
    before = values(model)
    case(model.parameters()).step()
    for p, q in zip(before, values(model), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_closures_run_first_with_gradients_and_their_loss_is_returned(case):
    model = small_model()
    optimizer = case(model.parameters(), curvature="random")
    calls = []

    def closure():
        optimizer.zero_grad()
        assert torch.is_grad_enabled()
        loss = loss_of(model, 0)
        loss.backward()
        calls.append(values(model))
        return loss

    before = values(model)
    expected = loss_of(model, 0).item()
    loss = optimizer.step(closure)
    twice = "SAM" in case.name and "average" not in case.name
    assert len(calls) == (2 if twice else 1)
    if "average" not in case.name:
        assert loss.item() == expected
        for p, q in zip(before, calls[0], strict=True):
            assert torch.equal(p, q)
    assert any(not torch.equal(p, q) for p, q in zip(before, values(model), strict=True))


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_frozen_parameter_and_one_without_gradient_stay(case):
    model = small_model()
    first, *rest = model.parameters()
    first.requires_grad_(False)
    unused = torch.nn.Parameter(torch.ones(4))
    optimizer = case([first, *rest, unused])
    start = first.clone()
    train(model, optimizer, range(3))
    assert torch.equal(first, start)
    assert torch.equal(unused.detach(), torch.ones(4))
    assert optimizer.ire_summary()["flat_share_by_parameter"].get("0.4", 0.0) == 0.0


def test_gradients_are_not_written():
    model = small_model()
    optimizer = torch_ire.AdmIRE(model.parameters(), curvature="random")
    loss_of(model, 0).backward()
    before = [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    for p, g in zip(model.parameters(), before, strict=True):
        assert torch.equal(p.grad, g)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_storage_stays_and_versions_advance(case):
    model = small_model()
    optimizer = case(model.parameters(), curvature="random")
    pointers = [p.data_ptr() for p in model.parameters()]
    versions = [p._version for p in model.parameters()]
    train(model, optimizer, range(2))
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert all(p._version > v for p, v in zip(model.parameters(), versions, strict=True))


@pytest.mark.parametrize("change", [{"memory_format": torch.channels_last}, {"dtype": torch.bfloat16}], ids=str)
@pytest.mark.parametrize("kind", ["SAMIRE", "IRE"])
def test_parameters_that_a_model_converts_between_steps(kind, change):
    """kappa = gamma = 1 around SGD at lr 0.5 is p - grad, whatever the layout or dtype has become."""
    model = torch.nn.Conv2d(2, 3, 2, bias=False)
    if kind == "SAMIRE":
        optimizer = torch_ire.SAMIRE(model.parameters(), lr=0.5, kappa=1.0, gamma=1.0, curvature="random")
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        torch_ire.IRE(optimizer, kappa=1.0, gamma=1.0, curvature="random")
    for _ in range(2):
        p = model.weight
        start = p.detach().clone()
        p.grad = torch.full_like(p, 0.25)
        if kind == "SAMIRE":
            optimizer.first_step()
        optimizer.step()
        torch.testing.assert_close(p.detach(), start - 0.25)
        model.to(**change)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_groups_and_groups_added_later(case):
    model = small_model()
    a, b, c, d = model.parameters()
    optimizer = case([{"params": [a], "kappa": 5.0}, {"params": [b], "gamma": 0.1, "lr": 1e-4}])
    train(model, optimizer, range(3))
    optimizer.add_param_group({"params": [c, d], "kappa": 0.5})
    assert [g["kappa"] for g in optimizer.param_groups] == [5.0, 2.0, 0.5]
    assert [g["gamma"] for g in optimizer.param_groups] == [0.8, 0.1, 0.8]
    assert len({g["ire_step"] for g in optimizer.param_groups}) == 1
    before = values(model)
    train(model, optimizer, range(3, 14))
    assert all(not torch.equal(p, q) for p, q in zip(before, values(model), strict=True))
    assert len(optimizer.ire_summary()["flat_share_by_parameter"]) == 4


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_learning_rate_schedulers(case):
    model = small_model()
    optimizer = case(model.parameters(), curvature="random")
    schedulers = [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5**t)]
    if "momentum" in case.base_arguments or case.has_second_moment:
        schedulers.append(torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10))
    for step in range(3):
        train(model, optimizer, range(step, step + 1))
        for scheduler in schedulers:
            scheduler.step()
    assert optimizer.param_groups[0]["ire_step"] == 3


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_named_parameters_name_the_summary(case):
    model = small_model()
    optimizer = case(model.named_parameters())
    train(model, optimizer, range(2))
    summary = optimizer.ire_summary()
    assert list(summary["flat_share_by_parameter"]) == [name for name, _ in model.named_parameters()]
    assert summary["flat_share"] == pytest.approx(0.8, abs=0.01)
    assert summary["kappa_eff"] == [2.0]
    share = summary["displacement_share"]
    assert (share is None) if case.name in ("SGDIRE-plain", "ASAMIRE-sgd") else 0.0 < share < (2 / 3) ** 2 + 1e-6


def test_the_displacement_share_is_that_of_the_step():
    p = torch.nn.Parameter(torch.zeros(4))
    optimizer = torch_ire.SGDIRE([p], lr=1.0, kappa=3.0, gamma=0.5)
    p.grad = torch.tensor([1.0, 2.0, 3.0, 4.0])
    optimizer.update_mask()
    p.grad = torch.tensor([1.0, 2.0, 3.0, 4.0])
    added, total = 9.0 * (1 + 4), 16.0 * (1 + 4) + 9 + 16
    assert optimizer.ire_summary()["displacement_share"] == pytest.approx(added / total)


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (torch_ire.AdmIRE, {}),
        (torch_ire.AdmIRE, {"maximize": True}),
        (torch_ire.AdmIRE, {"amplify_weight_decay": False}),
        (torch_ire.SGDIRE, {"maximize": True}),
        (torch_ire.SGDIRE, {"momentum": 0.9, "maximize": True}),
        (torch_ire.SGDIRE, {"momentum": 0.9, "nesterov": True}),
        (torch.optim.AdamW, {}),
        (torch.optim.AdamW, {"amplify_weight_decay": False}),
    ],
)
def test_the_displacement_share_is_that_of_the_last_step(make, arguments):
    """Against the same step with kappa = 0; the learning rate is so small that the direction stays what it is."""
    weights, *gradients = torch.randn(5, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moved, shares = [], []
    for kappa in (3.0, 0.0):
        p = torch.nn.Parameter(weights.clone())
        base = {"lr": 1e-7, "weight_decay": 0.3}
        if make is torch.optim.AdamW:
            optimizer = make([p], **base)
            handle = torch_ire.IRE(optimizer, kappa=kappa, gamma=0.5, **arguments)
        else:
            optimizer = handle = make([p], **base, kappa=kappa, gamma=0.5, **arguments)
        p.grad = gradients[0].clone()
        handle.update_mask()
        for gradient in gradients[1:]:
            before = p.detach().clone()
            p.grad = gradient.clone()
            optimizer.step()
        moved.append(p.detach() - before)
        shares.append(handle.ire_summary()["displacement_share"])
    added = moved[0] - moved[1]
    assert shares == pytest.approx([float(added.square().sum() / moved[0].square().sum()), 0.0], rel=1e-4)


def test_tensor_learning_rate_and_kappa():
    model, other = small_model(), small_model()
    a = torch_ire.AdmIRE(model.parameters(), lr=torch.tensor(0.02), kappa=torch.tensor(3.0), curvature="random")
    b = torch_ire.AdmIRE(other.parameters(), lr=0.02, kappa=3.0, curvature="random")
    train(model, a, range(3))
    train(other, b, range(3))
    for p, q in zip(values(model), values(other), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_grad_scaler(case):
    """A scaled step equals an unscaled one; an overflow leaves everything as it was, the step count included."""
    ours, plain = small_model(), small_model()
    a, b = case(ours.parameters(), curvature="random"), case(plain.parameters(), curvature="random")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    sam = isinstance(a, torch_ire.SAMIRE)
    random = sam and a.param_groups[0]["perturbation"] == "random"
    for step in range(3):
        if sam:
            if not random:
                scaler.scale(loss_of(ours, step)).backward()
            a.first_step(zero_grad=True)
        scaler.scale(loss_of(ours, step)).backward()
        scaler.step(a)
        scaler.update()
        a.zero_grad()
        train(plain, b, range(step, step + 1))
    for p, q in zip(values(ours), values(plain), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)

    bad_passes = ["second"] if not sam or random else ["first", "second"]
    for bad in bad_passes:
        before = values(ours)
        states = {p: {k: v.clone() for k, v in a.state[p].items() if k != "flat_mask"} for p in ours.parameters()}
        for name in ("first", "second") if sam else ("second",):
            if name == "first" and random:
                a.first_step()
                continue
            (scaler.scale(loss_of(ours, 9)) * (torch.inf if bad == name else 1.0)).backward()
            if name == "first":
                a.first_step(zero_grad=True)
        if bad == "first":
            # the scaler looks at the gradients of the second pass alone
            scaler.unscale_(a)
        scaler.step(a)
        if bad == "first":
            found = scaler._per_optimizer_states[id(a)]["found_inf_per_device"]
            assert not any(float(f) for f in found.values())
        scaler.update()
        a.zero_grad()
        for p, q in zip(before, values(ours), strict=True):
            assert torch.equal(p, q)
        for p in ours.parameters():
            for key, value in states[p].items():
                assert torch.equal(a.state[p][key], value), key


def test_a_bad_refresh_is_refused_in_words():
    model = small_model()
    optimizer = torch_ire.AdmIRE(model.parameters())
    with pytest.raises(RuntimeError, match=r"AdmIRE.update_mask\(\): no parameter has a gradient"):
        optimizer.update_mask()
    with pytest.raises(RuntimeError, match=r"curvature='fisher' reads .grad"):
        optimizer.update_mask(loss_of(model, 0))
    for beta in (0.0, 0.5):
        optimizer = torch_ire.AdmIRE(model.parameters(), curvature_beta=beta)
        loss_of(model, 0).backward()
        for bad in (0.0, -1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match=f"Invalid num_predictions value: {bad}"):
                optimizer.update_mask(num_predictions=bad)
        assert not optimizer.state
        assert all(p.grad is not None for p in model.parameters())
        model.zero_grad()
    optimizer = torch_ire.AdmIRE(model.parameters(), curvature="hutchinson")
    with pytest.raises(RuntimeError, match=r"curvature='hutchinson' needs the loss"):
        optimizer.update_mask()
    with pytest.raises(RuntimeError, match="does not depend on the parameters to second order"):
        optimizer.update_mask(sum(p.sum() for p in model.parameters()))
    optimizer = torch_ire.AdmIRE(model.parameters(), curvature="second_moment")
    with pytest.raises(RuntimeError, match=r"step\(\) refreshes curvature='second_moment' itself"):
        optimizer.update_mask()
    a, *rest = model.parameters()
    optimizer = torch_ire.AdmIRE([{"params": [a]}, {"params": rest, "curvature": "hutchinson"}])
    with pytest.raises(RuntimeError, match="the groups disagree on the curvature"):
        optimizer.update_mask()
    assert all(not state for state in optimizer.state.values())


def test_sparse_gradients_are_refused_before_anything_changes():
    dense = torch.nn.Parameter(torch.ones(3))
    table = torch.nn.Embedding(5, 2, sparse=True)
    for optimizer in (
        torch_ire.AdmIRE([{"params": [dense]}, {"params": table.parameters()}]),
        torch_ire.SAMIRE([{"params": [dense]}, {"params": table.parameters()}]),
    ):
        dense.grad = torch.ones(3)
        table.weight.grad = None
        table(torch.tensor([1, 2])).sum().backward()
        before = [dense.detach().clone(), table.weight.detach().clone()]
        for call in (optimizer.step, optimizer.update_mask, getattr(optimizer, "first_step", optimizer.step)):
            with pytest.raises(RuntimeError, match=f"{type(optimizer).__name__} does not support sparse gradients"):
                call()
        assert torch.equal(before[0], dense.detach())
        assert torch.equal(before[1], table.weight.detach())
    optimizer = torch_ire.AdmIRE(table.parameters(), curvature="random")
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()
    assert not optimizer.state
    assert optimizer.param_groups[0]["ire_mask_step"] == -1


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="this torch knows no gradients of another dtype")
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_gradients_of_another_dtype_are_refused_before_anything_changes(case):
    p, half = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    half.grad_dtype = torch.float32
    p.grad, half.grad = torch.ones(3), torch.ones(3)
    optimizer = case([{"params": [p]}, {"params": [half]}])
    calls = [optimizer.step, optimizer.update_mask]
    if optimizer.param_groups[0].get("perturbation") == "gradient":
        calls.append(optimizer.first_step)
    for call in calls:
        with pytest.raises(RuntimeError, match=r"expects gradients of the parameter's dtype torch\.bfloat16"):
            call()
    assert torch.equal(p.detach(), torch.ones(3))
    assert torch.equal(half.detach(), torch.ones(3, dtype=torch.bfloat16))


BAD_ARGUMENTS = [
    ({"lr": -1.0}, "Invalid learning rate: -1.0"),
    ({"lr": torch.ones(2)}, "Tensor lr must be 1-element"),
    ({"lr": torch.tensor(-1.0)}, "Invalid learning rate: -1.0"),
    ({"weight_decay": -0.1}, "Invalid weight_decay value: -0.1"),
    ({"kappa": -1.0}, "Invalid kappa value: -1.0"),
    ({"kappa": float("nan")}, "Invalid kappa value: nan"),
    ({"kappa": torch.ones(3)}, "Tensor kappa must be 1-element"),
    ({"kappa": torch.tensor(-2.0)}, "Invalid kappa value: -2.0"),
    ({"gamma": 1.5}, "Invalid gamma value: 1.5"),
    ({"gamma": -0.1}, "Invalid gamma value: -0.1"),
    ({"warmup_steps": -1}, "Invalid warmup_steps value: -1"),
    ({"mask_interval": 0}, "Invalid mask_interval value: 0"),
    ({"mask_interval": 2.5}, "Invalid mask_interval value: 2.5"),
    ({"seed": 0.5}, "Invalid seed value: 0.5"),
    ({"curvature_beta": 1.0}, "Invalid curvature_beta value: 1.0"),
    ({"curvature": "random", "curvature_beta": 0.5}, "curvature_beta averages the estimates of refreshes"),
    ({"curvature": "hessian"}, "Invalid curvature value: 'hessian'"),
    ({"ranking": "layer"}, "Invalid ranking value: 'layer'"),
    ({"rounding": "up"}, "Invalid rounding value: 'up'"),
    ({"skip_nonfinite": "yes"}, "Invalid skip_nonfinite value: 'yes'"),
    ({"implementation": "cuda"}, "Invalid implementation value: 'cuda'"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS, ids=[m for _, m in BAD_ARGUMENTS])
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_arguments_out_of_range(case, arguments, message):
    p, q = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        case([p], **arguments)
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        case([{"params": [p], **arguments}])
    optimizer = case([p])
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        optimizer.add_param_group({"params": [q], **arguments})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: torch_ire.AdmIRE(p, eps=-1.0), ValueError, "Invalid epsilon value: -1.0"),
        (lambda p: torch_ire.AdmIRE(p, betas=(1.0, 0.9)), ValueError, "Invalid beta parameter at index 0: 1.0"),
        (lambda p: torch_ire.AdmIRE(p, betas=(0.9, -0.1)), ValueError, "Invalid beta parameter at index 1: -0.1"),
        (lambda p: torch_ire.SGDIRE(p, momentum=-1.0), ValueError, "Invalid momentum value: -1.0"),
        (lambda p: torch_ire.SGDIRE(p, nesterov=True), ValueError, "Nesterov momentum requires a momentum"),
        (lambda p: torch_ire.SGDIRE(p, curvature="second_moment"), ValueError, "which SGD does not have"),
        (lambda p: torch_ire.SAMIRE(p, rho=-1.0), ValueError, "Invalid rho value: -1.0"),
        (lambda p: torch_ire.SAMIRE(p, base="lion"), ValueError, "Invalid base value: 'lion'"),
        (lambda p: torch_ire.SAMIRE(p, perturbation="up"), ValueError, "Invalid perturbation value: 'up'"),
        (lambda p: torch_ire.SAMIRE(p, betas=(0.9, 0.9)), TypeError, "unexpected keyword argument 'betas'"),
        (lambda p: torch_ire.SAMIRE(p, curvature="second_moment"), ValueError, "which SGD does not have"),
        (lambda p: torch_ire.AdmIRE([]), ValueError, "optimizer got an empty parameter list"),
        (lambda p: torch_ire.AdmIRE(p[0]), TypeError, "params argument given to the optimizer should be an iterable"),
        (lambda p: torch_ire.AdmIRE(p, prog_decay=1), TypeError, "unexpected keyword argument 'prog_decay'"),
        (
            lambda p: torch_ire.SGDIRE([torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))]),
            TypeError,
            "SGDIRE does not support complex parameters",
        ),
    ],
)
def test_errors_of_one_class(make, error, message):
    with pytest.raises(error, match=message):
        make([torch.nn.Parameter(torch.ones(3))])


def test_sam_steps_in_the_wrong_order():
    model = small_model()
    optimizer = torch_ire.SAMIRE(model.parameters())
    before = values(model)
    with pytest.raises(RuntimeError, match=r"SAMIRE.second_step\(\): call first_step\(\) first"):
        optimizer.second_step()
    with pytest.raises(RuntimeError, match=r"SAMIRE.first_step\(\): no parameter has a gradient"):
        optimizer.first_step()
    for p, q in zip(before, values(model), strict=True):
        assert torch.equal(p, q)
    loss_of(model, 0).backward()
    optimizer.first_step()
    moved = values(model)
    with pytest.raises(RuntimeError, match=r"SAMIRE.first_step\(\): called twice"):
        optimizer.first_step()
    for p, q in zip(moved, values(model), strict=True):
        assert torch.equal(p, q)
    a, *rest = model.parameters()
    mixed = torch_ire.SAMIRE([{"params": [a]}, {"params": rest, "perturbation": "random"}])
    with pytest.raises(RuntimeError, match="the groups disagree on the perturbation"):
        mixed.first_step()


@pytest.mark.parametrize("handle", [False, True], ids=["AdmIRE", "IRE"])
def test_a_state_init_step_does_not_count(handle):
    """Learning rate and gradients 0 on a fresh optimizer; later, zeros are gradients like all others."""
    model = small_model()
    arguments = {"mask_interval": 3, "curvature": "random"}
    if handle:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
        ire = torch_ire.IRE(optimizer, **arguments)
    else:
        optimizer = ire = torch_ire.AdmIRE(model.parameters(), lr=0.0, **arguments)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert optimizer.param_groups[0]["ire_step"] == 0
    assert ire.ire_summary()["flat_share"] == 0.0
    optimizer.step()
    assert optimizer.param_groups[0]["ire_step"] == 1
    assert ire.ire_summary()["flat_share"] > 0.5


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_first_step_of_a_warm_up_from_zero_counts(case):
    """t counts every step (Algorithm 1): masks come where they would at a constant learning rate."""
    model = small_model()
    optimizer = case(model.parameters(), mask_interval=3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(1.0, t / 4))
    assert optimizer.param_groups[0]["lr"] == 0.0
    due = []
    for step in range(8):
        due.append(optimizer.mask_due())
        train(model, optimizer, range(step, step + 1))
        scheduler.step()
    assert due == [True, False, False, True, False, False, True, False]
    assert optimizer.param_groups[0]["ire_step"] == 8


def test_batch_norm_statistics_stay_frozen():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.InstanceNorm2d(4, track_running_stats=True)
    )
    x = torch.randn(8, 1, 6, 6)
    expected = model(x)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch_ire.frozen_batch_norm(model):
        frozen = model(x + 0.0)
    torch.testing.assert_close(frozen, expected)
    assert model.state_dict().keys() == before.keys()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    model(x)
    assert int(model[1].num_batches_tracked) == int(before["1.num_batches_tracked"]) + 1
    model.eval()
    evaluated = model(x)
    with torch_ire.frozen_batch_norm(model):
        torch.testing.assert_close(model(x), evaluated)
    with pytest.raises(KeyError), torch_ire.frozen_batch_norm(model.train()):
        raise KeyError
    assert model[1].track_running_stats
    assert model[1].running_mean is not None


def test_the_training_rng_is_untouched():
    """Switching IRE on must not change dropout, shuffling or initialisation of the run."""
    model = small_model()
    optimizer = torch_ire.SAMIRE(model.parameters(), perturbation="random", curvature="random")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    train(model, optimizer, range(2))
    hutchinson = torch_ire.SGDIRE(model.parameters(), curvature="hutchinson")
    hutchinson.update_mask(F.cross_entropy(model(batch(0)[0]), batch(0)[1]))
    torch_ire.sampled_cross_entropy(model(batch(0)[0])).backward()
    assert torch.equal(torch.get_rng_state(), before)
