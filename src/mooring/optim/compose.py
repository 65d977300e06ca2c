"""Which rules go together, and in which order."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from mooring.rules import BufferHorizonDecay, SelectiveProjection
from mooring.rules.decay import Decay
from mooring.step.rule import Rule


def compose(listed: Sequence[object], options: dict[str, Any], coupled: Rule, anchor: Mapping[str, Any]) -> list[Rule]:
    """Check a recipe and complete it with the signature's own ``weight_decay``.

    Args:
        listed: the rules that the user listed.
        options: group options of the optimizer; ``weight_decay`` is the signature's. Changed in place: rules bring
            their own options, and ``anchor`` with its store where one of them needs it.
        coupled: what a ``weight_decay`` in the signature means for this optimizer.
        anchor: the options of the anchor, where a rule needs one.

    Raises:
        TypeError: for something that is not a rule (a class that was not called, say).
        ValueError: for a wrong order, a rule listed twice, or two decays; the message holds the fix.
    """
    rules = in_order(listed)
    _check_decays(rules, options)
    if not any(isinstance(rule, Decay) for rule in rules):
        rules.insert(0, coupled)
    else:
        del options["weight_decay"]  # the listed decay brings its own
    if any(rule.needs_anchor for rule in rules):
        options.update(anchor)
    _warn_of_fights(rules, options)
    return rules


def _names(rules: Sequence[Rule]) -> str:
    return "[" + ", ".join(f"{type(rule).__name__}(...)" for rule in rules) + "]"


def in_order(listed: Sequence[object]) -> list[Rule]:
    """The rules of a list, checked for their kind and order.

    Raises:
        TypeError: for something that is not a rule.
        ValueError: for a wrong order, or a rule listed twice.
    """
    rules: list[Rule] = []
    for rule in listed:
        if not isinstance(rule, Rule):
            uncalled = isinstance(rule, type) and issubclass(rule, Rule)
            hint = f"write {rule.__name__}()" if uncalled else "see mooring.rules"  # type: ignore[attr-defined]
            raise TypeError(f"rules: expected rules, got {rule!r}; {hint}")
        rules.append(rule)
    right = sorted(rules, key=lambda rule: rule.order)
    if list(rules) != right:
        raise ValueError(f"rules: list them as {_names(right)}, the order in which a step applies them")
    for a, b in pairwise(right):
        if type(a) is type(b) and not isinstance(a, Decay):
            raise ValueError(f"rules: {type(a).__name__} is listed twice; once is enough")
    return rules


def _check_decays(rules: Sequence[Rule], options: dict[str, Any]) -> None:
    decays = [rule for rule in rules if isinstance(rule, Decay)]
    if len(decays) > 1:
        raise ValueError(
            f"rules: {_names(decays)} are {len(decays)} decays that share the option weight_decay; keep one of them"
        )
    if decays and options["weight_decay"] != 0:
        raise ValueError(
            f"weight_decay: got {options['weight_decay']!r} beside {type(decays[0]).__name__} in rules; give the "
            f"amount to the rule, {type(decays[0]).__name__}({options['weight_decay']!r})"
        )
    for rule in decays:
        if isinstance(rule, BufferHorizonDecay) and "momentum" not in options:
            raise ValueError("rules: BufferHorizonDecay divides by 1 - momentum; it needs SGD, use DecoupledDecay here")


def _warn_of_fights(rules: Sequence[Rule], options: dict[str, Any]) -> None:
    to_zero = [r for r in rules if isinstance(r, Decay) and r.toward == "zero" and not r.free_only]
    amounts = [r.weight_decay if r.weight_decay else options.get("weight_decay", 0) for r in to_zero]
    holds = any(isinstance(rule, SelectiveProjection) for rule in rules)
    if holds and any(amounts) and options["anchor"] not in ("zero", None):
        warnings.warn(
            f"{type(to_zero[0]).__name__} pulls the weights to zero while SelectiveProjection holds them to the "
            "anchor; use toward='anchor' in the decay, or drop it",
            UserWarning,
            stacklevel=4,
        )
