"""A training loop on Accelerate: accumulation, clipping, checkpoints, and the mask in one line.

    accelerate launch examples/accelerate_loop.py [--sam]

Needs `pip install '.[trainers,demo]'`.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import torch_ire


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sam", action="store_true", help="SAMIRE in place of AdmIRE, by closure")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--output", default="outputs/accelerate_loop")
    args = parser.parse_args()

    set_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=1 if args.sam else 2)
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels))
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
    optimizer: torch.optim.Optimizer
    if args.sam:
        optimizer = torch_ire.SAMIRE(model.parameters(), lr=0.1, momentum=0.9, rho=0.05, kappa=1.0)
    else:
        optimizer = torch_ire.AdmIRE(model.parameters(), lr=1e-2, kappa=1.0)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data, batch_size=64, shuffle=True))
    ire = torch_ire.ire_of(optimizer)  # the optimizer inside Accelerate's wrapper
    losses: list[Tensor] = []

    def gradients(x: Tensor, y: Tensor) -> Tensor:
        loss = F.cross_entropy(model(x), y)
        accelerator.backward(loss)
        if accelerator.sync_gradients:
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
        losses.append(loss.detach())
        return loss

    def both_gradients(x: Tensor, y: Tensor) -> Tensor:
        """The closure of SAM, called twice per step; only the first call updates BatchNorm statistics."""
        optimizer.zero_grad()
        if not ire.is_perturbed:
            return gradients(x, y)
        with torch_ire.frozen_batch_norm(model):
            return gradients(x, y)

    for epoch in range(args.epochs):
        losses.clear()
        for x, y in loader:
            with accelerator.accumulate(model):
                torch_ire.refresh_mask(optimizer, model, (x, y))  # if it is due
                if args.sam:
                    optimizer.step(lambda x=x, y=y: both_gradients(x, y))
                else:
                    gradients(x, y)
                    optimizer.step()
                optimizer.zero_grad()
        accelerator.print(f"epoch {epoch}: loss {torch.stack(losses).mean().item():.3f}")
        accelerator.save_state(args.output)  # model, optimizer with its masks, position of the sampled labels
    accelerator.print(f"flat share {ire.ire_summary()['flat_share']:.3f}")


if __name__ == "__main__":
    main()
