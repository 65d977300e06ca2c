"""Which backends can serve a step here, and how one is chosen: the one place where the bench asks the library."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mooring.kernels import choice

REFERENCE = "eager"
"""The backend whose float64 step the others are verified against."""


def backends() -> list[str]:
    """Names, the one that serves when nobody chooses first."""
    return choice.backends()[::-1]


@contextmanager
def use(name: str) -> Iterator[None]:
    """Let optimizers that are made and stepped inside run on this backend; "" leaves the choice to the library.

    Raises:
        ValueError: for a backend that cannot serve.
    """
    if name and name not in backends():
        raise ValueError(f"backend must be one of {', '.join(backends())}, got {name!r}")
    if not name:
        yield
        return
    with choice.use(name):
        yield
