"""The state of the random number generators, so that two passes see the same dropout masks and augmentations."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch


class Generators:
    """torch's default generators (CPU and the devices in use), Python's, and numpy's where it is loaded.

    Args:
        devices: accelerators whose generators count.
    """

    def __init__(self, devices: set[torch.device]) -> None:
        self._devices = sorted(str(d) for d in devices if d.type == "cuda")
        self._torch = torch.get_rng_state()
        self._cuda = [torch.cuda.get_rng_state(d) for d in self._devices]
        self._python = random.getstate()
        numpy: Any = sys.modules.get("numpy")
        self._numpy = numpy.random.get_state() if numpy is not None else None

    def restore(self) -> None:
        """Set all of them back to where they were when this object was made."""
        torch.set_rng_state(self._torch)
        for device, state in zip(self._devices, self._cuda):
            torch.cuda.set_rng_state(state, device)
        random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)
