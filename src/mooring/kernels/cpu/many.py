"""Noise and ascents for many tensors in one call: addresses instead of tensors, and work for the threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from mooring.kernels import choice, random
from mooring.kernels.cpu import ascent, noise
from mooring.kernels.cpu.memory import BFLOAT16, FLOAT16, SAME
from mooring.kernels.cpu.threads import share

_STORED = {torch.float32: SAME, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}
_PIECE = 1 << 16
"""Elements that one thread takes in one go, and that are summed in one."""


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
    jobs = np.zeros((sum(counts), 6), np.int64)
    lengths = np.repeat([run for _, run in runs], counts)
    within = np.arange(len(jobs)) - np.repeat(np.cumsum(counts) - counts, counts)
    jobs[:, noise.OUT] = np.repeat([x.data_ptr() for x in outs], counts) + within * lengths * 4
    jobs[:, noise.FIRST] = torch.cat([starts for starts, _ in runs]).numpy()
    jobs[:, noise.COUNT] = lengths
    jobs[:, noise.KEY1 :] = np.repeat(_keys(seeds), counts, axis=0)
    _, jobs = _cut(jobs, noise.COUNT, {noise.OUT: 4, noise.FIRST: 1})
    _walk(jobs, np.ones(len(jobs), np.float32), law, SAME)


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
    jobs = np.zeros((len(places), 6), np.int64)
    jobs[:, noise.OUT] = [x.data_ptr() for x in places]
    jobs[:, noise.SAVED] = [x.data_ptr() for x in saved]
    jobs[:, noise.FIRST] = firsts
    jobs[:, noise.COUNT] = [x.numel() for x in places]
    jobs[:, noise.KEY1 :] = _keys(seeds)
    item = places[0].element_size()
    which, jobs = _cut(jobs, noise.COUNT, {noise.OUT: item, noise.SAVED: item, noise.FIRST: 1})
    _walk(jobs, np.array(scales, np.float32)[which], law, _STORED[places[0].dtype])


def squares(saved: Sequence[Tensor], gradients: Sequence[Tensor], kind: str, etas: Sequence[float]) -> Tensor:
    """Each direction's sum of squares, (T,) float64: blocks of 512 in float32, float64 across them.

    Args:
        saved: contiguous weights of one type that have elements: float32, bfloat16 or float16.
        gradients: the same.
        kind: a key of ``ascent.KINDS``.
        etas: of the adaptive direction; below 0 for the gradient itself.
    """
    jobs = _directions([0] * len(saved), saved, gradients)
    item = saved[0].element_size()
    which, jobs = _cut(jobs, ascent.COUNT, {ascent.SAVED: item, ascent.GRADIENT: item})
    numbers = np.zeros((len(saved), 4), np.float32)
    numbers[:, ascent.ETA] = etas
    sums = _climb(jobs, numbers[which], kind, _STORED[saved[0].dtype])
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
    jobs = _directions([x.data_ptr() for x in places], saved, gradients)
    item = saved[0].element_size()
    which, jobs = _cut(jobs, ascent.COUNT, {ascent.OUT: item, ascent.SAVED: item, ascent.GRADIENT: item})
    _climb(jobs, np.array(numbers, np.float32)[which], kind, _STORED[saved[0].dtype])


def _directions(places: list[int], saved: Sequence[Tensor], gradients: Sequence[Tensor]) -> np.ndarray:
    jobs = np.zeros((len(saved), 4), np.int64)
    jobs[:, ascent.OUT] = places
    jobs[:, ascent.SAVED] = [x.data_ptr() for x in saved]
    jobs[:, ascent.GRADIENT] = [x.data_ptr() for x in gradients]
    jobs[:, ascent.COUNT] = [x.numel() for x in saved]
    return jobs


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


def _cut(jobs: np.ndarray, count: int, steps: dict[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Cut jobs into some of at most _PIECE elements.

    Args:
        jobs: a table.
        count: its column of elements.
        steps: by column, what each element adds to it.

    Returns:
        Which job each new one was a part of, and the new ones.
    """
    each = -(-jobs[:, count] // _PIECE)
    which = np.repeat(np.arange(len(jobs)), each)
    part = (np.arange(len(which)) - np.repeat(np.cumsum(each) - each, each)) * _PIECE
    cut = jobs[which]
    for column, step in steps.items():
        cut[:, column] += part * step
    cut[:, count] = np.minimum(_PIECE, cut[:, count] - part)
    return which, cut


def _walk(jobs: np.ndarray, scales: np.ndarray, law: str, stored: int) -> None:
    def work(begin: int, end: int) -> None:
        noise.walk(jobs, scales, noise.LAWS[law], stored, begin, end)

    choice.load("noise", lambda: work(0, 0))
    _share(work, jobs[:, noise.COUNT])


def _climb(jobs: np.ndarray, numbers: np.ndarray, kind: str, stored: int) -> np.ndarray:
    sums = np.zeros(len(jobs))

    def work(begin: int, end: int) -> None:
        ascent.climb(jobs, numbers, ascent.KINDS[kind], stored, sums, begin, end)

    choice.load("ascent", lambda: work(0, 0))
    _share(work, jobs[:, ascent.COUNT])
    return sums


def _share(work: Callable[[int, int], None], counts: np.ndarray) -> None:
    """Let threads take jobs, small ones together until they have _PIECE elements."""
    filled = np.cumsum(counts) // _PIECE
    ends = np.append(np.flatnonzero(np.diff(filled)) + 1, len(counts))
    share(work, list(zip(np.append(0, ends[:-1]).tolist(), ends.tolist())))
