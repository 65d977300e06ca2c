"""What the trials ran on: versions, processor, threads. No host name, no user name, no path."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "scikit-learn",
    "kornia",
    "matplotlib",
    "pillow",
    "pydantic",
    "safetensors",
    "jinja2",
    "rich",
    "cyclopts",
    "transformers",
    "peft",
)


def describe_environment() -> dict[str, Any]:
    """Versions and the machine, without importing the packages."""
    from mooring import __version__

    return {
        "mooring": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": usable_cores(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def describe_torch() -> dict[str, Any]:
    """What torch sees; imports it."""
    import torch

    return {
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda or "not built in",
        "devices": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] or ["cpu"],
    }


def usable_cores() -> int:
    """The cores this process may use, which a container can restrict."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    if sys.platform == "linux":
        try:
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
        except OSError:
            pass
    return platform.processor() or "unknown"
