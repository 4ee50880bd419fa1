"""Means over a data loader, and a check that every pass gives the same batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["BatchAverage", "check_same_batches"]


def tensors_in(batch: Any) -> list[Tensor]:
    """Every tensor of a batch of nested lists, tuples and dicts, in a fixed order."""
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, Mapping):
        return [t for value in batch.values() for t in tensors_in(value)]
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        return [t for value in batch for t in tensors_in(value)]
    return []


def first_length(batch: Any) -> int:
    """Length of the first tensor of a batch."""
    tensors = tensors_in(batch)
    if not tensors or tensors[0].dim() == 0:
        raise ValueError("data: no tensor with a first axis in the batch; pass batch_size=, a function of the batch")
    return len(tensors[0])


class BatchAverage:
    """Batches with the weights that make per-batch means the mean over all samples.

    Args:
        data: re-iterable; a one-pass iterator is refused.
        batch_size: number of samples of a batch.
    """

    def __init__(self, data: Iterable[Any], batch_size: Callable[[Any], int] | None) -> None:
        if iter(data) is data:
            raise ValueError("data: expected a re-iterable, which can be iterated many times (a list or a DataLoader)")
        self._data = data
        self._size_of = batch_size or first_length
        self._num_samples: int | None = None

    def __iter__(self) -> Iterator[Any]:
        return iter(self._data)

    def size_of(self, batch: Any) -> int:
        """Number of samples of a batch."""
        return self._size_of(batch)

    def weighted(self) -> Iterator[tuple[float, Any]]:
        """Pairs of weight and batch; the weights sum to 1."""
        if self._num_samples is None:
            self._num_samples = sum(self._size_of(batch) for batch in self._data)
        if self._num_samples < 1:
            raise ValueError("data: no samples")
        for batch in self._data:
            yield self._size_of(batch) / self._num_samples, batch


def check_same_batches(average: BatchAverage, gradient: Callable[[Any], tuple[float, Tensor]]) -> None:
    """Compare sizes, contents, losses and gradients of two passes over the data.

    Raises:
        RuntimeError: names the first batch that differs and the property that differs.
    """
    first = [_fingerprint(average, batch, gradient) for batch in average]
    count = 0
    for index, batch in enumerate(average):
        count += 1
        if index >= len(first):
            continue
        before, now = first[index], _fingerprint(average, batch, gradient)
        for quantity, reason in _REASONS.items():
            if not _equal(before[quantity], now[quantity]):
                raise RuntimeError(
                    f"data: batch {index} is not the same in a second pass: its {quantity} went from "
                    f"{before[quantity]} to {now[quantity]}. {reason} All products must be with one matrix; "
                    "check_deterministic=False skips this check"
                )
    if count != len(first):
        raise RuntimeError(f"data: the first pass had {len(first)} batches, the second {count}")


_REASONS = {
    "number of samples": "The loader cuts batches differently.",
    "content": "The loader shuffles or augments at random: use shuffle=False and a fixed transform.",
    "loss": "The batches agree, so the model itself is random or keeps state outside its buffers.",
    "gradient norm": "A backward kernel is not deterministic (see torch.use_deterministic_algorithms).",
}


def _fingerprint(
    average: BatchAverage, batch: Any, gradient: Callable[[Any], tuple[float, Tensor]]
) -> dict[str, float]:
    content = 0.0
    for tensor in tensors_in(batch):
        flat = tensor.detach().reshape(-1).to(torch.float64)
        # Position-dependent weights: a permuted batch has another sum.
        content += float((flat * torch.linspace(1, 2, flat.numel(), dtype=torch.float64, device=flat.device)).sum())
    loss, flat_gradient = gradient(batch)
    return {
        "number of samples": float(average.size_of(batch)),
        "content": content,
        "loss": loss,
        "gradient norm": float(flat_gradient.norm()),
    }


def _equal(before: float, now: float) -> bool:
    # Sums over threads may differ in the last bits of float32; randomness makes a far larger difference.
    return before == now or abs(before - now) <= 1e-5 * max(abs(before), abs(now))
