"""Work shared among torch's threads or our own, as many as torch uses.

Not Numba's: its layers are fixed when the first kernel runs, abort a process that enters them from two threads, or do
not survive a fork. The kernels hold no Python lock, so plain threads serve where torch's cannot be had.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

_pool: ThreadPoolExecutor | None = None
_size = 0
_lock = threading.Lock()
_own = threading.local()
_forked = [False]


def _forget() -> None:
    global _pool, _size, _lock, _own
    _forked[0] = True
    _parallel.cache_clear()
    _pool, _size, _lock, _own = None, 0, threading.Lock(), threading.local()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)  # a forked process has none of its parent's threads


def together(function: Any, argument: int, threads: int) -> None:
    """Call a C function of one address here and in other threads at the same time; it may do with fewer than asked.

    Torch's own threads where its OpenMP library is found: they still turn around in circles, each on a processor, when
    a parallel operation has just ended, and others would have to share it with them.

    Args:
        function: from ``numba.cfunc``; it takes no Python lock.
        argument: what it is called with.
        threads: how many.
    """
    if threads > 1 and (parallel := _parallel()) is not None:
        parallel(function.address, argument, threads, 0)
        return
    others = [_executor(threads - 1).submit(function.ctypes, argument) for _ in range(threads - 1)]
    try:
        function.ctypes(argument)
    finally:
        for other in others:
            if not other.cancel():  # one that has begun ends now; one that has not is not needed
                other.result()


@cache
def _parallel() -> Callable[[int, int, int, int], None] | None:
    """``GOMP_parallel`` of the OpenMP library that torch has loaded; LLVM's and Intel's have it as well."""
    maps = Path("/proc/self/maps")
    if _forked[0] or not maps.exists():
        return None
    loaded = {line.split(None, 5)[-1] for line in maps.read_text().splitlines() if "omp" in line and ".so" in line}
    near = str(Path(torch.__file__).parent)
    for path in sorted(loaded, key=lambda path: not path.startswith(near)):
        library = ctypes.CDLL(path)
        if hasattr(library, "GOMP_parallel") and hasattr(library, "omp_get_max_threads"):
            if library.omp_get_max_threads() != torch.get_num_threads():
                continue  # another package's
            function = library.GOMP_parallel
            function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
            return cast("Callable[[int, int, int, int], None]", function)
    return None


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
