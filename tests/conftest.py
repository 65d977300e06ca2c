"""Settings for every test: one thread, and the same seeds each time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec

import pytest


def pytest_sessionstart() -> None:
    """Of the processes of pytest-xdist, the first compiles the kernels of float32 and the second those of float64.

    The other finds them on disk when its tests come to need them, and so do the processes that tests start.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker in ("gw0", "gw1") and find_spec("numba") is not None and find_spec("torch") is not None:
        from mooring.kernels.cpu import jobs, sweep

        sweep.on_team(worker == "gw1")
        if worker == "gw0":
            jobs.on_team()


@pytest.fixture(autouse=True)
def one_thread_and_a_seed() -> Iterator[None]:
    """Tests run beside each other on few cores; a test that is about threads sets the number itself."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)
