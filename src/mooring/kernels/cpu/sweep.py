"""One function that walks over tensors: observe, reduce, decide, apply, in one go or stage by stage."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from mooring.kernels.cpu.blocks import (
    ADAI,
    ADAM,
    AMOUNT,
    BETA,
    BLOCK,
    BUFFER,
    COUPLED,
    FRESH,
    KAPPA,
    KEEP1,
    MOMENTUM,
    SCALE,
    SHARE,
    SUMMED,
    TAU,
    adai,
    adai_direction,
    adam,
    adam_direction,
    adam_held,
    adam_moved,
    adam_seen,
    ahead,
    contract,
    difference,
    divided,
    dot,
    dots,
    larger,
    maximum_to_be,
    momentum,
    momentum_moved,
    move,
    plus,
    projected,
    scaled,
    total,
)
from mooring.kernels.cpu.memory import (
    ENTRY,
    OPTIONS,
    SAME,
    address_of,
    join,
    load,
    store,
    store_compensated,
    store_stochastic,
    view,
)
from mooring.kernels.cpu.noise import bits
from mooring.kernels.cpu.program import evaluate
from mooring.kernels.cpu.sources import made_of

# Columns of the table of addresses, one row per tensor.
P, G, M, V, X, A, REST, U, FIRST = range(9)
# Random bits for what is rounded: an address and two words of key for each. Without an address they are drawn here,
# from the key and the place of the tensor's first element in the whole one, which is in FIRST.
DRAWN_P, DRAWN_M, DRAWN_V, DRAWN_X = range(9, 21, 3)
COLUMNS = 21
# How a batch is stored and stepped.
WEIGHTS, MOMENTS, ANCHOR, ROUNDING, KIND, AMSGRAD, NESTEROV, OFFSETS, COUPLES, PLAIN, TAUS, KAPPAS, BUFFERS, LOOP = (
    range(14)
)
SETTINGS = 14
# Loops over a block one after the other, or one that does it all: adam_moved, momentum_moved; adam_seen; adam_held.
SEVERAL, STRAIGHT, SEEN, HELD = range(4)
PIECE = 1 << 16
"""Elements of a slice that are summed in one go."""
ZERO = -2  # beside the ways of storage in memory.py
NEAREST, STOCHASTIC, KAHAN = 0, 1, 2
# What one walk does, added up.
OBSERVE, REDUCE, DECIDE, APPLY, EARLY, SQUARES, SUMS = 1, 2, 4, 8, 16, 32, 64
"""OBSERVE: update moments and form the inner products. REDUCE: add them over the pieces of each slice. DECIDE: run the
rules. APPLY: move; after EARLY, contract. EARLY: move while observing, with coefficients that are known. SQUARES: only
the gradient's sum of squares. SUMS: only the sums of the second moment (of its running maximum to be, with amsgrad)."""

_STEP = np.empty(1, np.float32)
_WORDS = np.empty(1, np.uint64)
_DRAWN = 8 * BLOCK + SUMMED  # behind seven blocks of inputs, and u
SCRATCH = _DRAWN + BLOCK + BLOCK // 2 + 8
"""Elements that one walk needs: the same, bits, and the words that they are cut from."""


@njit(**ENTRY)
def _walk(
    what,
    units,
    pieces,
    table,
    how,
    numbers,
    pairs,
    partial,
    entries,
    coefficients,
    steps,
    wide,
    wires,
    inputs,
    ports,
    registers,
    outputs,
    flags,
    like,
    work,
    kept,
    first_unit,
    last_unit,
):
    """Walk over some units.

    Args:
        what: the stages, added up.
        units: (units, 3): tensor, its first piece in ``pieces``, one past its last.
        pieces: (pieces, 4): tensor, slice, first element in memory, elements. A piece belongs to one slice.
        table: (tensors, COLUMNS) addresses; 0 where there is none.
        how: (SETTINGS,).
        numbers: (tensors, NUMBERS) float64.
        pairs: (products, 5): two letters (0 g, 1 p, 2 u, 3 d) and where <a,a>, <a,b>, <b,b> go; -1 is nowhere.
        partial: (pieces, entries) float64, written.
        entries: (entries, slices) float64, written by REDUCE.
        coefficients: (4, slices) float64: beta, tau, kappa and buffer per slice; written by DECIDE.
        steps: the program's operations.
        wide: which of its registers are rows.
        wires: registers of its entries.
        inputs: (tensors, ports) float64, the numbers that every tensor has.
        ports: the registers they go into.
        registers: float64 scratch, constants filled in.
        outputs: registers of the coefficients and of the contraction's amount, -1 for none.
        flags: (tensors + 1, flags) float64: what rules count, written; the last row holds the registers.
        like: any array of the compute type.
        work: scratch of the compute type, SCRATCH elements.
        kept: scratch for u of a tensor; it is formed once more where this is too small.
        first_unit: where to begin.
        last_unit: one past the last.
    """
    item = like.itemsize
    scratch = address_of(work)
    k = np.empty(numbers.shape[1], like.dtype)
    products = partial.shape[1]
    sums = np.zeros(products)
    for unit in range(first_unit, last_unit):
        t, begin, end = units[unit, 0], units[unit, 1], units[unit, 2]
        for i in range(numbers.shape[1]):
            k[i] = numbers[t, i]
        origin = pieces[begin, 2]
        elements = pieces[end - 1, 2] + pieces[end - 1, 3] - origin
        where_u = table[t, U] + origin * item if table[t, U] != 0 else 0
        if where_u == 0 and elements <= kept.size:
            where_u = address_of(kept)
        size = _block_size(what, how, k)
        for stage in range(2):
            if stage == 0 and not what & (OBSERVE | SQUARES | SUMS):
                continue
            if stage == 1:
                if what & REDUCE:
                    _reduce(pieces, begin, end, partial, entries)
                if what & DECIDE:
                    _decide(
                        t,
                        pieces[begin, 1],
                        pieces[end - 1, 1] + 1,
                        entries,
                        coefficients,
                        steps,
                        wide,
                        wires,
                        inputs,
                        ports,
                        registers,
                        outputs,
                        flags,
                        numbers,
                    )
                    k[AMOUNT] = numbers[t, AMOUNT]
                if not what & APPLY or (what & EARLY and numbers[t, AMOUNT] == 0):
                    continue
            for piece in range(begin, end):
                first, count = pieces[piece, 2], pieces[piece, 3]
                if stage == 1 or what & EARLY:
                    at = pieces[piece, 1]
                    k[BETA], k[TAU] = coefficients[0, at], coefficients[1, at]
                    k[KAPPA], k[BUFFER] = coefficients[2, at], coefficients[3, at]
                for i in range(products):
                    sums[i] = 0.0
                for e in range(first, first + count, size):
                    n = min(size, first + count - e)
                    u = where_u + (e - origin) * item if where_u != 0 else 0
                    _block(what, stage, t, e, n, table, how, k, pairs, sums, like, scratch, u)
                if stage == 0:
                    for i in range(products):
                        partial[piece, i] = sums[i]


@njit(**OPTIONS)
def _block_size(what, how, k):
    """How many elements are worked on at a time: few where scratch has to stay in the first cache."""
    if what & SQUARES:
        return SUMMED if how[WEIGHTS] == SAME and how[COUPLES] == 0 and k[SCALE] == 1 else BLOCK
    if what & SUMS:
        return BLOCK
    if how[LOOP] == STRAIGHT and what & EARLY:
        return PIECE
    if how[LOOP] == SEEN or (how[LOOP] == HELD and how[ANCHOR] == SAME):
        return SUMMED
    return BLOCK


@njit(**OPTIONS)
def _block(what, stage, t, e, n, table, how, k, pairs, sums, like, scratch, kept):
    size = BLOCK * like.itemsize
    stored = how[WEIGHTS]
    if what & SQUARES and how[COUPLES] == 0:  # asked before the step has begun: nothing but gradients is in the table
        g = load(table[t, G], e, n, stored, like, scratch + size)
        if k[SCALE] != 1:
            out = view(scratch + size, n, like)
            scaled(g, out, n, k[SCALE])
            g = out
        sums[0] += dot(g, g, n)
        return
    if how[ROUNDING] == KAHAN:
        p = join(table[t, P], table[t, REST], e, n, stored, like, scratch)
    else:
        p = load(table[t, P], e, n, stored, like, scratch)
    contracts = stage == 1 and what & EARLY
    anchored = how[OFFSETS] and how[ANCHOR] != ZERO
    a, d = p, p
    if anchored:
        a = load(table[t, A], e, n, how[ANCHOR], like, scratch + 2 * size)
        if not contracts and how[LOOP] != HELD:
            d = view(scratch + 3 * size, n, like)
            difference(p, a, d, n)
    if contracts:
        contract(p, a, n, k[AMOUNT], how[ANCHOR] == ZERO)
        _write(t, e, n, table, how, p, scratch)
        return

    kind, nesterov = how[KIND], how[NESTEROV]
    bare = kind == MOMENTUM and how[PLAIN]
    is_buffer = kind == MOMENTUM and not nesterov and not bare  # u is the buffer: nothing has to be kept
    if is_buffer and how[MOMENTS] == SAME:
        kept = 0
    u = view(kept if kept != 0 else scratch + 8 * size, n, like)
    fresh = stage == 0
    # Whether the one loop that follows scales and couples the gradient by itself.
    alone = how[LOOP] != SEVERAL and not what & (SQUARES | SUMS) and (what & EARLY or how[LOOP] != STRAIGHT)
    g, seen = p, p
    if fresh or (kept == 0 and (nesterov or bare)):
        g = load(table[t, G], e, n, stored, like, scratch + size)
        if k[SCALE] != 1 and not alone:
            out = view(scratch + size, n, like)
            scaled(g, out, n, k[SCALE])
            g = out
        seen = g
        if how[COUPLES] != 0 and not alone:
            seen = view(scratch + 4 * size, n, like)
            plus(p if how[COUPLES] == 1 else d, g, seen, n, k[COUPLED])
    if what & SQUARES:
        sums[0] += dot(seen, seen, n)
        return

    if fresh or kept == 0:
        narrow = how[MOMENTS]
        m, v, x = p, p, p
        if not bare:
            m = load(table[t, M], e, n, narrow, like, scratch + 5 * size)
        if kind != MOMENTUM:
            v = load(table[t, V], e, n, narrow, like, scratch + 6 * size)
            if kind == ADAI:
                x = view(table[t, X] + e * like.itemsize, n, like)
            elif how[AMSGRAD]:
                x = load(table[t, X], e, n, narrow, like, scratch + 7 * size)
        if what & SUMS:
            if how[AMSGRAD]:
                sums[0] += maximum_to_be(x, v, seen, n, k)
            else:
                sums[0] += total(v, n)
            return
        if fresh and how[LOOP] == STRAIGHT and alone:
            if kind == ADAM:
                adam_moved(g, m, v, p, n, k, how[TAUS])
            else:
                momentum_moved(g, m, p, n, k, how[COUPLES], how[TAUS])
            return
        if fresh and how[LOOP] == SEEN:
            gg, gp, pp, pu = adam_seen(g, m, v, p, u, n, k)
            sums[0] += gg
            sums[1] += gp
            sums[2] += pp
            sums[3] += pu
            return
        if fresh and how[LOOP] == HELD:
            dd, gd, du, uu = adam_held(g, m, v, p, a, n, k, how[KAPPAS])
            sums[0] += dd
            sums[1] += gd
            sums[2] += du
            sums[3] += uu
            if kept != 0:  # somebody wants to look at it
                adam_direction(m, v, u, n, k)
            return
        _direction(fresh, kind, nesterov, bare, seen, m, v, x, u, n, k, how[AMSGRAD])
        if is_buffer:
            if kept != 0:
                scaled(m, u, n, like.dtype.type(1))
            else:
                u = m
        if fresh and narrow != SAME and not bare:
            store_stochastic(table[t, M], _bits(t, e, n, table, DRAWN_M, like, scratch), e, n, narrow, m)
            if kind != MOMENTUM:
                store_stochastic(table[t, V], _bits(t, e, n, table, DRAWN_V, like, scratch), e, n, narrow, v)
                if how[AMSGRAD]:
                    store_stochastic(table[t, X], _bits(t, e, n, table, DRAWN_X, like, scratch), e, n, narrow, x)
    if fresh:
        for q in range(pairs.shape[0]):
            left, right = _pick(pairs[q, 0], g, p, u, d), _pick(pairs[q, 1], g, p, u, d)
            if pairs[q, 2] < 0 and pairs[q, 4] < 0:
                sums[pairs[q, 3]] += dot(left, right, n)
            else:
                aa, ab, bb = dots(left, right, n)
                if pairs[q, 2] >= 0:
                    sums[pairs[q, 2]] += aa
                if pairs[q, 3] >= 0:
                    sums[pairs[q, 3]] += ab
                if pairs[q, 4] >= 0:
                    sums[pairs[q, 4]] += bb
        if not what & EARLY:
            return
    if how[BUFFERS]:
        # u may be the buffer itself, so the move is formed first; p is what it was before it.
        old = view(scratch + 7 * size, n, like)
        scaled(p, old, n, like.dtype.type(1))
        _move(how, p, u, d, n, k)
        projected(view(table[t, M] + e * like.itemsize, n, like), old, n, k[BUFFER])
    else:
        _move(how, p, u, d, n, k)
    _write(t, e, n, table, how, p, scratch)


@njit(**OPTIONS)
def _move(how, p, u, d, n, k):
    anchors = 0 if not how[KAPPAS] else (2 if how[ANCHOR] == ZERO else 1)
    move(p, u, d, n, k, how[TAUS], anchors)


@njit(**OPTIONS)
def _direction(fresh, kind, nesterov, bare, g, m, v, x, u, n, k, amsgrad):
    """Update the moments (``fresh``) and form u."""
    if kind == ADAM:
        if fresh:
            adam(g, m, v, u, n, k)
            if amsgrad:
                larger(x, v, n)
        if not fresh or amsgrad or nesterov:
            second = x if amsgrad else v
            if nesterov:
                ahead(m, g, u, n, k[KEEP1], k[FRESH])
                divided(u, second, n, k)
            else:
                adam_direction(m, second, u, n, k)
    elif kind == MOMENTUM:
        if bare:
            scaled(g, u, n, k[SHARE])
            return
        if fresh:
            momentum(g, m, n, k)
        if nesterov:
            ahead(m, g, u, n, k[KEEP1], u.dtype.type(1))
    else:
        if fresh:
            adai(g, m, v, x, n, k)
        adai_direction(m, x, u, n, k)


@njit(**OPTIONS)
def _write(t, e, n, table, how, p, scratch):
    """Round into a narrow type, as the group asks."""
    stored = how[WEIGHTS]
    if stored == SAME:
        return
    if how[ROUNDING] == KAHAN:
        store_compensated(table[t, P], table[t, REST], e, n, stored, p)
    elif how[ROUNDING] == STOCHASTIC:
        store_stochastic(table[t, P], _bits(t, e, n, table, DRAWN_P, p, scratch), e, n, stored, p)
    else:
        store(table[t, P], e, n, stored, p)


@njit(**OPTIONS)
def _bits(t, e, n, table, which, like, scratch):
    """Where the random bits of ``n`` elements from ``e`` on lie."""
    if table[t, which] != 0:
        return table[t, which] + 4 * e
    out = scratch + _DRAWN * like.itemsize
    drawn = view(out + 4 * BLOCK, BLOCK // 4 + 2, _WORDS)
    bits(drawn, table[t, FIRST] + e, n, np.uint64(table[t, which + 1]), np.uint64(table[t, which + 2]), out)
    return out


@njit(inline="always", **OPTIONS)
def _pick(letter, g, p, u, d):
    if letter == 0:
        return g
    if letter == 1:
        return p
    if letter == 2:
        return u
    return d


@njit(**OPTIONS)
def _reduce(pieces, begin, end, partial, entries):
    """Add the pieces of each slice, in order."""
    for i in range(entries.shape[0]):
        last = -1
        for piece in range(begin, end):
            at = pieces[piece, 1]
            if at == last:
                entries[i, at] += partial[piece, i]
            else:
                entries[i, at] = partial[piece, i]
            last = at


@njit(**OPTIONS)
def _decide(
    t, first, last, entries, coefficients, steps, wide, wires, inputs, ports, registers, outputs, flags, numbers
):
    """Run the rules of one tensor, whose slices are ``first`` to ``last - 1``."""
    rows = last - first
    for i in range(wires.shape[0]):
        if wires[i] >= 0:
            for j in range(rows):
                registers[wires[i], j] = entries[i, first + j]
    for i in range(ports.shape[0]):
        registers[ports[i], 0] = inputs[t, i]
    evaluate(steps, wide, registers, rows)
    for i in range(4):
        if outputs[i] >= 0:
            stride = wide[outputs[i]]
            for j in range(rows):
                coefficients[i, first + j] = registers[outputs[i], j * stride]
    if outputs[4] >= 0:
        numbers[t, AMOUNT] = registers[outputs[4], 0]
    for i in range(flags.shape[1]):
        register = int(flags[flags.shape[0] - 1, i])
        found = 0.0
        for j in range(rows if wide[register] else 1):
            if registers[register, j] != 0:
                found = 1.0
        flags[t, i] = found


@njit(**OPTIONS)
def _count(addresses, out):
    for i in range(addresses.shape[0]):
        step = view(addresses[i], 1, _STEP)
        step[0] += np.float32(1)
        out[i] = step[0]


def _entries(sources: int) -> tuple[Any, Any]:
    @njit(cache=True, **ENTRY)
    def walk(
        what,
        units,
        pieces,
        table,
        how,
        numbers,
        pairs,
        partial,
        entries,
        coefficients,
        steps,
        wide,
        wires,
        inputs,
        ports,
        registers,
        outputs,
        flags,
        like,
        work,
        kept,
        first_unit,
        last_unit,
    ):
        if sources < 0:
            return
        _walk(
            what,
            units,
            pieces,
            table,
            how,
            numbers,
            pairs,
            partial,
            entries,
            coefficients,
            steps,
            wide,
            wires,
            inputs,
            ports,
            registers,
            outputs,
            flags,
            like,
            work,
            kept,
            first_unit,
            last_unit,
        )

    @njit(cache=True, **ENTRY)
    def count(addresses, out):
        if sources < 0:
            return
        _count(addresses, out)

    return walk, count


walk, count = _entries(made_of())
"""``walk``: see :func:`_walk`. ``count(addresses, out)`` adds one to float32 numbers, and copies them to ``out``."""
