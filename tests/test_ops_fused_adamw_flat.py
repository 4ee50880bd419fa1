"""fused_adamw_flat_: against the reference, its exact special cases, and every message."""

from __future__ import annotations

import pytest
import torch

from step_lists import Lists, clones
from tolerances import DTYPES, assert_within_ulps
from torch_ire import ops, reference
from torch_ire.packed_mask import unpack

HYPER = {"lr": 0.03, "beta1": 0.8, "beta2": 0.9, "eps": 1e-4, "weight_decay": 0.3, "kappa": 2.5}


def inputs(dtype, device, step=4.0):
    lists = Lists(dtype, device)
    return lists, [
        lists.normal(), lists.normal(), lists.normal(lists.opmath), lists.squares(), lists.steps(step), lists.masks(),
        lists.normal(),
    ]  # fmt: skip


def compare(ours, theirs):
    for a, b in zip(ours[0], theirs[0], strict=True):
        assert_within_ulps(a, b, 2, scale=torch.full_like(b, 4.0))
    for key in (2, 3):
        for a, b in zip(ours[key], theirs[key], strict=True):
            assert_within_ulps(a, b, 2, scale=torch.full_like(b, 1.0))
    for key in (1, 4, 5, 6):
        for a, b in zip(ours[key], theirs[key], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("restored", [True, False])
@pytest.mark.parametrize("amplify_weight_decay", [True, False])
def test_equals_the_reference(device, dtype, masked, restored, amplify_weight_decay):
    _, args = inputs(dtype, device)
    if not masked:
        args[5] = []
    if not restored:
        args[6] = []
    ours, theirs = clones(*args), clones(*args)
    for _ in range(2):
        ops.fused_adamw_flat_(*ours, **HYPER, amplify_weight_decay=amplify_weight_decay, maximize=restored)
        reference.fused_adamw_flat_(*theirs, **HYPER, amplify_weight_decay=amplify_weight_decay, maximize=restored)
        compare(ours, theirs)
    assert float(ours[4][0]) == 6.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_mask_is_a_mask_of_zeros_and_kappa_zero_any_mask(device, dtype):
    _, args = inputs(dtype, device)
    args[6] = []
    zeros = [torch.zeros_like(m) for m in args[5]]
    runs = []
    for masks, kappa in (([], 2.5), (zeros, 2.5), (args[5], 0.0)):
        run = clones(*args)
        ops.fused_adamw_flat_(*run[:5], masks, [], **{**HYPER, "kappa": kappa})
        runs.append(run)
    for other in runs[1:]:
        for a, b in zip(runs[0][0], other[0], strict=True):
            assert torch.equal(a, b)


def test_an_all_flat_mask_is_a_larger_learning_rate(device):
    _, args = inputs(torch.float32, device)
    ones = [torch.full_like(m, 255) for m in args[5]]
    a, b = clones(*args), clones(*args)
    ops.fused_adamw_flat_(*a[:5], ones, [], **HYPER)
    ops.fused_adamw_flat_(*b[:5], [], [], **{**HYPER, "lr": HYPER["lr"] * 3.5, "kappa": 0.0})
    for x, y in zip(a[0], b[0], strict=True):
        assert_within_ulps(x, y, 2, scale=torch.full_like(y, 4.0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_scalars_from_memory(device, dtype):
    lists, args = inputs(dtype, device)
    plain, scaled = clones(*args), clones(*args)
    for g in scaled[1]:
        g.mul_(8)
    ops.fused_adamw_flat_(*plain, **HYPER)
    ops.fused_adamw_flat_(
        *scaled, **{**HYPER, "lr": 9.0, "kappa": 9.0},
        lr_tensor=torch.tensor(HYPER["lr"], dtype=torch.float64, device=device),
        kappa_tensor=lists.number(HYPER["kappa"]), grad_scale=lists.number(8.0), found_inf=lists.number(0.0),
    )  # fmt: skip
    for key in (0, 2, 3, 4):
        for a, b in zip(plain[key], scaled[key], strict=True):
            assert torch.equal(a, b)


def test_an_overflow_changes_nothing_but_what_is_restored(device):
    lists, args = inputs(torch.float32, device)
    run = clones(*args)
    ops.fused_adamw_flat_(*run, **HYPER, found_inf=lists.number(1.0))
    for key in (1, 2, 3, 4, 5, 6):
        for a, b in zip(run[key], args[key], strict=True):
            assert torch.equal(a, b)
    for a, b in zip(run[0], args[6], strict=True):
        assert torch.equal(a, b)
    run = clones(*args)
    ops.fused_adamw_flat_(*run[:6], [], **HYPER, found_inf=lists.number(2.0))
    for a, b in zip(run[0], args[0], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("functions", [ops, reference])
def test_an_infinite_kappa_leaves_sharp_coordinates_finite(device, functions):
    _, args = inputs(torch.float32, device)
    infinite, plain = clones(*args), clones(*args)
    functions.fused_adamw_flat_(*infinite, **{**HYPER, "kappa": torch.inf})
    functions.fused_adamw_flat_(*plain, **{**HYPER, "kappa": 0.0})
    for a, b, mask in zip(infinite[0], plain[0], args[5], strict=True):
        sharp = ~unpack(mask, b)
        assert torch.equal(a[sharp], b[sharp])


def test_nonfinite_gradients_pass_through(device):
    _, args = inputs(torch.float32, device)
    args[1][3][0, 0], args[1][3][0, 1] = torch.nan, torch.inf
    ours, theirs = clones(*args), clones(*args)
    ops.fused_adamw_flat_(*ours, **HYPER)
    reference.fused_adamw_flat_(*theirs, **HYPER)
    compare(ours, theirs)
    assert ours[0][3][0, :2].isnan().all()
    assert ours[0][3][1:].isfinite().all()


def test_stochastic_rounding_equals_the_reference_bit_for_bit(device):
    _, args = inputs(torch.bfloat16, device)
    keys = [3, -4, 5, 2**62, 7, 8, 9, 10, 11]
    ours, theirs, other = clones(*args), clones(*args), clones(*args)
    ops.fused_adamw_flat_(*ours, **HYPER, rounding_keys=keys)
    reference.fused_adamw_flat_(*theirs, **HYPER, rounding_keys=keys)
    ops.fused_adamw_flat_(*other, **HYPER, rounding_keys=[k + 1 for k in keys])
    differing = sum(int((a != b).sum()) for a, b in zip(ours[0], theirs[0], strict=True))
    total = sum(a.numel() for a in ours[0])
    assert differing <= total * 1e-4  # where a last bit of the float32 result crosses a rounding threshold
    assert sum(int((a != b).sum()) for a, b in zip(ours[0], other[0], strict=True)) > total / 10


def test_an_empty_list_is_fine():
    ops.fused_adamw_flat_([], [], [], [], [], **HYPER)


BAD = [
    (lambda a, k: a[1].pop(), "grads: expected one tensor for each of the 9 params, got 8"),
    (lambda a, k: a[2].__setitem__(1, a[2][1].double()), r"exp_avgs\[1\]: expected float32, got float64"),
    (lambda a, k: a[0].__setitem__(1, a[0][1].half()), r"params\[1\]: expected float32 as params\[0\], got float16"),
    (
        lambda a, k: a[0].__setitem__(0, a[0][0].int()),
        r"params\[0\]: expected float32, float64, bfloat16 or float16, got int32",
    ),
    (lambda a, k: a[0].__setitem__(0, a[0][0].cfloat()), r"params\[0\]: expected .*, got complex64"),
    (
        lambda a, k: a[1].__setitem__(3, a[1][3].contiguous()),
        r"grads\[3\]: expected shape \(7, 5\) and strides \(1, 7\) as params\[3\]",
    ),
    (lambda a, k: a[3].__setitem__(3, a[3][3].t()), r"exp_avg_sqs\[3\]: expected shape \(7, 5\) .*, got \(5, 7\)"),
    (lambda a, k: a[0].__setitem__(4, a[0][4][::2]), r"params\[4\]: expected a dense tensor \(no gaps, no overlaps\)"),
    (lambda a, k: a[0].__setitem__(4, a[0][4][:1].expand(5)), r"params\[4\]: expected a dense tensor"),
    (
        lambda a, k: a[4].__setitem__(2, torch.ones(2)),
        r"state_steps\[2\]: expected one number, got a tensor of shape \(2\)",
    ),
    (lambda a, k: a[4].__setitem__(2, torch.tensor(1)), r"state_steps\[2\]: expected float32, got int64"),
    (lambda a, k: a[4].pop(), "state_steps: expected one tensor for each"),
    (
        lambda a, k: a[5].__setitem__(3, a[5][3][:-1]),
        r"flat_masks\[3\]: expected 5 contiguous bytes for the 35 coordinates",
    ),
    (lambda a, k: a[5].__setitem__(3, a[5][3].bool()), r"flat_masks\[3\]: expected uint8 \(packed bits\), got bool"),
    (lambda a, k: a[6].pop(), "restore_from: expected one tensor for each"),
    (lambda a, k: k.update(grad_scale=torch.ones(2)), "grad_scale: expected one float32 or float64 number"),
    (lambda a, k: k.update(found_inf=torch.tensor(1)), "found_inf: expected one float32 or float64 number, got int64"),
    (lambda a, k: k.update(lr_tensor=torch.ones(3)), "lr_tensor: expected one"),
    (lambda a, k: k.update(kappa_tensor=torch.ones(3)), "kappa_tensor: expected one"),
    (
        lambda a, k: k.update(rounding_keys=[1] * 9),
        "rounding_keys: stochastic rounding is for bfloat16 params, got float32",
    ),
    (lambda a, k: k.update(rounding_keys=[1]), "rounding_keys: expected one key for each of the 9 params, got 1"),
    (lambda a, k: a[1].__setitem__(2, a[1][2].to("meta")), "expected all tensors on one device, got cpu, meta"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD, ids=[m[:40] for _, m in BAD])
def test_messages_and_no_tensor_changed(spoil, message):
    _, args = inputs(torch.float32, torch.device("cpu"))
    before = clones(*args)
    kwargs = dict(HYPER)
    given = [list(tensors) for tensors in args]
    spoil(given, kwargs)
    with pytest.raises(RuntimeError, match="torch_ire::fused_adamw_flat_: " + message):
        torch.ops.torch_ire.fused_adamw_flat_(*given, [], [], **kwargs)
    for tensors, originals in zip(args, before, strict=True):
        for a, b in zip(tensors, originals, strict=True):
            assert torch.equal(a, b)


def test_the_number_of_threads_does_not_matter():
    _, args = inputs(torch.float32, torch.device("cpu"))
    results = []
    threads = torch.get_num_threads()
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        run = clones(*args)
        ops.fused_adamw_flat_(*run, **HYPER)
        results.append(run[0])
    torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_a_sparse_tensor_is_refused_by_the_dispatcher():
    _, args = inputs(torch.float32, torch.device("cpu"))
    before = clones(*args)
    args[1][3] = args[1][3].contiguous().to_sparse()
    with pytest.raises(
        RuntimeError, match="Could not run 'torch_ire::fused_adamw_flat_' with arguments from the 'Sparse"
    ):
        ops.fused_adamw_flat_(*args, **HYPER)
    for a, b in zip(args[0], before[0], strict=True):
        assert torch.equal(a, b)
