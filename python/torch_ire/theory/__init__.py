"""The paper's theory: experiments A to D through the public optimizers, against closed forms.

`reproduce()` runs them, prints a table and draws a picture. The modules `toy`, `average_sam`, `single_sample_sam` and
`curved_manifold` describe the experiments and their predictions.
"""

from torch_ire.theory.comparison import Comparison, Curve, Outcome, print_table, slope
from torch_ire.theory.picture import draw
from torch_ire.theory.reproduce import reproduce

__all__ = ["Comparison", "Curve", "Outcome", "draw", "print_table", "reproduce", "slope"]
