"""Named optimizers: each a signature, a docstring and one recipe."""

from mooring.optim.adamp import SGDP, AdamP
from mooring.optim.plain import SGD, AdamW
from mooring.optim.spd import SGDSPD, AdamSPD
from mooring.optim.swd import SGDS, AdamS

__all__ = ["SGD", "SGDP", "SGDS", "SGDSPD", "AdamP", "AdamS", "AdamSPD", "AdamW"]
