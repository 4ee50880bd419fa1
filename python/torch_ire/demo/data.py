"""The two data sets. Both come with the installed packages: no download."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torch_ire.demo.config import Part

# Newline, printable ASCII, and one symbol for all other characters: 97, independent of the version of Python.
VOCABULARY = 97
_NEWLINE, _OTHER = 0, 96
# The text is split into this many stretches, so that training, validation and test text come from all parts of it.
_STRETCHES = 40


@dataclass(frozen=True)
class Split:
    """Examples, stored as arrays because they go to other processes, and returned as tensors.

    Args:
        inputs: images ``(n, 1, 8, 8)`` float32, or characters ``(n,)`` uint8.
        targets: int64 ``(n,)`` digits, or uint8 ``(n,)``, the character after each of ``inputs``.
        window: 0: each row is an example; else an example is ``window`` neighbouring rows, from any start.
    """

    inputs: NDArray[np.generic]
    targets: NDArray[np.generic]
    window: int = 0

    def __len__(self) -> int:
        """The number of rows at which an example can start."""
        return len(self.inputs) - max(self.window - 1, 0)

    def examples(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and int64 targets of the examples that start at ``starts`` (int64, one-dimensional)."""
        rows = starts.numpy()
        if self.window:
            rows = rows[:, None] + np.arange(self.window)
        inputs, targets = torch.from_numpy(self.inputs[rows]), torch.from_numpy(self.targets[rows])
        return (inputs if inputs.is_floating_point() else inputs.long()), targets.long()

    def spread(self, most: int) -> tuple[Tensor, Tensor]:
        """At most ``most`` examples, evenly spread over the split; windows do not overlap."""
        starts = torch.arange(0, len(self), max(self.window, 1))
        chosen = torch.linspace(0, len(starts) - 1, min(most, len(starts)), dtype=torch.float32).long()
        return self.examples(starts[chosen])


@dataclass(frozen=True)
class Dataset:
    """The splits: training, validation (chooses the learning rate) and test (for the table)."""

    train: Split
    validation: Split
    test: Split


def load_digits() -> Dataset:
    """scikit-learn's 1797 handwritten digits of 8x8 pixels: 1000 to train, 300 to validate, 497 to test."""
    from sklearn.datasets import load_digits as load

    pixels, digits = load(return_X_y=True)
    images = (pixels.astype(np.float32) / 16.0 - 0.3).reshape(-1, 1, 8, 8)
    # The split is the same for every method and every seed.
    order = np.random.default_rng(2405).permutation(len(images))
    images, labels = images[order], digits[order].astype(np.int64)
    return Dataset(
        train=Split(images[:1000], labels[:1000]),
        validation=Split(images[1000:1300], labels[1000:1300]),
        test=Split(images[1300:], labels[1300:]),
    )


def encode(text: str) -> NDArray[np.uint8]:
    r"""Characters as numbers below ``VOCABULARY``.

    Example:
        >>> encode("a b\n")
        array([66,  1, 67,  0], dtype=uint8)
    """
    points = np.array([ord(character) for character in text], dtype=np.int64)
    codes = np.where((points >= 32) & (points < 127), points - 31, _OTHER)
    codes[points == ord("\n")] = _NEWLINE
    return codes.astype(np.uint8)


def load_text(window: int) -> Dataset:
    """The help topics of CPython: 80 % to train, 10 % each to validate and to test.

    The text differs between Python versions; only its split into interleaved stretches is fixed.

    Args:
        window: characters of an example.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise RuntimeError("torch-ire demo: this Python comes without its help topics (pydoc_data.topics)") from error
    return split_text("\n".join(topics[name] for name in sorted(topics)), window)


def split_text(text: str, window: int) -> Dataset:
    """Splits a text: of every ten stretches eight for training, one for validation, one for test."""
    codes = encode(text)
    if len(codes) < _STRETCHES * 2 * (window + 1):
        raise ValueError(f"split_text: expected at least {_STRETCHES * 2 * (window + 1)} characters, got {len(codes)}")
    stretches = np.array_split(codes, _STRETCHES)

    def gather(kinds: range) -> Split:
        chosen = np.concatenate([stretch for i, stretch in enumerate(stretches) if i % 10 in kinds])
        return Split(chosen[:-1], chosen[1:], window)

    return Dataset(train=gather(range(8)), validation=gather(range(8, 9)), test=gather(range(9, 10)))


def load(part: Part) -> Dataset:
    """The data of a part."""
    return load_digits() if part.name == "digits" else load_text(part.context)
