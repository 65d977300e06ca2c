"""The command in the report repeats the comparison."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from mooring.compare.config import QUICK, build_config
from mooring.compare.repeat import command_for
from mooring.compare.request import Request, resolve_request


@pytest.mark.parametrize(
    ("content", "command"),
    [
        ({}, "mooring compare"),
        ({"task": "synthetic-spurious"}, "mooring compare --task synthetic-spurious"),
        ({"compare": {"seeds": 4}, "train": {"steps": 7}}, "mooring compare --seeds 4 --steps 7"),
        ({"compare": {"seeds": [2]}}, "mooring compare --seeds 2,"),
        ({"compare": {"methods": "adamw,torch.optim:NAdam"}}, "mooring compare --methods adamw,torch.optim:NAdam"),
        ({"compare": {"baseline": "sgd"}}, "mooring compare --baseline sgd"),
        (QUICK, "mooring compare --quick"),
        (
            {**QUICK, "task": {"name": "synthetic-spurious", "starts": 1}},
            "mooring compare --task synthetic-spurious --quick",
        ),
        ({"train": {"batch_size": 9}}, "mooring compare config.resolved.yaml"),
    ],
)  # fmt: skip
def test_the_shortest_command(content: dict[str, Any], command: str) -> None:
    assert command_for(build_config(content)) == command


def test_methods_with_options_are_written_out() -> None:
    config = build_config({"compare": {"methods": ["adamw", {"name": "adamp", "lr": 0.5, "label": "fast"}]}})
    words = shlex.split(command_for(config))
    assert resolve_request(Request(methods=words[words.index("--methods") + 1])) == config


def test_options_win_over_the_file_and_the_file_over_quick_where_it_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("train: {steps: 70, batch_size: 8}\ncompare: {seeds: 5}\n")
    config = resolve_request(Request(config_file=path, seeds="2", quick=True))
    assert (config.train.steps, config.train.batch_size, config.seeds) == (100, 8, (0, 1))
    assert resolve_request(Request(config_file=path)).train.steps == 70
