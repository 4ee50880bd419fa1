"""The optimizers: AdmIRE, SGDIRE, SAMIRE, and IRE around any other."""

from torch_ire.optim.adm_ire import AdmIRE
from torch_ire.optim.ire import IRE
from torch_ire.optim.sam_ire import SAMIRE
from torch_ire.optim.sgd_ire import SGDIRE

__all__ = ["IRE", "SAMIRE", "SGDIRE", "AdmIRE"]
