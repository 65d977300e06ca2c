"""The device that a request names."""

from __future__ import annotations

import torch

from mooring.finetune.errors import SpecError


def usable_device(name: str) -> torch.device:
    """The device of this name, on which a tensor could be made.

    Raises:
        SpecError: There is no such device here.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SpecError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return device
