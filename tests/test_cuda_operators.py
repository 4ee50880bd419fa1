"""The CUDA kernels against the CPU kernels, over what differs: chunks, alignment, launches, block sizes, schedules.

On the emulation both compute the same arithmetic in the same order for every coordinate, so they agree to the bit; on a
GPU, which fuses multiplications with additions, to a few units in the last place. What the operators compute at all is
tested in test_ops_*.py, on every device.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import emulated_cuda
from tolerances import DTYPES, assert_within_ulps, opmath_dtype
from torch_ire.packed_mask import num_bytes

Call = tuple[tuple[Any, ...], dict[str, Any]]

CHUNK = 8192  # kStreamChunk of csrc/kernels/tuning.h
SIZES = (0, 1, 7, 9, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 37)
MANY = (3,) * 900  # more tensors than fit into the parameters of one launch
DEVICES = ["emulated", pytest.param("cuda", marks=pytest.mark.gpu)]


class Lists:
    """Lists of tensors for one call, at aligned addresses or cut out of a larger tensor, at misaligned ones."""

    def __init__(self, sizes: tuple[int, ...], dtype: torch.dtype, offset: int = 0) -> None:
        self.sizes, self.dtype, self.offset = sizes, dtype, offset
        self.opmath = opmath_dtype(dtype)
        self.generator = torch.Generator().manual_seed(1)

    def placed(self, values: Tensor) -> Tensor:
        storage = torch.zeros(values.numel() + self.offset, dtype=values.dtype)
        view = storage[self.offset :]
        view.copy_(values)
        return view

    def normal(self, dtype: torch.dtype | None = None) -> list[Tensor]:
        dtype = dtype or self.dtype
        return [
            self.placed(torch.randn(n, generator=self.generator, dtype=torch.float64).to(dtype)) for n in self.sizes
        ]

    def squares(self) -> list[Tensor]:
        return [self.placed(x.square()) for x in self.normal(self.opmath)]

    def masks(self) -> list[Tensor]:
        return [
            self.placed(torch.randint(0, 256, (num_bytes(n),), generator=self.generator, dtype=torch.uint8))
            for n in self.sizes
        ]

    def kept(self, dtype: torch.dtype | None = None) -> list[Tensor]:
        """Compensations or, with a dtype, master copies of half-precision parameters; others have none."""
        return self.normal(dtype) if self.dtype in (torch.bfloat16, torch.float16) else []

    def steps(self) -> list[Tensor]:
        return [torch.tensor(float(i % 5)) for i in range(len(self.sizes))]


def adamw(x: Lists, **changed: Any) -> Call:
    lists = (x.normal(), x.normal(), x.normal(x.opmath), x.squares(), x.steps(), x.masks(), [], [], [])
    scalars = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "kappa": 2.0}
    return lists, {**scalars, **changed}


def adamw_restored(x: Lists, **changed: Any) -> Call:
    lists, scalars = adamw(x, maximize=True, amplify_weight_decay=False, **changed)
    return (*lists[:6], x.normal(), [], []), scalars


def sgd(x: Lists, **changed: Any) -> Call:
    lists = (x.normal(), x.normal(), x.normal(x.opmath), x.steps(), x.masks(), [], [], [])
    scalars = {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1, "nesterov": False, "kappa": 2.0}
    return lists, {**scalars, **changed}


def sgd_nesterov(x: Lists) -> Call:
    return sgd(x, dampening=0.0, nesterov=True)


def sgd_without_momentum(x: Lists) -> Call:
    lists, scalars = sgd(x, momentum=0.0, dampening=0.0)
    return (*lists[:2], [], [], [], x.normal(), [], []), scalars


def adamw_kahan(x: Lists) -> Call:
    lists, scalars = adamw(x)
    return (*lists[:7], x.kept(), []), scalars


def adamw_master(x: Lists) -> Call:
    lists, scalars = adamw_restored(x)
    masters = [p.float() if i % 2 else w for i, (p, w) in enumerate(zip(lists[6], x.kept(torch.float32), strict=False))]
    return (*lists[:8], masters), scalars


def sgd_kahan(x: Lists) -> Call:
    lists, scalars = sgd(x)
    return (*lists[:6], x.kept(), []), scalars


def sgd_master(x: Lists) -> Call:
    lists, scalars = sgd_without_momentum(x)
    return (*lists[:7], x.kept(torch.float32)), scalars


def displacement(x: Lists) -> Call:
    return (x.normal(), x.normal(), x.masks()), {"kappa": 2.0, "decay": 0.01}


def sam(x: Lists) -> Call:
    return (x.normal(), x.normal(), x.normal(), torch.tensor(3.0)), {"rho": 0.05}


def sam_adaptive(x: Lists) -> Call:
    return (x.normal(), x.normal(), x.normal(), torch.tensor(3.0, dtype=torch.float64)), {"rho": 0.05, "adaptive": True}


def hessian(x: Lists) -> Call:
    return (x.squares(), x.normal()), {"beta": 0.9, "num_predictions": 8.0, "grad_scale": torch.tensor(4.0)}


def masks_of(score: str) -> Callable[[Lists], Call]:
    def call(x: Lists) -> Call:
        scores = x.normal()
        for values in scores:
            values[::5] = (
                torch.tensor([0.25, -0.0, torch.nan, torch.inf])
                .repeat(values[::5].numel() // 4 + 1)[: values[::5].numel()]
                .to(values.dtype)
            )
        return (x.masks(), scores, torch.tensor(0.25, dtype=x.dtype)), {"score": score}

    return call


# name of the case -> operator, arguments
CASES: dict[str, tuple[str, Callable[..., Call]]] = {
    "adamw": ("fused_adamw_flat_", adamw),
    "adamw restored": ("fused_adamw_flat_", adamw_restored),
    "adamw kahan": ("fused_adamw_flat_", adamw_kahan),
    "adamw master": ("fused_adamw_flat_", adamw_master),
    "sgd": ("fused_sgd_flat_", sgd),
    "sgd kahan": ("fused_sgd_flat_", sgd_kahan),
    "sgd master": ("fused_sgd_flat_", sgd_master),
    "sgd nesterov": ("fused_sgd_flat_", sgd_nesterov),
    "sgd without momentum": ("fused_sgd_flat_", sgd_without_momentum),
    "displacement": ("displacement_flat_", displacement),
    "hessian": ("hessian_diag_", hessian),
    "mask by value": ("flat_mask_", masks_of("value")),
    "mask by magnitude": ("flat_mask_", masks_of("abs")),
    "mask by square": ("flat_mask_", masks_of("square")),
    "sam": ("sam_perturb_", sam),
    "sam adaptive": ("sam_perturb_", sam_adaptive),
}


def tensors_of(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_of(item)
    elif isinstance(value, dict):
        yield from tensors_of(list(value.values()))


def moved(value: Any, device: str) -> Any:
    """A deep copy on `device` that keeps the distance of every tensor from an aligned address."""
    if isinstance(value, Tensor):
        storage = value._base if value._base is not None else value
        copied = storage.clone().to(device)
        return copied[value.storage_offset() :] if value._base is not None else copied
    if isinstance(value, (list, tuple)):
        return type(value)(moved(item, device) for item in value)
    if isinstance(value, dict):
        return {key: moved(item, device) for key, item in value.items()}
    return copy.copy(value)


def run_on(device: str, operator: str, call: Call) -> tuple[Any, list[Tensor]]:
    """What the CUDA operator returns and what it leaves in its arguments."""
    lists, scalars = moved(call, "cpu" if device == "emulated" else device)
    namespace = torch.ops.torch_ire_emulated if device == "emulated" else torch.ops.torch_ire
    returned = getattr(namespace, operator).default(*lists, **scalars)
    return returned, [tensor.cpu() for tensor in tensors_of((lists, scalars))]


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8))


def assert_agrees_with_cpu(device: str, operator: str, call: Call) -> None:
    _, expected = run_on("cpu", operator, call)
    _, actual = run_on(device, operator, call)
    initial = list(tensors_of(call))
    for got, want, before in zip(actual, expected, initial, strict=True):
        if device == "emulated":
            assert same_bits(got, want)
        elif want.dtype == torch.uint8:
            assert torch.equal(got, want)
        else:
            assert_within_ulps(got, want, 4, scale=before)


@pytest.fixture(autouse=True)
def _as_asked(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.node.get_closest_marker("gpu"):  # needs no emulation, and a machine with a GPU no time to build it
        yield
        return
    emulated_cuda.configure()
    yield
    emulated_cuda.configure()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "misaligned"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_cpu(case: str, dtype: torch.dtype, offset: int, device: str) -> None:
    operator, arguments = CASES[case]
    assert_agrees_with_cpu(device, operator, arguments(Lists(SIZES, dtype, offset)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES)
def test_lists_longer_than_a_launch(case: str, device: str) -> None:
    operator, arguments = CASES[case]
    launches = emulated_cuda.library().torch_ire_emulation_launches()
    assert_agrees_with_cpu(device, operator, arguments(Lists(MANY, torch.float32)))
    assert device != "emulated" or emulated_cuda.library().torch_ire_emulation_launches() - launches >= 2


@pytest.mark.parametrize("threads", [32, 96, 256])
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_block_size_and_schedule_do_not_matter(case: str, seed: int, threads: int) -> None:
    operator, arguments = CASES[case]
    emulated_cuda.configure(seed, threads)
    assert_agrees_with_cpu("emulated", operator, arguments(Lists((77, CHUNK + 5), torch.bfloat16)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("found_inf", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("arguments", [adamw, adamw_restored, sgd], ids=["adamw", "adamw restored", "sgd"])
def test_scalars_from_memory(arguments: Callable[..., Call], dtype: torch.dtype, found_inf: float, device: str) -> None:
    numbers = {"grad_scale": 8.0, "found_inf": found_inf, "lr_tensor": 0.02, "kappa_tensor": 3.0}
    in_memory = {name: torch.tensor(number, dtype=dtype) for name, number in numbers.items()}
    operator = "fused_sgd_flat_" if arguments is sgd else "fused_adamw_flat_"
    assert_agrees_with_cpu(device, operator, arguments(Lists((CHUNK + 3, 5), torch.float32), **in_memory))


@pytest.mark.parametrize("device", ["emulated"])
@pytest.mark.parametrize("case", ["adamw", "sgd"])
def test_stochastic_rounding_draws_the_same_numbers(case: str, device: str) -> None:
    operator, arguments = CASES[case]
    lists, scalars = arguments(Lists((CHUNK + 3, 5, 0), torch.bfloat16))
    assert_agrees_with_cpu(device, operator, (lists, {**scalars, "rounding_keys": [11, -7, 5]}))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "misaligned"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norm(dtype: torch.dtype, offset: int, weighted: bool, device: str) -> None:
    x = Lists((*SIZES, *MANY) if dtype == torch.float32 else SIZES, dtype, offset)
    call = ((x.normal(), x.normal() if weighted else []), {})
    expected, _ = run_on("cpu", "global_norm", call)
    actual, _ = run_on(device, "global_norm", call)
    assert_within_ulps(actual.cpu(), expected, 4 if dtype == torch.float64 else 1)
    repeated, _ = run_on(device, "global_norm", call)
    assert same_bits(actual.cpu(), repeated.cpu())


@pytest.mark.parametrize("device", DEVICES)
def test_norm_of_nothing_and_of_what_does_not_fit_float32(device: str) -> None:
    for values, expected in ((torch.zeros(0), 0.0), (torch.full((4,), 1e30), 2e30), (torch.full((4,), 1e-30), 2e-30)):
        actual, _ = run_on(device, "global_norm", (([values], []), {}))
        assert_within_ulps(actual.cpu(), torch.tensor(expected), 1)


@pytest.mark.parametrize("device", ["emulated"])
@pytest.mark.parametrize("threads", [32, 96, 256])
@pytest.mark.parametrize(("size", "rows"), [(77, 6), (4100, 9), (130, 800)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_lanczos_step(dtype: torch.dtype, size: int, rows: int, threads: int, device: str) -> None:
    """Sums through shared memory, and rows of odd length, under several schedules; 800 rows take the other path."""
    x = Lists((rows * size, size), opmath_dtype(dtype))
    matrix, product = x.normal()
    basis = (matrix.reshape(rows, size) / size**0.5 / rows).to(dtype)
    _, expected = run_on("cpu", "lanczos_step_", ((basis, product), {"count": rows - 1}))
    for seed in (1, 2):
        emulated_cuda.configure(seed, threads)
        _, actual = run_on(device, "lanczos_step_", ((basis, product), {"count": rows - 1}))
        torch.testing.assert_close(actual[1], expected[1], rtol=0, atol=2e-5)
        torch.testing.assert_close(
            actual[0].double(), expected[0].double(), rtol=2.0**-7 * (dtype == torch.bfloat16), atol=2e-6
        )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "misaligned"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_found_nonfinite(dtype: torch.dtype, offset: int, device: str) -> None:
    """In the last element of the last tensor, beyond vectors and chunks and, for float32, in a second launch."""
    tensors = Lists((*SIZES, *MANY, *MANY) if dtype == torch.float32 else SIZES, dtype, offset).normal()
    assert run_on(device, "found_nonfinite", ((tensors,), {}))[0].item() == 0.0
    for bad in (torch.nan, -torch.inf):
        tensors[-1][-1] = bad
        assert run_on(device, "found_nonfinite", ((tensors,), {}))[0].item() == 1.0
