"""mooring: optimizers that fine-tune without drifting.

``import mooring`` costs nothing: torch is imported when the first optimizer is looked up.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mooring.measure import log_to as log_to
    from mooring.measure import watch as watch
    from mooring.optim import SGD as SGD
    from mooring.optim import SGDP as SGDP
    from mooring.optim import SGDS as SGDS
    from mooring.optim import SGDSPD as SGDSPD
    from mooring.optim import Adai as Adai
    from mooring.optim import AdaiS as AdaiS
    from mooring.optim import Adam as Adam
    from mooring.optim import AdamP as AdamP
    from mooring.optim import AdamS as AdamS
    from mooring.optim import AdamSPD as AdamSPD
    from mooring.optim import AdamW as AdamW
    from mooring.optim import communication as communication
    from mooring.optim import convert as convert
    from mooring.optim import cost as cost
    from mooring.optim import interpolate as interpolate
    from mooring.optim import param_groups as param_groups
    from mooring.optim import scale_invariant_parameters as scale_invariant_parameters
    from mooring.optim import wrap as wrap
    from mooring.perturb import ASAM as ASAM
    from mooring.perturb import NSO as NSO
    from mooring.perturb import RSAM as RSAM
    from mooring.perturb import SAM as SAM
    from mooring.perturb import USAM as USAM
    from mooring.rules import BufferHorizonDecay as BufferHorizonDecay
    from mooring.rules import CoupledDecay as CoupledDecay
    from mooring.rules import DecoupledDecay as DecoupledDecay
    from mooring.rules import RadialProjection as RadialProjection
    from mooring.rules import SelectiveProjection as SelectiveProjection
    from mooring.rules import StableDecay as StableDecay
    from mooring.rules import TrustRatio as TrustRatio

__version__ = "0.1.0"

_OPTIMIZERS = ("SGD", "SGDP", "SGDS", "SGDSPD", "Adai", "AdaiS", "Adam", "AdamP", "AdamS", "AdamSPD", "AdamW")
_RULES = (
    "BufferHorizonDecay",
    "CoupledDecay",
    "DecoupledDecay",
    "RadialProjection",
    "SelectiveProjection",
    "StableDecay",
    "TrustRatio",
)
_HELPERS = ("communication", "convert", "cost", "interpolate", "param_groups", "scale_invariant_parameters", "wrap")
_PERTURBED = ("ASAM", "NSO", "RSAM", "SAM", "USAM")
_MEASURES = ("log_to", "watch")
_ROOMS = {
    **dict.fromkeys((*_OPTIMIZERS, *_HELPERS), "mooring.optim"),
    **dict.fromkeys(_RULES, "mooring.rules"),
    **dict.fromkeys(_PERTURBED, "mooring.perturb"),
    **dict.fromkeys(_MEASURES, "mooring.measure"),
}
__all__ = [*_OPTIMIZERS, *_RULES, *_PERTURBED, *_HELPERS, *_MEASURES]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(import_module(_ROOMS[name]), name)
    raise AttributeError(f"module 'mooring' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
