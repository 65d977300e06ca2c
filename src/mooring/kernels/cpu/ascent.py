"""What the sharpness-aware family does to weights: norms of directions, and the climb along them, one pass each."""

from __future__ import annotations

import numpy as np
from numba import njit

from mooring.kernels.cpu.blocks import BLOCK, dot
from mooring.kernels.cpu.memory import OPTIONS, SAME, load, store, view

PLAIN, ADAPTIVE, UNSCALED = range(3)
KINDS = {"plain": PLAIN, "adaptive": ADAPTIVE, "unscaled": UNSCALED}
"""Directions: ``g``; ``T g`` with ``T = |w| + eta``, and ``T`` once more in the climb; ``g`` without a norm."""

# Columns of the table of jobs, and of its numbers.
OUT, SAVED, GRADIENT, COUNT = range(4)
FACTOR, ETA, ADDED, DIVISOR = range(4)
_FLOATS = np.empty(1, np.float32)
_F = np.float32


@njit(**OPTIONS)
def _adapted(w, g, eta, out, n):
    """``(|w| + eta) g``; no addition where eta is 0."""
    if eta == 0:
        for i in range(n):
            out[i] = abs(w[i]) * g[i]
    else:
        for i in range(n):
            out[i] = (abs(w[i]) + eta) * g[i]


WORK = 4 * BLOCK
"""Elements of scratch, float32: weights, gradients, directions, and weights to be."""


@njit(**OPTIONS)
def climb(job, numbers, kind, stored, work):
    """Write saved weights plus the climb, or, where there is nothing to write, return the sum of squares.

    Args:
        job: (4,) int64: address of the first element written, or 0; of the saved weights; of the gradient; how many
            elements.
        numbers: (4,) float32: factor; eta; what is added (0 or NaN) and divided by where nothing is normalised.
        kind: the direction.
        stored: how weights and gradients are stored.
        work: the address of WORK elements.
    """
    factor, eta, added, divisor = numbers[FACTOR], numbers[ETA], numbers[ADDED], numbers[DIVISOR]
    total = 0.0
    for e in range(0, job[COUNT], BLOCK):
        n = min(BLOCK, job[COUNT] - e)
        g = load(job[GRADIENT], e, n, stored, _FLOATS, work)
        w = load(job[SAVED], e, n, stored, _FLOATS, work + 4 * BLOCK)
        d = g
        if kind == ADAPTIVE and eta >= 0:
            d = view(work + 8 * BLOCK, n, _FLOATS)
            _adapted(w, g, eta, d, n)
        if job[OUT] == 0:
            total += dot(d, d, n)
            continue
        out = view(work + 12 * BLOCK, n, _FLOATS)
        if stored == SAME:
            out = view(job[OUT] + 4 * e, n, _FLOATS)
        if kind == UNSCALED:
            if divisor == 1:
                for i in range(n):
                    out[i] = w[i] + (g[i] * factor + added)
            else:
                for i in range(n):
                    out[i] = w[i] + (g[i] * factor + added) / divisor
        elif kind == PLAIN or eta < 0:
            for i in range(n):
                out[i] = w[i] + d[i] * factor
        elif eta == 0:
            for i in range(n):
                out[i] = w[i] + d[i] * factor * abs(w[i])
        else:
            for i in range(n):
                out[i] = w[i] + d[i] * factor * (abs(w[i]) + eta)
        if stored != SAME:
            store(job[OUT], e, n, stored, out)
    return total
