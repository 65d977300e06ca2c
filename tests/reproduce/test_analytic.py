"""Experiments without real data that take seconds, in their short form; CI runs all of them from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from mooring.reproduce.driver import run_experiment


@pytest.mark.parametrize("name", ["noisy-quadratic", "two-layer-drift", "variance-orders", "noise-stability"])
def test_every_figure_is_met(name: str, tmp_path: Path) -> None:
    result = run_experiment(name, quick=True, output=tmp_path)
    missed = [f"{check.figure}: {check.ours:g}" for check in result.checks if not check.ok]
    assert result.ok, result.error or missed
    assert (tmp_path / name / "figure.png").stat().st_size > 10_000
