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
SUM, _WHERE = CODE["sum"], CODE["where"]
COPY = CODE["copy"]
_OPERANDS = np.array([2] * 14 + [1] * 9 + [3])
SPARE = 3
"""Registers beyond the program's own that its evaluation needs."""


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
        late: the operations that depend on the one entry that comes last, with NaN for its sums; none where the others
            never say enough.
        by_row: the operations that lead to the coefficients where all numbers that are not rows are known.
    """

    steps: np.ndarray = field(default_factory=lambda: np.zeros((0, 6), np.int64))
    wide: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    constants: list[tuple[int, float]] = field(default_factory=list)
    entries: list[int] = field(default_factory=list)
    inputs: dict[str, int] = field(default_factory=dict)
    outputs: list[int] = field(default_factory=list)
    flags: dict[str, int] = field(default_factory=dict)
    late: np.ndarray = field(default_factory=lambda: np.zeros((0, 6), np.int64))
    by_row: np.ndarray = field(default_factory=lambda: np.zeros((0, 6), np.int64))


@njit(**OPTIONS)
def evaluate(steps, wide, registers, rows):
    """Run a program on ``registers``, float64 of shape (registers + SPARE, at least ``rows``)."""
    for s in range(steps.shape[0]):
        code, out = steps[s, 0], registers[steps[s, 1]]
        a, b, c = steps[s, 2], steps[s, 3], steps[s, 4]
        if code == SUM:
            total = 0.0
            if wide[a]:
                for i in range(rows):
                    total += registers[a, i]
            else:
                total = registers[a, 0] * rows
            out[0] = total
            continue
        if not steps[s, 5]:
            if code == _WHERE:
                out[0] = registers[b, 0] if registers[a, 0] != 0 else registers[c, 0]
            else:
                out[0] = _apply(code, registers[a, 0], registers[b, 0])
            continue
        # A number beside a row stands at every place of it: written out, so that all loops run over whole rows.
        spare = registers.shape[0] - SPARE
        for operand in range(_OPERANDS[code]):
            which = steps[s, 2 + operand]
            if not wide[which]:
                for i in range(rows):
                    registers[spare + operand, i] = registers[which, 0]
        x = registers[a if wide[a] else spare]
        y = registers[b if wide[b] else spare + 1]
        z = registers[c if wide[c] else spare + 2]
        if code == _WHERE:
            for i in range(rows):
                out[i] = y[i] if x[i] != 0 else z[i]
        else:
            _rows(code, out, x, y, rows)


@njit(**OPTIONS)
def _rows(code, out, x, y, n):
    # The choice is made outside of the loops of what rules mostly do to thousands of rows.
    if code == 0:
        for i in range(n):
            out[i] = x[i] + y[i]
    elif code == 1:
        for i in range(n):
            out[i] = x[i] - y[i]
    elif code == 2:
        for i in range(n):
            out[i] = x[i] * y[i]
    elif code == 3:
        for i in range(n):
            out[i] = x[i] / y[i]
    elif code == 4:
        for i in range(n):
            out[i] = x[i] if (x[i] >= y[i] or x[i] != x[i]) else y[i]
    elif code == 6:
        for i in range(n):
            out[i] = 1.0 if x[i] < y[i] else 0.0
    elif code == 8:
        for i in range(n):
            out[i] = 1.0 if x[i] > y[i] else 0.0
    elif code == 12:
        for i in range(n):
            out[i] = 1.0 if x[i] != 0 and y[i] != 0 else 0.0
    elif code == 14:
        for i in range(n):
            out[i] = -x[i]
    elif code == 15:
        for i in range(n):
            out[i] = abs(x[i])
    elif code == 16:
        for i in range(n):
            out[i] = np.sqrt(x[i])
    elif code == 19:
        for i in range(n):
            out[i] = 0.0 if x[i] != 0 else 1.0
    elif code == COPY:
        for i in range(n):
            out[i] = x[i]
    else:
        for i in range(n):
            out[i] = _apply(code, x[i], y[i])


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
