"""Random numbers of ``kernels/random.py``, drawn and added to weights in one pass over memory.

The formulas are those of that module, operation by operation, so the numbers are the same to the bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from mooring.kernels import random
from mooring.kernels.cpu.memory import ENTRY, OPTIONS, SAME, address_of, load, store, view
from mooring.kernels.cpu.sources import made_of

NORMAL, LAPLACE, UNIFORM, BITS = range(4)
LAWS = {"normal": NORMAL, "laplace": LAPLACE, "uniform": UNIFORM, "bits": BITS}

BLOCK = 512
"""Elements drawn at a time: words, noise and weights of them stay in the first cache."""
# Columns of the table of jobs.
OUT, SAVED, FIRST, COUNT, KEY1, KEY2 = range(6)

_INTEGERS = np.empty(1, np.int32)
_SHORTS = np.empty(1, np.uint16)
_FLOATS = np.empty(1, np.float32)
_F = np.float32
_I = np.int32
_U = np.uint64
_GAMMA, _MIX1, _MIX2 = _U(random.GAMMA), _U(random.MIX1), _U(random.MIX2)
_L0, _L1, _L2, _L3, _L4, _L5, _L6 = (_F(c) for c in random.LOG)
_C0, _C1, _C2, _C3 = (_F(c) for c in random.COS)
_S0, _S1, _S2, _S3 = (_F(c) for c in random.SIN)
_MINUS_TWO_LN2, _TURN = _F(random.MINUS_TWO_LN2), _F(random.TURN)
_LAPLACE, _UNIFORM = _F(random.LAPLACE), _F(random.UNIFORM)
_UPPER_HALF, _ROOT_HALF = _I(random.UPPER_HALF), _I(random.ROOT_HALF)
_SIGN, _REST, _MANTISSA = _I(-(1 << 31)), _I((1 << 31) - 1), _I(0x7FFFFF)


@intrinsic
def _bits(typingctx: Any, x: Any) -> Any:
    """A float32's bits."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), codegen


@intrinsic
def _number(typingctx: Any, bits: Any) -> Any:
    """The float32 that has these bits."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), codegen


@njit(inline="always", **OPTIONS)
def _minus_two_log(bits):
    t = _I(_bits(_F(_I((bits & _REST) | _I(1)))) - _UPPER_HALF)
    f = _number(_I(_I(t & _MANTISSA) + _ROOT_HALF)) - _F(1)
    y = (((((f * _L6 + _L5) * f + _L4) * f + _L3) * f + _L2) * f + _L1) * f + _L0
    return y * f + _F(_I(t >> _I(23))) * _MINUS_TWO_LN2


@njit(**OPTIONS)
def _words(first, n, one, two, out):
    for i in range(n):
        x = one + (_U(first) + _U(i)) * _GAMMA
        x = (x ^ (x >> _U(30))) * _MIX1 + two
        x = (x ^ (x >> _U(27))) * _MIX2
        out[i] = x ^ (x >> _U(31))


@njit(**OPTIONS)
def bits(drawn, first, n, one, two, where):
    """Write sixteen random bits per element, as int32, to the address ``where``; ``drawn`` holds n // 4 + 2 words."""
    skipped = first % 4
    _words(first // 4, (skipped + n + 3) // 4, one, two, drawn)
    shorts = view(address_of(drawn) + 2 * skipped, n, _SHORTS)
    out = view(where, n, _INTEGERS)
    for i in range(n):
        out[i] = shorts[i]


@njit(**OPTIONS)
def _normal(halves, n, out):
    for i in range(n):
        lower, upper = halves[2 * i], halves[2 * i + 1]
        inverse = _F(1) / np.sqrt(_minus_two_log(lower))
        angle = _F(upper) * _TURN
        square = angle * angle
        even = ((square * _C3 + _C2) * square + _C1) * square + _C0
        odd = (((square * _S3 + _S2) * square + _S1) * square + _S0) * angle
        out[2 * i] = _number(_I(_bits((even - odd) / inverse) ^ _I(lower & _SIGN)))
        out[2 * i + 1] = _number(_I(_bits((even + odd) / inverse) ^ _I(upper << _I(31))))


@njit(**OPTIONS)
def _laplace(halves, n, out):
    for i in range(2 * n):
        size = _minus_two_log(halves[i]) * _LAPLACE
        out[i] = _number(_I(_bits(size) ^ _I(halves[i] & _SIGN)))


@njit(**OPTIONS)
def _uniform(halves, n, out):
    for i in range(2 * n):
        out[i] = _F(halves[i]) * _UNIFORM


@njit(**ENTRY)
def _walk(jobs, scales, law, stored, begin, end):
    """Write noise, or saved weights plus scaled noise.

    Args:
        jobs: (jobs, 6) int64: address of the first element written; of the first saved one, or 0; its number in the
            whole tensor; how many; two words of key.
        scales: (jobs,) float32.
        law: which.
        stored: how weights are stored; bits and bare noise are in 4 bytes.
        begin: the first job.
        end: one past the last.
    """
    room = BLOCK + 8
    drawn = np.empty(room, np.uint64)
    halves = view(address_of(drawn), 2 * room, _INTEGERS)
    noise = np.empty(room, np.float32)
    wide = np.empty(BLOCK, np.float32)
    sums = np.empty(BLOCK, np.float32)
    for job in range(begin, end):
        one, two, scale = _U(jobs[job, KEY1]), _U(jobs[job, KEY2]), scales[job]
        where, saved = jobs[job, OUT], jobs[job, SAVED]
        for e in range(0, jobs[job, COUNT], BLOCK):
            n = min(BLOCK, jobs[job, COUNT] - e)
            first = jobs[job, FIRST] + e
            if law == BITS:
                bits(drawn, first, n, one, two, where + 4 * e)
                continue
            skipped = first % 2
            count = (skipped + n + 1) // 2
            _words(first // 2, count, one, two, drawn)
            if law == NORMAL:
                _normal(halves, count, noise)
            elif law == LAPLACE:
                _laplace(halves, count, noise)
            else:
                _uniform(halves, count, noise)
            u = view(address_of(noise) + 4 * skipped, n, _FLOATS)
            if saved == 0:
                out = view(where + 4 * e, n, _FLOATS)
                for i in range(n):
                    out[i] = u[i] * scale
                continue
            w = load(saved, e, n, stored, _FLOATS, address_of(wide))
            if stored == SAME:
                out = view(where + 4 * e, n, _FLOATS)
                for i in range(n):
                    out[i] = w[i] + u[i] * scale
            else:
                for i in range(n):
                    sums[i] = w[i] + u[i] * scale
                store(where, e, n, stored, view(address_of(sums), n, _FLOATS))


def _entry(sources: int) -> Any:
    @njit(cache=True, **ENTRY)
    def walk(jobs, scales, law, stored, begin, end):
        if sources < 0:
            return
        _walk(jobs, scales, law, stored, begin, end)

    return walk


walk = _entry(made_of())
"""See :func:`_walk`."""
