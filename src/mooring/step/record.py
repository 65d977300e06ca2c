"""What a recorded step measures: inner products of what it did, and what its rules report. Nothing is read back here.

Everything that the step itself computes stays as it is: the products of a recording come from passes of their own, in
float64, and their sums over processes go in a collective of their own after the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mooring.kernels.eager import TensorList, inner_products
from mooring.step.batch import Batch
from mooring.step.layout import Layout
from mooring.step.move import Slices
from mooring.step.shards import all_sum

# Measured of every tensor. Beside the letters of the Gram entries: s, what the step took (p before - p after), formed
# element by element, which is exact for small steps; q, the weights after the step; n, 1 where an element of s is
# not 0.
ALWAYS = ("gg", "gp", "pp", "ps", "ss", "qq", "nn")
# Where there is something to drift from: r, its distance after the step, and a, the reference itself.
DRIFT = ("rr", "aa")
# Elements that are widened to float64 at a time.
_PIECE = 1 << 20


@dataclass(frozen=True)
class Table:
    """Measurements of the tensors of one batch.

    Attributes:
        positions: where each tensor stands among all parameters of the optimizer, from 1.
        numels: elements of each tensor, counted over all shards; a complex element is two.
        names: of the rows; two letters for an inner product, ``rule/metric`` for what a rule reports.
        values: float64, shape (rows, tensors), complete over all shards.
    """

    positions: list[int]
    numels: list[int]
    names: list[str]
    values: Tensor


class Recorder:
    """Decides which steps are recorded, keeps the last recording, and counts what is counted on every step.

    Attributes:
        every: record every so many steps; None records none.
        drift: also measure how far tensors without an anchor move from where they are at their first recorded step.
        steps: steps since recording began.
        last: the number of the last recorded step, from 1; 0 for none.
        fresh: whether it is the latest step, also of those that moved nothing and were not counted.
        counts: on how many steps since the optimizer was made each flag was raised; 0-dim, on the device.
    """

    def __init__(self) -> None:
        self.every: int | None = None
        self.drift = False
        self.steps = self.last = 0
        self.fresh = False
        self.counts: dict[str, Tensor] = {}
        self._origins: dict[Tensor, Tensor] = {}
        self._tables: list[Table] = []
        self._fetched: tuple[list[Table], dict[str, float]] | None = None

    def start(self, every: int | None, drift: bool) -> None:
        """Forget what was recorded and begin with the next step."""
        self.every, self.drift = every, drift
        self.steps = self.last = 0
        self.fresh = False
        self._origins, self._tables, self._fetched = {}, [], None

    def next(self) -> Recording | None:
        """Count a step, and say whether it is recorded."""
        self._fetched = None
        if self.every is None:
            return None
        self.steps += 1
        return Recording(self) if (self.steps - 1) % self.every == 0 else None

    def keep(self, tables: list[Table]) -> None:
        """The recording of this step is complete."""
        self._tables, self.last, self.fresh = tables, self.steps, True

    def count(self, batches: Sequence[Batch]) -> None:
        """Add one to each counter whose flag was raised in any batch of this step."""
        raised: dict[str, list[Tensor]] = {}
        for batch in batches:
            for name, flag in batch.flags.items():
                raised.setdefault(name, []).append(flag)
            batch.flags = {}
        for name, flags in raised.items():
            any_of = flags[0]
            if len(flags) > 1:
                any_of = torch.stack([f.to(any_of.device, non_blocking=True) for f in flags]).any()
            before = self.counts.get(name)
            self.counts[name] = any_of.double() if before is None else before.to(any_of.device) + any_of

    def origin(self, owner: Tensor, weights: Tensor) -> Tensor:
        """Where a tensor without an anchor was when it was first recorded."""
        if owner not in self._origins:
            self._origins[owner] = weights.clone()
        return self._origins[owner]

    def fetch(self) -> tuple[list[Table], dict[str, float]]:
        """The last recording and the counters on the host, in one transfer from the device."""
        if self._fetched is not None:
            return self._fetched
        names, counts = list(self.counts), list(self.counts.values())
        fetched = _to_host([t.values for t in self._tables] + counts)
        tables = [Table(t.positions, t.numels, t.names, v) for t, v in zip(self._tables, fetched)]
        self._fetched = tables, {n: float(v) for n, v in zip(names, fetched[len(tables) :])}
        return self._fetched


class Recording:
    """One recorded step."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._seen: list[tuple[Batch, Slices, list[list[Tensor]], list[str], Tensor]] = []

    def apply(self, batch: Batch, x: Slices, totals: list[list[Tensor]]) -> None:
        """Apply a batch's move, end its step, and measure what that did to the weights.

        Args:
            batch: the batch, with the move decided.
            x: what its rules saw.
            totals: the sums that each rule got.
        """
        asked = {name for rule in batch.rules for name in rule.inspects()}
        vectors = batch.directions
        seen = dict(vectors)
        started, batch.started = batch.started, None
        assert started is not None, "a recorded step is observed with its weights kept"
        seen["p"] = batch.before or started
        # What the step starts from: the weights themselves, which it overwrites, or with what their type cannot hold.
        exact = [p if w is stored else w for w, p, stored in zip(vectors["p"], seen["p"], batch.params)]
        if vectors.get("d") is vectors["p"]:
            seen["d"] = exact
        if any("u" in name for name in asked):
            seen["u"] = [u.clone() for u in vectors["u"]]  # it may be the momentum buffer, which a rule may rewrite
        batch.apply(x.move)
        batch.end()
        seen["q"] = batch.widen(batch.params)
        seen["s"] = torch._foreach_sub(seen["p"], seen["q"])
        seen["n"] = [s.ne(0).to(s.dtype) for s in seen["s"]]
        names = [*ALWAYS, *sorted(asked - set(ALWAYS))]
        if self._reference(batch, seen, exact):
            names += DRIFT
        self._seen.append((batch, x, totals, names, _products(seen, names)))

    def _reference(self, batch: Batch, seen: dict[str, TensorList], exact: TensorList) -> bool:
        if "d" in seen:
            seen["r"] = torch._foreach_sub(seen["d"], torch._foreach_sub(exact, seen["q"]))
            zero = batch.group["anchor"] == "zero"
            seen["a"] = [torch.zeros_like(q) for q in seen["q"]] if zero else batch.anchors()
        elif self._recorder.drift:
            seen["a"] = [self._recorder.origin(owner, p) for owner, p in zip(batch.owners, seen["p"])]
            seen["r"] = torch._foreach_sub(seen["q"], seen["a"])
        else:
            return False
        return True

    def finish(self) -> None:
        """Sum over processes, in one collective for each mesh, and ask the rules for their reports."""
        tables = []
        sums = all_sum([(local, batch.shard_axes) for batch, _, _, _, local in self._seen])
        for (batch, x, totals, names, _), products in zip(self._seen, sums):
            x.whole = dict(zip(names, products.unbind()))
            rows = {**x.whole}
            for rule, given in zip(batch.rules, totals):
                for metric, value in rule.report(x, given).items():
                    rows[f"{rule.label}/{metric}"] = value.double().expand(len(batch.owners))
            by_device: dict[torch.device, dict[str, Tensor]] = {}
            for name, value in rows.items():
                by_device.setdefault(value.device, {})[name] = value
            numels = [n * (2 if p.is_complex() else 1) for p, n in zip(batch.owners, batch.global_numels)]
            for found in by_device.values():
                tables.append(Table(batch.positions, numels, list(found), torch.stack(list(found.values()))))
        self._recorder.keep(tables)


def _products(vectors: dict[str, TensorList], names: Sequence[str]) -> Tensor:
    """Inner products over whole local tensors, (len(names), T); products and sums in float64."""
    first = vectors["p"]
    # Only its blocks are used; a layout on an accelerator would copy there, and wait.
    layout = Layout([t.shape for t in first], [None] * len(first), torch.device("cpu"))
    letters = sorted({letter for name in names for letter in name})
    parts = []
    for block in layout.blocks:
        matrices = {letter: layout.matrix(block, vectors[letter]) for letter in letters}
        total = torch.zeros(len(names), len(block.rows), dtype=torch.float64, device=first[0].device)
        width = max(1, _PIECE // len(block.rows))
        for begin in range(0, block.length, width):
            piece = {
                letter: m[:, begin : begin + width].to(torch.float64, memory_format=torch.contiguous_format)
                for letter, m in matrices.items()
            }
            total += torch.stack(inner_products(piece, names))
        parts.append(total)
    return torch.cat(parts, 1)


def _to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Float64 tensors of any devices on the host; all that is not there already goes in one transfer."""
    remote = [i for i, t in enumerate(tensors) if t.device.type != "cpu"]
    out = list(tensors)
    if remote:
        device = tensors[remote[0]].device
        flat = torch.cat([tensors[i].reshape(-1).to(device) for i in remote]).cpu()
        for i, piece in zip(remote, torch.split(flat, [tensors[i].numel() for i in remote])):
            out[i] = piece.view(tensors[i].shape)
    return out
