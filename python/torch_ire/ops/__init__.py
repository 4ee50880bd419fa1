"""Typed wrappers of ``torch.ops.torch_ire.*``: one function an operator, under the operator's name.

They take the native operator where it runs and :mod:`torch_ire.reference` elsewhere, and accept empty lists, which the
dispatcher can't.
"""

from torch_ire.ops.displacement_flat import displacement_flat_
from torch_ire.ops.fused_adamw_flat import fused_adamw_flat_
from torch_ire.ops.fused_sgd_flat import fused_sgd_flat_
from torch_ire.ops.sam_perturb import sam_perturb_

__all__ = [
    "displacement_flat_",
    "fused_adamw_flat_",
    "fused_sgd_flat_",
    "sam_perturb_",
]
