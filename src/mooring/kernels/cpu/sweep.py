"""One function that walks over tensors: observe, reduce, decide, apply, in one go or stage by stage."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import cfunc, njit, types

from mooring.kernels.cpu.block import any_block, block_size
from mooring.kernels.cpu.blocks import AMOUNT, NUMBERS
from mooring.kernels.cpu.decide import add_pieces, decide_tensor
from mooring.kernels.cpu.fused import place_for_u, see_tensor, straight, take_coefficients
from mooring.kernels.cpu.memory import ENTRY, OPTIONS, address_of, matrix, view
from mooring.kernels.cpu.program import SPARE
from mooring.kernels.cpu.sources import made_of
from mooring.kernels.cpu.tables import (
    AMONG,
    APPLY,
    DECIDE,
    EARLY,
    HEADER,
    LOOP,
    OBSERVE,
    PIECE,
    REDUCE,
    SCRATCH,
    SEEN,
    SQUARES,
    STRAIGHT,
    SUMS,
    THREAD_NUMBERS,
    Own,
    Rules,
    Tables,
)
from mooring.kernels.cpu.turns import counted, wait

_INTS = np.empty(1, np.int64)
_REALS = np.empty(1, np.float64)
_STEP = np.empty(1, np.float32)


@njit(**OPTIONS)
def _walk(what, t, begin, end, k, sums, b, rules, own):
    """Go over some pieces of a tensor, block by block."""
    size, item, products = block_size(what, b.how), own.like.itemsize, b.partial.shape[1]
    # To form u once more in the loop that moves costs less than to keep it.
    place = place_for_u(t, begin, end, what & OBSERVE and what & APPLY and b.how[LOOP] != AMONG, b, own)
    for stage in range(2):
        if stage == 0 and not what & (OBSERVE | SQUARES | SUMS):
            continue
        if stage == 1:
            if what & REDUCE:
                add_pieces(begin, end, b)
            if what & DECIDE:
                decide_tensor(t, begin, end, b, rules, own.registers)
                k[AMOUNT] = b.numbers[t, AMOUNT]
            if not what & APPLY or (what & EARLY and b.numbers[t, AMOUNT] == 0):
                continue
        for piece in range(begin, end):
            first, count = b.pieces[piece, 2], b.pieces[piece, 3]
            if stage == 1 or what & EARLY:
                take_coefficients(b, piece, k)
            for i in range(products):
                sums[i] = 0.0
            for e in range(first, first + count, size):
                n = min(size, first + count - e)
                u = place + e * item if place != 0 else 0
                any_block(what, stage, t, e, n, b.table, b.how, k, b.pairs, sums, own.like, address_of(own.work), u)
            if stage == 0:
                for i in range(products):
                    b.partial[piece, i] = sums[i]


_STAGES, _CLAIMS, _COUNTERS, _UNITS = range(4)
(
    _PIECES,
    _TABLE,
    _HOW,
    _NUMBERS,
    _PAIRS,
    _PARTIAL,
    _ENTRIES,
    _COEFFICIENTS,
    _NEEDS,
    _EXPECTED,
    _KNOWN,
    _INPUTS,
    _FLAGS,
) = (HEADER.index(name) for name in Tables._fields)
_STEPS, _WIDE, _WIRES, _PORTS, _OUTPUTS, _LATE, _BY_ROW = (HEADER.index(name) for name in Rules._fields)
_SLOTS, _REGISTERS, _WORK, _KEPT = (HEADER.index(name) for name in ("slots", "registers", "work", "kept"))


@njit(**OPTIONS)
def _of_slot(header, i, slot, item):
    """Where a thread's own row of an array begins."""
    return header[3 * i] + slot * header[3 * i + 2] * item


@njit(inline="always", **OPTIONS)  # what returns an array must not be called
def _ints(header, i):
    return matrix(header[3 * i], header[3 * i + 1], header[3 * i + 2], _INTS)


@njit(inline="always", **OPTIONS)
def _list(header, i):
    return view(header[3 * i], header[3 * i + 1], _INTS)


@njit(inline="always", **OPTIONS)
def _reals(header, i):
    return matrix(header[3 * i], header[3 * i + 1], header[3 * i + 2], _REALS)


@cache
def on_team(double: bool, sources: int = made_of()) -> Any:
    """A C function of one address, of a header, that any number of threads calls: it takes part in all stages.

    It takes claims of each stage in turn, and returns when everything is done. The rows of the header that are not in
    Tables and Rules:

    - stages: (stages, 3): what is done, its first claim, one past its last.
    - claims: (claims, 2): what a thread takes at a time: a first unit, one past the last.
    - counters: (stages, 8 + 8 threads), zeros: claims that are done, and in every eighth column those taken of one
      thread's share.
    - units: (units, 3): tensor, its first piece in ``pieces``, one past its last.
    - slots: zero: how many threads have come. Each takes its own part of the rest.
    - registers: (slots, registers x rows) float64, constants filled in.
    - work: (slots, SCRATCH) of the compute type.
    - kept: (slots, PIECE) of the compute type, for u of what is decided in one go.
    """
    like = np.zeros(1, np.float64 if double else np.float32)

    def take_turns(address):
        if sources < 0:
            return
        h = view(address, 3 * len(HEADER), _INTS)
        stages, claims, counters, units = _ints(h, _STAGES), _ints(h, _CLAIMS), _ints(h, _COUNTERS), _ints(h, _UNITS)
        b = Tables(
            _ints(h, _PIECES), _ints(h, _TABLE), _list(h, _HOW), _reals(h, _NUMBERS), _ints(h, _PAIRS),
            _reals(h, _PARTIAL), _reals(h, _ENTRIES), _reals(h, _COEFFICIENTS), _list(h, _NEEDS), _list(h, _EXPECTED),
            _reals(h, _KNOWN), _reals(h, _INPUTS), _reals(h, _FLAGS),
        )  # fmt: skip
        rules = Rules(
            _ints(h, _STEPS), _list(h, _WIDE), _list(h, _WIRES), _list(h, _PORTS), _list(h, _OUTPUTS),
            _ints(h, _LATE), _ints(h, _BY_ROW),
        )  # fmt: skip
        slot = counted(h[3 * _SLOTS])
        item, count = like.itemsize, rules.wide.shape[0] + SPARE
        registers = matrix(_of_slot(h, _REGISTERS, slot, 8), count, h[3 * _REGISTERS + 2] // count, _REALS)
        work = view(_of_slot(h, _WORK, slot, item), SCRATCH, like)
        kept = view(_of_slot(h, _KEPT, slot, item), PIECE, like)
        own = Own(registers, like, work, kept)
        k = view(address_of(work) + THREAD_NUMBERS * item, NUMBERS, like)
        sums = view(address_of(work) + (THREAD_NUMBERS + 2 * NUMBERS) * item, b.partial.shape[1], _REALS)
        threads = counters.shape[1] // 8 - 1
        for stage in range(stages.shape[0]):
            what, first, claimable = stages[stage, 0], stages[stage, 1], stages[stage, 2] - stages[stage, 1]
            done = address_of(counters) + stage * counters.shape[1] * 8
            # Its own share first, which is in its cache if an earlier stage has been there; then what others left.
            for other in range(threads):
                owner = (slot + other) % threads
                end, taken = first + claimable * (owner + 1) // threads, done + 64 * (owner + 1)
                claim = first + claimable * owner // threads + counted(taken)
                while claim < end:
                    for unit in range(claims[claim, 0], claims[claim, 1]):
                        t = units[unit, 0]
                        for i in range(NUMBERS):
                            k[i] = b.numbers[t, i]
                        if b.how[LOOP] == STRAIGHT and what & EARLY:
                            straight(t, units[unit, 1], units[unit, 2], k, b, own)
                        elif b.how[LOOP] == SEEN and not what & (SQUARES | SUMS):
                            see_tensor(what, t, units[unit, 1], units[unit, 2], k, b, rules, own)
                        else:
                            _walk(what, t, units[unit, 1], units[unit, 2], k, sums, b, rules, own)
                    counted(done)
                    claim = first + claimable * owner // threads + counted(taken)
            wait(done, claimable)

    # Here and not in a function beside: whatever calls something is optimized once more together with all of it.
    return cfunc(types.void(types.int64), cache=True, **ENTRY)(take_turns)


def _counts(sources: int) -> Any:
    @njit(cache=True, **ENTRY)
    def count(addresses, out):
        if sources < 0:
            return
        for i in range(addresses.shape[0]):
            step = view(addresses[i], 1, _STEP)
            step[0] += np.float32(1)
            out[i] = step[0]

    return count


count = _counts(made_of())
"""``count(addresses, out)`` adds one to float32 numbers, and copies them to ``out``."""
