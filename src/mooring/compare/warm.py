"""Importing this loads the compiled kernels, for a process that others are forked from: they inherit what is loaded.

A forked process compiles nothing itself (``kernels/choice.py``), and would step with eager torch.
"""

from __future__ import annotations

import torch

import mooring as mo
from mooring.kernels import choice


def load_kernels(dtype: torch.dtype) -> None:
    """Take a step of each kind."""
    weight = torch.nn.Parameter(torch.zeros(2, dtype=dtype))
    weight.grad = torch.ones_like(weight)
    mo.NSO(mo.AdamW([weight]), sigma=0.1).step(lambda: (weight * 0).sum())
    mo.SAM(mo.AdamW([weight])).step(lambda: weight.square().sum())


if choice.numba_installed() and choice.wanted() != "eager":
    for _dtype in (torch.float32, torch.float64):
        load_kernels(_dtype)
