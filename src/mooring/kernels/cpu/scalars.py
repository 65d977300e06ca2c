"""Numbers that states hold in tensors of their own, read and written for many tensors in one call."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from mooring.kernels.cpu.memory import ENTRY, view
from mooring.kernels.cpu.sources import made_of


def _entries(sources: int) -> tuple[Any, Any]:
    @njit(cache=True, **ENTRY)
    def read(addresses, out):
        if sources < 0:
            return
        for i in range(addresses.shape[0]):
            out[i] = view(addresses[i], 1, out)[0]

    @njit(cache=True, **ENTRY)
    def write(addresses, values):
        if sources < 0:
            return
        for i in range(addresses.shape[0]):
            view(addresses[i], 1, values)[0] = values[i]

    return read, write


read, write = _entries(made_of())
"""``read(addresses, out)`` and ``write(addresses, values)``: numbers of the arrays' own type."""


def load() -> None:
    """Compile them, or read them from the cache: a process that has forked leaves that to its parent."""
    nowhere = np.zeros(0, np.int64)
    read(nowhere, np.zeros(0))
    for own in (np.float64, np.float32):
        write(nowhere, np.zeros(0, own))
