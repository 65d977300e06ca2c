"""One function that walks over tensors: observe, reduce, decide, apply, in one go or stage by stage."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import cfunc, njit, types

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
    NUMBERS,
    SCALE,
    SHARE,
    SUMMED,
    TAU,
    adai,
    adai_direction,
    adam,
    adam_again,
    adam_among,
    adam_beside,
    adam_direction,
    adam_held,
    adam_moved,
    ahead,
    contract,
    difference,
    divided,
    dot,
    dots,
    larger,
    looked,
    maximum_to_be,
    momentum,
    momentum_beside,
    momentum_moved,
    move,
    plus,
    products_with,
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
    matrix,
    store,
    store_compensated,
    store_stochastic,
    view,
)
from mooring.kernels.cpu.noise import bits
from mooring.kernels.cpu.program import SPARE, evaluate
from mooring.kernels.cpu.sources import made_of
from mooring.kernels.cpu.turns import counted, wait

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
# Loops over a block one after the other; or one that does it all: without sums (adam_moved, momentum_moved), after the
# sums of p and g (the same, or adam_beside, momentum_beside), beside an anchor (adam_held), or with all sums there are
# (adam_among, adam_again).
SEVERAL, STRAIGHT, SEEN, HELD, AMONG = range(5)
PIECE = 1 << 16
"""Elements of a slice that are summed in one go."""
ZERO = -2  # beside the ways of storage in memory.py
NEAREST, STOCHASTIC, KAHAN = 0, 1, 2
# What one walk does, added up.
OBSERVE, REDUCE, DECIDE, APPLY, EARLY, SQUARES, SUMS, LOOK, FORESEE = (1 << i for i in range(9))
"""OBSERVE: update moments and form the inner products. REDUCE: add them over the pieces of each slice. DECIDE: run the
rules. APPLY: move; after EARLY, contract. EARLY: move while observing, with coefficients that are known. SQUARES: only
the gradient's sum of squares. SUMS: only the sums of the second moment (of its running maximum to be, with amsgrad).

Where the loop is SEEN, LOOK forms <g,g>, <g,p> and <p,p> before anything is written, and FORESEE runs the rules on them
as far as they go. What OBSERVE does then is up to what the tensor still needs, and DECIDE and APPLY are for those alone
that need EVERYTHING."""
NOTHING, OWN_ROW, EVERYTHING = range(3)
"""What is needed of <p,u> before a tensor can be moved: nothing, each row's own, or all of it."""
_PU = 3  # the column of <p,u> where the loop is SEEN

_STEP = np.empty(1, np.float32)
_WORDS, _INTS, _REALS = np.empty(1, np.uint64), np.empty(1, np.int64), np.empty(1, np.float64)
_DRAWN = 8 * BLOCK + SUMMED  # behind seven blocks of inputs, and u
_NUMBERS = _DRAWN + BLOCK + BLOCK // 2 + 8  # then bits, and the words that they are cut from
SCRATCH = _NUMBERS + 256
"""Elements that one thread needs: the same, numbers of a tensor, and sums."""


class Tables(NamedTuple):
    """A batch.

    Attributes:
        pieces: (pieces, 4): tensor, slice, first element in memory, elements. A piece belongs to one slice.
        table: (tensors, COLUMNS) addresses; 0 where there is none.
        how: (SETTINGS,).
        numbers: (tensors, NUMBERS) float64.
        pairs: (products, 5): two letters (0 g, 1 p, 2 u, 3 d) and where <a,a>, <a,b>, <b,b> go; -1 is nowhere. If the
            loop is AMONG, the fourth column says where gg, gp, gu, pp, pu, uu, gd, pd, ud and dd go.
        partial: (pieces, entries) float64, written.
        entries: (entries, slices) float64, written by REDUCE.
        coefficients: (4, slices) float64: beta, tau, kappa and buffer per slice; written by DECIDE.
        needs: (tensors,) what is needed of <p,u>; written by FORESEE.
        known: (tensors, registers) float64: the numbers that are not rows, as FORESEE leaves them.
        inputs: (tensors, ports) float64, the numbers that every tensor has.
        flags: (tensors + 1, flags) float64: what rules count, written; the last row holds the registers.
    """

    pieces: Any
    table: Any
    how: Any
    numbers: Any
    pairs: Any
    partial: Any
    entries: Any
    coefficients: Any
    needs: Any
    known: Any
    inputs: Any
    flags: Any


class Rules(NamedTuple):
    """Rules as a program; see ``program.py``.

    Attributes:
        steps: its operations.
        wide: which of its registers are rows.
        wires: registers of its entries.
        ports: the registers of the numbers that every tensor has.
        outputs: registers of the coefficients and of the contraction's amount, -1 for none.
        late: the operations that depend on <p,u>, sums of it replaced by NaN.
        by_row: the operations that lead to the coefficients where all numbers that are not rows are known.
    """

    steps: Any
    wide: Any
    wires: Any
    ports: Any
    outputs: Any
    late: Any
    by_row: Any


class Own(NamedTuple):
    """Memory of one thread.

    Attributes:
        registers: float64 scratch, constants filled in.
        like: any array of the compute type.
        work: scratch of the compute type, SCRATCH elements.
        kept: scratch of the compute type, for u of what is decided in one go.
    """

    registers: Any
    like: Any
    work: Any
    kept: Any


@njit(**OPTIONS)
def _walk(what, t, begin, end, k, sums, b, rules, own):
    """Go over some pieces of a tensor, block by block."""
    size, item, products = _block_size(what, b.how, k), own.like.itemsize, b.partial.shape[1]
    place = _place(t, begin, end, what & OBSERVE and what & APPLY, b, own)
    for stage in range(2):
        if stage == 0 and not what & (OBSERVE | SQUARES | SUMS):
            continue
        if stage == 1:
            if what & REDUCE:
                _reduce(begin, end, b)
            if what & DECIDE:
                _decide(t, begin, end, b, rules, own.registers)
                k[AMOUNT] = b.numbers[t, AMOUNT]
            if not what & APPLY or (what & EARLY and b.numbers[t, AMOUNT] == 0):
                continue
        for piece in range(begin, end):
            first, count = b.pieces[piece, 2], b.pieces[piece, 3]
            if stage == 1 or what & EARLY:
                _coefficients(b, piece, k)
            for i in range(products):
                sums[i] = 0.0
            for e in range(first, first + count, size):
                n = min(size, first + count - e)
                u = place + e * item if place != 0 else 0
                _block(what, stage, t, e, n, b.table, b.how, k, b.pairs, sums, own.like, address_of(own.work), u)
            if stage == 0:
                for i in range(products):
                    b.partial[piece, i] = sums[i]


@njit(**OPTIONS)
def _place(t, begin, end, keeps, b, own):
    """Where u is kept, as the address of the tensor's first element; 0 where it is formed once more instead."""
    if b.table[t, U] != 0:
        return b.table[t, U]
    origin = b.pieces[begin, 2]
    if keeps and b.pieces[end - 1, 2] + b.pieces[end - 1, 3] - origin <= own.kept.size:
        return address_of(own.kept) - origin * own.like.itemsize
    return 0


@njit(**OPTIONS)
def _coefficients(b, piece, k):
    at = b.pieces[piece, 1]
    k[BETA], k[TAU] = b.coefficients[0, at], b.coefficients[1, at]
    k[KAPPA], k[BUFFER] = b.coefficients[2, at], b.coefficients[3, at]


# Recipes that are decided by the sums of p and g, or need <p,u> beside them.


@njit(**OPTIONS)
def _see(what, t, begin, end, k, b, rules, own):
    if what & LOOK:
        _look(t, begin, end, k, b, own.like)
    if what & FORESEE:
        _reduce(begin, end, b)
        b.needs[t] = _foresee(t, begin, end, b, rules, own.registers)
    if what & OBSERVE:
        if b.needs[t] == NOTHING:
            _straight(t, begin, end, k, b, own.like)
        elif b.needs[t] == OWN_ROW:
            place = _place(t, begin, end, OBSERVE, b, own)
            _beside(t, begin, end, k, b, own, place)
            _decide_rows(t, begin, end, b, rules, own.registers)
            _displace(t, begin, end, k, b, own, place)
        else:
            _beside(t, begin, end, k, b, own, _place(t, begin, end, what & APPLY, b, own))
    if b.needs[t] != EVERYTHING:
        return
    if what & REDUCE:
        _reduce(begin, end, b)
    if what & DECIDE:
        _decide(t, begin, end, b, rules, own.registers)
    if what & APPLY:
        _displace(t, begin, end, k, b, own, _place(t, begin, end, what & OBSERVE, b, own))


@njit(**OPTIONS)
def _look(t, begin, end, k, b, like):
    for piece in range(begin, end):
        first, count = b.pieces[piece, 2], b.pieces[piece, 3]
        gg, gp, pp = 0.0, 0.0, 0.0
        for e in range(first, first + count, SUMMED):
            n = min(SUMMED, first + count - e)
            g, p = _part(t, G, e, n, b, like), _part(t, P, e, n, b, like)
            x, y, z = looked(g, p, n, k[SCALE])
            gg += x
            gp += y
            pp += z
        b.partial[piece, 0], b.partial[piece, 1], b.partial[piece, 2] = gg, gp, pp


@njit(**OPTIONS)
def _straight(t, begin, end, k, b, like):
    """Moments and the move in one loop."""
    for piece in range(begin, end):
        e, n = b.pieces[piece, 2], b.pieces[piece, 3]
        _coefficients(b, piece, k)
        g, m, p = _part(t, G, e, n, b, like), _part(t, M, e, n, b, like), _part(t, P, e, n, b, like)
        if b.how[KIND] == ADAM:
            adam_moved(g, m, _part(t, V, e, n, b, like), p, n, k, b.how[TAUS])
        else:
            momentum_moved(g, m, p, n, k, b.how[COUPLES], b.how[TAUS])


@njit(**OPTIONS)
def _beside(t, begin, end, k, b, own, place):
    """Moments and <p,u>; u is kept where there is a place for it."""
    item = own.like.itemsize
    for piece in range(begin, end):
        first, count = b.pieces[piece, 2], b.pieces[piece, 3]
        pu = 0.0
        for e in range(first, first + count, SUMMED):
            n = min(SUMMED, first + count - e)
            g, p, m = _part(t, G, e, n, b, own.like), _part(t, P, e, n, b, own.like), _part(t, M, e, n, b, own.like)
            if b.how[KIND] == ADAM:
                u = view(place + e * item if place != 0 else address_of(own.work), n, own.like)
                pu += adam_beside(g, m, _part(t, V, e, n, b, own.like), p, u, n, k)
            else:
                pu += momentum_beside(g, m, p, n, k, b.how[COUPLES])
        b.partial[piece, _PU] = pu


@njit(**OPTIONS)
def _displace(t, begin, end, k, b, own, place):
    """The move alone, by u that was kept or is formed once more."""
    item = own.like.itemsize
    for piece in range(begin, end):
        first, count = b.pieces[piece, 2], b.pieces[piece, 3]
        _coefficients(b, piece, k)
        for e in range(first, first + count, SUMMED):
            n = min(SUMMED, first + count - e)
            p, m = _part(t, P, e, n, b, own.like), _part(t, M, e, n, b, own.like)
            if b.how[KIND] != ADAM:
                move(p, m, p, n, k, b.how[TAUS], 0)
                continue
            u = view(place + e * item if place != 0 else address_of(own.work), n, own.like)
            if place == 0:
                adam_direction(m, _part(t, V, e, n, b, own.like), u, n, k)
            move(p, u, p, n, k, b.how[TAUS], 0)


@njit(inline="always", **OPTIONS)  # what returns an array must not be called
def _part(t, column, e, n, b, like):
    return view(b.table[t, column] + e * like.itemsize, n, like)


@njit(**OPTIONS)
def _foresee(t, begin, end, b, rules, registers):
    """Run the rules without <p,u>, which is NaN and makes NaN of whatever depends on it."""
    first, last = b.pieces[begin, 1], b.pieces[end - 1, 1] + 1
    _fill(t, first, last, b, rules, registers)
    pu = rules.wires[_PU]
    for j in range(last - first):
        registers[pu, j] = np.nan
    evaluate(rules.steps, rules.wide, registers, last - first)
    _flag(t, last - first, b, rules, registers)
    if _decided(first, last, b, rules, registers):
        return NOTHING
    if end - begin != last - first:  # rows in several pieces are observed by several threads
        return EVERYTHING
    # Rows of <p,u> are there in time; it is only their sum that would not be.
    for j in range(last - first):
        registers[pu, j] = 0.0
    evaluate(rules.late, rules.wide, registers, last - first)
    if not _decided(first, last, b, rules, registers):
        return EVERYTHING
    for i in range(rules.wide.shape[0]):
        b.known[t, i] = registers[i, 0]
    return OWN_ROW


@njit(**OPTIONS)
def _decided(first, last, b, rules, registers):
    """Write the coefficients; whether all are numbers."""
    _give(first, last, b, rules, registers)
    for i in range(4):
        if rules.outputs[i] >= 0:
            for j in range(first, last):
                if np.isnan(b.coefficients[i, j]):
                    return False
    return True


@njit(**OPTIONS)
def _decide_rows(t, begin, end, b, rules, registers):
    """The coefficients of some rows of a tensor, from their own <p,u> and what FORESEE found."""
    first, rows = b.pieces[begin, 1], end - begin
    for i in range(rules.wide.shape[0]):
        if not rules.wide[i]:
            registers[i, 0] = b.known[t, i]
    for j in range(rows):
        b.entries[_PU, first + j] = b.partial[begin + j, _PU]
    _wire(first, first + rows, b, rules, registers)
    evaluate(rules.by_row, rules.wide, registers, rows)
    _give(first, first + rows, b, rules, registers)


@njit(**OPTIONS)
def _block_size(what, how, k):
    """How many elements are worked on at a time: few where scratch has to stay in the first cache."""
    if what & SQUARES:
        return SUMMED if how[WEIGHTS] == SAME and how[COUPLES] == 0 and k[SCALE] == 1 else BLOCK
    if what & SUMS:
        return BLOCK
    if how[LOOP] in (HELD, AMONG) and how[ANCHOR] == SAME:
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
        if not contracts and how[LOOP] != HELD and (how[LOOP] != AMONG or (stage == 1 and kept != 0)):
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
    alone = how[LOOP] in (HELD, AMONG) and not what & (SQUARES | SUMS)
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
        if fresh and how[LOOP] == HELD:
            dd, gd, du, uu = adam_held(g, m, v, p, a, n, k, how[KAPPAS])
            sums[0] += dd
            sums[1] += gd
            sums[2] += du
            sums[3] += uu
            if kept != 0:  # somebody wants to look at it
                adam_direction(m, v, u, n, k)
            return
        if how[LOOP] == AMONG:
            if not fresh:
                adam_again(m, v, p, a, n, k, how[TAUS], how[KAPPAS])
                return
            _put(pairs, 0, adam_among(g, m, v, p, u, n, k), sums)
            if anchored:
                _put(pairs, 6, products_with(g, p, u, a, n, k[SCALE]), sums)
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
def _put(pairs, first, products, sums):
    for i in range(len(products)):
        if pairs[first + i, 3] >= 0:
            sums[pairs[first + i, 3]] += products[i]


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
def _reduce(begin, end, b):
    """Add the pieces of each slice, in order."""
    for i in range(b.entries.shape[0]):
        last = -1
        for piece in range(begin, end):
            at = b.pieces[piece, 1]
            if at == last:
                b.entries[i, at] += b.partial[piece, i]
            else:
                b.entries[i, at] = b.partial[piece, i]
            last = at


@njit(**OPTIONS)
def _decide(t, begin, end, b, rules, registers):
    """Run the rules of one tensor."""
    first, last = b.pieces[begin, 1], b.pieces[end - 1, 1] + 1
    _fill(t, first, last, b, rules, registers)
    evaluate(rules.steps, rules.wide, registers, last - first)
    _give(first, last, b, rules, registers)
    if rules.outputs[4] >= 0:
        b.numbers[t, AMOUNT] = registers[rules.outputs[4], 0]
    _flag(t, last - first, b, rules, registers)


@njit(**OPTIONS)
def _fill(t, first, last, b, rules, registers):
    _wire(first, last, b, rules, registers)
    for i in range(rules.ports.shape[0]):
        registers[rules.ports[i], 0] = b.inputs[t, i]


@njit(**OPTIONS)
def _wire(first, last, b, rules, registers):
    for i in range(rules.wires.shape[0]):
        if rules.wires[i] >= 0:
            for j in range(last - first):
                registers[rules.wires[i], j] = b.entries[i, first + j]


@njit(**OPTIONS)
def _give(first, last, b, rules, registers):
    for i in range(4):
        if rules.outputs[i] >= 0:
            stride = rules.wide[rules.outputs[i]]
            for j in range(last - first):
                b.coefficients[i, first + j] = registers[rules.outputs[i], j * stride]


@njit(**OPTIONS)
def _flag(t, rows, b, rules, registers):
    for i in range(b.flags.shape[1]):
        register = int(b.flags[b.flags.shape[0] - 1, i])
        found = 0.0
        for j in range(rows if rules.wide[register] else 1):
            if registers[register, j] != 0:
                found = 1.0
        b.flags[t, i] = found


HEADER = (
    "stages", "claims", "counters", "units", *Tables._fields, *Rules._fields, "slots", "registers", "work", "kept"
)  # fmt: skip
"""What :func:`on_team` is given: an address and two lengths of each, the second being 1 for arrays of one dimension."""


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
        stages, claims, counters, units = _ints(h, 0), _ints(h, 1), _ints(h, 2), _ints(h, 3)
        b = Tables(
            _ints(h, 4), _ints(h, 5), _list(h, 6), _reals(h, 7), _ints(h, 8), _reals(h, 9), _reals(h, 10),
            _reals(h, 11), _list(h, 12), _reals(h, 13), _reals(h, 14), _reals(h, 15),
        )  # fmt: skip
        rules = Rules(_ints(h, 16), _list(h, 17), _list(h, 18), _list(h, 19), _list(h, 20), _ints(h, 21), _ints(h, 22))
        slot = counted(h[3 * _SLOTS])
        item, count = like.itemsize, rules.wide.shape[0] + SPARE
        registers = matrix(_of_slot(h, _REGISTERS, slot, 8), count, h[3 * _REGISTERS + 2] // count, _REALS)
        work = view(_of_slot(h, _WORK, slot, item), SCRATCH, like)
        kept = view(_of_slot(h, _KEPT, slot, item), PIECE, like)
        own = Own(registers, like, work, kept)
        k = view(address_of(work) + _NUMBERS * item, NUMBERS, like)
        sums = view(address_of(work) + (_NUMBERS + 2 * NUMBERS) * item, b.partial.shape[1], _REALS)
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
                            _straight(t, units[unit, 1], units[unit, 2], k, b, like)
                        elif b.how[LOOP] == SEEN and not what & (SQUARES | SUMS):
                            _see(what, t, units[unit, 1], units[unit, 2], k, b, rules, own)
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
