"""Resume, copies, and checkpoints from and to torch.optim."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch

import torch_ire
from optimizer_cases import CASES, IDS, batch, loss_of, small_model, train, values


def saved_and_loaded(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def assert_same_values(a, b):
    for p, q in zip(values(a), values(b), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("curvature_beta", [0.0, 0.7])
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_resume_is_bit_exact(case, curvature_beta, dtype):
    """13 steps, saved in the middle of an interval, equal 7 steps, a checkpoint, a new process and 6 steps."""
    arguments = {"kappa": 2.0, "gamma": 0.6, "mask_interval": 4, "curvature_beta": curvature_beta}
    whole = small_model(dtype=dtype)
    labels = torch_ire.LabelGenerator(seed=5)
    optimizer = case(whole.parameters(), **arguments)
    train(whole, optimizer, range(13), labels=labels)

    first = small_model(dtype=dtype)
    labels = torch_ire.LabelGenerator(seed=5)
    optimizer = case(first.parameters(), **arguments)
    train(first, optimizer, range(7), labels=labels)
    checkpoint = saved_and_loaded(
        {"model": first.state_dict(), "optimizer": optimizer.state_dict(), "labels": labels.state_dict()}
    )
    for entry in checkpoint["optimizer"]["state"].values():
        assert entry["flat_mask"].dtype == torch.bool

    second = small_model(seed=1, dtype=dtype)
    second.load_state_dict(checkpoint["model"])
    optimizer = case(second.parameters(), **{**arguments, "kappa": 0.5})
    optimizer.load_state_dict(checkpoint["optimizer"])
    labels = torch_ire.LabelGenerator()
    labels.load_state_dict(checkpoint["labels"])
    train(second, optimizer, range(7, 13), labels=labels)
    assert_same_values(whole, second)


def test_the_default_label_generator_travels_with_the_optimizer():
    """The README's loop passes no generator: model and optimizer are all that its checkpoint holds."""

    def loop(model, optimizer, steps):
        for step in steps:
            if optimizer.mask_due():
                torch_ire.sampled_cross_entropy(model(batch(step)[0])).backward()
                optimizer.update_mask()
            loss_of(model, step).backward()
            optimizer.step()
            optimizer.zero_grad()

    def start():
        torch.manual_seed(11)
        model = small_model()
        return model, torch_ire.AdmIRE(model.parameters(), lr=0.05, mask_interval=2)

    torch_ire.default_label_generator.manual_seed(11)
    whole, optimizer = start()
    loop(whole, optimizer, range(8))

    torch_ire.default_label_generator.manual_seed(11)
    first, optimizer = start()
    loop(first, optimizer, range(4))
    checkpoint = saved_and_loaded({"model": first.state_dict(), "optimizer": optimizer.state_dict()})

    torch_ire.default_label_generator.manual_seed(11)
    second, optimizer = start()
    second.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    loop(second, optimizer, range(4, 8))
    assert_same_values(whole, second)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_state_has_the_keys_and_shapes_of_torch(case):
    model, other = small_model(), small_model()
    ours = case(model.parameters(), curvature="random")
    theirs = case.torch(other.parameters())
    train(model, ours, range(2))
    loss_of(other, 0).backward()
    theirs.step()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        expected = {k for k, v in theirs.state[q].items() if v is not None}
        assert expected <= ours.state[p].keys()
        assert ours.state[p].keys() - expected <= {"flat_mask", "step"}
    for index, entry in ours.state_dict()["state"].items():
        param = list(model.parameters())[index]
        for key, value in entry.items():
            assert value.shape == (() if key == "step" else param.shape)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_checkpoints_of_torch_load_here_and_back(case):
    model = small_model()
    theirs = case.torch(model.parameters())
    for step in range(3):
        loss_of(model, step).backward()
        theirs.step()
        theirs.zero_grad()
    twin = copy.deepcopy(model)
    ours = case(twin.parameters(), kappa=0.0, curvature="random")
    for group in ours.param_groups:
        if "rho" in group:
            group["rho"] = 0.0
    ours.load_state_dict(saved_and_loaded(theirs.state_dict()))
    assert ours.param_groups[0]["kappa"] == 0.0
    assert ours.param_groups[0]["ire_step"] == (3 if case.has_second_moment else 0)
    for step in range(3, 6):
        loss_of(model, step).backward()
        theirs.step()
        theirs.zero_grad()
        train(twin, ours, range(step, step + 1))
    for p, q in zip(values(model), values(twin), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-5)

    third = copy.deepcopy(twin)
    back = case.torch(third.parameters())
    back.load_state_dict(saved_and_loaded(ours.state_dict()))
    train(twin, ours, range(6, 7))
    loss_of(third, 6).backward()
    back.step()
    for p, q in zip(values(third), values(twin), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "make_copy", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_copies_are_complete(case, make_copy):
    model = small_model()
    optimizer = case(model.parameters(), kappa=2.0, curvature_beta=0.5)
    train(model, optimizer, range(4))
    twin, twin_optimizer = make_copy((model, optimizer))
    assert twin_optimizer._step_supports_amp_scaling == optimizer._step_supports_amp_scaling
    train(model, optimizer, range(4, 14), labels=torch_ire.LabelGenerator(seed=1))
    train(twin, twin_optimizer, range(4, 14), labels=torch_ire.LabelGenerator(seed=1))
    assert_same_values(model, twin)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_loading_ones_own_state_changes_nothing(case):
    for steps in (0, 3):
        model = small_model()
        optimizer = case(model.parameters())
        train(model, optimizer, range(steps))
        before = optimizer.state_dict()
        if steps == 0:
            assert before["state"] == {}
        before = copy.deepcopy(before)
        optimizer.load_state_dict(optimizer.state_dict())
        after = optimizer.state_dict()
        assert after["param_groups"] == before["param_groups"]
        assert after["state"].keys() == before["state"].keys()
        for index in before["state"]:
            assert after["state"][index].keys() == before["state"][index].keys()
            for key, value in before["state"][index].items():
                assert torch.equal(after["state"][index][key], value)
                assert after["state"][index][key].dtype == value.dtype


def test_a_state_dict_of_another_model_changes_nothing():
    model = small_model()
    optimizer = torch_ire.AdmIRE(model.parameters(), curvature="random")
    train(model, optimizer, range(2))
    before = copy.deepcopy(optimizer.state_dict())
    other = torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.Tanh(), torch.nn.Linear(12, 5))
    wrong_shapes = torch_ire.AdmIRE(other.parameters(), curvature="random")
    train(other, wrong_shapes, range(2))
    with pytest.raises(ValueError, match=r"AdmIRE.load_state_dict: state\[0\]\['.*'\]: expected shape \(13, 8\)"):
        optimizer.load_state_dict(wrong_shapes.state_dict())
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict({"state": {}, "param_groups": []})
    fewer = torch_ire.AdmIRE([torch.nn.Parameter(torch.ones(1))])
    with pytest.raises(ValueError, match="size of optimizer's group"):
        optimizer.load_state_dict(fewer.state_dict())
    bad = copy.deepcopy(before)
    bad["param_groups"][0]["gamma"] = 1.5
    with pytest.raises(ValueError, match=r"Invalid gamma value: 1\.5"):
        optimizer.load_state_dict(bad)
    amsgrad = torch.optim.AdamW(small_model().parameters(), amsgrad=True)
    with pytest.raises(ValueError, match="amsgrad"):
        optimizer.load_state_dict(amsgrad.state_dict())
    after = optimizer.state_dict()
    for index in before["state"]:
        for key, value in before["state"][index].items():
            assert torch.equal(after["state"][index][key], value)


def test_the_seed_of_labels_is_taken_when_the_first_is_drawn():
    """A state dict in between, as some trainers take one at once, does not settle it."""
    drawn = []
    for early in (False, True):
        torch_ire.default_label_generator._seed, torch_ire.default_label_generator._offset = None, 0
        model = small_model()
        optimizer = torch_ire.AdmIRE(model.parameters())
        if early:
            torch.manual_seed(99)
            optimizer.load_state_dict(optimizer.state_dict())
        torch.manual_seed(5)
        drawn.append(torch_ire.sampled_cross_entropy(model(batch(0)[0])).item())
    assert drawn[0] == drawn[1]


def test_a_mask_before_the_first_step_comes_with_moments():
    """torch takes any state for a complete one."""
    model = small_model()
    optimizer = torch_ire.AdmIRE(model.parameters())
    loss_of(model, 0).backward()
    optimizer.update_mask()
    plain = torch.optim.AdamW(model.parameters())
    plain.load_state_dict(optimizer.state_dict())
    loss_of(model, 0).backward()
    plain.step()


def test_hooks_of_state_dicts_keep_working():
    model = small_model()
    optimizer = torch_ire.AdmIRE(model.parameters(), curvature="random")
    train(model, optimizer, range(2))
    seen = []
    optimizer.register_state_dict_pre_hook(lambda opt: seen.append("save"))
    optimizer.register_load_state_dict_pre_hook(lambda opt, state: seen.append(sorted(state["state"][0])))
    optimizer.register_load_state_dict_post_hook(lambda opt: seen.append(sorted(opt.state[next(model.parameters())])))
    optimizer.load_state_dict(optimizer.state_dict())
    keys = ["exp_avg", "exp_avg_sq", "flat_mask", "step"]
    assert seen == ["save", keys, keys]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_distributed_checkpoints_create_state_by_a_step_that_changes_nothing(case):
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    model = small_model()
    before = values(model)
    optimizer = case(model.parameters())
    state = get_optimizer_state_dict(model, optimizer)
    for p, q in zip(before, values(model), strict=True):
        assert torch.equal(p, q)
    assert optimizer.param_groups[0]["ire_step"] == 0
    assert optimizer.mask_due()
    assert set(state["param_groups"][0]["params"]) == {name for name, _ in model.named_parameters()}

    train(model, optimizer, range(3))
    twin = copy.deepcopy(model)
    twin_optimizer = case(twin.parameters())
    set_optimizer_state_dict(twin, twin_optimizer, get_optimizer_state_dict(model, optimizer))
    train(model, optimizer, range(3, 12), labels=torch_ire.LabelGenerator(seed=2))
    train(twin, twin_optimizer, range(3, 12), labels=torch_ire.LabelGenerator(seed=2))
    assert_same_values(model, twin)
