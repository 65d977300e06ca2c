"""Rules: pure functions from Gram entries to coefficients, one file per paper."""

from mooring.rules.decay import CoupledDecay, DecoupledDecay
from mooring.rules.radial_projection import BufferHorizonDecay, RadialProjection
from mooring.rules.selective_projection import SelectiveProjection
from mooring.rules.stable_decay import StableDecay
from mooring.rules.trust_ratio import TrustRatio

__all__ = [
    "BufferHorizonDecay",
    "CoupledDecay",
    "DecoupledDecay",
    "RadialProjection",
    "SelectiveProjection",
    "StableDecay",
    "TrustRatio",
]
