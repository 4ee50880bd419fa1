"""Typed wrappers of ``torch.ops.torch_ire.*``: one function per operator, under the operator's name.

They call the native operator where it runs and :mod:`torch_ire.reference` elsewhere, and accept empty lists, which the
dispatcher does not.
"""

from typing import TYPE_CHECKING

from torch_ire import reference
from torch_ire.ops.registration import operator

__all__: list[str] = []
__all__ += reference.__all__

if TYPE_CHECKING:
    from torch_ire.reference import *  # noqa: F403
else:
    globals().update({name: operator(getattr(reference, name)) for name in reference.__all__})
