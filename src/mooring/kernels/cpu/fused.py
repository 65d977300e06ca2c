"""Recipes that need one loop: those without sums, and those decided by the sums of p and g alone or with <p,u>."""

from __future__ import annotations

import numpy as np
from numba import njit

from mooring.kernels.cpu.blocks import (
    ADAM,
    BETA,
    BLOCK,
    BUFFER,
    KAPPA,
    MOMENTUM,
    SCALE,
    SUMMED,
    TAU,
    adai_moved,
    adam_beside,
    adam_compensated,
    adam_direction,
    adam_moved,
    adam_nearest,
    adam_stochastic,
    looked,
    momentum_beside,
    momentum_moved,
    move,
)
from mooring.kernels.cpu.decide import add_pieces, decide_rows, decide_tensor, foresee_tensor
from mooring.kernels.cpu.memory import OPTIONS, SAME, SHORTS, WORDS, address_of, view
from mooring.kernels.cpu.noise import short_bits
from mooring.kernels.cpu.tables import (
    APPLY,
    COUPLES,
    DECIDE,
    DRAWN_P,
    EVERYTHING,
    FIRST,
    FORESEE,
    KAHAN,
    KIND,
    LOOK,
    NEAREST,
    NOTHING,
    OBSERVE,
    OWN_ROW,
    PU,
    REDUCE,
    REST,
    ROUNDING,
    TAUS,
    THE_MOVE,
    WEIGHTS,
    G,
    M,
    P,
    U,
    V,
    X,
)

_INTEGERS = np.empty(1, np.int32)
_LONGS = np.empty(1, np.uint64)


@njit(**OPTIONS)
def place_for_u(t, begin, end, keeps, b, own):
    """Where u is kept, as the address of the tensor's first element; 0 where it is formed once more instead."""
    if b.table[t, U] != 0:
        return b.table[t, U]
    origin = b.pieces[begin, 2]
    if keeps and b.pieces[end - 1, 2] + b.pieces[end - 1, 3] - origin <= own.kept.size:
        return address_of(own.kept) - origin * own.like.itemsize
    return 0


@njit(**OPTIONS)
def take_coefficients(b, piece, k):
    """Those of a piece's slice, among the numbers of the tensor."""
    at = b.pieces[piece, 1]
    k[BETA], k[TAU] = b.coefficients[0, at], b.coefficients[1, at]
    k[KAPPA], k[BUFFER] = b.coefficients[2, at], b.coefficients[3, at]


@njit(**OPTIONS)
def see_tensor(what, t, begin, end, k, b, rules, own):
    """One stage of a recipe that is decided by the sums of p and g, or needs <p,u> beside them."""
    if what & LOOK:
        _look(t, begin, end, k, b, own.like)
    # A small tensor stays in the cache between its walks, so there a third one costs little.
    apart = not what & OBSERVE
    if what & LOOK and apart and b.expected[t]:
        _beside(t, begin, end, k, b, own, 0)
    if what & FORESEE:
        add_pieces(begin, end, b)
        b.needs[t] = foresee_tensor(t, begin, end, b, rules, own.registers)
        if apart:
            observed, b.expected[t] = b.expected[t], b.needs[t] == EVERYTHING
            if observed:
                decide_tensor(t, begin, end, b, rules, own.registers)
                b.needs[t] = THE_MOVE
    if what & OBSERVE:
        if b.needs[t] == NOTHING:
            straight(t, begin, end, k, b, own)
        elif b.needs[t] == OWN_ROW:
            place = place_for_u(t, begin, end, OBSERVE, b, own)
            _beside(t, begin, end, k, b, own, place)
            decide_rows(t, begin, end, b, rules, own.registers)
            _displace(t, begin, end, k, b, own, place)
        elif b.needs[t] == EVERYTHING:
            _beside(t, begin, end, k, b, own, place_for_u(t, begin, end, what & APPLY, b, own))
    if what & REDUCE and b.needs[t] == EVERYTHING:
        add_pieces(begin, end, b)
    if what & DECIDE and b.needs[t] == EVERYTHING:
        decide_tensor(t, begin, end, b, rules, own.registers)
    if what & APPLY and b.needs[t] in (EVERYTHING, THE_MOVE):
        _displace(t, begin, end, k, b, own, place_for_u(t, begin, end, what & OBSERVE, b, own))


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
def straight(t, begin, end, k, b, own):
    """Moments and the move in one loop."""
    for piece in range(begin, end):
        e, n = b.pieces[piece, 2], b.pieces[piece, 3]
        take_coefficients(b, piece, k)
        if b.how[WEIGHTS] != SAME:
            _straight_brain(t, e, n, k, b, own)
            continue
        g, m, p = _part(t, G, e, n, b, own.like), _part(t, M, e, n, b, own.like), _part(t, P, e, n, b, own.like)
        if b.how[KIND] == MOMENTUM:
            momentum_moved(g, m, p, n, k, b.how[COUPLES], b.how[TAUS])
        elif b.how[KIND] == ADAM:
            adam_moved(g, m, _part(t, V, e, n, b, own.like), p, n, k, b.how[TAUS])
        else:
            v, product = _part(t, V, e, n, b, own.like), _part(t, X, e, n, b, own.like)
            adai_moved(g, m, v, product, p, n, k, b.how[COUPLES], b.how[TAUS])


@njit(**OPTIONS)
def _straight_brain(t, e, n, k, b, own):
    """The same of bfloat16."""
    m, v = _part(t, M, e, n, b, own.like), _part(t, V, e, n, b, own.like)
    g, p = view(b.table[t, G] + 2 * e, n, WORDS), view(b.table[t, P] + 2 * e, n, WORDS)
    if b.how[ROUNDING] == NEAREST:
        adam_nearest(g, m, v, p, n, k, b.how[TAUS])
    elif b.how[ROUNDING] == KAHAN:
        adam_compensated(g, m, v, p, view(b.table[t, REST] + 2 * e, n, SHORTS), n, k, b.how[TAUS])
    else:
        for first in range(0, n, BLOCK):
            count = min(BLOCK, n - first)
            drawn = _drawn(t, e + first, count, b, own)
            adam_stochastic(g[first:], m[first:], v[first:], p[first:], drawn, count, k, b.how[TAUS])


@njit(inline="always", **OPTIONS)  # what returns an array must not be called
def _drawn(t, e, n, b, own):
    """Sixteen random bits for each of some weights."""
    scratch = address_of(own.work)
    if b.table[t, DRAWN_P] == 0:
        one, two = np.uint64(b.table[t, DRAWN_P + 1]), np.uint64(b.table[t, DRAWN_P + 2])
        return short_bits(view(scratch, BLOCK // 4 + 2, _LONGS), b.table[t, FIRST] + e, n, one, two)
    given, out = view(b.table[t, DRAWN_P] + 4 * e, n, _INTEGERS), view(scratch, n, WORDS)
    for i in range(n):
        out[i] = given[i]
    return out


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
        b.partial[piece, PU] = pu


@njit(**OPTIONS)
def _displace(t, begin, end, k, b, own, place):
    """The move alone, by u that was kept or is formed once more."""
    item = own.like.itemsize
    for piece in range(begin, end):
        first, count = b.pieces[piece, 2], b.pieces[piece, 3]
        take_coefficients(b, piece, k)
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
