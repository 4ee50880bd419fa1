"""Every operator in plain torch: slow, obvious, on any device and in float64 too.

Each module documents its operator for :mod:`torch_ire.ops` as well, whose functions have the same signatures and check
their arguments; these check nothing beyond what torch itself checks. A module whose operator returns something has a
function ``meta``, which makes the result without its value.
"""

from torch_ire.reference.displacement_flat import displacement_flat_
from torch_ire.reference.displacement_projected import displacement_projected_
from torch_ire.reference.flat_mask import flat_mask_
from torch_ire.reference.found_nonfinite import found_nonfinite
from torch_ire.reference.fused_adamw_flat import fused_adamw_flat_
from torch_ire.reference.fused_sgd_flat import fused_sgd_flat_
from torch_ire.reference.global_norm import global_norm
from torch_ire.reference.hessian_diag import hessian_diag_
from torch_ire.reference.kth_value import kth_value
from torch_ire.reference.lanczos_step import lanczos_step_
from torch_ire.reference.project_out import project_out
from torch_ire.reference.sam_perturb import sam_perturb_
from torch_ire.reference.sample_labels import sample_labels
from torch_ire.reference.score_histogram import score_histogram

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
