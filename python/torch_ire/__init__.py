"""Implicit Regularization Enhancement for PyTorch: flat minima at the speed of the fused base optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch_ire import ops, reference
from torch_ire.batch_norm import frozen_batch_norm
from torch_ire.configuration import show_config
from torch_ire.mask_pass import ire_of, refresh_mask
from torch_ire.monitoring import log_summary, scalars
from torch_ire.optim import IRE, SAMIRE, SGDIRE, AdmIRE, StepInBackward
from torch_ire.sampled_loss import LabelGenerator, default_label_generator, sampled_cross_entropy

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        # read on demand: looking the distribution up costs more than importing the package
        if name == "__version__":
            from torch_ire.configuration import version

            return version()
        raise AttributeError(f"module 'torch_ire' has no attribute {name!r}")


__all__ = [
    "IRE",
    "SAMIRE",
    "SGDIRE",
    "AdmIRE",
    "LabelGenerator",
    "StepInBackward",
    "__version__",
    "default_label_generator",
    "frozen_batch_norm",
    "ire_of",
    "log_summary",
    "ops",
    "reference",
    "refresh_mask",
    "sampled_cross_entropy",
    "scalars",
    "show_config",
]
