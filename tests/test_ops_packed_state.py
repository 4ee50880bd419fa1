"""Packed state: the step operators on one tensor per kind of state do what they do on one per parameter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import cases
from step_lists import Lists, clones
from tolerances import DTYPES
from torch_ire import ops, reference
from torch_ire.packed_state import packed_mask_views, packed_numel, packed_views

SCALARS: dict[str, dict[str, Any]] = {
    "fused_adamw_flat_": {"lr": 0.03, "beta1": 0.8, "beta2": 0.9, "eps": 1e-4, "weight_decay": 0.3, "kappa": 2.5},
    "fused_sgd_flat_": {
        "lr": 0.2, "momentum": 0.9, "dampening": 0.25, "weight_decay": 0.3, "nesterov": False, "kappa": 2.5,
    },
}  # fmt: skip
KEYS = [3, -4, 5, 2**62, 7, 8, 9, 10, 11]
HALF = (torch.bfloat16, torch.float16)
ROUNDINGS = [("nearest", dtype) for dtype in DTYPES]
ROUNDINGS += [(kept, dtype) for kept in ("kahan", "master") for dtype in HALF]
ROUNDINGS += [("stochastic", torch.bfloat16)]


def state_names(operator: str) -> list[str]:
    arguments = getattr(torch.ops.torch_ire, operator).default._schema.arguments
    lists = [a.name for a in arguments if not a.kwarg_only]
    return [name for name in lists if name not in ("params", "grads", "restore_from")]


def unpacked(operator: str, dtype: torch.dtype, device: torch.device, rounding: str = "nearest") -> dict[str, Any]:
    """The lists of one call by name, with a backup to start from."""
    lists = Lists(dtype, device)
    args = {"params": lists.normal(), "grads": lists.normal(), "restore_from": lists.normal()}
    state = {
        "exp_avgs": lists.normal(lists.opmath),
        "exp_avg_sqs": lists.squares(),
        "momentum_buffers": lists.normal(lists.opmath),
        "state_steps": lists.steps(4.0),
        "flat_masks": lists.masks(),
        "compensations": [p * 1e-3 for p in lists.normal()] if rounding == "kahan" else [],
        "master_params": [p.float() for p in args["params"]] if rounding == "master" else [],
    }
    return {**args, **{name: state[name] for name in state_names(operator)}}


def segments_of(name: str, flat: Tensor, params: list[Tensor]) -> list[Tensor]:
    if name == "state_steps":
        return list(flat.unbind())
    return packed_mask_views(flat, params) if name == "flat_masks" else packed_views(flat, params)


def packed(operator: str, args: dict[str, Any]) -> dict[str, Any]:
    """The same call with packed state; the padding is full of ones, which must not matter."""
    params = args["params"]
    result = {name: clones(args[name])[0] for name in ("params", "grads", "restore_from")}
    for name in state_names(operator):
        result[name] = []
        if args[name]:
            like = args[name][0]
            numels = [t.numel() for t in args[name]]
            length = len(params) if name == "state_steps" else packed_numel(numels, like.element_size())
            flat = torch.ones(length, dtype=like.dtype, device=like.device)
            for view, tensor in zip(segments_of(name, flat, params), args[name], strict=True):
                view.copy_(tensor)
            result[name] = [flat]
    return result


def assert_same_bits(ours: dict[str, Any], theirs: dict[str, Any], operator: str) -> None:
    """``ours`` packed, ``theirs`` not."""
    for name in theirs:
        tensors = ours[name]
        if name in state_names(operator) and tensors:
            tensors = segments_of(name, tensors[0], theirs["params"])
        for a, b in zip(tensors, theirs[name], strict=True):
            assert torch.equal(a, b), name


@pytest.mark.parametrize("operator", SCALARS)
@pytest.mark.parametrize(("rounding", "dtype"), ROUNDINGS)
@pytest.mark.parametrize("restored", [True, False])
def test_packed_equals_unpacked_bit_for_bit(device, operator, rounding, dtype, restored):
    theirs = unpacked(operator, dtype, device, rounding)
    if not restored:
        theirs["restore_from"] = []
    ours = packed(operator, theirs)
    padding = {name: ours[name][0].clone() for name in state_names(operator) if ours[name]}
    scalars = {**SCALARS[operator], "rounding_keys": KEYS if rounding == "stochastic" else []}
    for _ in range(2):
        getattr(ops, operator)(**ours, **scalars, packed=True)
        getattr(ops, operator)(**theirs, **scalars)
        assert_same_bits(ours, theirs, operator)
    for name, before in padding.items():
        for flat in (ours[name][0], before):
            for view in segments_of(name, flat, theirs["params"]):
                view.zero_()
        assert torch.equal(ours[name][0], before), f"{name}: padding was written"


@pytest.mark.parametrize("operator", SCALARS)
@pytest.mark.parametrize(("rounding", "dtype"), ROUNDINGS)
def test_the_reference_takes_packed_state_too(operator, rounding, dtype):
    theirs = unpacked(operator, dtype, torch.device("cpu"), rounding)
    ours = packed(operator, theirs)
    scalars = {**SCALARS[operator], "rounding_keys": KEYS if rounding == "stochastic" else []}
    getattr(reference, operator)(**ours, **scalars, packed=True)
    getattr(reference, operator)(**theirs, **scalars)
    assert_same_bits(ours, theirs, operator)


def test_sgd_without_momentum_and_counters(device):
    theirs = unpacked("fused_sgd_flat_", torch.float32, device)
    theirs.update(momentum_buffers=[], state_steps=[], flat_masks=[])
    ours = packed("fused_sgd_flat_", theirs)
    scalars = {**SCALARS["fused_sgd_flat_"], "momentum": 0.0}
    ops.fused_sgd_flat_(**ours, **scalars, packed=True)
    ops.fused_sgd_flat_(**theirs, **scalars)
    assert_same_bits(ours, theirs, "fused_sgd_flat_")


@pytest.mark.parametrize("operator", SCALARS)
def test_parameters_that_are_all_empty(device, operator):
    """Packed tensors have no element then, and no address."""
    theirs = {name: [] for name in unpacked(operator, torch.float32, device)}
    for name in ("params", "grads", *state_names(operator)[:-2]):
        theirs[name] = [torch.zeros(0, device=device), torch.zeros(0, 3, device=device)]
    theirs["state_steps"] = [torch.zeros((), device=device) for _ in range(2)]
    theirs["flat_masks"] = [torch.zeros(0, dtype=torch.uint8, device=device) for _ in range(2)]
    ours = packed(operator, theirs)
    getattr(ops, operator)(**ours, **SCALARS[operator], packed=True)
    assert torch.equal(ours["state_steps"][0], torch.ones(2, device=device))


@pytest.mark.parametrize("operator", SCALARS)
def test_an_overflow_changes_nothing_but_what_is_restored(device, operator):
    theirs = unpacked(operator, torch.float32, device)
    ours = packed(operator, theirs)
    found_inf = torch.ones((), device=device)
    getattr(ops, operator)(**ours, **SCALARS[operator], found_inf=found_inf, packed=True)
    theirs["params"] = theirs["restore_from"]
    assert_same_bits(ours, theirs, operator)


@pytest.mark.parametrize("operator", SCALARS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(operator, dtype):
    lists, scalars = cases.OPERATORS[operator](cases.Sample(dtype, torch.device("cpu")))
    overload = getattr(torch.ops.torch_ire, operator).default
    names = [a.name for a in overload._schema.arguments if not a.kwarg_only]
    args = packed(operator, dict(zip(names, lists, strict=True)))
    opcheck(overload, tuple(args[name] for name in names), {**scalars, "packed": True})


def test_version_counters_of_packed_tensors_advance():
    args = packed("fused_adamw_flat_", unpacked("fused_adamw_flat_", torch.float32, torch.device("cpu")))
    before = {name: [t._version for t in tensors] for name, tensors in args.items()}
    ops.fused_adamw_flat_(**args, **SCALARS["fused_adamw_flat_"], packed=True)
    written = {name for name in args if [t._version for t in args[name]] != before[name]}
    assert written == {"params", "exp_avgs", "exp_avg_sqs", "state_steps"}


# of step_lists.SHAPES, padding included
FLOATS = 16 + 16 + 48 + 8192 + 8192 + 8208 + 24592 + 96
MASK_BYTES = 64 + 64 + 64 + 1024 + 1024 + 1088 + 3136 + 64
BAD = [
    (lambda a: a["exp_avgs"].append(a["exp_avgs"][0]), "exp_avgs: expected one packed tensor for the 9 params, got 2"),
    (lambda a: a["exp_avgs"].pop(), "exp_avgs: expected one packed tensor for the 9 params, got 0"),
    (lambda a: a["state_steps"].pop(), "state_steps: expected one packed tensor for the 9 params, got 0"),
    (
        lambda a: a.update(exp_avg_sqs=[a["exp_avg_sqs"][0][:-1]]),
        rf"exp_avg_sqs\[0\]: expected {FLOATS} contiguous elements for the 9 params, got shape \({FLOATS - 1}\)",
    ),
    (
        lambda a: a.update(exp_avg_sqs=[a["exp_avg_sqs"][0].view(-1, 1)]),
        rf"exp_avg_sqs\[0\]: expected {FLOATS} contiguous elements for the 9 params, got shape \({FLOATS}, 1\)",
    ),
    (
        lambda a: a.update(exp_avgs=[a["exp_avgs"][0].repeat(2)[::2]]),
        rf"exp_avgs\[0\]: expected {FLOATS} contiguous elements .*, got shape \({FLOATS}\) with strides \(2\)",
    ),
    (lambda a: a.update(exp_avgs=[a["exp_avgs"][0].double()]), r"exp_avgs\[0\]: expected float32, got float64"),
    (
        lambda a: a.update(flat_masks=[a["flat_masks"][0][1:]]),
        rf"flat_masks\[0\]: expected {MASK_BYTES} contiguous elements .*, got shape \({MASK_BYTES - 1}\)",
    ),
    (lambda a: a.update(flat_masks=[a["flat_masks"][0].bool()]), r"flat_masks\[0\]: expected uint8, got bool"),
    (
        lambda a: a.update(state_steps=[torch.zeros(16, device=a["params"][0].device)]),
        r"state_steps\[0\]: expected 9 contiguous elements for the 9 params, got shape \(16\)",
    ),
    (lambda a: a.update(state_steps=[a["state_steps"][0].long()]), r"state_steps\[0\]: expected float32, got int64"),
    (
        lambda a: a.update(compensations=[a["exp_avgs"][0][:4]]),
        rf"compensations\[0\]: expected {FLOATS} contiguous elements",
    ),
    (
        lambda a: a.update(master_params=[a["exp_avgs"][0]]),
        "master_params: expected none for params of float32",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), BAD, ids=[m[:60] for _, m in BAD])
def test_messages_and_no_tensor_changed(device, spoil, message):
    args = packed("fused_adamw_flat_", unpacked("fused_adamw_flat_", torch.float32, device))
    before = {name: clones(tensors)[0] for name, tensors in args.items()}
    given = {name: list(tensors) for name, tensors in args.items()}
    spoil(given)
    with pytest.raises(RuntimeError, match="torch_ire::fused_adamw_flat_: " + message):
        ops.fused_adamw_flat_(**given, **SCALARS["fused_adamw_flat_"], packed=True)
    for name, tensors in args.items():
        for a, b in zip(tensors, before[name], strict=True):
            assert torch.equal(a, b), name
