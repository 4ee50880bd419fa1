"""sam_perturb_: against the reference, and what a bad norm does."""

from __future__ import annotations

import pytest
import torch

from step_lists import Lists, clones
from tolerances import DTYPES, assert_within_ulps
from torch_ire import ops, reference


def inputs(dtype, device):
    lists = Lists(dtype, device)
    return lists, [lists.normal(), lists.normal(), lists.normal()]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("adaptive", [False, True])
def test_equals_the_reference(device, dtype, adaptive):
    lists, args = inputs(dtype, device)
    ours, theirs = clones(*args), clones(*args)
    ops.sam_perturb_(*ours, lists.number(3.0), rho=0.5, adaptive=adaptive)
    reference.sam_perturb_(*theirs, lists.number(3.0), rho=0.5, adaptive=adaptive)
    for a, b in zip(ours[0], theirs[0], strict=True):
        assert_within_ulps(a, b, 2, scale=torch.full_like(b, 8.0))
    for backup, theta in zip(ours[2], args[0], strict=True):
        assert torch.equal(backup, theta)
    for a, b in zip(ours[1], args[1], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("norm", [torch.nan, torch.inf])
def test_a_bad_norm_moves_nothing(device, norm):
    lists, args = inputs(torch.float32, device)
    args[1][3][0, 0] = norm
    run = clones(*args)
    ops.sam_perturb_(*run, lists.number(norm), rho=0.5)
    for theta, backup, before in zip(run[0], run[2], args[0], strict=True):
        assert torch.equal(theta, before)
        assert torch.equal(backup, before)


def test_a_zero_gradient_moves_nothing(device):
    lists, args = inputs(torch.float32, device)
    for g in args[1]:
        g.zero_()
    run = clones(*args)
    ops.sam_perturb_(*run, lists.number(0.0), rho=0.5)
    for theta, before in zip(run[0], args[0], strict=True):
        assert torch.equal(theta, before)


def test_an_empty_list_is_fine():
    ops.sam_perturb_([], [], [], torch.tensor(1.0), rho=1.0)


BAD = [
    (lambda a: a[1].pop(), "grads: expected one tensor for each of the 9 params, got 8"),
    (lambda a: a[2].pop(), "backups: expected one tensor for each of the 9 params, got 8"),
    (lambda a: a[2].__setitem__(0, a[2][0].double()), r"backups\[0\]: expected float32, got float64"),
    (lambda a: a.__setitem__(3, torch.ones(2)), "norm: expected one float32 or float64 number"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD, ids=[m[:40] for _, m in BAD])
def test_messages_and_no_tensor_changed(spoil, message):
    lists, args = inputs(torch.float32, torch.device("cpu"))
    before = clones(*args)
    given = [*(list(tensors) for tensors in args), lists.number(1.0)]
    spoil(given)
    with pytest.raises(RuntimeError, match="torch_ire::sam_perturb_: " + message):
        torch.ops.torch_ire.sam_perturb_(*given, rho=0.5)
    for tensors, originals in zip(args, before, strict=True):
        for a, b in zip(tensors, originals, strict=True):
            assert torch.equal(a, b)
