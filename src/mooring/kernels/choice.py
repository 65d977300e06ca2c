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
_loaded: set[str] = set()
_said: list[bool] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _forked.__setitem__(0, True))


def backends() -> list[str]:
    """The backends that can serve here: ``"eager"`` always, ``"numba"`` with the extra ``mooring[fast]``."""
    return ["eager", "numba"] if numba_installed() else ["eager"]


@cache
def numba_installed() -> bool:
    """Whether the compiled kernels can be had."""
    return find_spec("numba") is not None


def serves(device: torch.device, kernel: str, backend: str | None = None) -> bool:
    """Whether a kernel that needs no plan takes work on a device here, where eager operations give the same.

    Args:
        device: where the work is.
        kernel: its name for :func:`load`. A forked worker leaves it alone unless its parent has loaded it.
        backend: what an optimizer was asked to use; :func:`use` and MOORING_BACKEND come before it.
    """
    if device.type != "cpu" or (wanted() or backend) == "eager" or not numba_installed():
        return False
    return loadable(kernel)


def loadable(kernel: str) -> bool:
    """Whether a kernel may run in this process: a forked worker that lacks it leaves compiling to its parent."""
    return kernel in _loaded or not _forked[0]


def say_missing() -> None:
    """Say once what would bring the kernels."""
    if not _said:
        _said.append(True)
        warnings.warn(
            "mooring steps with eager torch on this CPU; its compiled kernels are several times faster: "
            "pip install 'mooring[fast]' (or set MOORING_BACKEND=eager, which says nothing)",
            stacklevel=2,
        )


def load(kernel: str, run: Callable[[], Any]) -> None:
    """Let a kernel compile, or be read from the cache, before its first use; ``run`` gives it nothing to do.

    Where that takes longer than a moment, what is being waited for is said.
    """
    if kernel in _loaded:
        return
    timer = threading.Timer(2.0, _say_compiling)
    timer.daemon = True
    timer.start()
    try:
        run()
    finally:
        timer.cancel()
        timer.join()  # so that a fork right after finds no thread
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


def _say_compiling() -> None:
    print("mooring: compiling the CPU kernels for this processor, once (up to a minute) …", file=sys.stderr, flush=True)
