"""The command that repeats a comparison."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Any

from mooring.compare.config import (
    DEFAULT_BASELINE,
    DEFAULT_METHODS,
    DEFAULT_SEEDS,
    ConfigError,
    RunConfig,
    build_config,
)
from mooring.compare.request import Request, resolve_request
from mooring.compare.store import CONFIG
from mooring.finetune.methods import METHODS
from mooring.finetune.spec import MethodSpec


def command_for(config: RunConfig) -> str:
    """The shortest command that resolves to this configuration; otherwise the one that reads its file."""
    for quick in (False, True):
        request = Request(
            task=_unless(config.task.name, build_config({}).task.name),
            methods=_unless(",".join(_word(method) for method in config.compare.methods), ",".join(DEFAULT_METHODS)),
            seeds=_seeds(config.seeds, DEFAULT_SEEDS if not quick else None),
            steps=_unless(config.train.steps, build_config({}).train.steps),
            baseline=_unless(config.baseline, DEFAULT_BASELINE),
            quick=quick,
            budget=_unless(config.compare.budget, "steps"),
        )
        for attempt in (_without(request, "seeds", "steps") if quick else request, request):
            try:
                same = resolve_request(attempt) == config
            except ConfigError:
                same = False
            if same:
                return _command(attempt)
    return f"mooring compare {CONFIG}"


def _command(request: Request) -> str:
    words = ["mooring", "compare"]
    for option in ("task", "methods", "seeds", "steps", "baseline", "budget"):
        value = getattr(request, option)
        if value is not None:
            words += [f"--{option}", str(value)]
    return shlex.join([*words, "--quick"] if request.quick else words)


def _without(request: Request, *options: str) -> Request:
    return Request(**{**request.__dict__, **dict.fromkeys(options)})


def _unless(value: Any, default: Any) -> Any:
    return None if value == default else value


def _seeds(seeds: Iterable[int], default: int | None) -> str | None:
    found = tuple(seeds)
    if found == tuple(range(len(found))):
        return None if len(found) == default else str(len(found))
    return ",".join(map(str, found)) + ("," if len(found) == 1 else "")


def _word(method: MethodSpec) -> str:
    name = method.label
    if name in METHODS and METHODS[name].spec == method:
        return name
    if not method.options and method.label == method.optimizer.partition(":")[2]:
        return method.optimizer
    if method.perturb:
        for built_in in METHODS.values():
            if (built_in.spec.optimizer, *built_in.spec.perturb) == (method.optimizer, *method.perturb):
                given = {**method.options, **{k: v for own in method.perturb.values() for k, v in own.items()}}
                changed = [f"{key}={value}" for key, value in given.items() if built_in.options.get(key) != value]
                return f"{built_in.spec.label}[{','.join([*changed, f'label={name}'])}]"
    options = ",".join(f"{key}={value}" for key, value in method.options.items())
    return f"{method.optimizer}[{options},label={method.label}]"
