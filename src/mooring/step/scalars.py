"""Group options as vectors over the tensors of a batch, without reading anything back from a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def host_value(value: Any) -> float | None:
    """The number behind an option; None where it lives on an accelerator, whose reading would wait for the device."""
    if isinstance(value, Tensor):
        return float(value) if value.device.type == "cpu" else None
    return float(value)


def on_device(values: Sequence[float], device: torch.device, dtype: torch.dtype = torch.float64) -> Tensor:
    """Numbers as a vector on ``device``; on CUDA the copy goes through pinned memory, so the host does not wait."""
    return moved(torch.tensor(values, dtype=dtype), device)


def moved(vector: Tensor, device: torch.device) -> Tensor:
    """A small tensor on ``device``; from the host to CUDA through pinned memory, so the host does not wait."""
    if device.type == "cuda" and vector.device.type == "cpu":
        return vector.pin_memory().to(device, non_blocking=True)
    return vector.to(device, non_blocking=True)


def factors(vector: Tensor, dtype: torch.dtype) -> Any:
    """A vector as the list that ``torch._foreach`` functions take: numbers on the host, else 0-dim tensors."""
    return vector.tolist() if vector.device.type == "cpu" else list(vector.to(dtype).unbind())


def option_vector(values: Sequence[Any], device: torch.device) -> Tensor:
    """One float64 vector from one option value per tensor; values may be numbers or 0-dim tensors anywhere."""
    hosted = [host_value(v) for v in values]
    if None not in hosted:
        return on_device(hosted, device)  # type: ignore[arg-type]
    return torch.stack(
        [
            v.detach().reshape(()).to(device=device, dtype=torch.float64, non_blocking=True)
            if isinstance(v, Tensor)
            else torch.full((), float(v), dtype=torch.float64, device=device)
            for v in values
        ]
    )
