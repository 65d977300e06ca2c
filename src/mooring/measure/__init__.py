"""Watching a training, and measuring where it ended: curvature, stability, drift, calibration, generalisation.

``import mooring.measure`` costs nothing: torch is imported when the first name that needs it is looked up.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mooring.measure.bound import flatness_bound as flatness_bound
    from mooring.measure.bound import largest_trace as largest_trace
    from mooring.measure.calibrated import Bin as Bin
    from mooring.measure.calibrated import Calibration as Calibration
    from mooring.measure.calibrated import Gap as Gap
    from mooring.measure.calibrated import calibration as calibration
    from mooring.measure.calibrated import generalization_gap as generalization_gap
    from mooring.measure.distance import Drift as Drift
    from mooring.measure.distance import LayerDrift as LayerDrift
    from mooring.measure.distance import drift as drift
    from mooring.measure.distance import weight_norm as weight_norm
    from mooring.measure.estimate import Estimate as Estimate
    from mooring.measure.hessian import Block as Block
    from mooring.measure.hessian import Hessian as Hessian
    from mooring.measure.loggers import log_to as log_to
    from mooring.measure.slices import Slice as Slice
    from mooring.measure.slices import loss_along as loss_along
    from mooring.measure.spectrum import Density as Density
    from mooring.measure.stability import Stability as Stability
    from mooring.measure.stability import noise_stability as noise_stability
    from mooring.measure.watcher import Watch as Watch
    from mooring.measure.watcher import watch as watch

_MODULES = {
    "bound": ("flatness_bound", "largest_trace"),
    "calibrated": ("Bin", "Calibration", "Gap", "calibration", "generalization_gap"),
    "distance": ("Drift", "LayerDrift", "drift", "weight_norm"),
    "estimate": ("Estimate",),
    "hessian": ("Block", "Hessian"),
    "loggers": ("log_to",),
    "slices": ("Slice", "loss_along"),
    "spectrum": ("Density",),
    "stability": ("Stability", "noise_stability"),
    "watcher": ("Watch", "watch"),
}
_ROOMS = {name: f"mooring.measure.{module}" for module, names in _MODULES.items() for name in names}
__all__ = sorted(_ROOMS)


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(import_module(_ROOMS[name]), name)
    raise AttributeError(f"module 'mooring.measure' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
