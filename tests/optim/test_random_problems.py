"""Shapes, dtypes, groups, options and gaps in the gradients made up by hypothesis, against the naive references."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.optim.precision import Scale, step_bound
from tests.optim.table import OptimizerRow, every_row
from tests.reference import swd

shapes = st.lists(
    st.one_of(
        st.lists(st.integers(0, 5), max_size=4).map(tuple),
        st.sampled_from([(1, 17), (17, 1), (1, 1, 1, 1), (3, 70)]),
    ),
    min_size=1,
    max_size=4,
)
share = st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.99])
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "lr": st.sampled_from([1e-4, 1e-2, 0.3]),
    "betas": st.tuples(share, st.sampled_from([0.5, 0.9, 0.999])),
    "eps": st.sampled_from([1e-8, 1e-6, 1e-3]),
    "weight_decay": st.sampled_from([0.0, 1e-3, 0.1, 2.0]),
    "momentum": share,
    "dampening": st.sampled_from([0.0, 0.3, 1.0]),
    "nesterov": st.booleans(),
    "amsgrad": st.booleans(),
    "maximize": st.booleans(),
    "delta": st.sampled_from([0.0, 0.1, 0.4, 3.0]),
    "wd_ratio": st.sampled_from([0.0, 0.1, 1.0]),
    "project_buffer": st.booleans(),
    "scale_invariant": st.sampled_from(["test", "test", "row", "tensor", "none"]),
    "strength": st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    "anchor": st.sampled_from(["capture", "zero", None]),
}
GRADIENTS = ("normal", "normal", "normal", "tangent", "tangent rows", "zero", "zero row", "none", "tiny", "huge")


@st.composite
def problems(draw: st.DrawFn, row: OptimizerRow) -> dict[str, Any]:
    def options() -> dict[str, Any]:
        chosen = {k: draw(OPTIONS[k]) for k in sorted(row.reference.defaults)}
        if chosen.get("nesterov") and "momentum" in chosen and (chosen["momentum"] == 0 or chosen["dampening"] != 0):
            chosen["nesterov"] = False
        if row.reference in (swd.Adai, swd.AdaiS):
            chosen["eps"] = 1e-3  # its 1 - (1 - eps) has no digits at an eps that suits Adam
        if "strength" in chosen and "delta" in chosen:
            # A threshold above 1 projects rows of one element, which leaves nothing of a step but rounding: the growth
            # of the distance to the anchor, a few inner products of the step before projection, has no digits then.
            chosen["delta"] = min(chosen["delta"], 0.4)
        return chosen

    groups = [{"shapes": draw(shapes), **options()} for _ in range(draw(st.integers(1, 3)))]
    steps = draw(st.integers(1, 5))
    count = sum(len(g["shapes"]) for g in groups)
    kinds = draw(st.lists(st.sampled_from(GRADIENTS), min_size=steps * count, max_size=steps * count))
    return {"groups": groups, "steps": steps, "kinds": kinds, "seed": draw(st.integers(0, 2**16))}


def difference(x: Tensor, y: Tensor) -> Tensor:
    """x - y, exactly zero where only rounding is left: one element has no tangent, and programs differ in noise."""
    return torch.where((x - y).abs() > 1e-12 * x.abs(), x - y, 0.0)


def gradient(kind: str, p: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Tensor | None:
    g = torch.randn(p.shape, generator=generator, dtype=torch.float64)
    p = p.detach().double()
    if kind == "none":
        return None
    if kind == "zero":
        g = torch.zeros_like(g)
    elif kind == "tiny":
        g = g * 1e-12
    elif kind == "huge":
        g = g * 1e3
    elif p.dim() > 1 and p.numel() and float(p.norm()) > 0:
        rows, g_rows = p.flatten(1), g.flatten(1)
        if kind == "tangent":
            g = difference(g, p * (g * p).sum() / (p * p).sum())
        elif kind == "tangent rows":
            radial = (g_rows * rows).sum(1, keepdim=True) / (rows * rows).sum(1, keepdim=True).clamp_min(1e-300)
            g = difference(g_rows, rows * radial).view_as(g)
        elif kind == "zero row":
            g[0] = 0
    return g.to(dtype)


def build(row: OptimizerRow, problem: dict[str, Any], dtype: torch.dtype) -> Any:
    generator = torch.Generator().manual_seed(problem["seed"])
    groups = []
    for group in problem["groups"]:
        options = {k: v for k, v in group.items() if k != "shapes"}
        params = [
            nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in group["shapes"]
        ]
        groups.append({"params": params, **options})
    return groups, generator


common = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)


@every_row
@common
@given(data=st.data())
def test_float64(row: OptimizerRow, data: st.DataObject) -> None:
    problem = data.draw(problems(row))
    groups, generator = build(row, problem, torch.float64)
    reference = row.reference(groups)
    optimizer = row.build(groups)
    params = [p for group in groups for p in group["params"]]
    kinds = iter(problem["kinds"])
    for _ in range(problem["steps"]):
        for p in params:
            p.grad = gradient(next(kinds), p, generator, torch.float64)
        reference.step([[p.grad for p in group["params"]] for group in groups])
        optimizer.step()
        # A decision within rounding of its threshold may fall either way: nothing is to be learnt from it.
        assume(min(reference.margins) > 1e-9)
        expected = [p for group in reference.groups for p in group["params"]]
        for p, e in zip(params, expected):
            size = 1 + float(e.abs().max()) if e.numel() else 1.0
            assert torch.allclose(p.detach(), e, rtol=1e-9, atol=1e-9 * size), (tuple(p.shape), p, e)


@every_row
@common
@given(data=st.data(), dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_low_precision(row: OptimizerRow, data: st.DataObject, dtype: torch.dtype) -> None:
    problem = data.draw(problems(row))
    groups, generator = build(row, problem, dtype)
    for group in groups:
        # A float32 moment of a squared 1e-12 is exact only with an eps that hides it, and so is sqrt(v) near it.
        group.update({"eps": max(1e-6, group["eps"])} if "eps" in group else {})
    reference = row.reference(groups)
    optimizer = row.build(groups)
    scales = [Scale([p.shape for p in group["params"]]) for group in groups]
    kinds = iter(problem["kinds"])
    for t in range(problem["steps"]):
        for group, mine, scale in zip(groups, reference.groups, scales):
            mine["params"] = [p.detach().double() for p in group["params"]]
            for p in group["params"]:
                kind = next(kinds)
                p.grad = gradient("normal" if kind in ("huge", "tiny") else kind, p, generator, dtype)
            scale.see(group["params"], group["weight_decay"] if row.reference.coupled else 0.0)
        before = [[x.clone() for x in mine["params"]] for mine in reference.groups]
        reference.step([[p.grad for p in group["params"]] for group in groups])
        optimizer.step()
        assume(min(reference.margins) > 1e-4)
        for i, group in enumerate(groups):
            for j, p in enumerate(group["params"]):
                if p.grad is None or not p.numel():
                    assert torch.equal(p.detach().double(), before[i][j])
                    continue
                expected = reference.groups[i]["params"][j]
                direction = scales[i].direction(j, reference.states[i][j], reference.groups[i])
                bound = step_bound(before[i][j], expected, direction, reference.groups[i], t, dtype)
                assert ((p.detach().double() - expected).abs() <= bound).all(), (tuple(p.shape), p, expected)
