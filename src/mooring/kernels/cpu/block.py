"""One block of a tensor, for any recipe and type: as many loops as that takes, over scratch in the first cache."""

from __future__ import annotations

import numpy as np
from numba import njit

from mooring.kernels.cpu.blocks import (
    ADAI,
    ADAM,
    AMOUNT,
    BLOCK,
    BUFFER,
    COUPLED,
    FRESH,
    KEEP1,
    MOMENTUM,
    SCALE,
    SHARE,
    SUMMED,
    adai,
    adai_direction,
    adam,
    adam_again,
    adam_among,
    adam_among_anchored,
    adam_direction,
    adam_held,
    ahead,
    contract,
    coupled_squares,
    difference,
    divided,
    dot,
    dots,
    larger,
    maximum_to_be,
    momentum,
    move,
    plus,
    projected,
    scaled,
    squares,
    total,
)
from mooring.kernels.cpu.memory import OPTIONS, SAME, join, load, store, store_compensated, store_stochastic, view
from mooring.kernels.cpu.noise import bits
from mooring.kernels.cpu.tables import (
    AMONG,
    AMSGRAD,
    ANCHOR,
    BUFFERS,
    COUPLES,
    DRAWN,
    DRAWN_M,
    DRAWN_P,
    DRAWN_V,
    DRAWN_X,
    EARLY,
    FIRST,
    HELD,
    KAHAN,
    KAPPAS,
    KIND,
    LOOP,
    MOMENTS,
    NESTEROV,
    OFFSETS,
    PLAIN,
    REST,
    ROUNDING,
    SQUARES,
    STOCHASTIC,
    SUMS,
    TAUS,
    WEIGHTS,
    ZERO,
    A,
    G,
    M,
    P,
    V,
    X,
)

_WORDS = np.empty(1, np.uint64)


@njit(**OPTIONS)
def block_size(what, how):
    """How many elements are worked on at a time: few where scratch has to stay in the first cache."""
    if what & SQUARES:
        return SUMMED if how[WEIGHTS] == SAME and how[COUPLES] != 2 else BLOCK
    if what & SUMS:
        return BLOCK
    if how[LOOP] in (HELD, AMONG) and how[ANCHOR] == SAME:
        return SUMMED
    return BLOCK


@njit(**OPTIONS)
def any_block(what, stage, t, e, n, table, how, k, pairs, sums, like, scratch, kept):
    """Elements ``e`` to ``e + n`` of a tensor: observe (``stage`` 0) or move (1); ``kept``: where u is, or 0."""
    size = BLOCK * like.itemsize
    stored = how[WEIGHTS]
    if what & SQUARES and how[COUPLES] == 0:  # asked before the step has begun: nothing but gradients is in the table
        sums[0] += squares(load(table[t, G], e, n, stored, like, scratch + size), n, k[SCALE])
        return
    if what & SQUARES and how[COUPLES] == 1 and stored == SAME:
        p, g = view(table[t, P] + e * like.itemsize, n, like), view(table[t, G] + e * like.itemsize, n, like)
        sums[0] += coupled_squares(g, p, n, k)
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
            if anchored:
                _put(pairs, adam_among_anchored(g, m, v, p, a, n, k), sums)
            else:
                _put(pairs, adam_among(g, m, v, p, n, k), sums)
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
def _put(pairs, products, sums):
    for i in range(len(products)):
        if pairs[i, 3] >= 0:
            sums[pairs[i, 3]] += products[i]


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
    out = scratch + DRAWN * like.itemsize
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
