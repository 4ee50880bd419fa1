"""Tables that tests run over: one sample call of every operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Call = tuple[tuple[Any, ...], dict[str, Any]]
SHAPES = ((7, 5), (), (0,), (33,))


class Sample:
    """Tensors of one call: a short list with a matrix, a number, an empty tensor and a vector."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        self.opmath = torch.float64 if dtype == torch.float64 else torch.float32
        self.device = device
        self.generator = torch.Generator().manual_seed(0)

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
        values = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return values.to(device=self.device, dtype=dtype or self.dtype)

    def normals(self, dtype: torch.dtype | None = None) -> list[Tensor]:
        return [self.normal(shape, dtype) for shape in SHAPES]

    def squares(self) -> list[Tensor]:
        return [values.square() for values in self.normals(self.opmath)]

    def steps(self) -> list[Tensor]:
        return [torch.tensor(3.0, device=self.device) for _ in SHAPES]

    def masks(self) -> list[Tensor]:
        sizes = [-(-torch.Size(shape).numel() // 8) for shape in SHAPES]
        bits = [torch.randint(0, 256, (size,), generator=self.generator, dtype=torch.uint8) for size in sizes]
        return [byte.to(self.device) for byte in bits]

    def kept(self) -> list[Tensor]:
        """Compensations of half-precision parameters; others have none."""
        small = [values * 1e-3 for values in self.normals()]
        return small if self.dtype in (torch.bfloat16, torch.float16) else []

    def number(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=self.opmath, device=self.device)


def _fused_adamw_flat_(s: Sample) -> Call:
    lists = (s.normals(), s.normals(), s.normals(s.opmath), s.squares(), s.steps(), s.masks(), [], s.kept(), [])
    return lists, {"lr": 1e-3, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "kappa": 2.0}


def _fused_sgd_flat_(s: Sample) -> Call:
    lists = (s.normals(), s.normals(), s.normals(s.opmath), s.steps(), s.masks(), [], s.kept(), [])
    scalars = {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1, "nesterov": False, "kappa": 2.0}
    return lists, scalars


def _displacement_flat_(s: Sample) -> Call:
    return (s.normals(), s.normals(), s.masks()), {"kappa": 2.0, "decay": 0.01}


def _sam_perturb_(s: Sample) -> Call:
    return (s.normals(), s.normals(), s.normals(), s.number(3.0)), {"rho": 0.05, "adaptive": True}


def _found_nonfinite(s: Sample) -> Call:
    return (s.normals(),), {}


def _global_norm(s: Sample) -> Call:
    return (s.normals(), s.normals()), {}


def _hessian_diag_(s: Sample) -> Call:
    return (s.squares(), s.normals()), {"beta": 0.9, "num_predictions": 8.0}


def _kth_value(s: Sample) -> Call:
    return (s.normals(), 20), {"score": "square"}


def _flat_mask_(s: Sample) -> Call:
    return (s.masks(), s.normals(), s.number(0.5)), {"score": "abs"}


def _bases(s: Sample, rows: int) -> list[Tensor]:
    """The columns of one matrix that belong to each tensor; float64, or float32 along the rest."""
    sizes = [torch.Size(shape).numel() for shape in SHAPES]
    return list(torch.split(s.normal((rows, sum(sizes)), s.opmath) / 10, sizes, dim=1))


def _project_out(s: Sample) -> Call:
    return (s.normals(), _bases(s, 5), s.normal((5, 5), s.opmath)), {}


def _displacement_projected_(s: Sample) -> Call:
    keywords = {"kappa": 2.0, "decay": 0.01, "gram_inverse": s.normal((5, 5), s.opmath)}
    return (s.normals(), s.normals(), _bases(s, 5)), keywords


def _lanczos_step_(s: Sample) -> Call:
    basis = torch.linalg.qr(s.normal((9, 40), s.opmath).T).Q.T.contiguous()
    basis = basis.bfloat16() if s.dtype == torch.bfloat16 else basis
    return (basis, s.normal((40,), s.opmath)), {"count": 6}


def _sample_labels(s: Sample) -> Call:
    return (s.normal((6, 11)),), {"seed": 1, "offset": 2}


def _score_histogram(s: Sample) -> Call:
    return (s.normals(), torch.tensor(0, device=s.device)), {"shift": 12, "score": "abs", "wide": True}


# operator -> arguments of a call in which every hyperparameter matters
OPERATORS: dict[str, Callable[[Sample], Call]] = {
    "displacement_flat_": _displacement_flat_,
    "displacement_projected_": _displacement_projected_,
    "flat_mask_": _flat_mask_,
    "found_nonfinite": _found_nonfinite,
    "fused_adamw_flat_": _fused_adamw_flat_,
    "fused_sgd_flat_": _fused_sgd_flat_,
    "global_norm": _global_norm,
    "hessian_diag_": _hessian_diag_,
    "kth_value": _kth_value,
    "lanczos_step_": _lanczos_step_,
    "project_out": _project_out,
    "sam_perturb_": _sam_perturb_,
    "sample_labels": _sample_labels,
    "score_histogram": _score_histogram,
}
