"""Typed wrappers of ``torch.ops.torch_ire.*``: one function an operator, under the operator's name.

They take the native operator where it runs and :mod:`torch_ire.reference` elsewhere, and accept empty lists, which the
dispatcher can't.
"""

from torch_ire.ops.displacement_flat import displacement_flat_
from torch_ire.ops.displacement_projected import displacement_projected_
from torch_ire.ops.flat_mask import flat_mask_
from torch_ire.ops.found_nonfinite import found_nonfinite
from torch_ire.ops.fused_adamw_flat import fused_adamw_flat_
from torch_ire.ops.fused_sgd_flat import fused_sgd_flat_
from torch_ire.ops.global_norm import global_norm
from torch_ire.ops.hessian_diag import hessian_diag_
from torch_ire.ops.kth_value import kth_value
from torch_ire.ops.lanczos_step import lanczos_step_
from torch_ire.ops.project_out import project_out
from torch_ire.ops.sam_perturb import sam_perturb_
from torch_ire.ops.sample_labels import sample_labels
from torch_ire.ops.score_histogram import score_histogram

__all__ = [
    "displacement_flat_",
    "displacement_projected_",
    "flat_mask_",
    "found_nonfinite",
    "fused_adamw_flat_",
    "fused_sgd_flat_",
    "global_norm",
    "hessian_diag_",
    "kth_value",
    "lanczos_step_",
    "project_out",
    "sam_perturb_",
    "sample_labels",
    "score_histogram",
]
