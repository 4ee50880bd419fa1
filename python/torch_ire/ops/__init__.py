"""Typed wrappers of ``torch.ops.torch_ire.*``: one function an operator, under the operator's name.

They take the native operator where it runs and :mod:`torch_ire.reference` elsewhere, and accept empty lists, which the dispatcher can't.
"""

from torch_ire.ops.fused_adamw_flat import fused_adamw_flat_

__all__ = ["fused_adamw_flat_"]
