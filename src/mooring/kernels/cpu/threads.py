"""Work shared among threads of our own, as many as torch uses.

Not Numba's: its layers are fixed when the first kernel runs, abort a process that enters them from two threads, or do
not survive a fork. The kernels hold no Python lock, so plain threads serve, and torch's own pool is left alone.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

_pool: ThreadPoolExecutor | None = None
_size = 0
_lock = threading.Lock()
_own = threading.local()


def _forget() -> None:
    global _pool, _size, _lock, _own
    _pool, _size, _lock, _own = None, 0, threading.Lock(), threading.local()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)  # a forked process has none of its parent's threads


def share(work: Callable[[int, int], Any], bounds: Sequence[tuple[int, int]]) -> None:
    """Call ``work(first, last)`` for all bounds. Threads take them in order; which takes which changes no bit."""
    threads = min(torch.get_num_threads(), len(bounds))
    if threads <= 1:
        for first, last in bounds:
            work(first, last)
        return
    queue = iter(bounds)  # next() of a list's iterator is one operation of the interpreter

    def take() -> None:
        for first, last in queue:
            work(first, last)

    others = [_executor(threads - 1).submit(take) for _ in range(threads - 1)]
    try:
        take()
    finally:
        for other in others:
            other.result()


def _executor(size: int) -> ThreadPoolExecutor:
    global _pool, _size
    with _lock:
        if _pool is None or _size < size:
            if _pool is not None:
                _pool.shutdown(wait=False)
            _pool, _size = ThreadPoolExecutor(size, thread_name_prefix="mooring"), size
        return _pool


def scratch(name: str, size: int, dtype: Any) -> np.ndarray:
    """Memory of this thread, kept from step to step: fresh memory would have to be mapped page by page."""
    kept = getattr(_own, name, None)
    if kept is None or kept.size < size or kept.dtype != dtype:
        kept = np.empty(size, dtype)
        setattr(_own, name, kept)
    return kept
