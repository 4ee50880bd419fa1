"""Implicit Regularization Enhancement for PyTorch: flat minima at the speed of the fused base optimizer."""

from torch_ire import ops, reference
from torch_ire.batch_norm import frozen_batch_norm
from torch_ire.optim import IRE, SAMIRE, SGDIRE, AdmIRE

__all__ = ["IRE", "SAMIRE", "SGDIRE", "AdmIRE", "frozen_batch_norm", "ops", "reference"]
