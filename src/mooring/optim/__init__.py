"""Named optimizers: each a signature, a docstring and one recipe."""

from mooring.optim import convert
from mooring.optim.adamp import SGDP, AdamP
from mooring.optim.adamw import AdamW
from mooring.optim.composed import SGD, Adai, AdaiS, Adam
from mooring.optim.cost import cost
from mooring.optim.groups import param_groups
from mooring.optim.interpolate import interpolate
from mooring.optim.scale_invariance import scale_invariant_parameters
from mooring.optim.spd import SGDSPD, AdamSPD
from mooring.optim.swd import SGDS, AdamS
from mooring.optim.traffic import communication
from mooring.optim.wrapped import wrap

__all__ = [
    "SGD",
    "SGDP",
    "SGDS",
    "SGDSPD",
    "Adai",
    "AdaiS",
    "Adam",
    "AdamP",
    "AdamS",
    "AdamSPD",
    "AdamW",
    "communication",
    "convert",
    "cost",
    "interpolate",
    "param_groups",
    "scale_invariant_parameters",
    "wrap",
]
