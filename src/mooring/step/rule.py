"""The interface of a rule: a few scalars in, a change of the pending move out."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar

from torch import Tensor

from mooring.step.move import Slices


class Rule:
    """One stage of a step.

    A rule states which Gram entries it reads and at which scope, and turns them into a change of the pending
    displacement. It never sees a weight, so the same rule serves every backend, data type and sharding.

    Class attributes:
        scope: ``"pointwise"`` (options alone), ``"tensor"``, ``"row"`` (rows first, then the tensor), or ``"model"``
            (a statistic over all parameters).
        writes: the letters (``"p"``, ``"d"``) to which the rule may give a coefficient.
        needs_anchor: whether the rule reads or moves along ``d = p - anchor``.
        order: place in a step: 0 before the moments, 1 projection, 2 decay, 3 rescaling, 4 contraction. A recipe lists
            its rules in this order, because each sees the move as the rules before it left it.
        couples: ``"p"`` or ``"d"`` where the rule adds ``weight_decay`` times that to the gradient the moments see.
        contracts: whether all the rule does to the move is :meth:`Move.contract`.
        needs_stable_scale: whether the rule reads the statistic that the moments provide for stable weight decay.
    """

    scope: ClassVar[str] = "pointwise"
    order: ClassVar[int] = 2
    couples: str = ""
    writes: str = ""
    needs_anchor: bool = False
    contracts: bool = False
    needs_stable_scale: bool = False

    def options(self) -> dict[str, Any]:
        """The group options this rule reads, with their defaults."""
        return {}

    def check(self, group: Mapping[str, Any]) -> None:
        """Raise ValueError naming the option, its value and what would be right."""

    def active(self, group: Mapping[str, Any]) -> bool:
        """False where the options of this group make the rule do nothing."""
        return True

    def shared(self, group: Mapping[str, Any]) -> Hashable:
        """The options that all tensors of one batch must have in common; read them from ``x.shared``."""
        return ()

    def reads(self, live: str) -> set[str]:
        """The Gram entries this rule reads, when the letters in ``live`` already have coefficients."""
        return set()

    def reads_for(self, live: str, group: Mapping[str, Any]) -> set[str]:
        """:meth:`reads`, where shared options of a group let the rule read less."""
        return self.reads(live)

    def adds_up(self, group: Mapping[str, Any]) -> bool:
        """Whether :meth:`sums` returns anything for a group: where it is sharded, that costs a collective."""
        return self.scope in ("row", "tensor")

    def rewrites(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """The state of the moments that this rule changes in place, by name."""
        return ()

    def sums(self, x: Slices) -> list[Tensor]:
        """Quantities per slice, each (S,), to be added up over each tensor and over its shards."""
        return []

    def decide(self, x: Slices, totals: list[Tensor]) -> None:
        """Change ``x.move``. ``totals`` are the sums, each of shape (T,)."""

    def inspects(self) -> set[str]:
        """Inner products over whole tensors that :meth:`report` reads beside gg, gp, pp, ps and ss.

        The letters are those of the Gram entries and ``s``, what the step took from the weights.
        """
        return set()

    def report(self, x: Slices, totals: list[Tensor]) -> dict[str, Tensor]:
        """What ``optimizer.telemetry()`` tells of this rule: metric -> (T,) or 0-dim.

        Called after a recorded step, when ``x.total`` gives inner products over whole tensors and ``x.move`` is the
        finished move. ``totals`` are those that ``decide`` got. Of a group and of the model the mean is shown; NaN
        leaves a tensor out of it.
        """
        return {}

    @property
    def label(self) -> str:
        """The rule's name in telemetry: ``SelectiveProjection`` is ``selective_projection``."""
        return _label(type(self).__name__)

    def describe(self, group: Mapping[str, Any]) -> str:
        """One line for ``print(optimizer)``."""
        return type(self).__name__

    def shrink(self, group: Mapping[str, Any]) -> str | None:
        """The fraction of the weights (or of their distance to the anchor) that one step takes, as text."""
        return None


@cache
def _label(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def entries_read(rules: Sequence[Rule], group: Mapping[str, Any]) -> tuple[str, ...]:
    """The Gram entries that a group's rules read, given which coefficients the rules before each of them write."""
    live, wanted = "u", set[str]()
    for rule in rules:
        wanted |= rule.reads_for(live, group)
        live += rule.writes
    return tuple(sorted(wanted))
