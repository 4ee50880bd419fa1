"""The optimizers: AdmIRE, SGDIRE, SAMIRE, IRE around any other optimizer, and steps inside the backward pass."""

from torch_ire.optim.adm_ire import AdmIRE
from torch_ire.optim.in_backward import StepInBackward
from torch_ire.optim.ire import IRE
from torch_ire.optim.sam_ire import SAMIRE
from torch_ire.optim.sgd_ire import SGDIRE

__all__ = ["IRE", "SAMIRE", "SGDIRE", "AdmIRE", "StepInBackward"]
