"""DistributedDataParallel under torchrun: accumulation, the mask in one line, and exact resumption.

    torchrun --nproc-per-node 2 examples/torchrun_ddp.py --steps 20
    torchrun --nproc-per-node 2 examples/torchrun_ddp.py --steps 40     # steps 20 to 40

Runs on CPUs over Gloo, and on GPUs over NCCL (not tried yet). Needs `pip install '.[demo]'` for the digits.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import torch_ire

ACCUMULATED, BATCH = 2, 32


def micro_batches(step: int, images: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The data of this rank at a step: a function of step and rank alone, so that a resumed run sees the same."""
    world, rank = dist.get_world_size(), dist.get_rank()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(step))
    chosen = order[: world * ACCUMULATED * BATCH].view(world, ACCUMULATED, BATCH)[rank]
    return [(images[rows], labels[rows]) for rows in chosen]


def save(path: Path, step: int, model: nn.Module, opt: torch.optim.Optimizer) -> None:
    """Writes a new file and renames it, so that a complete checkpoint exists at any time."""
    unfinished = path.with_suffix(".part")
    # the optimizer's state includes its masks and the position of the sampled labels
    torch.save({"step": step, "model": model.state_dict(), "optimizer": opt.state_dict()}, unfinished)
    unfinished.replace(path)


def fingerprint(model: nn.Module) -> str:
    state = hashlib.sha256()
    for p in model.parameters():
        state.update(p.detach().cpu().numpy().tobytes())
    return state.hexdigest()[:12]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--save-every", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path("outputs/torchrun_ddp"))
    args = parser.parse_args()

    on_gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if on_gpu else "gloo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    torch.manual_seed(0)
    images, labels = (torch.as_tensor(array, device=device) for array in load_digits(return_X_y=True))
    images = images.float() / 16
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)).to(device)
    replica = DistributedDataParallel(model)
    opt = torch_ire.AdmIRE(model.parameters(), lr=1e-2, kappa=1.0, mask_interval=4)

    first = 0
    latest = args.output / "latest.pt"
    if latest.exists():
        checkpoint = torch.load(latest, map_location=device, weights_only=True)
        model.load_state_dict(checkpoint["model"])
        opt.load_state_dict(checkpoint["optimizer"])
        first = checkpoint["step"]
    for step in range(first, args.steps):
        data = micro_batches(step, images, labels)
        # all ranks call it; it averages over them, also under no_sync
        torch_ire.refresh_mask(opt, replica, data[0])
        for i, (x, y) in enumerate(data):
            last = i == len(data) - 1
            with contextlib.nullcontext() if last else replica.no_sync():
                loss = F.cross_entropy(replica(x), y)
                (loss / len(data)).backward()
        opt.step()
        opt.zero_grad()
        if (step + 1) % args.save_every == 0 and dist.get_rank() == 0:
            args.output.mkdir(parents=True, exist_ok=True)
            save(latest, step + 1, model, opt)
    opt.check_replicas()  # raises if a rank has drifted
    if dist.get_rank() == 0:
        print(f"steps {first} to {args.steps}: loss {loss.item():.3f}")
        print(f"flat share {opt.ire_summary()['flat_share']:.3f}")
        print(f"parameters {fingerprint(model)}")
    dist.barrier()  # Gloo may abort at exit while it frees tensors of the last collective
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
