"""Scopes that leave no trace: nested, interleaved over threads, and left by an exception."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from torch_ire.curvature.preserve_state import frozen_buffers, math_attention


def settings():
    backends = torch.backends.cuda
    return (
        backends.flash_sdp_enabled(),
        backends.mem_efficient_sdp_enabled(),
        backends.math_sdp_enabled(),
        backends.cudnn_sdp_enabled(),
    )


MATH_ALONE = (False, False, True, False)


def test_interleaved_threads_restore_the_attention_settings():
    before, during = settings(), []
    first_left, second_entered = threading.Event(), threading.Event()

    def second():
        with math_attention():
            second_entered.set()
            first_left.wait(10)
            during.append(settings())

    thread = threading.Thread(target=second)
    with math_attention():
        thread.start()
        assert second_entered.wait(10)
    first_left.set()
    thread.join(10)
    assert during == [MATH_ALONE]
    assert settings() == before


def test_nested_scopes_and_an_exception_restore_the_attention_settings():
    before = settings()

    def interrupted():
        with math_attention():
            with math_attention():
                pass
            assert settings() == MATH_ALONE
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert settings() == before


def test_batch_norm_of_another_thread_keeps_its_statistics():
    ours, theirs = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

    def train():
        theirs(torch.full((4, 3), 2.0))

    with frozen_buffers():
        ours(torch.full((4, 3), 2.0))
        thread = threading.Thread(target=train)
        thread.start()
        thread.join(10)
    torch.testing.assert_close(theirs.running_mean, torch.full((3,), 0.2))
    assert torch.equal(ours.running_mean, torch.zeros(3))


def test_submodules_that_a_module_runs_in_threads_are_frozen():
    class InThreads(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            thread = threading.Thread(target=self.norm, args=(x,))
            thread.start()
            thread.join(10)

    model = InThreads()
    with frozen_buffers():
        model(torch.full((4, 3), 2.0))
    assert torch.equal(model.norm.running_mean, torch.zeros(3))
    assert int(model.norm.num_batches_tracked) == 0
