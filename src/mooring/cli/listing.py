"""``mooring methods``, ``mooring tasks`` and ``mooring env``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mooring.compare.config import ConfigError
from mooring.compare.environment import describe_environment, describe_torch
from mooring.finetune.errors import suggestion
from mooring.finetune.methods import METHODS, MethodInfo
from mooring.finetune.tasks.registry import OWN, TASKS

_NUMBERS = ("gradients", "bytes", "passes", "collectives")


def list_methods(name: str | None, *, as_json: bool) -> int:
    """Print all built-in methods, or one of them in full."""
    if name is not None and name.lower() not in METHODS:
        raise ConfigError(f"unknown method {name!r}{suggestion(name, METHODS)}; the methods are {', '.join(METHODS)}")
    chosen = METHODS if name is None else {name.lower(): METHODS[name.lower()]}
    if as_json:
        _print_json([_method(key, info) for key, info in chosen.items()])
        return 0
    console = Console()
    if name is None:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for head in ("method", "what it does", "tuning range", "gradients", "bytes", "passes", "collectives"):
            table.add_column(head, no_wrap=head == "method", justify="right" if head in _NUMBERS else "left")
        for key, info in METHODS.items():
            numbers = (info.gradients_per_step, 4 * info.state_per_weight, info.passes, info.collectives)
            table.add_row(key, info.description, info.ranges.replace(", ", "\n"), *map(str, numbers))
        console.print(table)
        console.print(
            "\nPer float32 weight: bytes of state, and reads and writes of memory in one step (mooring.cost counts "
            "them for any recipe); collectives: per step, where weights are sharded. Methods of two gradients per step "
            "also hold a copy of the weights within it, and move them for every pass; their defaults were not tuned.\n"
            "mooring methods NAME shows the defaults and the paper. Any torch optimizer works too (torch.optim:NAdam, "
            "package.module:Class), and recipes of rules from a YAML file (see mooring compare --help).",
            highlight=False,
        )
        return 0
    ((key, info),) = chosen.items()
    table = Table(box=None, pad_edge=False, show_header=False)
    for title, text in _described(key, info):
        table.add_row(Text(title, style="dim"), Text(text))
    console.print(table)
    return 0


def _described(name: str, info: MethodInfo) -> list[tuple[str, str]]:
    return [
        ("method", name),
        ("", info.description),
        ("paper", info.paper),
        ("class", " around ".join([*info.spec.perturb, info.spec.optimizer])),
        ("defaults", ", ".join(f"{key}={value!r}" for key, value in info.options.items())),
        ("tuned over" if info.tuned else "not tuned", info.ranges if info.tuned else f"tune over {info.ranges}"),
        ("cost", info.cost),
        ("use", f"mooring compare --methods {'adamw,' if name != 'adamw' else ''}{name}[lr={info.spec.options['lr']}]"),
    ]


def _method(name: str, info: MethodInfo) -> dict[str, Any]:
    return {
        "name": name,
        **info.spec.model_dump(),
        "description": info.description,
        "paper": info.paper,
        "space": {option: asdict(space) for option, space in info.space.items()},
        "cost": {
            "state_bytes_per_weight": 4 * info.state_per_weight,
            "passes": info.passes,
            "gradients_per_step": info.gradients_per_step,
            "collectives_where_sharded": info.collectives,
        },
    }


def list_tasks(*, as_json: bool) -> int:
    """Print the embedded tasks, and those on data of one's own."""
    rows = [*TASKS.values(), *OWN.values()]
    if as_json:
        _print_json([asdict(info) for info in rows])
        return 0
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in ("task", "what it is", "OOD kinds"):
        table.add_column(head, no_wrap=head == "task")
    for info in rows:
        kinds = ", ".join(kind.replace("_", " ") for kind in info.ood_kinds)
        table.add_row(info.name, info.description, kinds or "yours")
    Console().print(table)
    return 0


def show_environment(*, as_json: bool) -> int:
    """Print what a bug report needs."""
    found = {**describe_environment(), "torch": describe_torch()}
    if as_json:
        _print_json(found)
        return 0
    table = Table(box=None, pad_edge=False, show_header=False)
    for key, value in found.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        table.add_row(Text(key, style="dim"), Text(text))
    Console().print(table)
    return 0


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=2, ensure_ascii=False))
