"""Noise and ascents for many tensors in one call: addresses instead of tensors, and work for the threads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mooring.kernels import choice, random
from mooring.kernels.cpu import ascent, jobs, noise
from mooring.kernels.cpu.memory import BFLOAT16, FLOAT16, SAME
from mooring.kernels.cpu.tables import PIECE
from mooring.kernels.cpu.threads import scratch, together

_STORED = {torch.float32: SAME, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}
_COUNTS = {jobs.NOISE: noise.COUNT, jobs.ASCENT: ascent.COUNT}


def draw(outs: Sequence[Tensor], seeds: Sequence[int], law: str, runs: Sequence[tuple[Tensor, int]]) -> None:
    """Write the numbers of elements that lie in runs, those of a tensor one after the other.

    Args:
        outs: contiguous, float32, or int32 for bits.
        seeds: see :func:`mooring.kernels.random.fill`.
        law: see there.
        runs: where the runs of each tensor begin in the whole one, and how long they are.
    """
    if not outs:
        return
    counts = [len(starts) for starts, _ in runs]
    table = np.zeros((sum(counts), 6), np.int64)
    lengths = np.repeat([run for _, run in runs], counts)
    within = np.arange(len(table)) - np.repeat(np.cumsum(counts) - counts, counts)
    table[:, noise.OUT] = np.repeat([x.data_ptr() for x in outs], counts) + within * lengths * 4
    table[:, noise.FIRST] = torch.cat([starts for starts, _ in runs]).numpy()
    table[:, noise.COUNT] = lengths
    table[:, noise.KEY1 :] = np.repeat(_keys(seeds), counts, axis=0)
    _, table = _cut(table, noise.COUNT, {noise.OUT: 4, noise.FIRST: 1})
    _take(jobs.NOISE, noise.LAWS[law], SAME, table, np.ones((len(table), 4), np.float32))


def shake(
    places: Sequence[Tensor],
    saved: Sequence[Tensor],
    seeds: Sequence[int],
    firsts: Sequence[int],
    scales: Sequence[float],
    law: str,
) -> None:
    """``place = saved + scale * noise``, rounded once.

    Args:
        places: contiguous tensors of one type: float32, bfloat16 or float16.
        saved: the same, to be read.
        seeds: one per tensor.
        firsts: the place of each tensor's first element in the whole tensor it is a run of.
        scales: the standard deviation of each, rounded to float32.
        law: the noise's.
    """
    table = np.zeros((len(places), 6), np.int64)
    table[:, noise.OUT] = [x.data_ptr() for x in places]
    table[:, noise.SAVED] = [x.data_ptr() for x in saved]
    table[:, noise.FIRST] = firsts
    table[:, noise.COUNT] = [x.numel() for x in places]
    table[:, noise.KEY1 :] = _keys(seeds)
    item = places[0].element_size()
    which, table = _cut(table, noise.COUNT, {noise.OUT: item, noise.SAVED: item, noise.FIRST: 1})
    numbers = np.repeat(np.array(scales, np.float32)[which, None], 4, axis=1)
    _take(jobs.NOISE, noise.LAWS[law], _STORED[places[0].dtype], table, numbers)


def squares(saved: Sequence[Tensor], gradients: Sequence[Tensor], kind: str, etas: Sequence[float]) -> Tensor:
    """Each direction's sum of squares, (T,) float64: blocks of 512 in float32, float64 across them.

    Args:
        saved: contiguous weights of one type that have elements: float32, bfloat16 or float16.
        gradients: the same.
        kind: a key of ``ascent.KINDS``.
        etas: of the adaptive direction; below 0 for the gradient itself.
    """
    table = _directions([0] * len(saved), saved, gradients)
    item = saved[0].element_size()
    which, table = _cut(table, ascent.COUNT, {ascent.SAVED: item, ascent.GRADIENT: item})
    numbers = np.zeros((len(saved), 4), np.float32)
    numbers[:, ascent.ETA] = etas
    sums = _take(jobs.ASCENT, ascent.KINDS[kind], _STORED[saved[0].dtype], table, numbers[which])
    return torch.from_numpy(np.add.reduceat(sums, np.searchsorted(which, np.arange(len(saved)))))


def climb(
    places: Sequence[Tensor],
    saved: Sequence[Tensor],
    gradients: Sequence[Tensor],
    kind: str,
    numbers: Sequence[tuple[float, float, float, float]],
) -> None:
    """``place = saved + climb``, rounded once.

    Args:
        places: contiguous tensors of one type: float32, bfloat16 or float16.
        saved: the same, to be read.
        gradients: the same.
        kind: a key of ``ascent.KINDS``.
        numbers: per tensor: the factor, eta, what is added and what is divided by.
    """
    table = _directions([x.data_ptr() for x in places], saved, gradients)
    item = saved[0].element_size()
    which, table = _cut(table, ascent.COUNT, {ascent.OUT: item, ascent.SAVED: item, ascent.GRADIENT: item})
    _take(jobs.ASCENT, ascent.KINDS[kind], _STORED[saved[0].dtype], table, np.array(numbers, np.float32)[which])


def _directions(places: list[int], saved: Sequence[Tensor], gradients: Sequence[Tensor]) -> np.ndarray:
    table = np.zeros((len(saved), 4), np.int64)
    table[:, ascent.OUT] = places
    table[:, ascent.SAVED] = [x.data_ptr() for x in saved]
    table[:, ascent.GRADIENT] = [x.data_ptr() for x in gradients]
    table[:, ascent.COUNT] = [x.numel() for x in saved]
    return table


def _keys(seeds: Sequence[int]) -> np.ndarray:
    return streams(np.array(seeds, np.uint64))


def streams(seeds: np.ndarray) -> np.ndarray:
    """:func:`mooring.kernels.random.stream` of many seeds, (seeds,) uint64: two words of key each, (seeds, 2) int64."""
    return np.stack([_mix(seeds), _mix(seeds ^ np.uint64(random.MIX2))], 1).view(np.int64)


def after(keys: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """:func:`mooring.kernels.random.key` of one integer each, after other keys; all (n,) uint64."""
    return _mix(keys ^ parts)


def _mix(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(random.GAMMA)  # arrays wrap around
    x = (x ^ (x >> np.uint64(30))) * np.uint64(random.MIX1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(random.MIX2)
    x ^= x >> np.uint64(31)
    return x


def _cut(table: np.ndarray, count: int, steps: dict[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Cut jobs into some of at most PIECE elements.

    Args:
        table: of jobs.
        count: its column of elements.
        steps: by column, what each element adds to it.

    Returns:
        Which job each new one was a part of, and the new ones.
    """
    each = -(-table[:, count] // PIECE)
    which = np.repeat(np.arange(len(table)), each)
    part = (np.arange(len(which)) - np.repeat(np.cumsum(each) - each, each)) * PIECE
    cut = table[which]
    for column, step in steps.items():
        cut[:, column] += part * step
    cut[:, count] = np.minimum(PIECE, cut[:, count] - part)
    return which, cut


def _take(what: int, kind: int, stored: int, table: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Let threads take jobs, small ones together until they have PIECE elements.

    Args:
        what: see jobs.py.
        kind: a law, or a direction.
        stored: how weights are.
        table: the jobs.
        numbers: (jobs, 4) float32.

    Returns:
        Their sums, (jobs,) float64.
    """
    counts = table[:, _COUNTS[what]]
    filled = np.cumsum(counts) // PIECE
    claims = np.concatenate([[0], np.flatnonzero(np.diff(filled)) + 1, np.full(1, len(table))]).astype(np.int64)
    # All of torch's threads or none: a smaller team would end the others.
    threads = torch.get_num_threads() if len(claims) > 2 else 1
    claims = np.append(claims, np.full(threads, len(table)))  # each thread comes once more, and finds nothing
    sums, turns, work = np.zeros(len(table)), np.zeros(2, np.int64), scratch("jobs", threads * jobs.WORK, np.float32)
    at = {
        "what": what, "kind": kind, "stored": stored, "jobs": table.ctypes.data, "count": len(table),
        "columns": table.shape[1], "numbers": numbers.ctypes.data, "sums": sums.ctypes.data,
        "claims": claims.ctypes.data, "slot": turns.ctypes.data, "next": turns.ctypes.data + 8,
        "work": work.ctypes.data,
    }  # fmt: skip
    header = np.array([at[name] for name in jobs.HEADER], np.int64)
    choice.load("jobs", jobs.on_team)
    together(jobs.on_team(), header.ctypes.data, threads)
    return sums
