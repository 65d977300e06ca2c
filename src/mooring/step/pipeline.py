"""The step itself: scan, observe, reduce, decide, apply."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from mooring.moments.base import Moments
from mooring.step.batch import Batch
from mooring.step.move import Move
from mooring.step.processes import Processes
from mooring.step.record import Recorder, Recording
from mooring.step.shards import Request, WithinRows

Steps = Generator[Request | None, Tensor, None]


def take_step(batches: Sequence[Batch], moments: Moments, recorder: Recorder, processes: Processes) -> None:
    """Step all batches.

    A batch on one process runs through to the end before the next begins, so its temporaries are short-lived.
    Batches with sharded parameters advance together, so that each stage that depends on sums over processes costs one
    flattened collective for all of them: one for each rule that reads sums, and one for the scan where its sums cannot
    travel with a rule's.
    """
    recording = recorder.next()
    look = Scan(batches, moments, processes) if moments.scans else None
    if look is not None and (moments.scans_first or not look.communicates):
        look.finish(processes.all_sum(look.requests))
    together = [observe_decide_apply(b, recording) for b in batches if b.shard_axes]
    _drive(together, look, processes)
    for batch in batches:
        if not batch.shard_axes:
            _drive([observe_decide_apply(batch, recording)], None, processes)
    recorder.count(batches)
    if recording is not None:
        recording.finish()


class Scan:
    """The statistic over the whole model that rules need, from gradients and state before anything is written.

    Every tensor with a gradient counts, also in groups whose own decay is zero.

    Attributes:
        requests: what has to be summed over processes.
        pending: whether the statistic is not known yet.
    """

    def __init__(self, batches: Sequence[Batch], moments: Moments, processes: Processes) -> None:
        self._batches, self._moments, self._processes = list(batches), moments, processes
        self.requests = moments.scan(self._batches) if batches else []
        self.pending = True
        for b in batches:
            b.awaits_scan = True

    @property
    def communicates(self) -> bool:
        """Whether any of the sums is not complete yet."""
        return any(axes for _, axes in self.requests)

    def finish(self, sums: list[Tensor]) -> None:
        """Form the statistic and hand it to the batches."""
        if self._batches:
            total, count = self._moments.scanned(self._batches, sums)
        else:
            total, count = torch.zeros((), dtype=torch.float64, device=self._processes.home), 0
        elements = torch.full_like(total, count)
        if self._processes.several_stages:
            total, elements = self._processes.over_model(torch.stack([total, elements])).unbind()
        statistic = total / elements.clamp(min=1)
        for b in self._batches:
            b.scanned = statistic if statistic.device == b.device else statistic.to(b.device, non_blocking=True)
            b.awaits_scan = False
        self.pending = False


def observe_decide_apply(batch: Batch, recording: Recording | None) -> Steps:
    """One batch's step. Yields what has to be summed over processes and is sent the sums.

    Where it needs what the scan found, or is done before that is known, it yields None instead.
    """
    batch.enter()
    x = batch.slices({}, Move(beta=batch.layout.per_slice(batch.moments.step_size(batch))))
    given: list[list[Tensor]] = []
    for rule in batch.rules[: batch.blind_rules]:
        if rule.needs_stable_scale and batch.awaits_scan:
            yield None
        rule.decide(x, [])
        given.append([])
    if recording is None and batch.compiled is not None and batch.compiled.runs_through:
        if batch.awaits_scan:
            yield None
        batch.compiled.take(x.move)
        batch.end()
        return

    entries = batch.observe(x.move, kept=recording is not None)
    if entries and batch.row_axes:
        stacked = yield torch.stack(list(entries.values())), batch.row_axes
        entries = dict(zip(entries, stacked.unbind()))
    x.entries.update(entries)
    for rule in batch.rules[batch.blind_rules :]:
        if rule.needs_stable_scale and batch.awaits_scan:
            yield None
        parts = rule.sums(x)
        totals: list[Tensor] = []
        if parts:
            summed = batch.layout.per_tensor(parts)
            if batch.tensor_axes:
                summed = yield summed, batch.tensor_axes
            totals = list(summed.unbind())
        rule.decide(x, totals)
        given.append(totals)
    if batch.awaits_scan:
        yield None
    if recording is None:
        batch.apply(x.move)
        batch.end()
    else:
        recording.apply(batch, x, given)


def _drive(steps: Sequence[Steps], look: Scan | None, processes: Processes) -> None:
    """Advance generators together: collect what each asks for, reduce it in one go, send the sums back.

    Sums of split rows go first: the batches that need them then ask for their tensors' sums with all the others. The
    scan's go with the first sums of tensors, or by themselves where all wait for them.
    """
    waiting: dict[int, Request | None] = {}

    def advance(i: int, value: Tensor | None = None) -> None:
        try:
            waiting[i] = next(steps[i]) if value is None else steps[i].send(value)
        except StopIteration:
            waiting.pop(i, None)

    for i in range(len(steps)):
        advance(i)
    while waiting or (look is not None and look.pending):
        # In the order of the batches, which is the same on all processes that hold them.
        asking = {i: request for i, request in sorted(waiting.items()) if request is not None}
        by_row = {i: request for i, request in asking.items() if isinstance(request[1], WithinRows)}
        now = by_row or asking
        scanning = look if look is not None and look.pending and not by_row else None
        own = [] if scanning is None else scanning.requests
        sums = processes.all_sum([*now.values(), *own])
        if scanning is not None:
            scanning.finish(sums[len(now) :])
        if look is None or not look.pending:
            for i in [i for i, request in waiting.items() if request is None]:
                advance(i)
        for i, total in zip(now, sums):
            advance(i, total)
