"""What the sharpness-aware family does to weights: norms of directions, and the climb along them, one pass each."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from mooring.kernels.cpu.blocks import BLOCK, dot
from mooring.kernels.cpu.memory import ENTRY, OPTIONS, SAME, address_of, load, store, view
from mooring.kernels.cpu.sources import made_of

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


@njit(**ENTRY)
def _climb(jobs, numbers, kind, stored, sums, begin, end):
    """Write saved weights plus the climb, or, where there is nothing to write, each job's sum of squares.

    Args:
        jobs: (jobs, 4) int64: address of the first element written, or 0; of the saved weights; of the gradient; how
            many elements.
        numbers: (jobs, 4) float32: factor; eta; what is added (0 or NaN) and divided by where nothing is normalised.
        kind: the direction.
        stored: how weights and gradients are stored.
        sums: (jobs,) float64, written where nothing else is.
        begin: the first job.
        end: one past the last.
    """
    work = np.empty((4, BLOCK), np.float32)
    for job in range(begin, end):
        factor, eta, added, divisor = (
            numbers[job, FACTOR],
            numbers[job, ETA],
            numbers[job, ADDED],
            numbers[job, DIVISOR],
        )
        total = 0.0
        for e in range(0, jobs[job, COUNT], BLOCK):
            n = min(BLOCK, jobs[job, COUNT] - e)
            g = load(jobs[job, GRADIENT], e, n, stored, _FLOATS, address_of(work[0]))
            w = load(jobs[job, SAVED], e, n, stored, _FLOATS, address_of(work[1]))
            d = g
            if kind == ADAPTIVE and eta >= 0:
                d = view(address_of(work[2]), n, _FLOATS)
                _adapted(w, g, eta, d, n)
            if jobs[job, OUT] == 0:
                total += dot(d, d, n)
                continue
            out = view(address_of(work[3]), n, _FLOATS)
            if stored == SAME:
                out = view(jobs[job, OUT] + 4 * e, n, _FLOATS)
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
                store(jobs[job, OUT], e, n, stored, out)
        if jobs[job, OUT] == 0:
            sums[job] = total


def _entry(sources: int) -> Any:
    @njit(cache=True, **ENTRY)
    def climb(jobs, numbers, kind, stored, sums, begin, end):
        if sources < 0:
            return
        _climb(jobs, numbers, kind, stored, sums, begin, end)

    return climb


climb = _entry(made_of())
"""See :func:`_climb`."""
