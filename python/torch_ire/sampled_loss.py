"""Cross-entropy at labels drawn from the model's softmax: its squared gradient estimates the diagonal curvature."""

from __future__ import annotations

import numbers
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from torch_ire import ops
from torch_ire.counter_rng import as_int64, mix64
from torch_ire.dtensors import is_dtensor

__all__ = ["LabelGenerator", "default_label_generator", "sampled_cross_entropy"]

# Elements of a chunk of the backward pass: its float32 copy stays in the cache.
_CHUNK = 1 << 18


class LabelGenerator:
    """The random numbers of sampled losses: a seed and the number of calls so far.

    Labels depend on seed, number of calls, rank of the process and row alone: a run that is resumed from
    :meth:`state_dict` draws the labels that it would have drawn, and torch's own generators are never touched. The rank
    is mixed in at the draw. So replicas draw different labels from equal states, and one state serves all ranks of a
    checkpoint, and any number of ranks.

    Args:
        seed: 64 bits; ``None``: the seed of :data:`default_label_generator` at first use, whose own is
            ``torch.initial_seed()``.
        rank: The rank to mix in; ``None``: that of :data:`default_label_generator`, or else the rank of the process.
            Ranks that compute the same logits together (tensor parallel) have to draw the same labels: set their data
            parallel rank, here or as the attribute of this name.

    Example:
        >>> from torch_ire.sampled_loss import LabelGenerator
        >>> generator = LabelGenerator(seed=7)
        >>> generator.state_dict()
        {'seed': 7, 'offset': 0}
    """

    def __init__(self, seed: int | None = None, rank: int | None = None) -> None:
        self.rank = rank
        self._seed = seed
        self._offset = 0

    def draw(self) -> tuple[int, int]:
        """The key of the next call, as ``seed`` and ``offset`` of :func:`torch_ire.ops.sample_labels`."""
        rank = default_label_generator.rank if self.rank is None else self.rank
        if rank is None:
            distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
            rank = torch.distributed.get_rank() if distributed else 0
        key = as_int64(mix64(self._resolved_seed(), rank)), self._offset
        self._offset += 1
        return key

    def manual_seed(self, seed: int) -> LabelGenerator:
        """Starts over from ``seed``, as a generator that has not been used."""
        self._seed, self._offset = seed, 0
        return self

    @property
    def used(self) -> bool:
        """Whether there is a position to keep: labels were drawn, or a position loaded, since creation or seeding."""
        return self._offset > 0

    def state_dict(self) -> dict[str, int]:
        """Seed and number of calls so far, as plain integers."""
        return {"seed": self._resolved_seed(), "offset": self._offset}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continues where :meth:`state_dict` was taken.

        Raises:
            ValueError: A key is missing or left over, or a value is no integer. The position has not changed then.
        """
        if set(state) != {"seed", "offset"}:
            raise ValueError(f"LabelGenerator.load_state_dict(): expected keys seed and offset, got {sorted(state)}")
        seed, offset = state["seed"], state["offset"]
        if not all(isinstance(number, numbers.Integral) for number in (seed, offset)) or offset < 0:
            raise ValueError(
                "LabelGenerator.load_state_dict(): expected seed and offset as integers, offset at least 0, got "
                f"{dict(state)}"
            )
        self._seed, self._offset = int(seed), int(offset)

    def lend(self) -> None:
        """Serves :func:`sampled_cross_entropy` calls of this thread without a generator, until :meth:`take_back`."""
        _lent.generator = weakref.ref(self)

    def take_back(self) -> None:
        """Ends :meth:`lend`; does nothing if another generator has been lent since."""
        if _lent_generator() is self:
            _lent.generator = None

    def _resolved_seed(self) -> int:
        if self._seed is None:
            own = self is default_label_generator
            self._seed = torch.initial_seed() if own else default_label_generator._resolved_seed()
        return self._seed

    def __repr__(self) -> str:
        return f"LabelGenerator(seed={self._seed}, offset={self._offset})"


#: The generator of :func:`sampled_cross_entropy` calls outside a mask refresh; one per process.
default_label_generator = LabelGenerator()

# the generator that an optimizer lends between mask_due() and update_mask(), by thread
_lent = threading.local()


def _lent_generator() -> LabelGenerator | None:
    reference = getattr(_lent, "generator", None)
    return None if reference is None else reference()


def sampled_cross_entropy(
    logits: Tensor,
    targets: Tensor | None = None,
    *,
    ignore_index: int = -100,
    class_dim: int = -1,
    generator: LabelGenerator | None = None,
) -> Tensor:
    r"""Mean cross-entropy against labels drawn from the model's own softmax.

    .. math::
        L = \frac{1}{B} \sum_{b=1}^{B} -\log \mathrm{softmax}(x_b)_{y_b}, \qquad y_b \sim \mathrm{softmax}(x_b)

    With :math:`g = \nabla L`, :math:`B g^2` is an unbiased estimate of the diagonal of the Gauss-Newton matrix, which
    for this loss is the Fisher matrix. :math:`B`, the ``num_predictions`` of :func:`torch_ire.ops.hessian_diag_`,
    counts the predictions that are not ignored: images, or tokens of all sequences.

    Args:
        logits: (B, C), (B, T, V), or any shape with the classes in ``class_dim``; float32, float64, bfloat16 or
            float16, any strides.
        targets: int64 of the logits' shape without the classes, as for the training loss. They only say which positions
            to leave out: those that equal ``ignore_index``. ``None``: no position is left out.
        ignore_index: The target of positions to leave out.
        class_dim: The dimension of the classes; 1 for images of logits (B, C, H, W).
        generator: Draws the labels; ``None``: from a true ``mask_due()`` to ``update_mask()`` that of the optimizer,
            ``opt.label_generator``, whose position is part of its ``state_dict``; else :data:`default_label_generator`.

    Returns:
        The loss, shape (); float64 for float64 logits, else float32. If every position is ignored, or there is none,
        loss and gradients are 0. A row with a NaN, with +inf, or with -inf alone makes the loss not finite, unless the
        row is ignored.

    Raises:
        ValueError: ``targets`` does not have the logits' shape without the classes.
        TypeError: ``logits`` is a ``DTensor``.
        RuntimeError: ``logits`` has the wrong dtype or layout, or no class.

    Cost: one read of the logits forward, which allocates nothing of their size; backward allocates their gradient.
    Determinism: see :func:`torch_ire.ops.sample_labels`; the generator advances by one.

    Example:
        >>> import torch
        >>> from torch_ire.sampled_loss import LabelGenerator, sampled_cross_entropy
        >>> logits = torch.zeros(4, 10, requires_grad=True)
        >>> loss = sampled_cross_entropy(logits, generator=LabelGenerator(seed=0))
        >>> loss.backward()
        >>> round(loss.item(), 4)  # log 10, whatever the labels
        2.3026

    References:
        Wang et al., "Improving Generalization and Convergence by Enhancing Implicit Regularization", arXiv:2405.20763,
            Eq. (6).
        Martens, "New Insights and Perspectives on the Natural Gradient Method", arXiv:1412.1193, section 9: why labels
            of the data would estimate another matrix.
    """
    if is_dtensor(logits):
        raise TypeError(
            "sampled_cross_entropy: logits is a DTensor; labels are drawn from whole rows: take plain logits, "
            "of a layer with output_layouts=Replicate() or Shard(0), or logits.full_tensor()"
        )
    if logits.dim() == 0:
        raise ValueError("sampled_cross_entropy: logits: expected at least one dimension, that of the classes, got ()")
    rows = logits.movedim(class_dim, -1)
    if targets is not None and targets.shape != rows.shape[:-1]:
        raise ValueError(
            f"sampled_cross_entropy: targets: expected shape {tuple(rows.shape[:-1])}, that of logits without the "
            f"classes, got {tuple(targets.shape)}"
        )
    seed, offset = (generator or _lent_generator() or default_label_generator).draw()
    kept = None if targets is None else targets != ignore_index
    loss: Tensor = _SampledCrossEntropy.apply(rows, kept, seed, offset)  # type: ignore[no-untyped-call]
    return loss


class _SampledCrossEntropy(torch.autograd.Function):
    """Classes in the last dimension; ``kept``: the rows that count, None for all."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, kept: Tensor | None, seed: int, offset: int) -> Tensor:
        labels, logsumexp = ops.sample_labels(logits, seed=seed, offset=offset)
        drawn = labels.clamp_min(0)  # a row without a label has a logsumexp that is not finite
        losses = logsumexp - logits.gather(-1, drawn.unsqueeze(-1)).squeeze(-1)
        if kept is None:
            count = torch.full_like(logsumexp.sum(), max(1, labels.numel()))
        else:
            losses = losses.where(kept, 0.0)
            count = kept.sum().clamp_min(1).to(losses.dtype)
        ctx.save_for_backward(logits, drawn, logsumexp, kept, count)
        return losses.sum() / count

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None, None]:
        logits, drawn, logsumexp, kept, count = ctx.saved_tensors
        scale = grad_loss / count
        if torch.is_grad_enabled():  # create_graph: the gradient is to be differentiated in turn
            p = logits.softmax(-1, dtype=logsumexp.dtype)
            residual = p - torch.zeros_like(p).scatter(-1, drawn.unsqueeze(-1), 1.0)
            if kept is not None:
                residual = residual.where(kept.unsqueeze(-1), 0.0)
            return (residual * scale).to(logits.dtype), None, None, None
        grad = torch.empty_like(logits)
        flatten = logits.is_contiguous()
        tensors = [logits, grad, drawn.unsqueeze(-1), logsumexp.unsqueeze(-1)]
        if kept is not None:
            tensors.append(~kept.unsqueeze(-1))
        if flatten:
            tensors = [t.reshape(-1, t.shape[-1]) if t is not grad else t.view(-1, t.shape[-1]) for t in tensors]
        for x, g, label, total, *ignored in _chunks(tensors):
            p = (x - total).exp_()
            p.scatter_add_(-1, label, p.new_full((), -1.0).expand(label.shape))
            p.mul_(scale)
            if ignored:
                p.masked_fill_(ignored[0], 0.0)
            g.copy_(p)
        return grad, None, None, None


def _chunks(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Slices along the longest dimension but the last, of about _CHUNK elements of the first tensor."""
    shape = tensors[0].shape
    if len(shape) == 1 or tensors[0].numel() == 0:
        yield tensors
        return
    dim = max(range(len(shape) - 1), key=lambda d: shape[d])
    step = max(1, _CHUNK * shape[dim] // tensors[0].numel())
    for start in range(0, shape[dim], step):
        yield [t.narrow(dim, start, min(step, shape[dim] - start)) for t in tensors]
