"""From the command line's words to a comparison and its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mooring.compare.config import QUICK, CompareSpec, RunConfig, build_config, read_yaml, slug_of
from mooring.compare.store import RunFolder, new_folder


@dataclass(frozen=True)
class Request:
    """What one start of ``mooring compare`` was asked to do; None means: not said."""

    config_file: Path | None = None
    task: str | None = None
    methods: str | None = None
    seeds: str | None = None
    steps: int | None = None
    baseline: str | None = None
    quick: bool = False
    output_dir: Path | None = None
    overwrite: bool = False
    budget: str | None = None
    data: str | None = None
    model: str | None = None
    device: str | None = None


def folder_for(request: Request, config: RunConfig) -> RunFolder:
    """The folder asked for, or a new one named by time and task."""
    return RunFolder(request.output_dir or new_folder(config.task.name))


def resolve_request(request: Request) -> RunConfig:
    """Merge the defaults, the folder to be continued or the file, ``--quick`` and the other options, in this order.

    A folder that holds a comparison is continued as it was started: without a file, its own configuration is the
    default, and methods given are added to its own.

    Raises:
        ConfigError: Something cannot be read or does not fit together.
    """
    options = _options(request)
    quick = QUICK if request.quick else {}
    if request.config_file is not None:
        return build_config(read_yaml(request.config_file), quick, options, source=str(request.config_file))
    folder = RunFolder(request.output_dir) if request.output_dir else None
    if folder is None or request.overwrite or not folder.holds_a_run():
        return build_config(quick, options)
    stored = folder.stored_config()
    content = stored.model_dump(mode="json")
    if request.methods is not None:
        asked = build_config({"compare": {"methods": request.methods}}).compare
        options["compare"]["methods"] = _added(stored.compare, asked)
    return build_config(content, quick, options)


def _added(stored: CompareSpec, asked: CompareSpec) -> list[dict[str, Any]]:
    # Where both have a method of one name, the one asked for counts: opening the folder then says what differs.
    methods = {slug_of(method.label): method for method in (*stored.methods, *asked.methods)}
    return [method.model_dump() for method in methods.values()]


def _options(request: Request) -> dict[str, dict[str, Any]]:
    given: dict[str, Mapping[str, Any]] = {
        "task": {
            "name": request.task,
            "data": request.data,
            "model": None if request.model is None else {"pretrained": request.model},
        },
        # So many steps, whatever the file says of epochs.
        "train": {"steps": request.steps, "epochs": None if request.steps is None else 0},
        "compare": {
            "methods": request.methods,
            "seeds": request.seeds,
            "baseline": request.baseline,
            "budget": request.budget,
            "device": request.device,
        },
    }
    return {
        section: {key: value for key, value in content.items() if value is not None}
        for section, content in given.items()
    }
