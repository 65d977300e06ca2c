"""One function that draws noise, or climbs, for the jobs of a table that threads claim from one another."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import cfunc, types

from mooring.kernels.cpu import ascent, noise
from mooring.kernels.cpu.memory import ENTRY, address_of, matrix, view
from mooring.kernels.cpu.sources import made_of
from mooring.kernels.cpu.turns import counted

HEADER = ("what", "kind", "stored", "jobs", "count", "columns", "numbers", "sums", "claims", "slot", "next", "work")
"""What :func:`on_team` is given, an int64 each."""
NOISE, ASCENT = range(2)
_WHAT, _KIND, _STORED, _JOBS, _COUNT, _COLUMNS, _NUMBERS, _SUMS, _CLAIMS, _SLOT, _NEXT, _WORK = range(len(HEADER))
WORK = max(noise.WORK, ascent.WORK)
"""Elements of scratch, float32, that one thread needs."""

_INTS, _FLOATS, _REALS = np.empty(1, np.int64), np.empty(1, np.float32), np.empty(1, np.float64)


@cache
def on_team(sources: int = made_of()) -> Any:
    """A C function of one address, of a header, that any number of threads calls.

    - what, kind, stored: NOISE and a law, or ASCENT and a direction; how weights are stored.
    - jobs, count, columns: the table of jobs: its address and shape. numbers: (count, 4) float32. sums: (count,)
      float64, written.
    - claims: (claims + 1,) int64: where what a thread takes at a time begins, and the end. next: the address of two
      zeros: how many are taken; the other is slot, how many threads have come.
    - work: (slots, WORK) float32.
    """

    def take_turns(address):
        if sources < 0:
            return
        h = view(address, len(HEADER), _INTS)
        jobs = matrix(h[_JOBS], h[_COUNT], h[_COLUMNS], _INTS)
        numbers = matrix(h[_NUMBERS], h[_COUNT], 4, _FLOATS)
        sums = view(h[_SUMS], h[_COUNT], _REALS)
        work = view(h[_WORK] + counted(h[_SLOT]) * WORK * 4, WORK, _FLOATS)
        while True:
            claim = view(h[_CLAIMS] + 8 * counted(h[_NEXT]), 2, _INTS)
            if claim[0] >= h[_COUNT]:
                return
            for job in range(claim[0], claim[1]):
                if h[_WHAT] == NOISE:
                    noise.draw(jobs[job], numbers[job, 0], h[_KIND], h[_STORED], address_of(work))
                else:
                    sums[job] = ascent.climb(jobs[job], numbers[job], h[_KIND], h[_STORED], address_of(work))

    return cfunc(types.void(types.int64), cache=True, **ENTRY)(take_turns)
