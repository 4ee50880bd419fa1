"""The paper's theory, reproduced: experiments A to D through the public optimizers, against closed forms.

`reproduce()` runs them, prints one table and draws one picture. The experiments and what each predicts are described at
the top of their modules: `toy`, `average_sam`, `single_sample_sam`, `curved_manifold`.
"""

from torch_ire.theory.comparison import Comparison, Curve, Outcome, print_table, slope
from torch_ire.theory.picture import draw
from torch_ire.theory.reproduce import reproduce

__all__ = ["Comparison", "Curve", "Outcome", "draw", "print_table", "reproduce", "slope"]
