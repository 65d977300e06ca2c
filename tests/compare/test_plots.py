"""The figures' own decisions: labels that do not overlap, layers that are joined, colours that stay."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mooring.compare.metrics import OOD, Metric
from mooring.compare.plots.curves import learning_curve, read_curves
from mooring.compare.plots.heat import drift_by_layer, layer_names, relative_drift, shifts_by_severity
from mooring.compare.plots.scatter import logit
from mooring.compare.plots.style import THEME, looks, short, signed, spread, style
from mooring.compare.plots.svg import themed
from mooring.compare.results import Layer, Results

from .conftest import MakeRun


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=9))
def test_labels_keep_their_distance_and_their_order(heights: list[float]) -> None:
    named = {str(index): height for index, height in enumerate(heights)}
    placed = spread(named, 0.1)
    order = sorted(named, key=lambda name: named[name])
    for below, above in itertools.pairwise(order):
        assert placed[above] - placed[below] >= 0.1 - 1e-9
    assert all(-1e-9 <= height <= 1 + 1e-9 for height in placed.values())


def test_labels_with_room_stay_where_they_are() -> None:
    assert spread({"a": 0.2, "b": 0.8}, 0.1) == {"a": 0.2, "b": 0.8}
    assert spread({"a": 0.5, "b": 0.5}, 0.1) == pytest.approx({"a": 0.45, "b": 0.55})


def test_long_names_of_layers_keep_what_tells_them_apart() -> None:
    assert layer_names(["network.head.weight", "network.head.bias"]) == ["network.head.weight", "network.head.bias"]
    stem = "network.vision_model.encoder.layers"
    names = [f"{stem}.{layer}.self_attn.{part}_proj.weight" for layer in (0, 11) for part in "qk"]
    assert layer_names(names) == [f"{name.removeprefix(stem + '.')}" for name in names]
    deep = layer_names([*names, f"{stem}.0.{'inner.' * 8}weight"])
    assert deep[:4] == layer_names(names) and deep[4] == "…" + ("inner." * 8 + "weight")[-29:]
    assert layer_names([f"{stem}.0.self_attn.q_proj.weight"]) == ["weight"]


def test_relative_drift_of_layers_and_of_joined_modules() -> None:
    layers = [
        Layer("block.0.weight", 4, 3.0, 6.0),
        Layer("block.0.bias", 2, 4.0, 0.0),
        Layer("block.1.weight", 4, 0.0, 8.0),
        Layer("head.weight", 4, 1.0, 2.0),
    ]
    assert relative_drift(layers) == {"block.0.weight": 0.5, "block.1.weight": 0.0, "head.weight": 0.5}
    # By hand: block moved hypot(3, 4, 0) = 5 from a norm of hypot(6, 0, 8) = 10.
    assert relative_drift(layers, most=2) == {"block": 0.5, "head": 0.5}


def test_methods_keep_their_colour_and_share_none() -> None:
    alone, together = looks(["adamspd"]), looks(["NAdam", "adamw", "adamspd", "RAdam", "sgd"])
    assert alone["adamspd"] == together["adamspd"]
    assert len({look.colour for look in together.values()}) == len({look.marker for look in together.values()}) == 5
    assert all(look.colour in THEME for look in looks([f"m{i}" for i in range(20)]).values())


def test_logit_axes_take_every_accuracy() -> None:
    assert logit(0.5) == 0.0
    assert logit(0.9) == pytest.approx(math.log(9))
    assert math.isfinite(logit(0.0)) and logit(1.0) == pytest.approx(-logit(0.0))


def test_signs() -> None:
    assert (signed(1.25, 1), signed(-0.5, 1), signed(-0.04, 1)) == ("+1.2", "−0.5", "0.0")
    assert short("a" * 40) == "a" * 15 + "…"


def test_svg_for_a_page() -> None:
    drawing = (
        '<?xml version="1.0"?><!DOCTYPE svg><svg xmlns:xlink="http://www.w3.org/1999/xlink" width="10pt" '
        'viewBox="0 0 10 20" xmlns="http://www.w3.org/2000/svg"><metadata>who and when</metadata>'
        '<defs><path id="m1" style="stroke: #0072B2"/></defs><use xlink:href="#m1" clip-path="url(#p)"/>'
        "<text style=\"font-size: 9px; font-family: 'Mooring Sans', 'DejaVu Sans'; fill: #1f2328\">x</text></svg>"
    )
    assert themed(drawing, "figure", 'a "quoted" story') == (
        '<svg role="img" aria-label="a &quot;quoted&quot; story" xmlns="http://www.w3.org/2000/svg" '
        'viewBox="0 0 10 20">'
        '<defs><path id="figure-m1" style="stroke: var(--blue)"/></defs>'
        '<use href="#figure-m1" clip-path="url(#figure-p)"/>'
        '<text style="font-size: 9px; fill: var(--ink)">x</text></svg>'
    )


def test_descriptions_carry_the_numbers(make_run: MakeRun) -> None:
    results = Results(make_run(seeds=2, methods="adamw,sgd"))
    with style():
        drift = drift_by_layer(results, "drift")
        shifts = shifts_by_severity(results, "shifts")
        curve = learning_curve(results, read_curves(results), OOD, "step", "curve")
    assert drift is not None and "features.0.weight: adamw " in drift.description
    assert "head.bias" not in drift.description  # it starts at zero, so it has no relative drift
    assert shifts is not None and "noise 3: sgd " in shifts.description and "later rows: sgd" in shifts.description
    assert curve is not None and "adamw ends at " in curve.description


def test_what_was_not_recorded_is_not_drawn(make_run: MakeRun) -> None:
    results = Results(make_run(seeds=1, methods="adamw", missing=[("adamw", 0)]))
    with style():
        assert drift_by_layer(results, "drift") is None
        assert shifts_by_severity(results, "shifts") is None
        assert learning_curve(results, read_curves(results), Metric("x", "x", "x"), "step", "x") is None
