"""The two ways a trial can go wrong, kept apart because they are answered differently."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SpecError(ValueError):
    """The request itself is wrong (an unknown name, a refused option): the user corrects it, nothing ran."""


class TrialError(RuntimeError):
    """A trial started and failed (a loss that is not finite, an optimizer that raised): recorded, never dropped."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """``" (did you mean 'adamw'?)"`` for a near miss, else nothing."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.6)
    return f" (did you mean {by_lower[near[0]]!r}?)" if near else ""
