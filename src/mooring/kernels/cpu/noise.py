"""Random numbers of ``kernels/random.py``, drawn and added to weights in one pass over memory.

The formulas are those of that module, operation by operation, so the numbers are the same to the bit.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from mooring.kernels import random
from mooring.kernels.cpu.memory import OPTIONS, SAME, WORDS, address_of, bits_of, load, number_of, store, view

NORMAL, LAPLACE, UNIFORM, BITS = range(4)
LAWS = {"normal": NORMAL, "laplace": LAPLACE, "uniform": UNIFORM, "bits": BITS}

BLOCK = 512
"""Elements drawn at a time: words, noise and weights of them stay in the first cache."""
# Columns of the table of jobs.
OUT, SAVED, FIRST, COUNT, KEY1, KEY2 = range(6)

_INTEGERS = np.empty(1, np.int32)
_FLOATS = np.empty(1, np.float32)
_LONGS = np.empty(1, np.uint64)
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


@njit(inline="always", **OPTIONS)
def _minus_two_log(bits):
    t = _I(bits_of(_F(_I((bits & _REST) | _I(1)))) - _UPPER_HALF)
    f = number_of(_I(_I(t & _MANTISSA) + _ROOT_HALF)) - _F(1)
    y = (((((f * _L6 + _L5) * f + _L4) * f + _L3) * f + _L2) * f + _L1) * f + _L0
    return y * f + _F(_I(t >> _I(23))) * _MINUS_TWO_LN2


@njit(**OPTIONS)
def _words(first, n, one, two, out):
    for i in range(n):
        x = one + (_U(first) + _U(i)) * _GAMMA
        x = (x ^ (x >> _U(30))) * _MIX1 + two
        x = (x ^ (x >> _U(27))) * _MIX2
        out[i] = x ^ (x >> _U(31))


@njit(inline="always", **OPTIONS)  # what returns an array must not be called
def short_bits(drawn, first, n, one, two):
    """Sixteen random bits for each of n elements; ``drawn`` holds n // 4 + 2 words."""
    skipped = first % 4
    _words(first // 4, (skipped + n + 3) // 4, one, two, drawn)
    return view(address_of(drawn) + 2 * skipped, n, WORDS)


@njit(**OPTIONS)
def bits(drawn, first, n, one, two, where):
    """The same as int32, written to the address ``where``."""
    shorts = short_bits(drawn, first, n, one, two)
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
        out[2 * i] = number_of(_I(bits_of((even - odd) / inverse) ^ _I(lower & _SIGN)))
        out[2 * i + 1] = number_of(_I(bits_of((even + odd) / inverse) ^ _I(upper << _I(31))))


@njit(**OPTIONS)
def _laplace(halves, n, out):
    for i in range(2 * n):
        size = _minus_two_log(halves[i]) * _LAPLACE
        out[i] = number_of(_I(bits_of(size) ^ _I(halves[i] & _SIGN)))


@njit(**OPTIONS)
def _uniform(halves, n, out):
    for i in range(2 * n):
        out[i] = _F(halves[i]) * _UNIFORM


WORK = 5 * BLOCK + 64
"""Elements of scratch, float32: words, noise, and weights before and after."""


@njit(**OPTIONS)
def draw(job, scale, law, stored, work):
    """Write noise, or saved weights plus scaled noise.

    Args:
        job: (6,) int64: address of the first element written; of the first saved one, or 0; its number in the whole
            tensor; how many; two words of key.
        scale: what noise is multiplied by.
        law: which.
        stored: how weights are stored; bits and bare noise are in 4 bytes.
        work: the address of WORK elements.
    """
    room = BLOCK + 8
    drawn = view(work, room, _LONGS)
    halves = view(work, 2 * room, _INTEGERS)
    noise = view(work + 8 * room, room, _FLOATS)
    wide, sums = work + 12 * room, view(work + 12 * room + 4 * BLOCK, BLOCK, _FLOATS)
    one, two = _U(job[KEY1]), _U(job[KEY2])
    where, saved = job[OUT], job[SAVED]
    for e in range(0, job[COUNT], BLOCK):
        n = min(BLOCK, job[COUNT] - e)
        first = job[FIRST] + e
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
        w = load(saved, e, n, stored, _FLOATS, wide)
        if stored == SAME:
            out = view(where + 4 * e, n, _FLOATS)
            for i in range(n):
                out[i] = w[i] + u[i] * scale
        else:
            for i in range(n):
                sums[i] = w[i] + u[i] * scale
            store(where, e, n, stored, sums)
