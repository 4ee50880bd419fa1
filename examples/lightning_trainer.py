"""Lightning with AdmIRE, or with SAM through the closure of automatic optimization, on handwritten digits.

    python examples/lightning_trainer.py [--sam] [--devices 2]

The callback refreshes the masks, and freezes BatchNorm in the perturbed pass of SAM. Needs
`pip install '.[trainers,demo]'`.
"""

from __future__ import annotations

import argparse

import lightning as L
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import torch_ire
from torch_ire.integrations.lightning import IRECallback


class Digits(L.LightningModule):
    """A convolutional network with BatchNorm; only `configure_optimizers` mentions IRE."""

    def __init__(self, sam: bool) -> None:
        super().__init__()
        self.sam = sam
        self.network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(256, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("accuracy", (self(x).argmax(1) == y).float().mean(), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.sam:
            return torch_ire.SAMIRE(self.parameters(), lr=0.05, momentum=0.9, rho=0.05, kappa=1.0)
        return torch_ire.AdmIRE(self.parameters(), lr=3e-3, kappa=1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sam", action="store_true", help="SAMIRE in place of AdmIRE")
    parser.add_argument("--devices", type=int, default=1, help="processes of data parallel training")
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()

    L.seed_everything(0, verbose=False)
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    training, test = random_split(TensorDataset(x, torch.tensor(labels)), [0.8, 0.2])
    trainer = L.Trainer(
        accelerator="auto" if torch.cuda.is_available() else "cpu",
        devices=args.devices,
        strategy="ddp" if args.devices > 1 else "auto",
        max_epochs=args.epochs,
        gradient_clip_val=1.0,
        precision="bf16-mixed",
        callbacks=[IRECallback()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        Digits(args.sam),
        DataLoader(training, batch_size=64, shuffle=True),
        DataLoader(test, batch_size=128),
    )
    optimizer = torch_ire.ire_of(trainer.optimizers[0])
    optimizer.check_replicas()
    if trainer.is_global_zero:
        print(f"test accuracy {float(trainer.callback_metrics['accuracy']):.3f} after {trainer.global_step} steps")
        print(f"flat share {optimizer.ire_summary()['flat_share']:.3f}")
    trainer.strategy.barrier()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
