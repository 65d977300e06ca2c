"""How a step's time grows: with the size of a tensor, the length of its rows, the number of tensors, and threads."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from mooring.bench.backends import use
from mooring.bench.branches import Problem
from mooring.bench.measured import Baseline, Bench, prepared
from mooring.bench.methods import Method
from mooring.bench.results import Point
from mooring.bench.shapes import Model
from mooring.bench.statistics import median_interval
from mooring.bench.verify import verify

METHODS = ("adamw", "adamp-rows", "adams", "adamspd-1", "all-rules", "sgd")
"""Drawn where nobody chose methods."""


@dataclass(frozen=True)
class Place:
    """Where on a curve: the shapes, and the threads where those grow."""

    curve: str
    x: int
    model: Model
    threads: int | None = None


def places(*, quick: bool, threads: int) -> list[Place]:
    """All points of the four curves, the four of a quick look, or more.

    ``size``: one matrix with rows of 256. ``rows``: a number of elements in one matrix, in ever more rows. ``tensors``:
    the same elements in ever more tensors. ``threads``: the same in 64 tensors.
    """
    top = 14 if quick else 22
    step = 4 if quick else 2
    out = []

    def add(curve: str, x: int, count: int, rows: int, columns: int, threads: int | None = None) -> None:
        model = Model(f"{curve}-{x}", f"{count} of {rows} x {columns}", ((rows, columns),) * count)
        out.append(Place(curve, x, model, threads))

    for power in range(10, top + 3 if not quick else top + 1, step):
        add("size", 1 << power, 1, 1 << (power - 8), 256)
    for power in range(2, top - 1, 2 * step):
        add("rows", 1 << power, 1, 1 << power, 1 << (top - power))
    for power in range(0, top - 8 if not quick else 7, step):
        add("tensors", 1 << power, 1 << power, 1 << ((top - power) // 2), 1 << (top - power - (top - power) // 2))
    counts = sorted({1 << k for k in range(10) if 1 << k <= threads} | {threads})
    for count in counts:
        add("threads", count, 64, 1 << ((top - 6) // 2), 1 << (top - 6 - (top - 6) // 2), count)
    return out


def measure(bench: Bench, where: Place, methods: Sequence[Method], backends: Sequence[str]) -> Iterator[Point | str]:
    """Every method at one place, verified first; in words what is wrong where it is."""
    before = torch.get_num_threads()
    try:
        if where.threads is not None:
            torch.set_num_threads(where.threads)
        for method in methods:
            for backend in backends if method.ours else ("",):
                yield _point(bench, where, method, backend)
    finally:
        torch.set_num_threads(before)


def _point(bench: Bench, where: Place, method: Method, backend: str) -> Point | str:
    found = verify(method, where.model.shapes, backend, bench.device)
    if found.error is not None:
        return f"{method.id} at {where.model.name}: {found.error}"
    problem = Problem(where.model.shapes, method.branch, dtype=method.dtype, device=bench.device)
    with use(backend):
        optimizer = prepared(method, problem)
        optimizer.step()
        pairs = bench.pairs(optimizer.step, Baseline(problem, optimizer).step)
    ratio = median_interval(pairs.ratios)
    return Point(where.curve, where.x, method.id, backend, statistics.median(pairs.candidate), ratio)
