"""Gradients at perturbed weights: noise stability optimization and the sharpness-aware family."""

from mooring.perturb.nso import NSO
from mooring.perturb.sam import ASAM, RSAM, SAM, USAM

__all__ = ["ASAM", "NSO", "RSAM", "SAM", "USAM"]
