"""A pool of processes that an interruption ends at once, without a word from its workers."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess


class _Process(SpawnProcess):
    """Begins with Ctrl-C held back: until it ignores it by itself, it would die of it with a traceback."""

    def start(self) -> None:
        """Start the process."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if hasattr(signal, "pthread_sigmask") else ()
        try:
            super().start()
        finally:
            if hasattr(signal, "pthread_sigmask"):
                signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Context(SpawnContext):
    Process = _Process


@contextmanager
def process_pool(workers: int, *, fresh: bool = False) -> Iterator[ProcessPoolExecutor]:
    """Processes that begin with nothing of this one (spawn).

    On any exception in the block, Ctrl-C among them, the workers are terminated instead of being waited for. They
    ignore Ctrl-C, which a terminal sends to them too: this process decides what becomes of their work.

    Args:
        workers: How many.
        fresh: A new process for every task.
    """
    pool = ProcessPoolExecutor(
        workers,
        mp_context=_Context(),
        initializer=_ignore_interrupts,
        max_tasks_per_child=1 if fresh else None,
    )
    try:
        yield pool
    except BaseException:
        workers_now = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in workers_now:
            process.terminate()
        raise
    pool.shutdown()


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
