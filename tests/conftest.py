"""Settings for every test: one thread, and the same seeds each time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def one_thread_and_a_seed() -> Iterator[None]:
    """Tests run beside each other on few cores; a test that is about threads sets the number itself."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)
