"""Curvature of a loss: eigenpairs, estimates, the projector onto flat directions, stability."""

from torch_ire.curvature.block_projector import BlockFlatProjector
from torch_ire.curvature.eigenpairs import Eigenpairs
from torch_ire.curvature.estimates import DiagonalEstimate, Estimate, diagonal, frobenius_norm, trace
from torch_ire.curvature.flat_projector import FlatProjector
from torch_ire.curvature.gauss_newton import GaussNewtonOperator
from torch_ire.curvature.hessian import HessianOperator
from torch_ire.curvature.lanczos import lanczos
from torch_ire.curvature.operator import CallableOperator, Operator, as_operator
from torch_ire.curvature.power_iteration import power_iteration
from torch_ire.curvature.sharpness_tracker import SharpnessRecord, SharpnessTracker
from torch_ire.curvature.spectral_density import SpectralDensity, spectral_density
from torch_ire.curvature.stability import Stability, amplified_operator, stability

__all__ = [
    "BlockFlatProjector",
    "CallableOperator",
    "DiagonalEstimate",
    "Eigenpairs",
    "Estimate",
    "FlatProjector",
    "GaussNewtonOperator",
    "HessianOperator",
    "Operator",
    "SharpnessRecord",
    "SharpnessTracker",
    "SpectralDensity",
    "Stability",
    "amplified_operator",
    "as_operator",
    "diagonal",
    "frobenius_norm",
    "lanczos",
    "power_iteration",
    "spectral_density",
    "stability",
    "trace",
]
