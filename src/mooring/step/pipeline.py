"""The step itself: scan, observe, reduce, decide, apply."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from mooring.step.batch import Batch
from mooring.step.move import Move
from mooring.step.record import Recorder, Recording
from mooring.step.shards import WithinRows, all_sum

Request = tuple[Tensor, tuple[Any, ...]]


def take_step(batches: Sequence[Batch], recorder: Recorder) -> None:
    """Step all batches.

    A batch on one process runs through to the end before the next begins, so its temporaries are short-lived.
    Batches with sharded parameters advance together, so that each stage that depends on sums over processes costs one
    flattened collective for all of them: one for the scan, one for each rule that reads sums.
    """
    recording = recorder.next()
    scan(batches)
    for batch in batches:
        if not batch.shard_axes:
            _drive([observe_decide_apply(batch, recording)])
    _drive([observe_decide_apply(b, recording) for b in batches if b.shard_axes])
    recorder.count(batches)
    if recording is not None:
        recording.finish()


def scan(batches: Sequence[Batch]) -> None:
    """Statistics over the whole model that rules need before anything is written.

    Every tensor with a gradient counts, also in groups whose own decay is zero.
    """
    batches = list(batches)
    if not batches or not batches[0].moments.scans:
        return
    statistic = batches[0].moments.scan(batches)
    for b in batches:
        b.scanned = statistic if statistic.device == b.device else statistic.to(b.device, non_blocking=True)


def observe_decide_apply(batch: Batch, recording: Recording | None) -> Generator[Request, Tensor, None]:
    """One batch's step. Yields what has to be summed over processes and is sent the sums."""
    batch.enter()
    vectors = batch.vectors()
    vectors["u"] = batch.moments.update(batch, batch.coupled(vectors), vectors["p"])

    entries = batch.gram(vectors) if batch.entries else {}
    if entries and batch.row_axes:
        stacked = yield torch.stack(list(entries.values())), batch.row_axes
        entries = dict(zip(entries, stacked.unbind()))

    x = batch.slices(entries, Move(beta=batch.layout.per_slice(batch.moments.step_size(batch))))
    given: list[list[Tensor]] = []
    for rule in batch.rules:
        parts = rule.sums(x)
        totals: list[Tensor] = []
        if parts:
            summed = batch.layout.per_tensor(parts)
            if batch.tensor_axes:
                summed = yield summed, batch.tensor_axes
            totals = list(summed.unbind())
        rule.decide(x, totals)
        given.append(totals)
    if recording is None:
        batch.apply(x.move, vectors)
        batch.end()
    else:
        recording.apply(batch, x, given, vectors)


def _drive(steps: Sequence[Generator[Request, Tensor, None]]) -> None:
    """Advance generators together: collect what each asks for, reduce it in one go, send the sums back.

    Sums of split rows go first: the batches that need them then ask for their tensors' sums with all the others.
    """
    waiting: list[tuple[Generator[Request, Tensor, None], Request]] = []
    for step in steps:
        _advance(step, None, waiting)
    while waiting:
        by_row = [isinstance(axes, WithinRows) for _, (_, axes) in waiting]
        now = [item for item, first in zip(waiting, by_row) if first or not any(by_row)]
        waiting = [item for item, first in zip(waiting, by_row) if any(by_row) and not first]
        for (step, _), total in zip(now, all_sum([request for _, request in now])):
            _advance(step, total, waiting)


def _advance(
    step: Generator[Request, Tensor, None],
    value: Tensor | None,
    waiting: list[tuple[Generator[Request, Tensor, None], Request]],
) -> None:
    try:
        request = next(step) if value is None else step.send(value)
    except StopIteration:
        return
    waiting.append((step, request))
