"""From a recipe's rules as data to rules, with errors that name the method, the rule and the option."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

import mooring
from mooring.finetune.errors import SpecError, suggestion
from mooring.finetune.importing import load
from mooring.finetune.spec import MethodSpec
from mooring.step.rule import Rule


def build_rules(method: MethodSpec) -> list[Rule]:
    """The rules of a method, in its order.

    Raises:
        SpecError: A rule's class cannot be found, or it refuses its options.
    """
    return [_build(method, name, given) for rule in method.rules for name, given in rule.items()]


def recipe_optimizer(
    method: MethodSpec, cls: type[torch.optim.Optimizer], params: Any, options: dict[str, Any]
) -> torch.optim.Optimizer:
    """The optimizer of a method that has rules: they are handed to the class, or wrapped around its step."""
    rules = build_rules(method)
    if not method.wrap:
        return cls(params, **options, rules=rules)  # type: ignore[call-arg]
    # Unless the class has an anchor of its own, the option is wrap's.
    own = {} if "anchor" not in options or takes(cls, "anchor") else {"anchor": options["anchor"]}
    return mooring.wrap(cls(params, **{name: options[name] for name in options if name not in own}), rules, **own)


def check_takes_rules(method: MethodSpec, cls: type[torch.optim.Optimizer]) -> None:
    """Say how rules get on the step of a class that takes none.

    Raises:
        SpecError: The class has no argument ``rules``.
    """
    if method.rules and not method.wrap and not takes(cls, "rules"):
        raise SpecError(
            f"method {method.label!r}: {method.optimizer} takes no rules; build on mooring:Adam, mooring:SGD or "
            f"mooring:Adai, or put the rules on its finished step with wrap: {method.optimizer}"
        )


def takes(function: Any, name: str) -> bool:
    """Whether a class or function has a parameter of this name."""
    return name in inspect.signature(function).parameters


def _build(method: MethodSpec, name: str, given: Any) -> Rule:
    cls = load(name, f"method {method.label!r}") if ":" in name else getattr(mooring, name)
    if not (isinstance(cls, type) and issubclass(cls, Rule)):
        raise SpecError(f"method {method.label!r}: {name!r} is not a subclass of mooring.step.rule.Rule")
    known = list(inspect.signature(cls).parameters)
    if isinstance(given, dict):
        for option in given:
            if option not in known:
                raise SpecError(
                    f"method {method.label!r}: rule {name} has no option {option!r}{suggestion(option, known)}; "
                    + (f"its options are {', '.join(known)}" if known else "it has none")
                )
    elif not known:
        raise SpecError(f"method {method.label!r}: rule {name} takes no options, got {given!r}")
    make: Callable[..., Rule] = cls
    try:
        return make(**given) if isinstance(given, dict) else make(given)
    except Exception as error:
        raise SpecError(f"method {method.label!r}: rule {name} refused {given!r}: {error}") from error
