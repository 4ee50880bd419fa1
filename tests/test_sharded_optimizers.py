"""Sharded parameters: every rank's masks, parameters and state are shards of what one process gets, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import torch_ire
from optimizer_cases import CASES, IDS
from torch_ire.packed_mask import unpack

# a matrix, one with fewer rows than ranks, a vector, one element, no element, and one with a dimension too many
SHAPES = ((13, 6), (2, 9), (11,), (1,), (0, 3), (5, 4, 3))
CASE = dict(zip(IDS, CASES, strict=True))


def meshes(device: torch.device) -> dict[str, Any]:
    """Ways to spread a parameter over all ranks: a mesh and placements by name; None leaves it plain."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    line = init_device_mesh(device.type, (dist.get_world_size(),))
    ways = {"plain": None, "rows": (line, [Shard(0)]), "whole": (line, [Replicate()])}
    ways["last"] = (line, [Shard(-1)])
    if dist.get_world_size() == 4:
        square = init_device_mesh(device.type, (2, 2), mesh_dim_names=("data", "model"))
        ways |= {
            "hybrid": (square, [Replicate(), Shard(0)]),
            "rows of columns": (square, [Shard(0), Shard(-1)]),
            "rows of rows": (square, [Shard(0), Shard(0)]),
            "rows of tensor parallel rows": (square, [_StridedShard(0, split_factor=2), Shard(0)]),
            "columns": (square, [Replicate(), Shard(-1)]),
        }
    return ways


def spread_out(full: Tensor, way: Any) -> Tensor:
    """The rank's part of a tensor that every rank has; a strided shard of two-dimensional parallelism by hand."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if way is None:
        return full.clone()
    mesh, placements = way
    placements = [type(p)(full.dim() - 1) if getattr(p, "dim", 0) == -1 else p for p in placements]
    if type(placements[0]).__name__ != "_StridedShard":
        return distribute_tensor(full.clone(), mesh, placements)
    inner = full.chunk(mesh.size(1))  # as parallelize_module does, and fully_shard inside of it
    mine = inner[mesh.get_local_rank(1)] if mesh.get_local_rank(1) < len(inner) else full[:0]
    outer = mine.chunk(mesh.size(0))
    mine = outer[mesh.get_local_rank(0)] if mesh.get_local_rank(0) < len(outer) else full[:0]
    return DTensor.from_local(
        mine.clone(), mesh, placements, run_check=False, shape=full.shape, stride=full.contiguous().stride()
    )


def gathered(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(12345.0), b.nan_to_num(12345.0))


class Twins:
    """The same parameters twice: spread out over the ranks, and whole as in one process."""

    def __init__(self, device: torch.device, names: list[str], dtype: torch.dtype = torch.float32) -> None:
        self.generator = torch.Generator().manual_seed(3)
        self.device, self.dtype = device, dtype
        ways = meshes(device)
        self.ways = [ways[names[i % len(names)]] for i in range(2 * len(SHAPES))]
        fulls = [self.random(shape) for shape in SHAPES * 2]
        self.whole = [torch.nn.Parameter(full.clone()) for full in fulls]
        self.parts = [torch.nn.Parameter(spread_out(full, way)) for full, way in zip(fulls, self.ways, strict=True)]

    def random(self, shape: tuple[int, ...]) -> Tensor:
        # rounded, so that a ranking has ties
        values = (torch.randn(shape, generator=self.generator, dtype=torch.float64) * 16).round() / 16
        return values.to(self.device, self.dtype)

    def groups(self, params: list[Tensor], **second: Any) -> list[dict[str, Any]]:
        half = len(SHAPES)
        return [{"params": params[:half]}, {"params": params[half:], **second}]

    def new_gradients(self, without: int | None = None) -> None:
        for i, (whole, part, way) in enumerate(zip(self.whole, self.parts, self.ways, strict=True)):
            grad = self.random(tuple(whole.shape))
            if grad.numel() > 3:
                grad.flatten()[3] = torch.nan if grad.numel() > 20 else torch.inf
            whole.grad = None if i == without else grad
            part.grad = None if i == without else spread_out(grad, way)

    def drop_non_finite(self) -> None:
        for param in self.whole + self.parts:
            if param.grad is not None:
                param.grad = param.grad.nan_to_num(0.5, 0.5, 0.5)


def assert_same(twins: Twins, ours: Any, theirs: Any) -> None:
    """Parameters, state in memory and state dicts, of the spread out and of the whole optimizer, to the bit."""
    ours_dict, theirs_dict = ours.state_dict(), theirs.state_dict()
    assert ours_dict["state"].keys() == theirs_dict["state"].keys()
    for i, (part, whole) in enumerate(zip(twins.parts, twins.whole, strict=True)):
        assert same_bits(gathered(part.detach()), whole.detach()), f"parameter {i}"
        if i not in theirs_dict["state"]:
            continue
        entry, expected = ours_dict["state"][i], theirs_dict["state"][i]
        assert entry.keys() == expected.keys()
        for key, value in entry.items():
            assert same_bits(gathered(value), expected[key]), f"parameter {i}: {key}"
            if key not in ("step", "hessian_diag_updates") and hasattr(part, "placements"):
                assert (value.shape, value.placements, value.device_mesh) == (
                    part.shape,
                    part.placements,
                    part.device_mesh,
                )
        mask = ours.state[part].get("flat_mask")
        if mask is not None:
            local = part.detach().to_local() if hasattr(part, "to_local") else part.detach()
            assert mask.shape == (-(-local.numel() // 8),)
            flags = entry["flat_mask"]
            flags = flags.to_local() if hasattr(flags, "to_local") else flags
            assert torch.equal(unpack(mask, local), flags)


def make(twins: Twins, name: str, curvature: str, **arguments: Any) -> tuple[Any, Any]:
    arguments = {"kappa": 2.0, "gamma": 0.6, "mask_interval": 2, "curvature": curvature, **arguments}
    second = arguments.pop("second", {})
    return tuple(CASE[name](twins.groups(params, **second), **arguments) for params in (twins.parts, twins.whole))


def train(twins: Twins, pair: tuple[Any, Any], steps: int, without: int | None = None) -> None:
    for _ in range(steps):
        if pair[0].mask_due():
            assert pair[1].mask_due()
            twins.new_gradients(without)
            for optimizer in pair:
                optimizer.update_mask()
        twins.new_gradients(without)
        twins.drop_non_finite()
        for optimizer in pair:
            if isinstance(optimizer, torch_ire.SAMIRE):
                optimizer.first_step()
        for optimizer in pair:
            optimizer.step()
            optimizer.zero_grad()


def equals_one_process(
    device: torch.device, name: str, names: list[str], curvature: str, arguments: dict[str, Any]
) -> list[bool]:
    twins = Twins(device, names)
    pair = make(twins, name, curvature, **arguments)
    train(twins, pair, 5)
    assert_same(twins, *pair)
    thresholds = [optimizer._masks.thresholds for optimizer in pair]
    assert thresholds[0].keys() == thresholds[1].keys()
    for key, value in thresholds[0].items():
        assert same_bits(value, thresholds[1][key].to(value.dtype)), key
    whole = pair[1].ire_summary()
    summary = pair[0].ire_summary(over_mesh=True)
    assert summary["flat_share"] == whole["flat_share"] > 0
    assert summary["flat_share_by_parameter"] == whole["flat_share_by_parameter"]
    return [bool(lengths) for plan in pair[0]._plan._plans.values() for lengths in plan.packed]


@pytest.mark.parametrize("curvature", ["fisher", "random"])
@pytest.mark.parametrize("case", IDS)
def test_every_optimizer_over_two_ranks(ranks, case, curvature):
    names = ["rows", "plain", "last", "whole", "rows"]
    for whole_groups in ranks(2).run(equals_one_process, case, names, curvature, {}):
        assert SAM_OR_NOT[case] or whole_groups == [True, True]  # one call a group, as for plain parameters


SAM_OR_NOT = {case: "SAM" in case for case in IDS}


@pytest.mark.parametrize(
    "names",
    [
        ["rows"],
        ["hybrid", "plain"],
        ["rows of columns"],
        ["rows of rows", "columns"],
        ["rows of tensor parallel rows"],
        ["rows", "hybrid", "plain", "rows of columns", "columns", "whole", "last"],
    ],
    ids=lambda names: ", ".join(names),
)
@pytest.mark.parametrize("curvature", ["fisher", "second_moment", "random"])
def test_every_way_to_shard_over_four_ranks(ranks, names, curvature):
    ranks(4).run(equals_one_process, "AdmIRE", names, curvature, {})


@pytest.mark.parametrize("ranking", ["parameter", "group"])
def test_rankings(ranks, ranking):
    names = ["rows", "plain", "rows of columns"]
    ranks(4).run(equals_one_process, "SGDIRE", names, "fisher", {"ranking": ranking, "curvature_beta": 0.5})


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_extreme_shares_and_groups_that_differ(ranks, gamma):
    arguments = {"second": {"gamma": gamma, "mask_interval": 4}}
    ranks(2).run(equals_one_process_with_zeros, "SGDIRE-plain", ["rows", "last"], "fisher", arguments)


def equals_one_process_with_zeros(
    device: torch.device, name: str, names: list[str], curvature: str, arguments: dict[str, Any]
) -> None:
    twins = Twins(device, names)
    pair = make(twins, name, curvature, **arguments)
    train(twins, pair, 5)
    assert_same(twins, *pair)


def low_precision(device: torch.device, name: str, rounding: str) -> list[list[float]]:
    twins = Twins(device, ["hybrid", "rows of columns", "plain", "rows"], torch.bfloat16)
    pair = make(twins, name, "fisher", rounding=rounding)
    train(twins, pair, 5)
    pair[0].check_replicas()
    if rounding != "stochastic":  # which draws by shard
        assert_same(twins, *pair)
    return [gathered(part.detach()).double().flatten().tolist() for part in twins.parts]


@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "kahan", "master"])
@pytest.mark.parametrize("case", ["AdmIRE", "SAMIRE-sgd"])
def test_rounding_over_shards(ranks, case, rounding):
    results = ranks(4).run(low_precision, case, rounding)
    assert all(result == results[0] for result in results)
    if rounding == "stochastic":
        assert results[0] != ranks(4).run(low_precision, case, "nearest")[0]


def loads_what_it_saved(device: torch.device, name: str) -> None:
    """A state dict of shards, of whole tensors, and of other shards: all load, and training goes on as it would."""
    ways = meshes(device)
    twins = Twins(device, ["rows", "plain", "last", "whole"])
    pair = make(twins, name, "fisher", curvature_beta=0.5)
    train(twins, pair, 3)
    for saved in (pair[0].state_dict(), pair[1].state_dict(), resharded(pair[1].state_dict(), ways["last"])):
        fresh = make(twins, name, "fisher", curvature_beta=0.5, kappa=0.5)
        fresh[0].load_state_dict(saved)
        fresh[1].load_state_dict(pair[1].state_dict())
        assert_same(twins, *fresh)
    train(twins, fresh, 3)
    assert_same(twins, *fresh)


def resharded(state_dict: dict[str, Any], way: Any) -> dict[str, Any]:
    state = {
        i: {k: spread_out(v, way) if v.dim() > 0 else v for k, v in entry.items()}
        for i, entry in state_dict["state"].items()
    }
    return {**state_dict, "state": state}


@pytest.mark.parametrize("case", ["AdmIRE", "SGDIRE", "SAMIRE-adamw"])
def test_state_dicts(ranks, case):
    ranks(2).run(loads_what_it_saved, case)


def keeps_what_rounding_takes(device: torch.device, rounding: str, key: str) -> None:
    twins = Twins(device, ["rows", "plain", "last", "whole"], torch.bfloat16)
    pair = make(twins, "AdmIRE", "fisher", rounding=rounding)
    train(twins, pair, 4)
    assert_same(twins, *pair)
    assert all(key in pair[0].state[param] for param in twins.parts)


@pytest.mark.parametrize(("rounding", "key"), [("kahan", "compensation"), ("master", "master_param")])
def test_low_precision(ranks, rounding, key):
    ranks(2).run(keeps_what_rounding_takes, rounding, key)
