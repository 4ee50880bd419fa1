"""Lists of more than 2³¹ elements: one tensor many times over, so that they need no memory."""

from __future__ import annotations

import pytest
import torch

from torch_ire import ops

COPIES = 129


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def tensor(request) -> torch.Tensor:
    return torch.randn(2**24, generator=torch.Generator().manual_seed(0)).to(request.param)


def test_selection_counts_beyond_31_bits(tensor):
    n = COPIES * tensor.numel()
    assert n > 2**31
    ordered = tensor.abs().sort().values
    for k in (1, round(0.8 * n), n):
        assert ops.kth_value([tensor] * COPIES, k, score="abs") == ordered[(k - 1) // COPIES]


def test_histogram_counts_beyond_31_bits(tensor):
    prefix = torch.zeros((), dtype=torch.int64, device=tensor.device)
    once = ops.score_histogram([tensor], prefix, shift=22, score="abs")
    assert torch.equal(ops.score_histogram([tensor] * COPIES, prefix, shift=22, score="abs"), COPIES * once)


def test_norm_over_more_than_31_bits(tensor):
    expected = (COPIES * tensor.double().square().sum()).sqrt()
    torch.testing.assert_close(ops.global_norm([tensor] * COPIES, []).double(), expected, rtol=1e-6, atol=0.0)
