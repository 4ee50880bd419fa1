"""Matrices with known spectra, and the digits network whose Hessian the figures are about."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from torch_ire.curvature import HessianOperator


def rotated(eigenvalues: list[float] | Tensor, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """A dense symmetric matrix with these eigenvalues and random eigenvectors."""
    values = torch.as_tensor(eigenvalues, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))
    matrix = (basis * values) @ basis.T
    return ((matrix + matrix.T) / 2).to(dtype)


def linspace(low: float, high: float, count: int) -> list[float]:
    return torch.linspace(low, high, count, dtype=torch.float64).tolist()


SPECTRA = {
    "simple": linspace(0, 10, 80),
    "repeated": [5.0, 5.0, 5.0, 3.0, 3.0, 2.0, *linspace(-2, 1, 74)],
    "clustered": [7.0, 7.0 - 1e-4, 7.0 - 2e-4, 4.0, *linspace(0, 1, 76)],
    "low rank": [3.0, 2.0, -1.0, *([0.0] * 77)],
    "identity": [1.0] * 80,
    "zero": [0.0] * 80,
    "indefinite": linspace(-8, 5, 80),
    "tiny": [1e-100 * x for x in linspace(1, 80, 80)],
}


@dataclass
class Digits:
    """The 64-24-24-10 tanh network on 1024 digits, p = 2410, trained by full-batch SGD."""

    model: nn.Sequential
    images: Tensor
    labels: Tensor

    @classmethod
    def trained(cls, *, seed: int = 0, steps: int = 150, dtype: torch.dtype = torch.float64) -> Digits:
        images, labels = load_digits(return_X_y=True)
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 10)
        ).to(dtype)  # fmt: skip
        digits = cls(model, torch.tensor(images[:1024] / 16.0, dtype=dtype), torch.tensor(labels[:1024]))
        digits.train(steps)
        return digits

    def loss(self) -> Tensor:
        return cross_entropy(self.model(self.images), self.labels)

    def train(self, steps: int) -> None:
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.5)
        for _ in range(steps):
            optimizer.zero_grad()
            self.loss().backward()
            optimizer.step()

    def hessian(self) -> HessianOperator:
        return HessianOperator(self.loss, self.model.parameters())

    def eigenvalues(self) -> Tensor:
        """All of them in decreasing order, from the dense Hessian."""
        params = list(self.model.parameters())
        gradients = torch.autograd.grad(self.loss(), params, create_graph=True)
        gradient = torch.cat([g.reshape(-1) for g in gradients])
        rows = []
        for coordinates in torch.eye(len(gradient), dtype=gradient.dtype).split(241):
            blocks = torch.autograd.grad(gradient, params, coordinates, retain_graph=True, is_grads_batched=True)
            rows.append(torch.cat([block.reshape(len(coordinates), -1) for block in blocks], dim=1))
        return torch.linalg.eigvalsh(torch.cat(rows)).flip(0)
