"""What is done to one block of elements while it lies in the first cache: moments, inner products, the move.

Every formula stands here once, so it does not matter for a single bit in how many sweeps a tensor is worked on.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from mooring.kernels.cpu.memory import (
    OPTIONS,
    added,
    compensated_brain,
    joined_brain,
    nearest_brain,
    stochastic_brain,
    widen_brain,
)

ADAM, MOMENTUM, ADAI = 0, 1, 2
"""Kinds of moments."""

BLOCK = 512
"""Elements worked on at a time: eight arrays of them fit the first cache."""
SUMMED = 1 << 12
"""The same where no scratch is needed: as many as are added in the compute type."""

# The numbers of one tensor, in the compute type; what they mean is up to the kind of moments.
FRESH, KEEP2, FRESH2, ROOT, FLOOR, KEEP1, SHARE = range(7)
SCALE, COUPLED, BETA, TAU, KAPPA, BUFFER, AMOUNT = range(7, 14)
NUMBERS = 14


@njit(inline="always", **OPTIONS)
def _held(k):
    """The numbers as values: in memory, a loop might write on them."""
    return k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[7], k[8], k[9], k[10], k[11], k[12], k[13]


@njit(inline="always", **OPTIONS)
def _adam(g, m, v, k):
    """One element's moments and u, where ``fresh < 1/2``."""
    m_new = m + k[FRESH] * (g - m)
    v_new = k[KEEP2] * v + k[FRESH2] * g * g
    return m_new, v_new, m_new / (np.sqrt(v_new) * k[ROOT] + k[FLOOR])


@njit(**OPTIONS)
def adam(g, m, v, u, n, k):
    """``m <- b1 m + (1-b1) g``, ``v <- b2 v + (1-b2) g^2``, ``u = m / (sqrt(v) root + floor)``."""
    # As torch's lerp: from the nearer end.
    c = _held(k)
    if k[FRESH] < 0.5:
        for i in range(n):
            m[i], v[i], u[i] = _adam(g[i], m[i], v[i], c)
    else:
        keep1, keep2, fresh2, root, floor = k[KEEP1], k[KEEP2], k[FRESH2], k[ROOT], k[FLOOR]
        for i in range(n):
            m_i = g[i] - (g[i] - m[i]) * keep1
            v_i = keep2 * v[i] + fresh2 * g[i] * g[i]
            m[i] = m_i
            v[i] = v_i
            u[i] = m_i / (np.sqrt(v_i) * root + floor)


# A condition that is the same for all elements may stand inside a loop: the compiler takes it out or makes it a choice.


@njit(inline="always", **OPTIONS)
def _adam_moved(g, m, v, p, k, shrinks):
    m_new, v_new, u = _adam(g * k[SCALE], m, v, k)
    s = u * k[BETA]
    if shrinks:
        s += p * k[TAU]
    return m_new, v_new, p - s


@njit(**OPTIONS)
def adam_moved(g, m, v, p, n, k, shrinks):
    """The same of ``scale g``, and the move of a recipe that reads no sums, in one loop."""
    c = _held(k)
    for i in range(n):
        m[i], v[i], p[i] = _adam_moved(g[i], m[i], v[i], p[i], c, shrinks)


@njit(**OPTIONS)
def adam_nearest(g, m, v, p, n, k, shrinks):
    """The same where g and p are bfloat16, given as their bits, rounded to nearest."""
    c = _held(k)
    for i in range(n):
        m[i], v[i], p_i = _adam_moved(widen_brain(g[i]), m[i], v[i], widen_brain(p[i]), c, shrinks)
        p[i] = nearest_brain(p_i)


@njit(**OPTIONS)
def adam_stochastic(g, m, v, p, drawn, n, k, shrinks):
    """The same with stochastic rounding; ``drawn``: sixteen random bits each."""
    c = _held(k)
    for i in range(n):
        m[i], v[i], p_i = _adam_moved(widen_brain(g[i]), m[i], v[i], widen_brain(p[i]), c, shrinks)
        p[i] = stochastic_brain(p_i, drawn[i])


@njit(**OPTIONS)
def adam_compensated(g, m, v, p, rest, n, k, shrinks):
    """The same with Kahan compensation in ``rest``."""
    c = _held(k)
    for i in range(n):
        m[i], v[i], p_i = _adam_moved(widen_brain(g[i]), m[i], v[i], joined_brain(p[i], rest[i]), c, shrinks)
        p[i], rest[i] = compensated_brain(p_i)


@njit(**OPTIONS)
def adam_beside(g, m, v, p, u, n, k):
    """:func:`adam` of ``scale g`` and, behind its roots and quotients, ``<p,u>``."""
    scale = k[SCALE]
    pu = g.dtype.type(0)
    c = _held(k)
    for i in range(n):
        g_i = g[i] * scale
        m[i], v[i], u_i = _adam(g_i, m[i], v[i], c)
        u[i] = u_i
        pu = added(pu, p[i] * u_i)
    return np.float64(pu)


@njit(**OPTIONS)
def adam_held(g, m, v, p, a, n, k, anchors):
    """:func:`adam_moved` beside an anchor, no decay to zero; and ``<d,d>``, ``<g,d>``, ``<u,d>``, ``<u,u>``."""
    scale, beta, kappa = k[SCALE], k[BETA], k[KAPPA]
    dd = g.dtype.type(0)
    gd, du, uu = dd, dd, dd
    c = _held(k)
    for i in range(n):
        g_i = g[i] * scale
        m[i], v[i], u_i = _adam(g_i, m[i], v[i], c)
        d_i = p[i] - a[i]
        dd = added(dd, d_i * d_i)
        gd = added(gd, g_i * d_i)
        du = added(du, u_i * d_i)
        uu = added(uu, u_i * u_i)
        s_i = u_i * beta
        if anchors:
            s_i += d_i * kappa
        p[i] -= s_i
    return np.float64(dd), np.float64(gd), np.float64(du), np.float64(uu)


@njit(**OPTIONS)
def adam_among(g, m, v, p, n, k):
    """:func:`adam` of ``scale g``, and all six products of g, p and u: gg, gp, gu, pp, pu, uu."""
    c = _held(k)
    gg = g.dtype.type(0)
    gp, gu, pp, pu, uu = gg, gg, gg, gg, gg
    for i in range(n):
        g_i = g[i] * c[SCALE]
        m[i], v[i], u_i = _adam(g_i, m[i], v[i], c)
        gg = added(gg, g_i * g_i)
        gp = added(gp, g_i * p[i])
        gu = added(gu, g_i * u_i)
        pp = added(pp, p[i] * p[i])
        pu = added(pu, p[i] * u_i)
        uu = added(uu, u_i * u_i)
    return np.float64(gg), np.float64(gp), np.float64(gu), np.float64(pp), np.float64(pu), np.float64(uu)


@njit(**OPTIONS)
def adam_among_anchored(g, m, v, p, a, n, k):
    """The same, and with ``d = p - a`` the other four: gd, pd, ud, dd."""
    c = _held(k)
    gg = g.dtype.type(0)
    gp, gu, pp, pu, uu, gd, pd, ud, dd = gg, gg, gg, gg, gg, gg, gg, gg, gg
    for i in range(n):
        g_i = g[i] * c[SCALE]
        m[i], v[i], u_i = _adam(g_i, m[i], v[i], c)
        d_i = p[i] - a[i]
        gg = added(gg, g_i * g_i)
        gp = added(gp, g_i * p[i])
        gu = added(gu, g_i * u_i)
        pp = added(pp, p[i] * p[i])
        pu = added(pu, p[i] * u_i)
        uu = added(uu, u_i * u_i)
        gd = added(gd, g_i * d_i)
        pd = added(pd, p[i] * d_i)
        ud = added(ud, u_i * d_i)
        dd = added(dd, d_i * d_i)
    g_ = np.float64(gg), np.float64(gp), np.float64(gu)
    p_ = np.float64(pp), np.float64(pu), np.float64(uu)
    return (*g_, *p_, np.float64(gd), np.float64(pd), np.float64(ud), np.float64(dd))


@njit(**OPTIONS)
def adam_again(m, v, p, a, n, k, shrinks, anchors):
    """:func:`move` with u formed once more from moments that are updated, in one loop; ``a`` is the anchor."""
    root, floor, beta, tau, kappa = k[ROOT], k[FLOOR], k[BETA], k[TAU], k[KAPPA]
    for i in range(n):
        s_i = m[i] / (np.sqrt(v[i]) * root + floor) * beta
        if shrinks:
            s_i += p[i] * tau
        if anchors:
            s_i += (p[i] - a[i]) * kappa
        p[i] -= s_i


@njit(**OPTIONS)
def adam_direction(m, v, u, n, k):
    """``u`` once more, from moments that are updated; ``v`` may be the running maximum, ``m`` a look ahead."""
    root, floor = k[ROOT], k[FLOOR]
    for i in range(n):
        u[i] = m[i] / (np.sqrt(v[i]) * root + floor)


@njit(**OPTIONS)
def divided(u, v, n, k):
    """The same in place, where the numerator is not m."""
    root, floor = k[ROOT], k[FLOOR]
    for i in range(n):
        u[i] = u[i] / (np.sqrt(v[i]) * root + floor)


@njit(**OPTIONS)
def larger(x, v, n):
    """``x <- max(x, v)``; NaN where either is."""
    for i in range(n):
        x[i] = v[i] if (v[i] > x[i] or v[i] != v[i]) else x[i]


@njit(**OPTIONS)
def ahead(x, g, out, n, keep, fresh):
    """``keep x + fresh g``."""
    for i in range(n):
        out[i] = x[i] * keep + g[i] * fresh


@njit(**OPTIONS)
def momentum(g, b, n, k):
    """``b <- keep b + share g``."""
    keep, share = k[KEEP1], k[SHARE]
    for i in range(n):
        b[i] = b[i] * keep + g[i] * share


@njit(**OPTIONS)
def momentum_moved(g, b, p, n, k, couples, shrinks):
    """The same of ``scale g``, plus ``coupled p`` where it ``couples``, and the move, in one loop."""
    keep, share, scale, coupled, beta, tau = k[KEEP1], k[SHARE], k[SCALE], k[COUPLED], k[BETA], k[TAU]
    for i in range(n):
        g_i = g[i] * scale
        if couples:
            g_i = p[i] * coupled + g_i
        b_i = b[i] * keep + g_i * share
        b[i] = b_i
        s_i = b_i * beta
        if shrinks:
            s_i += p[i] * tau
        p[i] -= s_i


@njit(**OPTIONS)
def momentum_beside(g, b, p, n, k, couples):
    """The same without the move, and ``<p,b>``."""
    keep, share, scale, coupled = k[KEEP1], k[SHARE], k[SCALE], k[COUPLED]
    pb = g.dtype.type(0)
    for i in range(n):
        g_i = g[i] * scale
        if couples:
            g_i = p[i] * coupled + g_i
        b_i = b[i] * keep + g_i * share
        b[i] = b_i
        pb = added(pb, p[i] * b_i)
    return np.float64(pb)


@njit(inline="always", **OPTIONS)
def _adai(g, m, v, product, k):
    """One element's moments, and ``1 - q``; as torch's lerp, from the nearer end."""
    one = k[KEEP1]
    v_new = k[KEEP2] * v + k[FRESH2] * g * g
    fresh = v_new * k[SHARE] * k[ROOT]
    fresh = k[FLOOR] if fresh < k[FLOOR] else fresh
    fresh = one if fresh > one else fresh
    q_new = product * (one - fresh)
    away = g - m
    m_new = m + fresh * away if fresh + fresh < one else g - away * (one - fresh)
    return m_new, v_new, q_new, one - q_new


@njit(**OPTIONS)
def adai(g, m, v, product, n, k):
    """Adaptive inertia: ``fresh = clip(share v, floor, 1)``, ``q <- q (1-fresh)``, ``m`` toward g by ``fresh``."""
    c = _held(k)
    for i in range(n):
        m[i], v[i], product[i], _ = _adai(g[i], m[i], v[i], product[i], c)


@njit(**OPTIONS)
def adai_moved(g, m, v, product, p, n, k, couples, shrinks):
    """The same of ``scale g``, plus ``coupled p`` where it ``couples``, and the move, in one loop."""
    c = _held(k)
    for i in range(n):
        g_i = g[i] * c[SCALE]
        if couples:
            g_i = p[i] * c[COUPLED] + g_i
        m_i, v[i], product[i], rest = _adai(g_i, m[i], v[i], product[i], c)
        m[i] = m_i
        s_i = m_i / rest * c[BETA]
        if shrinks:
            s_i += p[i] * c[TAU]
        p[i] -= s_i


@njit(**OPTIONS)
def adai_direction(m, product, u, n, k):
    """``u = m / (1 - q)``."""
    one = k[KEEP1]
    for i in range(n):
        u[i] = m[i] / (one - product[i])


@njit(**OPTIONS)
def scaled(x, out, n, factor):
    """``factor x``."""
    for i in range(n):
        out[i] = x[i] * factor


@njit(**OPTIONS)
def plus(x, g, out, n, factor):
    """``factor x + g``."""
    for i in range(n):
        out[i] = x[i] * factor + g[i]


@njit(**OPTIONS)
def difference(x, y, out, n):
    """``x - y``."""
    for i in range(n):
        out[i] = x[i] - y[i]


@njit(**OPTIONS)
def move(p, u, d, n, k, shrinks, anchors):
    """``p <- p - s``, ``s = beta u + tau p + kappa d`` in this order, each product and sum rounded.

    ``anchors``: 0 without kappa, 1 with it, 2 where the anchor is zero and d is p.
    """
    beta, tau, kappa = k[BETA], k[TAU], k[KAPPA]
    if anchors == 2:  # d is the memory that is written: read it as p
        for i in range(n):
            s_i = u[i] * beta
            if shrinks:
                s_i += p[i] * tau
            p[i] -= s_i + p[i] * kappa
    elif anchors == 1:
        for i in range(n):
            s_i = u[i] * beta
            if shrinks:
                s_i += p[i] * tau
            p[i] -= s_i + d[i] * kappa
    elif shrinks:
        for i in range(n):
            p[i] -= u[i] * beta + p[i] * tau
    else:
        for i in range(n):
            p[i] -= u[i] * beta


@njit(**OPTIONS)
def contract(p, a, n, amount, zero):
    """``p <- p - amount (p - a)``; ``zero``: the anchor is zero."""
    for i in range(n):
        d_i = p[i] if zero else p[i] - a[i]
        p[i] -= d_i * amount


@njit(**OPTIONS)
def projected(b, p, n, radial):
    """``b <- b - radial p``."""
    for i in range(n):
        b[i] -= p[i] * radial


@njit(**OPTIONS)
def dot(a, b, n):
    """A block's inner product, added in as many lanes as the processor has; the same wherever it is called."""
    sum_ = a.dtype.type(0)
    for i in range(n):
        sum_ = added(sum_, a[i] * b[i])
    return np.float64(sum_)


@njit(**OPTIONS)
def squares(g, n, scale):
    """The sum of squares of ``scale g``."""
    sum_ = g.dtype.type(0)
    for i in range(n):
        g_i = g[i] * scale
        sum_ = added(sum_, g_i * g_i)
    return np.float64(sum_)


@njit(**OPTIONS)
def coupled_squares(g, p, n, k):
    """The sum of squares of ``scale g + coupled p``, as the two would be formed in memory."""
    scale, coupled = k[SCALE], k[COUPLED]
    sum_ = g.dtype.type(0)
    for i in range(n):
        g_i = p[i] * coupled + g[i] * scale
        sum_ = added(sum_, g_i * g_i)
    return np.float64(sum_)


@njit(**OPTIONS)
def dots(a, b, n):
    """``<a,a>``, ``<a,b>`` and ``<b,b>`` of a block in one loop."""
    aa = a.dtype.type(0)
    ab, bb = aa, aa
    for i in range(n):
        aa = added(aa, a[i] * a[i])
        ab = added(ab, a[i] * b[i])
        bb = added(bb, b[i] * b[i])
    return np.float64(aa), np.float64(ab), np.float64(bb)


@njit(**OPTIONS)
def looked(g, p, n, scale):
    """``<g,g>``, ``<g,p>`` and ``<p,p>`` of ``scale g``."""
    gg = g.dtype.type(0)
    gp, pp = gg, gg
    for i in range(n):
        g_i = g[i] * scale
        gg = added(gg, g_i * g_i)
        gp = added(gp, g_i * p[i])
        pp = added(pp, p[i] * p[i])
    return np.float64(gg), np.float64(gp), np.float64(pp)


@njit(**OPTIONS)
def total(a, n):
    """The sum of a block's elements."""
    sum_ = a.dtype.type(0)
    for i in range(n):
        sum_ = added(sum_, a[i])
    return np.float64(sum_)


@njit(**OPTIONS)
def maximum_to_be(x, v, g, n, k):
    """The sum of ``max(x, v)`` with v as it will be after the step."""
    keep2, fresh2 = k[KEEP2], k[FRESH2]
    sum_ = x.dtype.type(0)
    for i in range(n):
        v_i = keep2 * v[i] + fresh2 * g[i] * g[i]
        sum_ = added(sum_, v_i if (v_i > x[i] or v_i != v_i) else x[i])
    return np.float64(sum_)
