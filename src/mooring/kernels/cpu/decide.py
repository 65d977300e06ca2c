"""Sums over pieces, and the rules of a tensor: with all sums, or as far as they go without <p,u>."""

from __future__ import annotations

import numpy as np
from numba import njit

from mooring.kernels.cpu.blocks import AMOUNT
from mooring.kernels.cpu.memory import OPTIONS
from mooring.kernels.cpu.program import evaluate
from mooring.kernels.cpu.tables import EVERYTHING, NOTHING, OWN_ROW, PU


@njit(**OPTIONS)
def add_pieces(begin, end, b):
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
def decide_tensor(t, begin, end, b, rules, registers):
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


@njit(**OPTIONS)
def foresee_tensor(t, begin, end, b, rules, registers):
    """Run the rules without <p,u>, which is NaN and makes NaN of whatever depends on it."""
    first, last = b.pieces[begin, 1], b.pieces[end - 1, 1] + 1
    _fill(t, first, last, b, rules, registers)
    pu = rules.wires[PU]
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
def decide_rows(t, begin, end, b, rules, registers):
    """The coefficients of some rows of a tensor, from their own <p,u> and what FORESEE found."""
    first, rows = b.pieces[begin, 1], end - begin
    for i in range(rules.wide.shape[0]):
        if not rules.wide[i]:
            registers[i, 0] = b.known[t, i]
    for j in range(rows):
        b.entries[PU, first + j] = b.partial[begin + j, PU]
    _wire(first, first + rows, b, rules, registers)
    evaluate(rules.by_row, rules.wide, registers, rows)
    _give(first, first + rows, b, rules, registers)
