"""Ctrl-C and SIGTERM during a training: the step in hand is finished and a checkpoint written, if the others live.

torchrun sends all processes a signal in two cases, which the signal does not tell apart: somebody stopped it, or one of
the processes died. In the second a process may be waiting for the dead one inside a collective, where Python runs no
signal handler; so a thread listens too, says that this process is alive, and ends it when the training neither stops
nor fails.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from mooring.finetune.team import Team

GRACE = 25.0
"""Seconds from a signal to giving up; torchrun kills what is left after 30."""
_REPEATED = 1.0  # seconds within which a second signal is taken for the same request


@contextlib.contextmanager
def interruptible(team: Team, give_up: Callable[[], None], grace: float = GRACE) -> Iterator[None]:
    """In this block SIGINT and SIGTERM ask a training to stop, and outside of its steps raise KeyboardInterrupt.

    A second signal, a second or more after the first, raises at once.

    Args:
        team: Of this process; its ``stop_asked`` is set.
        give_up: Called in a thread, ``grace`` seconds after a signal, where several processes have not agreed to stop
            by then; it should end the process.
        grace: Seconds.
    """
    asked: list[float] = []

    def handle(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        asked.append(now)
        if team.training and now - asked[0] < _REPEATED:
            team.stop_asked = True
            return
        raise KeyboardInterrupt

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    done = threading.Event()
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False) if team.size > 1 else None
    if team.size > 1:
        threading.Thread(target=_watch, args=(team, ours, done, give_up, grace), daemon=True).start()
    try:
        yield
    finally:
        done.set()
        if wakeup is not None:
            signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        theirs.close()


def _watch(
    team: Team, signals: socket.socket, done: threading.Event, give_up: Callable[[], None], grace: float
) -> None:
    signals.setblocking(True)
    with contextlib.suppress(OSError), signals:
        while not done.is_set():
            numbers = signals.recv(16)
            if not numbers:
                return
            if {signal.SIGINT, signal.SIGTERM} & set(numbers):
                with contextlib.suppress(RuntimeError):
                    team.answer()
                until = time.monotonic() + grace
                while time.monotonic() < until and not team.stopping:
                    if done.wait(0.1):
                        return
                if not team.stopping:
                    give_up()
                return


def leave_at_once(code: int) -> None:
    """End the process without the interpreter's farewell, in which threads of gloo may abort it."""
    import sys

    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
