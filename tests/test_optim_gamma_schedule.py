"""A share that is scheduled leaves one threshold per ranking, under names that stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import torch_ire
from every_optimizer import EVERY, Run, name_of

RANKINGS = {"global": 1, "group": 2, "parameter": 4}


def set_gamma(run: Run, *gammas: float) -> None:
    for group, gamma in zip(run.optimizer.param_groups, gammas, strict=True):
        group["gamma" if "gamma" in group else "ire_gamma"] = gamma


def refreshed(run: Run, number: int) -> dict[str, Any]:
    run.backward(number)
    run.handle.update_mask()
    run.train(range(number, number + 1))
    return run.handle.ire_summary()


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize("subject", EVERY, ids=name_of)
def test_a_gamma_schedule_keeps_one_threshold_per_ranking(subject, ranking):
    run = Run(subject, curvature="fisher", ranking=ranking, mask_interval=1)
    names: set[str] = set()
    for number in range(12):
        gamma = 0.2 + 0.05 * number
        set_gamma(run, gamma, gamma)
        summary = refreshed(run, number)
        assert len(summary["threshold"]) == RANKINGS[ranking], f"refresh {number}"
        assert summary["flat_share"] == pytest.approx(gamma, abs=0.04)
        names |= {name for name in torch_ire.scalars(run.handle) if name.startswith("ire/threshold")}
    assert len(names) == RANKINGS[ranking]


@pytest.mark.parametrize("subject", EVERY, ids=name_of)
def test_the_threshold_is_that_of_the_last_refresh(subject):
    """The k-th smallest squared gradient, for the present share."""
    run = Run(subject, curvature="fisher", mask_interval=1)
    for number, gamma in enumerate((0.9, 0.3, 0.6)):
        set_gamma(run, gamma, gamma)
        run.backward(number)
        scores = torch.cat([param.grad.flatten() for param in run.params]).square()
        expected = scores.kthvalue(round(gamma * scores.numel())).values.item()
        summary = refreshed(run, number)
        assert list(summary["threshold"].values()) == pytest.approx([expected], rel=1e-6)


@pytest.mark.parametrize("subject", EVERY, ids=name_of)
def test_two_schedules_in_one_ranking_keep_two_thresholds(subject):
    """Groups that share a ranking may differ in their share, cross, and differ again."""
    run = Run(subject, curvature="fisher", mask_interval=1)
    names: set[str] = set()
    for number in range(10):
        set_gamma(run, 0.1 + 0.08 * number, 0.9 - 0.08 * number)
        assert len(refreshed(run, number)["threshold"]) <= 2, f"refresh {number}"
        names |= {name for name in torch_ire.scalars(run.handle) if name.startswith("ire/threshold")}
    assert len(names) <= 3
