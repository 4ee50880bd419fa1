"""Implicit Regularization Enhancement for PyTorch: flat minima at the speed of the fused base optimizer."""

from torch_ire import ops, reference

__all__ = ["ops", "reference"]
