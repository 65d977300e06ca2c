"""Classes by ``module:Class``, those in the working folder too."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from mooring.finetune.errors import SpecError, suggestion


def load(name: str, who: str) -> Any:
    """Import ``module:Class``; a module in the working folder is found too.

    Args:
        name: what to import.
        who: put in front of messages.

    Raises:
        SpecError: There is no such module, or nothing of that name in it.
    """
    module_name, _, class_name = name.partition(":")
    added = str(Path.cwd())
    sys.path.append(added)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise SpecError(f"{who}: module {module_name!r} cannot be imported: {error}") from error
    finally:
        sys.path.remove(added)
    try:
        return getattr(module, class_name)
    except AttributeError:
        near = suggestion(class_name, dir(module))
        raise SpecError(f"{who}: module {module_name!r} has no {class_name!r}{near}") from None
