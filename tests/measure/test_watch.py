"""Loggers and the watch get what telemetry says, when a step was recorded, and the picture shows it."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import mooring as mo


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int, after: Any = lambda step: None) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        x = torch.randn(8, 6)
        (model(x) - x[:, :2]).square().mean().backward()
        optimizer.step()
        after(step)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.LayerNorm(5), torch.nn.Linear(5, 2))


class Scalars:
    """TensorBoard's way."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, float]] = {}

    def add_scalar(self, name: str, value: float, step: int) -> None:
        assert type(value) is float
        self.rows.setdefault(step, {})[name] = value


class Metrics:
    """The way of MLflow and Lightning's loggers, and under another name that of Weights & Biases and trackio."""

    def __init__(self, name: str) -> None:
        self.rows: dict[int, dict[str, float]] = {}
        setattr(self, name, lambda values, step: self.rows.setdefault(step, {}).update(values))


@pytest.mark.parametrize(
    "writer", [Scalars(), Metrics("log_metrics"), Metrics("log")], ids=["scalar", "metrics", "log"]
)
def test_log_to_writes_each_recorded_step_once(writer: Any) -> None:
    model = network()
    optimizer = mo.AdamSPD(model.parameters(), lr=1e-2)
    optimizer.record(every=3)
    told: dict[int, dict[str, float]] = {}
    history: dict[str, list[Any]] = {}

    def after(step: int) -> None:
        wrote = mo.log_to(writer, optimizer, 100 + step)
        assert wrote == (step % 3 == 0) == mo.log_to(history, optimizer, step)
        if wrote:
            told[100 + step] = optimizer.telemetry()

    train(model, optimizer, 8, after)
    assert writer.rows == told and sorted(told) == [100, 103, 106]
    assert history["model/step/norm"] == [(step - 100, values["model/step/norm"]) for step, values in told.items()]


def test_log_to_refuses_what_cannot_write_or_tell() -> None:
    with pytest.raises(TypeError, match="add_scalar"):
        mo.log_to(object(), mo.AdamW([torch.nn.Parameter(torch.ones(2))]), 0)
    with pytest.raises(TypeError, match=r"mooring\.wrap"):
        mo.log_to({}, torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]), 0)


def test_the_history_is_the_telemetry_of_the_recorded_steps(tmp_path: Path) -> None:
    model = network()
    optimizer = mo.AdamSPD(model.named_parameters(), lr=0.1)
    watching = mo.watch(optimizer, every=2)
    told = []
    train(model, optimizer, 9, lambda step: told.append(optimizer.telemetry(per_tensor=True)))
    told = told[::2]
    assert watching.history["step"] == [1.0, 3.0, 5.0, 7.0, 9.0]
    for name, values in watching.history.items():
        assert len(values) == 5
        if name != "step" and not name.startswith("model/step/effective/"):
            for value, row in zip(values, told):
                assert value == row.get(name) or (math.isnan(value) and name not in row)
    assert any(math.isnan(v) for values in watching.history.values() for v in values)  # r where nothing was pulled back
    for i, row in enumerate(told):
        each = sorted(v for name, v in row.items() if name.startswith("group0/step/effective/"))
        assert len(each) >= 4
        assert each[0] <= watching.history["model/step/effective/low"][i] <= each[1]
        assert watching.history["model/step/effective/high"][i] in each[-2:]

    watching.to_csv(tmp_path / "watch.csv")
    with (tmp_path / "watch.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["step"]) for row in rows] == watching.history["step"]
    for row, values in zip(rows, zip(*watching.history.values())):
        for text, value in zip(row.values(), values):
            assert text == "" if math.isnan(value) else float(text) == pytest.approx(value, rel=1e-9)

    watching.close()
    train(model, optimizer, 2)
    assert len(watching.history["step"]) == 5 and not optimizer.recorded


def test_the_picture_shows_every_run(tmp_path: Path) -> None:
    """Two runs, wide and narrow; each panel's lines hold the numbers of the history."""
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    runs = []
    for make in (mo.AdamSPD, mo.AdamW):
        model = network()
        optimizer = make(model.parameters(), lr=1e-2)
        runs.append(mo.watch(optimizer, every=1))
        train(model, optimizer, 12)
    saved: list[Figure] = []
    original = Figure.savefig

    def keep(figure: Figure, *args: Any, **kwargs: Any) -> None:
        saved.append(figure)
        original(figure, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", keep)
        runs[0].save(tmp_path / "wide.png", runs[1:])
        runs[0].save(tmp_path / "narrow.svg", width=4.0)
        runs[1].save(tmp_path / "plain.pdf")
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("wide.png", "narrow.svg", "plain.pdf"))

    wide, narrow, plain = saved
    titles = [axes.get_title(loc="left") for axes in wide.axes]
    assert len(titles) == 4 and "pulled back" in titles[2]
    assert [text.get_text() for text in wide.legends[0].get_texts()] == ["AdamSPD", "AdamW"]

    def drawn(axes: Axes, label: str) -> list[float]:
        [line] = [line for line in axes.lines if line.get_label() == label]
        return list(line.get_ydata())

    for label, run in zip(("AdamSPD", "AdamW"), runs):
        assert drawn(wide.axes[0], label) == run.history["model/step/effective"]
        assert drawn(wide.axes[1], label) == [100 * v for v in run.history["model/drift/relative"]]
        assert drawn(wide.axes[3], label) == run.history["model/weights/norm"]
    activity = [100 * v for v in runs[0].history["model/selective_projection/contracted"]]
    assert max(activity) > 0
    assert list(wide.axes[2].lines[0].get_ydata()) == activity
    x = [axes.get_position().x0 for axes in narrow.axes]
    assert max(x) - min(x) < 0.01  # below each other
    assert plain.axes[2].get_title(loc="left") == "Gradient norm"  # AdamW without decay rules of its own to show


def test_save_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = mo.AdamW(network().parameters())
    watching = mo.watch(optimizer)
    with pytest.raises(ValueError, match="nothing was recorded of AdamW"):
        watching.save(tmp_path / "watch.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "mooring.measure.picture", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"mooring\[plot\]"):
        watching.save(tmp_path / "watch.png")
    wrapped = mo.wrap(torch.optim.SGD(network().parameters(), lr=0.1), rules=[])
    assert mo.watch(wrapped).label == "SGD with rules"
    assert mo.watch(wrapped, label="plain SGD").label == "plain SGD"
