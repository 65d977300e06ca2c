"""Rules as a list of operations on numbers, evaluated inside the kernel, tensor by tensor.

What a rule decides depends on a few numbers per slice and per tensor. Traced once (``step/tape.py``), it is a list of
operations on registers: a row of numbers, one per slice of the tensor at hand, or one number for the tensor. So a
tensor can be moved while it is in the cache, and no kernel knows a method.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numba import njit

from mooring.kernels.cpu.memory import OPTIONS

NAMES = (  # noqa: SIM905
    "add sub mul div maximum minimum lt le gt ge eq ne logical_and logical_or "  # of two registers
    "neg abs sqrt rsqrt reciprocal logical_not isfinite copy sum where"  # of one; the sum over slices; of three
).split()
CODE = {name: i for i, name in enumerate(NAMES)}
_SUM, _WHERE = CODE["sum"], CODE["where"]


@dataclass
class Program:
    """Operations on registers.

    Attributes:
        steps: (operations, 6) int64: code, result, up to three operands, and whether the result is a row.
        wide: per register, whether it holds a row of numbers (one per slice) or one number.
        constants: (register, value) pairs.
        entries: registers that receive the Gram entries, in the order of the batch.
        inputs: register of each number per tensor, by name.
        outputs: registers of the coefficients: beta, tau, kappa, buffer; -1 where a rule wrote none.
        flags: registers of what rules count, by name.
    """

    steps: np.ndarray = field(default_factory=lambda: np.zeros((0, 6), np.int64))
    wide: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    constants: list[tuple[int, float]] = field(default_factory=list)
    entries: list[int] = field(default_factory=list)
    inputs: dict[str, int] = field(default_factory=dict)
    outputs: list[int] = field(default_factory=list)
    flags: dict[str, int] = field(default_factory=dict)


@njit(**OPTIONS)
def evaluate(steps, wide, registers, rows):
    """Run a program on ``registers``, float64 of shape (registers, at least ``rows``)."""
    for s in range(steps.shape[0]):
        code, out = steps[s, 0], registers[steps[s, 1]]
        a, b, c = steps[s, 2], steps[s, 3], steps[s, 4]
        if code == _SUM:
            total = 0.0
            if wide[a]:
                for i in range(rows):
                    total += registers[a, i]
            else:
                total = registers[a, 0] * rows
            out[0] = total
            continue
        n = rows if steps[s, 5] else 1
        # A number beside a row stands at every place of it.
        i_a, i_b, i_c = wide[a], wide[b], wide[c]
        x, y, z = registers[a], registers[b], registers[c]
        if code == _WHERE:
            for i in range(n):
                out[i] = y[i * i_b] if x[i * i_a] != 0 else z[i * i_c]
        elif n == 1:
            out[0] = _apply(code, x[0], y[0])
        else:
            _rows(code, out, x, y, i_a, i_b, n)


@njit(**OPTIONS)
def _rows(code, out, x, y, i_a, i_b, n):
    # The choice is made outside of the loops of what rules mostly do to thousands of rows.
    if code == 0:
        for i in range(n):
            out[i] = x[i * i_a] + y[i * i_b]
    elif code == 1:
        for i in range(n):
            out[i] = x[i * i_a] - y[i * i_b]
    elif code == 2:
        for i in range(n):
            out[i] = x[i * i_a] * y[i * i_b]
    elif code == 3:
        for i in range(n):
            out[i] = x[i * i_a] / y[i * i_b]
    elif code == 6:
        for i in range(n):
            out[i] = 1.0 if x[i * i_a] < y[i * i_b] else 0.0
    elif code == 8:
        for i in range(n):
            out[i] = 1.0 if x[i * i_a] > y[i * i_b] else 0.0
    elif code == 16:
        for i in range(n):
            out[i] = np.sqrt(x[i * i_a])
    else:
        for i in range(n):
            out[i] = _apply(code, x[i * i_a], y[i * i_b])


@njit(**OPTIONS)
def _apply(code, x, y):
    if code == 0:
        return x + y
    if code == 1:
        return x - y
    if code == 2:
        return x * y
    if code == 3:
        return x / y
    if code == 4:
        return x if (x >= y or x != x) else y
    if code == 5:
        return x if (x <= y or x != x) else y
    if code == 6:
        return 1.0 if x < y else 0.0
    if code == 7:
        return 1.0 if x <= y else 0.0
    if code == 8:
        return 1.0 if x > y else 0.0
    if code == 9:
        return 1.0 if x >= y else 0.0
    if code == 10:
        return 1.0 if x == y else 0.0
    if code == 11:
        return 1.0 if x != y else 0.0
    if code == 12:
        return 1.0 if x != 0 and y != 0 else 0.0
    if code == 13:
        return 1.0 if x != 0 or y != 0 else 0.0
    if code == 14:
        return -x
    if code == 15:
        return abs(x)
    if code == 16:
        return np.sqrt(x)
    if code == 17:
        return 1.0 / np.sqrt(x)
    if code == 18:
        return 1.0 / x
    if code == 19:
        return 0.0 if x != 0 else 1.0
    if code == 20:
        return 1.0 if np.isfinite(x) else 0.0
    return x
