"""Rules: pure functions from Gram entries to coefficients, one file per paper."""

from mooring.rules.decay import DecoupledDecay
from mooring.rules.radial_projection import BufferHorizonDecay, RadialProjection
from mooring.rules.selective_projection import SelectiveProjection
from mooring.rules.stable_decay import StableDecay

__all__ = ["BufferHorizonDecay", "DecoupledDecay", "RadialProjection", "SelectiveProjection", "StableDecay"]
