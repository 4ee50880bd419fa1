"""displacement_flat_: against the reference, and what must keep its bits."""

from __future__ import annotations

import pytest
import torch

from step_lists import Lists, clones
from tolerances import DTYPES, assert_within_ulps
from torch_ire import ops, reference
from torch_ire.packed_mask import unpack


def inputs(dtype, device):
    lists = Lists(dtype, device)
    return lists, [lists.normal(), lists.normal(), lists.masks()]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_equals_the_reference(device, dtype, decay):
    _, args = inputs(dtype, device)
    ours, theirs = clones(*args), clones(*args)
    ops.displacement_flat_(*ours, kappa=2.5, decay=decay)
    reference.displacement_flat_(*theirs, kappa=2.5, decay=decay)
    for a, b in zip(ours[0], theirs[0], strict=True):
        assert_within_ulps(a, b, 2, scale=torch.full_like(b, 8.0))
    for key in (1, 2):
        for a, b in zip(ours[key], args[key], strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sharp_coordinates_keep_their_bits(device, dtype):
    _, args = inputs(dtype, device)
    args[0][3][0, 0] = torch.nan
    run = clones(*args)
    ops.displacement_flat_(*run, kappa=1e6, decay=0.5)
    for new, old, mask in zip(run[0], args[0], args[2], strict=True):
        sharp = ~unpack(mask, old)
        torch.testing.assert_close(new[sharp], old[sharp], rtol=0, atol=0, equal_nan=True)


def test_no_displacement_no_change(device):
    _, args = inputs(torch.float32, device)
    run = clones(args[0], args[0], args[2])
    ops.displacement_flat_(*run, kappa=7.0)
    for a, b in zip(run[0], args[0], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("functions", [ops, reference])
def test_kappa_zero_keeps_the_bits_after_an_infinite_displacement(device, functions):
    _, args = inputs(torch.float32, device)
    args[0][3][0, 0], args[1][3][1, 1] = torch.inf, -torch.inf
    run = clones(*args)
    functions.displacement_flat_(*run, kappa=0.0)
    for a, b in zip(run[0], args[0], strict=True):
        assert torch.equal(a, b)


def test_kappa_from_memory(device):
    lists, args = inputs(torch.float32, device)
    a, b = clones(*args), clones(*args)
    ops.displacement_flat_(*a, kappa=3.0)
    ops.displacement_flat_(*b, kappa=0.0, kappa_tensor=lists.number(3.0))
    for x, y in zip(a[0], b[0], strict=True):
        assert torch.equal(x, y)


def test_an_empty_list_is_fine():
    ops.displacement_flat_([], [], [], kappa=1.0)


BAD = [
    (lambda a, k: a[1].pop(), "previous: expected one tensor for each of the 9 params, got 8"),
    (lambda a, k: a.__setitem__(2, []), "flat_masks: expected one tensor for each of the 9 params, got 0"),
    (lambda a, k: a[1].__setitem__(0, a[1][0].double()), r"previous\[0\]: expected float32, got float64"),
    (lambda a, k: k.update(kappa_tensor=torch.ones(3)), "kappa_tensor: expected one"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD, ids=[m[:40] for _, m in BAD])
def test_messages_and_no_tensor_changed(spoil, message):
    _, args = inputs(torch.float32, torch.device("cpu"))
    before = clones(*args)
    kwargs = {"kappa": 2.0}
    given = [list(tensors) for tensors in args]
    spoil(given, kwargs)
    with pytest.raises(RuntimeError, match="torch_ire::displacement_flat_: " + message):
        torch.ops.torch_ire.displacement_flat_(*given, **kwargs)
    for a, b in zip(args[0], before[0], strict=True):
        assert torch.equal(a, b)
