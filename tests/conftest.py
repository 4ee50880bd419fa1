"""What all tests share: devices, threads, and the settings of hypothesis."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

import emulated_cuda
from torch_ire.ops import registration

# The same examples on every run and machine; `pytest --hypothesis-profile=thorough` searches for new ones.
settings.register_profile(
    "repeatable", derandomize=True, max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("thorough", max_examples=2000, deadline=None)
settings.load_profile("repeatable")

# Two, so that the parallel path is walked, and no more: on small tensors starting threads costs more than it saves.
if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(2)


@pytest.fixture(params=["cpu", "emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Each implementation of the native operators; "emulated" runs the CUDA kernels on CPU tensors."""
    if request.param != "emulated":
        return torch.device(request.param)
    emulated_cuda.configure()
    monkeypatch.setattr(registration, "namespace", torch.ops.torch_ire_emulated)
    return torch.device("cpu")


@pytest.fixture(scope="module", params=["cpu", "emulated"])
def host_implementation(request: pytest.FixtureRequest) -> Iterator[None]:
    """For modules whose tests make tensors of the CPU: each implementation of the operators that takes them."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "emulated":
            emulated_cuda.configure()
            patch.setattr(registration, "namespace", torch.ops.torch_ire_emulated)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, torch sees none"))
