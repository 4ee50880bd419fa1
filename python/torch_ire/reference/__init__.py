"""Every operator in plain torch: slow, obvious, on any device and in float64 too.

Names and semantics are those of :mod:`torch_ire.ops`, whose docstrings hold for both. Nothing is checked beyond what torch itself checks.
"""

from torch_ire.reference.fused_adamw_flat import fused_adamw_flat_

__all__ = ["fused_adamw_flat_"]
