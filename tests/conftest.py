"""What all tests share: devices, threads, and the settings of hypothesis."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

import emulated_cuda
from ranks import Ranks
from torch_ire.ops import registration

# Before transformers is imported: no test asks a network for anything.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

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


@pytest.fixture(autouse=True)
def _process_without_lightning(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradient scalers unscale themselves in a process with Lightning, which the test of another module may import."""
    if "lightning" not in request.module.__name__:
        for name in ("lightning", "pytorch_lightning"):
            monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.fixture(scope="module", params=["cpu", "emulated"])
def host_implementation(request: pytest.FixtureRequest) -> Iterator[None]:
    """For modules whose tests make tensors of the CPU: each implementation of the operators that takes them."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "emulated":
            emulated_cuda.configure()
            patch.setattr(registration, "namespace", torch.ops.torch_ire_emulated)
        yield


@pytest.fixture(scope="session")
def rank_pools() -> Iterator[dict[tuple[int, str], Ranks]]:
    """The processes that have been started, by world size and backend; they serve all tests of a session."""
    pools: dict[tuple[int, str], Ranks] = {}
    yield pools
    for pool in pools.values():
        pool.stop()


@pytest.fixture(params=["gloo", pytest.param("nccl", marks=pytest.mark.gpu)])
def ranks(request: pytest.FixtureRequest, rank_pools: dict[tuple[int, str], Ranks]) -> Callable[[int], Ranks]:
    """``ranks(n)``: n processes that are one world, over each backend."""

    def of(world_size: int) -> Ranks:
        if request.param == "nccl" and torch.cuda.device_count() < world_size:
            pytest.skip(f"needs {world_size} CUDA devices, torch sees {torch.cuda.device_count()}")
        return rank_pools.setdefault((world_size, request.param), Ranks(world_size, request.param))

    return of


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, torch sees none"))
