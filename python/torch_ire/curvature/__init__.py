"""Curvature of a loss: eigenpairs, estimates, the projector onto flat directions, stability."""

from torch_ire.curvature.eigenpairs import Eigenpairs
from torch_ire.curvature.gauss_newton import GaussNewtonOperator
from torch_ire.curvature.hessian import HessianOperator
from torch_ire.curvature.lanczos import lanczos
from torch_ire.curvature.operator import CallableOperator, Operator, as_operator

__all__ = [
    "CallableOperator",
    "Eigenpairs",
    "GaussNewtonOperator",
    "HessianOperator",
    "Operator",
    "as_operator",
    "lanczos",
]
