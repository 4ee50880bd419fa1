"""FSDP2: a model sharded over all ranks, one mask over all shards, and a sharded checkpoint for any number of ranks.

    torchrun --nproc-per-node 2 examples/fsdp2.py --steps 10
    torchrun --nproc-per-node 4 examples/fsdp2.py --steps 20     # steps 10 to 20, on another number of ranks

Runs on CPUs over Gloo, and on GPUs over NCCL (not tried yet).
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

import torch_ire

VOCABULARY, LENGTH, WIDTH, BATCH = 64, 16, 32, 16


class Block(nn.Module):
    """Attention and a perceptron, each after a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.perceptron_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.perceptron = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        y = self.attention_norm(x)
        x = x + self.attention(y, y, y, attn_mask=later, need_weights=False)[0]
        return x + self.perceptron(self.perceptron_norm(x))


def sharded_model(device: torch.device) -> nn.Sequential:
    torch.manual_seed(0)
    blocks = [Block() for _ in range(2)]
    model = nn.Sequential(nn.Embedding(VOCABULARY, WIDTH), *blocks, nn.Linear(WIDTH, VOCABULARY)).to(device)
    for block in blocks:
        fully_shard(block)
    fully_shard(model)
    return model


def counts(step: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The sequences of this rank at a step, which count up by 1 to 3, and the next tokens."""
    rows = torch.arange(BATCH) + BATCH * (dist.get_world_size() * step + dist.get_rank())
    tokens = (7 * rows[:, None] + (1 + rows[:, None] % 3) * torch.arange(LENGTH + 1)) % VOCABULARY
    return tokens[:, :-1].to(device), tokens[:, 1:].to(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("outputs/fsdp2"))
    args = parser.parse_args()

    on_gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if on_gpu else "gloo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    model = sharded_model(device)
    opt = torch_ire.AdmIRE(model.parameters(), lr=3e-3, kappa=1.0, mask_interval=5)

    first = 0
    if (args.output / ".metadata").exists():
        weights, state = get_state_dict(model, opt)
        saved = {"model": weights, "optimizer": state, "step": 0}
        dcp.load(saved, checkpoint_id=args.output)
        set_state_dict(model, opt, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"])
        first = saved["step"]
    for step in range(first, args.steps):
        tokens, following = counts(step, device)
        torch_ire.refresh_mask(opt, model, (tokens, following))
        loss = F.cross_entropy(model(tokens).flatten(0, 1), following.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad()
    weights, state = get_state_dict(model, opt)
    saved = {"model": weights, "optimizer": state, "step": args.steps}
    dcp.save(saved, storage_writer=dcp.FileSystemWriter(args.output, overwrite=True))
    dist.all_reduce(loss.detach_(), dist.ReduceOp.AVG if on_gpu else dist.ReduceOp.SUM)
    summary = opt.ire_summary(over_mesh=True)
    if dist.get_rank() == 0:
        print(f"steps {first} to {args.steps}: loss {loss.item() / (1 if on_gpu else dist.get_world_size()):.3f}")
        print(f"flat share {summary['flat_share']:.3f}")
    dist.barrier()  # Gloo may abort at exit while it frees tensors of the last collective
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
