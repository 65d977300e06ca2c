"""Work that threads take in turns: claims counted in memory that they share, and stages that wait for one another.

Whoever comes takes what is left, so any number of threads gets everything done, one alone too, and none waits for a
thread that has not come.
"""

from __future__ import annotations

import sys
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from mooring.kernels.cpu.memory import OPTIONS

_WORD = ir.IntType(64)
_SPINS = 4000
"""How often to look, some microseconds long, before the processor is offered to others."""


@intrinsic
def counted(typingctx: Any, address: Any) -> Any:
    """Add one to an int64; what it was before."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], _WORD.as_pointer())
        return builder.atomic_rmw("add", place, ir.Constant(_WORD, 1), "acq_rel")

    return types.int64(types.int64), codegen


@intrinsic
def _read(typingctx: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(arguments[0], _WORD.as_pointer()), "acquire", 8)

    return types.int64(types.int64), codegen


if sys.platform == "win32":

    @njit(**OPTIONS)
    def _offer():
        return

else:
    _offer = types.ExternalFunction("sched_yield", types.intc())


@njit(**OPTIONS)
def wait(address, count):
    """Return when an int64 has reached ``count``."""
    looked = 0
    while _read(address) < count:
        looked += 1
        if looked > _SPINS:
            _offer()
