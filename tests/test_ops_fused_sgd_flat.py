"""fused_sgd_flat_: against the reference, its exact special cases, and its messages."""

from __future__ import annotations

import pytest
import torch

from step_lists import Lists, clones
from tolerances import DTYPES, assert_within_ulps
from torch_ire import ops, reference

KINDS = {
    "plain": {"momentum": 0.0, "dampening": 0.0, "nesterov": False},
    "momentum": {"momentum": 0.9, "dampening": 0.25, "nesterov": False},
    "nesterov": {"momentum": 0.8, "dampening": 0.0, "nesterov": True},
}
HYPER = {"lr": 0.2, "weight_decay": 0.3, "kappa": 2.5}


def inputs(dtype, device, kind, step=0.0):
    lists = Lists(dtype, device)
    buffers = lists.normal(lists.opmath) if KINDS[kind]["momentum"] else []
    return lists, [lists.normal(), lists.normal(), buffers, lists.steps(step), lists.masks(), lists.normal()]


def compare(ours, theirs):
    for key, scale in ((0, 8.0), (2, 4.0)):
        for a, b in zip(ours[key], theirs[key], strict=True):
            assert_within_ulps(a, b, 2, scale=torch.full_like(b, scale))
    for key in (1, 3, 4, 5):
        for a, b in zip(ours[key], theirs[key], strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("restored", [True, False])
def test_equals_the_reference(device, dtype, kind, masked, restored):
    _, args = inputs(dtype, device, kind)
    if not masked:
        args[4] = []
    if not restored:
        args[5] = []
    ours, theirs = clones(*args), clones(*args)
    for _ in range(2):
        ops.fused_sgd_flat_(*ours, **HYPER, **KINDS[kind], maximize=restored)
        reference.fused_sgd_flat_(*theirs, **HYPER, **KINDS[kind], maximize=restored)
        compare(ours, theirs)
    assert float(ours[3][0]) == 2.0


def test_the_first_step_has_no_dampening(device):
    _, args = inputs(torch.float32, device, "momentum")
    for b in args[2]:
        b.zero_()
    ops.fused_sgd_flat_(*args[:4], [], [], **{**HYPER, "weight_decay": 0.0}, **KINDS["momentum"])
    for b, g in zip(args[2], args[1], strict=True):
        assert torch.equal(b, g)


def test_steps_are_optional_where_nothing_depends_on_them(device):
    _, args = inputs(torch.float32, device, "nesterov")
    counted, uncounted = clones(*args), clones(*args)
    ops.fused_sgd_flat_(*counted, **HYPER, **KINDS["nesterov"])
    uncounted[3] = []
    ops.fused_sgd_flat_(*uncounted, **HYPER, **KINDS["nesterov"])
    for a, b in zip(counted[0], uncounted[0], strict=True):
        assert torch.equal(a, b)


def test_kappa_zero_is_no_mask_bit_for_bit(device):
    _, args = inputs(torch.float32, device, "momentum")
    a, b = clones(*args), clones(*args)
    ops.fused_sgd_flat_(*a, **{**HYPER, "kappa": 0.0}, **KINDS["momentum"])
    b[4] = []
    ops.fused_sgd_flat_(*b, **HYPER, **KINDS["momentum"])
    for x, y in zip(a[0], b[0], strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("kind", KINDS)
def test_scalars_from_memory(device, kind):
    lists, args = inputs(torch.float32, device, kind)
    plain, scaled = clones(*args), clones(*args)
    for g in scaled[1]:
        g.mul_(8)
    ops.fused_sgd_flat_(*plain, **HYPER, **KINDS[kind])
    ops.fused_sgd_flat_(
        *scaled, **{**HYPER, "lr": 9.0, "kappa": 9.0}, **KINDS[kind],
        lr_tensor=torch.tensor(HYPER["lr"], dtype=torch.float64, device=device),
        kappa_tensor=lists.number(HYPER["kappa"]), grad_scale=lists.number(8.0), found_inf=lists.number(0.0),
    )  # fmt: skip
    for key in (0, 2, 3):
        for a, b in zip(plain[key], scaled[key], strict=True):
            assert torch.equal(a, b)


def test_an_overflow_changes_nothing_but_what_is_restored(device):
    lists, args = inputs(torch.float32, device, "momentum", step=3.0)
    run = clones(*args)
    ops.fused_sgd_flat_(*run, **HYPER, **KINDS["momentum"], found_inf=lists.number(1.0))
    for key in (1, 2, 3, 4, 5):
        for a, b in zip(run[key], args[key], strict=True):
            assert torch.equal(a, b)
    for a, b in zip(run[0], args[5], strict=True):
        assert torch.equal(a, b)


def test_stochastic_rounding_equals_the_reference(device):
    _, args = inputs(torch.bfloat16, device, "momentum")
    ours, theirs = clones(*args), clones(*args)
    keys = list(range(-4, 5))
    ops.fused_sgd_flat_(*ours, **HYPER, **KINDS["momentum"], rounding_keys=keys)
    reference.fused_sgd_flat_(*theirs, **HYPER, **KINDS["momentum"], rounding_keys=keys)
    differing = sum(int((a != b).sum()) for a, b in zip(ours[0], theirs[0], strict=True))
    assert differing <= sum(a.numel() for a in ours[0]) * 1e-4


def test_an_empty_list_is_fine():
    ops.fused_sgd_flat_([], [], **HYPER, **KINDS["plain"])


BAD = [
    (lambda a, k: a[1].pop(), "grads: expected one tensor for each of the 9 params, got 8"),
    (lambda a, k: a.__setitem__(2, []), "momentum_buffers: expected one tensor for each of the 9 params, got 0"),
    (lambda a, k: a.__setitem__(3, []), "state_steps: expected one tensor for each of the 9 params, got 0"),
    (lambda a, k: a[2].__setitem__(1, a[2][1].half()), r"momentum_buffers\[1\]: expected float32, got float16"),
    (lambda a, k: a[4].__setitem__(3, a[4][3].int()), r"flat_masks\[3\]: expected uint8 \(packed bits\), got int32"),
    (
        lambda a, k: k.update(nesterov=True),
        "nesterov: expected a momentum and zero dampening, got momentum 0.9 and dampening 0.25",
    ),
    (lambda a, k: k.update(rounding_keys=[1] * 9), "rounding_keys: stochastic rounding is for bfloat16 params"),
    (lambda a, k: k.update(lr_tensor=torch.ones(3)), "lr_tensor: expected one"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD, ids=[m[:40] for _, m in BAD])
def test_messages_and_no_tensor_changed(spoil, message):
    _, args = inputs(torch.float32, torch.device("cpu"), "momentum")
    before = clones(*args)
    kwargs = {**HYPER, **KINDS["momentum"]}
    given = [list(tensors) for tensors in args]
    spoil(given, kwargs)
    with pytest.raises(RuntimeError, match="torch_ire::fused_sgd_flat_: " + message):
        torch.ops.torch_ire.fused_sgd_flat_(*given, [], [], **kwargs)
    for tensors, originals in zip(args, before, strict=True):
        for a, b in zip(tensors, originals, strict=True):
            assert torch.equal(a, b)
