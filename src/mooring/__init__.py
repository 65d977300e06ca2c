"""mooring: optimizers that fine-tune without drifting.

``import mooring`` costs nothing: torch is imported when the first optimizer is looked up.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mooring.optim import SGD as SGD
    from mooring.optim import SGDP as SGDP
    from mooring.optim import SGDS as SGDS
    from mooring.optim import SGDSPD as SGDSPD
    from mooring.optim import AdamP as AdamP
    from mooring.optim import AdamS as AdamS
    from mooring.optim import AdamSPD as AdamSPD
    from mooring.optim import AdamW as AdamW

__version__ = "0.1.0"
__all__ = ["SGD", "SGDP", "SGDS", "SGDSPD", "AdamP", "AdamS", "AdamSPD", "AdamW"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("mooring.optim"), name)
    raise AttributeError(f"module 'mooring' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
