"""Which backend takes a step: eager torch, or the kernels of ``kernels/cpu`` where Numba is installed."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

BACKENDS = ("eager", "numba")
_forced: list[str] = []
_forked = [False]
_ready = [False]
_loaded: set[str] = set()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _forked.__setitem__(0, True))


def backends() -> list[str]:
    """The backends that can serve here: ``"eager"`` always, ``"numba"`` with the extra ``mooring[fast]``."""
    return ["eager", "numba"] if numba_installed() else ["eager"]


@cache
def numba_installed() -> bool:
    """Whether the compiled kernels can be had."""
    return find_spec("numba") is not None


def usable() -> bool:
    """Whether kernels can serve in this process. Says once, where they are missing, what would bring them.

    A forked worker that finds them not yet loaded leaves them alone: compiling belongs to the parent.
    """
    if not numba_installed():
        _say_missing()
        return False
    return _ready[0] or not _forked[0]


def serves(device: torch.device, kernel: str, backend: str | None = None) -> bool:
    """Whether a kernel that needs no plan takes work on a device here, where eager operations give the same.

    Args:
        device: where the work is.
        kernel: its name for :func:`load`. A forked worker leaves it alone unless its parent has loaded it.
        backend: what an optimizer was asked to use; :func:`use` and MOORING_BACKEND come before it.
    """
    if device.type != "cpu" or (wanted() or backend) == "eager" or not numba_installed():
        return False
    return kernel in _loaded or not _forked[0]


def load(kernel: str, run: Callable[[], Any]) -> None:
    """Let a kernel compile, or be read from the cache, before its first use; ``run`` gives it nothing to do."""
    if kernel not in _loaded:
        first_time(run)
        _loaded.add(kernel)


def wanted() -> str | None:
    """What :func:`use` or the environment variable MOORING_BACKEND asks for; None leaves the choice to the batch.

    Raises:
        ValueError: for a variable that names no backend.
    """
    if _forced:
        return _forced[-1]
    name = os.environ.get("MOORING_BACKEND") or None
    if name is not None and name not in BACKENDS:
        raise ValueError(f"MOORING_BACKEND must be one of {', '.join(BACKENDS)}, got {name!r}")
    return name


@contextmanager
def use(name: str) -> Iterator[None]:
    """Take steps with one backend inside the block, whatever optimizers ask for.

    Raises:
        ValueError: for a name that is no backend.
        ImportError: for ``"numba"`` where it is not installed.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {name!r}")
    if name == "numba" and not numba_installed():
        raise ImportError("the backend 'numba' needs the extra fast: pip install 'mooring[fast]'")
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()


def ready() -> bool:
    """Whether this process has run a kernel."""
    return _ready[0]


def first_time(load: Callable[[], Any]) -> Any:
    """Call what may compile. Where that takes longer than a moment, say what is being waited for."""
    timer = threading.Timer(2.0, _say_compiling)
    timer.daemon = True
    timer.start()
    try:
        result = load()
    finally:
        timer.cancel()
    _ready[0] = True
    return result


def _say_compiling() -> None:
    print("mooring: compiling the CPU kernels for this processor, once (up to a minute) …", file=sys.stderr, flush=True)


_said: list[bool] = []


def _say_missing() -> None:
    if not _said:
        _said.append(True)
        warnings.warn(
            "mooring steps with eager torch on this CPU; its compiled kernels are several times faster: "
            "pip install 'mooring[fast]' (or set MOORING_BACKEND=eager, which says nothing)",
            stacklevel=2,
        )
