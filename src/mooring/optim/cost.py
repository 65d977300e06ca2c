"""What a step costs per parameter: bytes of state, runs over memory, gradients, collectives. Nothing is timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mooring.anchors import kinds
from mooring.moments.base import Moments
from mooring.moments.displacement import Displacement
from mooring.optim.common import screens
from mooring.step.batch import compensated, state_dtype
from mooring.step.rule import Rule, entries_read

if TYPE_CHECKING:
    from mooring.optim.base import Optimizer


@dataclass(frozen=True)
class Sweep:
    """One run over the parameters, which has to end before the next begins.

    Attributes:
        stage: what it is for.
        reads: the parameter-sized tensors it reads: ``weights``, ``gradient``, ``anchor``, names of the state.
        writes: those it writes.
    """

    stage: str
    reads: tuple[str, ...]
    writes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cost:
    """What a step costs for one parameter group.

    Attributes:
        state_bytes: bytes of state and anchor on the device per parameter: measured where there is state, else what
            the options ask for; None where only the wrapped optimizer knows, before its first step.
        sweeps: the runs over memory, in order. They are the least that the recipe's stages allow; temporaries of a
            backend are not in them, nor is what a wrapped optimizer reads and writes itself.
        collectives: the most reductions over processes that one step takes where the parameters are sharded by rows,
            those over the stages of a pipeline included.
        gradients: gradient evaluations per step.
    """

    state_bytes: float | None
    sweeps: tuple[Sweep, ...]
    collectives: int
    gradients: int = 1

    @property
    def reads(self) -> int:
        """Parameter-sized tensors that one step reads."""
        return sum(len(sweep.reads) for sweep in self.sweeps)

    @property
    def writes(self) -> int:
        """Parameter-sized tensors that one step writes."""
        return sum(len(sweep.writes) for sweep in self.sweeps)

    @property
    def passes(self) -> int:
        """Reads and writes together; AdamW's 7 are p, g, m, v read and p, m, v written."""
        return self.reads + self.writes

    def __str__(self) -> str:
        """The cost in one line."""
        unknown = self.state_bytes is None
        state = "state known after the first step" if unknown else f"{self.state_bytes:g} bytes of state"
        shared = f", {self.collectives} collective{'s' if self.collectives > 1 else ''} where sharded"
        return f"{state}, {self.passes} passes over memory{shared if self.collectives else ''}"


def cost(optimizer: Optimizer) -> list[Cost]:
    """What one step costs, for every parameter group. Changes nothing and waits for nothing.

    Passes count parameter-sized tensors read and written: a recipe without sums runs over each tensor once; one whose
    rules read inner products has to see all of a tensor before it moves any of it, so it reads weights, anchor and
    moments twice. Multiply by the bytes of an element for the memory traffic. A step that telemetry records costs more.

    Args:
        optimizer: one of this package, or what :func:`mooring.wrap` returned.

    Raises:
        TypeError: for another optimizer.

    Example:
        >>> import torch, mooring as mo
        >>> opt = mo.AdamSPD(torch.nn.Linear(8, 4).parameters(), lr=1e-3)
        >>> print(mo.cost(opt)[0])
        12 bytes of state, 11 passes over memory, 1 collective where sharded
    """
    if not hasattr(optimizer, "_moments"):
        raise TypeError(f"cost knows mooring's optimizers and wrap(...), got {type(optimizer).__name__}")
    moments, rules, piped = optimizer._moments, optimizer._rules, optimizer.process_group is not None
    return [group_cost(g, optimizer.state, moments, rules, piped) for g in optimizer.param_groups]


def group_cost(
    group: Mapping[str, Any],
    states: Mapping[Tensor, Mapping[str, Any]],
    moments: Moments,
    rules: Sequence[Rule],
    several_stages: bool = False,
) -> Cost:
    """The same for one group and the states of all parameters, which may be one stage of several."""
    active = [rule for rule in rules if rule.active(group)]
    measured = any(states.get(p) for p in group["params"])
    anchored = any(rule.needs_anchor for rule in rules)
    return Cost(
        _measured_bytes(group, states, anchored) if measured else _asked_bytes(group, moments, anchored),
        tuple(_sweeps(group, moments, active)),
        _collectives(group, moments, active) + several_stages * (int(screens(group)) + int(moments.scans)),
    )


# Bytes.


def _measured_bytes(group: Mapping[str, Any], states: Mapping[Tensor, Mapping[str, Any]], anchored: bool) -> float:
    """Parameter-shaped state on the parameter's device; counters are not counted, nor are tensors without elements."""
    held = [p for p in group["params"] if states.get(p) and p.numel() and p.ndim]
    shaped = [v for p in held for v in states[p].values() if isinstance(v, Tensor) and v.shape == p.shape]
    read = sum(p.numel() * _anchor_bytes(group, p) for p in held) if anchored and kinds.is_source(group) else 0
    return _per_element(sum(v.numel() * v.element_size() for v in shaped) + read, held)


def _anchor_bytes(group: Mapping[str, Any], p: Tensor) -> int:
    """Of an anchor on the parameter's device, in the state or beside it; other stores keep none there."""
    on_device = group.get("anchor_store", "device") not in kinds.ON_FILE and group.get("anchor") not in ("zero", None)
    return kinds.stored_dtype(group, p.dtype).itemsize if on_device else 0


def _asked_bytes(group: Mapping[str, Any], moments: Moments, anchored: bool) -> float | None:
    if isinstance(moments, Displacement):
        return None
    total = 0
    for p in group["params"]:
        kept = [state_dtype(p.dtype, _kept(group, moments, name)) for name in moments.state_names(group)]
        each = sum(dtype.itemsize for dtype in kept)
        if anchored:
            each += _anchor_bytes(group, p)
        if compensated(p.dtype, group):
            each += torch.int16.itemsize
        total += p.numel() * each
    return _per_element(total, group["params"])


def _kept(group: Mapping[str, Any], moments: Moments, name: str) -> str:
    return "float32" if name in moments.always_wide else str(group.get("state_dtype", "float32"))


def _per_element(total: int, params: Sequence[Tensor]) -> float:
    return round(total / max(sum(p.numel() for p in params), 1), 2)


# Sweeps.


def _sweeps(group: Mapping[str, Any], moments: Moments, rules: Sequence[Rule]) -> list[Sweep]:
    wrapped = isinstance(moments, Displacement)
    own = ("weights", *(("compensation",) if any(compensated(p.dtype, group) for p in group["params"]) else ()))
    weights = ("copy",) if wrapped else own  # what they were before the step
    anchored = group.get("anchor") not in ("zero", None)
    sources = {
        "g": ("gradient",),
        "p": weights,
        "d": (*weights, "anchor") if anchored else weights,
        "u": ("weights",) if wrapped else (),
    }
    state = moments.state_names(group)
    coupled = [name for rule in rules if rule.couples for name in sources[rule.couples]]
    entries = entries_read(rules, group)
    observed = [name for letters in entries for letter in letters for name in sources[letter]]
    moved = [name for rule in rules for letter in rule.writes for name in sources[letter]]
    rewritten = [name for rule in rules for name in rule.rewrites(group)]

    sweeps = [Sweep("copy", ("weights",), ("copy",))] if wrapped else []
    if screens(group):
        sweeps.append(Sweep("clip", ("gradient",)))
    if moments.scans:
        reads = _once(*moments.scan_reads(group), *coupled)
        if not (screens(group) and reads == ("gradient",)):  # the norm's sums serve the scan too
            sweeps.append(Sweep("scan", reads))
    made = () if wrapped else ("gradient", *coupled, *state)
    if not entries:
        if not wrapped or moved:
            sweeps.append(Sweep("apply", _once(*own, *made, *moved), (*own, *state)))
        return sweeps
    if rules[-1].contracts and not wrapped and not rewritten and not entries_read(rules[:-1], group):
        # Everything before the contraction is known beforehand, so what is pulled back has been moved already.
        sweeps.append(Sweep("observe and move", _once(*own, *made, *observed, *moved), (*own, *state)))
        sweeps.append(Sweep("contract", _once(*own, *(("anchor",) if anchored else ())), own))
        return sweeps
    again = () if wrapped else moments.remade_from(group)
    sweeps.append(Sweep("observe", _once(*made, *observed), state))
    sweeps.append(Sweep("apply", _once(*own, *again, *moved, *rewritten), (*own, *_once(*rewritten))))
    return sweeps


def _once(*names: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _collectives(group: Mapping[str, Any], moments: Moments, rules: Sequence[Rule]) -> int:
    by_rows = any(rule.scope == "row" for rule in rules)
    split_rows = by_rows and group.get("row_dim", 0) != 0  # shards hold whole rows of dimension 0 alone
    stages = {sweep.stage for sweep in _sweeps(group, moments, rules)} & {"clip", "scan"}
    asking = [rule.adds_up(group) for rule in rules]
    decays = [rule.needs_stable_scale for rule in rules]
    if not moments.scans_first and any(asking[: decays.index(True) if any(decays) else len(decays)]):
        stages -= {"scan"}  # its sums travel with the first of a rule
    return len(stages) + int(split_rows) + sum(asking)
