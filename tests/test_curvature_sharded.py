"""The Hessian of a model sharded by FSDP2 or tensor parallelism."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from test_sharded_models import batch, full, model_of, sharded
from torch_ire.curvature import FlatProjector, GaussNewtonOperator, HessianOperator, lanczos


def eigenvalues_of_sharded(device: torch.device, way: str) -> dict[str, torch.Tensor]:
    whole = model_of(device).double()
    spread, rank, parts = sharded(copy.deepcopy(whole), way, device)
    x, y = batch(0, 0, 1, device)
    mine, labels = batch(0, rank, parts, device)
    for p in spread.parameters():
        p.grad = torch.full_like(p, 3.0)
    before = [full(p).clone() for p in spread.parameters()]
    H = HessianOperator(lambda: F.cross_entropy(spread(mine.double()), labels), spread.parameters())
    assert H.method == "finite_difference"
    exact = HessianOperator(lambda: F.cross_entropy(whole(x.double()), y), whole.parameters())
    vector = torch.randn(H.size, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).to(device)
    found = {"product": H.matvec(vector), "product of one process": exact.matvec(vector)}
    top = lanczos(H, 3, tol=1e-4, progress=False)
    found |= {"values": top.ritz_values, "values of one process": lanczos(exact, 3, tol=1e-4).ritz_values}
    projector = FlatProjector.from_operator(H, 2, tol=1e-3, progress=False)
    found |= {"projected": projector(vector)}
    for p, value in zip(spread.parameters(), before, strict=True):
        assert torch.equal(full(p), value)
        assert torch.equal(full(p.grad), torch.full_like(value, 3.0))
    for refused in (
        lambda: HessianOperator(lambda: spread(mine.double()).sum(), spread.parameters(), method="reverse"),
        lambda: GaussNewtonOperator(lambda: (spread(mine.double()), None), spread.parameters()),
    ):
        with pytest.raises(ValueError, match="sharded"):
            refused()
    return found


@pytest.mark.parametrize("way", ["fsdp", "tensor"])
def test_products_are_those_of_one_process_and_the_same_on_every_rank(ranks, way):
    found = ranks(2).run(eigenvalues_of_sharded, way)
    for key in found[0]:
        assert torch.equal(found[0][key], found[1][key]), key
    torch.testing.assert_close(found[0]["product"], found[0]["product of one process"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0]["values"], found[0]["values of one process"], rtol=1e-3, atol=0)
