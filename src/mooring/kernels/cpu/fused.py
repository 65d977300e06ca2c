"""Recipes that need one loop: those without sums, and those decided by the sums of p and g alone or with <p,u>."""

from __future__ import annotations

from numba import njit

from mooring.kernels.cpu.blocks import (
    ADAM,
    BETA,
    BUFFER,
    KAPPA,
    SCALE,
    SUMMED,
    TAU,
    adam_beside,
    adam_direction,
    adam_moved,
    looked,
    momentum_beside,
    momentum_moved,
    move,
)
from mooring.kernels.cpu.decide import add_pieces, decide_rows, decide_tensor, foresee_tensor
from mooring.kernels.cpu.memory import OPTIONS, address_of, view
from mooring.kernels.cpu.tables import (
    APPLY,
    COUPLES,
    DECIDE,
    EVERYTHING,
    FORESEE,
    KIND,
    LOOK,
    NOTHING,
    OBSERVE,
    OWN_ROW,
    PU,
    REDUCE,
    TAUS,
    G,
    M,
    P,
    U,
    V,
)


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
    if what & FORESEE:
        add_pieces(begin, end, b)
        b.needs[t] = foresee_tensor(t, begin, end, b, rules, own.registers)
    if what & OBSERVE:
        if b.needs[t] == NOTHING:
            straight(t, begin, end, k, b, own.like)
        elif b.needs[t] == OWN_ROW:
            place = place_for_u(t, begin, end, OBSERVE, b, own)
            _beside(t, begin, end, k, b, own, place)
            decide_rows(t, begin, end, b, rules, own.registers)
            _displace(t, begin, end, k, b, own, place)
        else:
            _beside(t, begin, end, k, b, own, place_for_u(t, begin, end, what & APPLY, b, own))
    if b.needs[t] != EVERYTHING:
        return
    if what & REDUCE:
        add_pieces(begin, end, b)
    if what & DECIDE:
        decide_tensor(t, begin, end, b, rules, own.registers)
    if what & APPLY:
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
def straight(t, begin, end, k, b, like):
    """Moments and the move in one loop."""
    for piece in range(begin, end):
        e, n = b.pieces[piece, 2], b.pieces[piece, 3]
        take_coefficients(b, piece, k)
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
