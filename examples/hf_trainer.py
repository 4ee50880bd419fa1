"""The Trainer of Hugging Face transformers with AdmIRE: a small Llama that learns to count.

    python examples/hf_trainer.py [--steps 60] [--resume]
    torchrun --nproc-per-node 2 examples/hf_trainer.py

`optimizer_cls_and_kwargs` keeps the Trainer's two groups, with and without weight decay; the callback makes the pass of
the mask. Needs `pip install '.[trainers]'`.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

import torch_ire
from torch_ire.integrations.hugging_face import MaskRefreshCallback

VOCABULARY, LENGTH = 64, 16


def counts(size: int) -> list[dict[str, Tensor]]:
    """Sequences that count up by 1 to 3 from various starts."""
    items = []
    for i in range(size):
        tokens = (7 * i + (1 + i % 3) * torch.arange(LENGTH)) % VOCABULARY
        items.append({"input_ids": tokens, "labels": tokens})
    return items


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--output", default="outputs/hf_trainer")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in --output")
    args = parser.parse_args()

    set_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
        )
    )
    trainer = Trainer(
        model,
        TrainingArguments(
            args.output,
            max_steps=args.steps,
            per_device_train_batch_size=16,
            gradient_accumulation_steps=2,
            learning_rate=3e-3,
            warmup_steps=5,
            weight_decay=0.1,
            max_grad_norm=1.0,
            logging_steps=20,
            save_steps=20,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=counts(512),
        optimizer_cls_and_kwargs=(torch_ire.AdmIRE, {"lr": 3e-3, "weight_decay": 0.1, "kappa": 1.0, "gamma": 0.6}),
        callbacks=[MaskRefreshCallback()],
    )
    trainer.train(resume_from_checkpoint=args.resume)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    optimizer = torch_ire.ire_of(trainer.optimizer)
    optimizer.check_replicas()
    summary = optimizer.ire_summary()
    if trainer.is_world_process_zero():
        print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {trainer.state.global_step} steps")
        print(f"flat share {summary['flat_share']:.3f}, added by IRE {summary['displacement_share']:.3f} of the step")
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()  # ends the process group, too


if __name__ == "__main__":
    main()
