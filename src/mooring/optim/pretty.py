"""What ``print(optimizer)`` shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mooring.moments.base import Moments
from mooring.optim import common
from mooring.optim.cost import Cost
from mooring.step.rule import Rule


def stages(group: dict[str, Any], moments: Moments, rules: Sequence[Rule]) -> list[str]:
    """What a step does to one group, in order."""
    active = [rule for rule in rules if rule.active(group)]
    before = [rule.describe(group) for rule in active if rule.couples]
    after = [rule.describe(group) for rule in active if not rule.couples]
    first = [common.describe_screen(group)] if common.screens(group) else []
    return [*first, *before, moments.describe(group), *after, "step"]


def pipeline_text(
    name: str, groups: Sequence[dict[str, Any]], moments: Moments, rules: Sequence[Rule], costs: Sequence[Cost]
) -> str:
    """The pipeline in order, per group, what one step shrinks, and what it costs."""
    lines = [f"{name} ("]
    for i, group in enumerate(groups):
        active = [rule for rule in rules if rule.active(group)]
        count = sum(p.numel() for p in group["params"])
        shrinks = [text for rule in active if (text := rule.shrink(group))]
        options = common.describe(group)
        lines += [
            f"  group {i}: {len(group['params'])} tensors, {count:,} elements, lr {float(group['lr']):g}",
            f"    {' -> '.join(stages(group, moments, rules))}",
            f"    shrink per step: {' and '.join(shrinks) or 'none'}",
            *([f"    {options}"] if options else []),
            f"    cost per parameter: {costs[i]}",
        ]
    return "\n".join([*lines, ")"])
