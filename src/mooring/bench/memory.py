"""Temporary memory of a call: the most that is allocated inside it at one time, beyond what was there before."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import torch


def temporaries(act: Callable[[], object], device: torch.device) -> int:
    """Bytes that a call takes at its peak beside what it leaves.

    On a CPU: what torch's allocator hands out, from its profiler's record of every allocation, plus what Python's
    allocators do, among them numpy's. What compiled code takes from the C library for itself is not seen. On a GPU:
    torch's own peak.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        act()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    return _of_torch(act) + _of_python(act)


def _of_torch(act: Callable[[], object]) -> int:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        act()
    results = profile.profiler.kineto_results
    changes = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
    now = peak = 0
    for _, size in sorted(changes, key=lambda change: change[0]):
        now += size
        peak = max(peak, now)
    return peak


def _of_python(act: Callable[[], object]) -> int:
    tracing = tracemalloc.is_tracing()
    if not tracing:
        tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        act()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        if not tracing:
            tracemalloc.stop()
    return max(0, peak - before)


def available() -> int | None:
    """Bytes of memory that can be had without swapping; None where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123 (a file of the kernel, not of the disk)
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None
