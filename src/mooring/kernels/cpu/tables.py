"""What the kernels are given: addresses, settings, sums, and rules as a program."""

from __future__ import annotations

from typing import Any, NamedTuple

from mooring.kernels.cpu.blocks import BLOCK, SUMMED

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
that need EVERYTHING. Where a large tensor needed that in the step before, LOOK observes it as well, and FORESEE leaves
the move alone: two walks instead of three."""
NOTHING, OWN_ROW, EVERYTHING, THE_MOVE = range(4)
"""What is needed of <p,u> before a tensor can be moved: nothing, each row's own, or all of it; or no more than the
move, where it is known and the moments are updated."""
PU = 3  # the column of <p,u> where the loop is SEEN

DRAWN = 8 * BLOCK + SUMMED  # behind seven blocks of inputs, and u
THREAD_NUMBERS = DRAWN + BLOCK + BLOCK // 2 + 8  # then bits, and the words that they are cut from
SCRATCH = THREAD_NUMBERS + 256
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
        expected: (tensors,) 1 where the step before needed all of <p,u>, and LOOK observes at once.
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
    expected: Any
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


HEADER = (
    "stages", "claims", "counters", "units", *Tables._fields, *Rules._fields, "slots", "registers", "work", "kept"
)  # fmt: skip
"""What :func:`on_team` is given: an address and two lengths of each, the second being 1 for arrays of one dimension."""
