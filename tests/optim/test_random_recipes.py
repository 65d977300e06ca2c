"""Recipes made up by hypothesis: rules, base, groups, anchors, layouts, missing gradients; against the composition.

A failure shrinks to the shortest recipe that shows it and prints that as `recipe=Recipe(...)`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import mooring as mo
from mooring.step.rule import Rule
from tests.optim.precision import F32, ulp
from tests.optim.test_layouts import channels_last, contiguous, strided, transposed
from tests.optim.test_random_problems import OPTIONS, gradient
from tests.reference.base import norm, second_moment
from tests.reference.composition import Composition

BASES: dict[str, type] = {"adam": mo.Adam, "sgd": mo.SGD, "adai": mo.Adai}
MOMENTS = {
    "adam": ("betas", "eps", "amsgrad", "nesterov"),
    "sgd": ("momentum", "dampening", "nesterov"),
    "adai": ("betas",),
}
DECAYS: dict[str, Callable[..., Rule]] = {
    "decoupled": mo.DecoupledDecay,
    "coupled": mo.CoupledDecay,
    "stable": mo.StableDecay,
}
LAYOUTS = {f.__name__: f for f in (contiguous, transposed, strided, channels_last)}
# Simple things first, because hypothesis shrinks toward the beginning of a list.
SHAPES = [(3,), (2, 3), (), (0,), (1,), (1, 5), (5, 1), (0, 3), (3, 0), (2, 3, 2), (3, 2, 2, 2), (1, 1, 1, 1), (3, 70)]
GRADIENTS = ["normal", "tangent", "tangent rows", "zero row", "zero", "none"]
EXTREMES = ["tiny", "huge"]


@dataclass(frozen=True)
class Weight:
    """One parameter: its shape, how weight and gradient lie in memory, and what its gradient is at each step."""

    shape: tuple[int, ...]
    gradients: tuple[str, ...]
    layout: str = "contiguous"
    gradient_layout: str = "contiguous"


@dataclass(frozen=True)
class Recipe:
    """A base, the stages around it, and groups of (options, weights)."""

    base: str
    project: bool
    decay: str | None
    toward: str
    trust: bool
    selective: bool
    max_grad_norm: float | None
    groups: tuple[tuple[dict[str, Any], tuple[Weight, ...]], ...]
    seed: int

    def rules(self) -> list[Rule]:
        """The rules in their order; the amounts are options of the groups."""
        decay = [DECAYS[self.decay](0.1, toward=self.toward)] if self.decay else []
        rules = [
            *([mo.RadialProjection()] if self.project else []),
            *decay,
            *([mo.TrustRatio()] if self.trust else []),
            *([mo.SelectiveProjection()] if self.selective else []),
        ]
        return sorted(rules, key=attrgetter("order"))

    def stages(self) -> dict[str, Any]:
        """The same for the naive composition."""
        return {"base": self.base, "project": self.project, "decay": self.decay, "toward": self.toward,
                "trust": self.trust}  # fmt: skip


@st.composite
def recipes(draw: st.DrawFn, kinds: list[str], smallest_eps: float = 0.0, clip: bool = False) -> Recipe:
    base = draw(st.sampled_from(sorted(BASES)))
    project, trust, selective = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    decay = draw(st.sampled_from([None, *DECAYS]))
    toward = draw(st.sampled_from(["zero", "anchor"]))
    max_grad_norm = draw(st.sampled_from([None, 1.0, 1e4])) if clip else None
    steps = draw(st.integers(1, 5))
    names = ["lr", "maximize", *MOMENTS[base]]
    names += ["weight_decay"] if decay else []
    names += ["delta", "wd_ratio", "scale_invariant"] if project else []
    names += ["strength"] if selective else []
    names += ["anchor"] if selective or (decay and toward == "anchor") else []

    if project and trust:
        kinds = [kind for kind in kinds if kind != "tiny"]  # below eps any row is projected, also one of one element

    def weight() -> Weight:
        shape = draw(st.sampled_from(SHAPES))
        layouts = [name for name in LAYOUTS if name != "channels_last" or len(shape) == 4]
        gradients = tuple(draw(st.sampled_from(kinds)) for _ in range(steps))
        return Weight(shape, gradients, draw(st.sampled_from(layouts)), draw(st.sampled_from(layouts)))

    def options() -> dict[str, Any]:
        # All are drawn, also those that are not used, so that shrinking can leave out a stage and keep the rest.
        chosen = {name: value for name, value in [(k, draw(OPTIONS[k])) for k in sorted(OPTIONS)] if name in names}
        if base == "adam":
            chosen["eps"] = max(chosen["eps"], smallest_eps)
        if base == "sgd" and (chosen["momentum"] == 0 or chosen["dampening"] != 0):
            chosen["nesterov"] = False
        if base == "adai":
            chosen["eps"] = 1e-3  # 1 - (1 - eps) has no digits at an eps that suits Adam
        if project:
            # A row of one element may be projected away, to rounding; then neither the length of the step nor the
            # growth that it brings has digits.
            chosen["delta"] = min(chosen["delta"], 0.4)
            if (trust or selective) and chosen["scale_invariant"] in ("row", "tensor"):
                chosen["scale_invariant"] = "test"
        return chosen

    groups = [
        (options(), tuple(weight() for _ in range(draw(st.integers(1, 4))))) for _ in range(draw(st.integers(1, 3)))
    ]
    return Recipe(
        base, project, decay, toward, trust, selective, max_grad_norm, tuple(groups), draw(st.integers(0, 2**16))
    )


class Run:
    """A recipe under way: our optimizer and the naive composition on the same weights and gradients."""

    def __init__(self, recipe: Recipe, dtype: torch.dtype) -> None:
        self.recipe, self.dtype = recipe, dtype
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.specs = [list(weights) for _, weights in recipe.groups]
        self.groups: list[dict[str, Any]] = [
            {**options, "params": [self.make(w) for w in weights]} for options, weights in recipe.groups
        ]
        self.reference = Composition([{**recipe.stages(), **group} for group in self.groups])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*while SelectiveProjection.*", category=UserWarning)
            self.optimizer = BASES[recipe.base](
                self.groups,
                lr=0.1,
                rules=recipe.rules(),
                max_grad_norm=recipe.max_grad_norm,
                one_parameter=True,
            )

    def make(self, weight: Weight) -> nn.Parameter:
        values = torch.randn(weight.shape, generator=self.generator, dtype=torch.float64).to(self.dtype)
        return nn.Parameter(LAYOUTS[weight.layout](values))

    def draw_gradients(self, t: int) -> None:
        for group, weights in zip(self.groups, self.specs):
            for p, weight in zip(group["params"], weights):
                g = gradient(weight.gradients[t], p, self.generator, self.dtype)
                p.grad = None if g is None else LAYOUTS[weight.gradient_layout](g)

    def step(self) -> None:
        grads = [[p.grad for p in group["params"]] for group in self.groups]
        if self.recipe.max_grad_norm is not None:
            total = math.sqrt(math.fsum(norm(g) ** 2 for row in grads for g in row if g is not None))
            factor = min(1.0, self.recipe.max_grad_norm / (total + 1e-6))
            grads = [[None if g is None else factor * g for g in row] for row in grads]
        self.reference.step(grads)
        self.optimizer.step()

    @property
    def steps(self) -> int:
        return len(self.specs[0][0].gradients)


def announce(recipe: Recipe) -> None:
    """For `pytest --hypothesis-show-statistics`: that the recipes do come in all kinds."""
    event("base " + recipe.base)
    event("rules " + " ".join(type(rule).__name__ for rule in recipe.rules()))


common = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)


@settings(common, max_examples=300)
@given(recipe=recipes(GRADIENTS + EXTREMES, clip=True))
def test_float64(recipe: Recipe) -> None:
    announce(recipe)
    run = Run(recipe, torch.float64)
    for t in range(run.steps):
        run.draw_gradients(t)
        run.step()
        # A decision within rounding of its threshold may fall either way: nothing is to be learnt from it.
        assume(min(run.reference.margins) > 1e-9)
        for group, naive in zip(run.groups, run.reference.groups):
            for p, expected in zip(group["params"], naive["params"]):
                size = 1 + float(expected.abs().max()) if expected.numel() else 1.0
                assert torch.allclose(p.detach(), expected, rtol=1e-9, atol=1e-9 * size), (
                    f"step {t}, shape {tuple(p.shape)}: {p.detach()} instead of {expected}"
                )


class Bound:
    """How far a float32 step of one weight may be from the float64 one; see `precision.step_bound`.

    The moments and the inner products lose a few float32 units of the largest gradient seen so far, so an unscaled
    step s is known to within e. The trust ratio, lr |p| / |s|, inherits |e| / |s| and multiplies both. The
    contraction's r is <s, s> - 2 <s, d> over (|q - a| + |d|) |q - a|, so r |q - a| moves by at most 4 |e|.
    """

    def __init__(self, shape: torch.Size) -> None:
        self.largest = torch.zeros(shape, dtype=torch.float64)

    def see(self, g: Tensor, theta: Tensor, group: dict[str, Any], anchor: Tensor | None) -> None:
        size = g.detach().double().abs()
        if group["decay"] == "coupled":
            size = size + group["weight_decay"] * (theta.abs() + (0 if anchor is None else anchor.abs()))
        self.largest = torch.maximum(self.largest, size)

    def direction(self, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """The largest that |u| can be."""
        if group["base"] == "sgd":
            return 2 * self.largest / (1 - group["momentum"])
        if group["base"] == "adai":
            return self.largest / group["eps"]
        v_hat = second_moment(state["moments"], {**group, "amsgrad": False})
        return self.largest / (v_hat.sqrt() + group["eps"])

    def __call__(
        self, before: Tensor, after: Tensor, state: dict[str, Any], group: dict[str, Any], t: int, dtype: torch.dtype
    ) -> Tensor:
        lr, direction, plain = group["lr"], self.direction(state, group), state["plain"]
        e = (12 + 6 * t) * F32 * (lr * direction + plain.abs() + lr * direction.norm())
        if group["trust"] and float(plain.norm()) > 0:
            assume(e.norm() < 1e-2 * plain.norm())
            e = lr * before.norm() / plain.norm() * (e + plain.abs() * e.norm() / plain.norm())
        if group["strength"] is not None:
            e = e + 4 * group["strength"] * e.norm()
        stored = 0.5 * ulp(after.abs() * (1 + 2**-6), dtype) + 2 * F32 * before.abs()
        bound: Tensor = stored + e
        return bound


@settings(common, max_examples=200)
@given(recipe=recipes(GRADIENTS, smallest_eps=1e-6), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_low_precision(recipe: Recipe, dtype: torch.dtype) -> None:
    """One step at a time: the composition takes over our rounded weights before each.

    Adam's eps is not too small, because the root of a float32 v near 0 has no digits.
    """
    announce(recipe)
    run = Run(recipe, dtype)
    bounds = [[Bound(p.shape) for p in group["params"]] for group in run.groups]
    for t in range(run.steps):
        run.draw_gradients(t)
        before = [[p.detach().double() for p in group["params"]] for group in run.groups]
        for naive, old in zip(run.reference.groups, before):
            naive["params"] = [x.clone() for x in old]
        run.step()
        assume(min(run.reference.margins) > 1e-4)
        for i, naive in enumerate(run.reference.groups):
            for j, p in enumerate(run.groups[i]["params"]):
                old, state = before[i][j], run.reference.states[i][j]
                if p.grad is None or not p.numel():
                    assert torch.equal(p.detach().double(), old)
                    continue
                bounds[i][j].see(p.grad, old, naive, state.get("anchor"))
                expected = naive["params"][j]
                allowed = bounds[i][j](old, expected, state, naive, t, dtype)
                excess = ((p.detach().double() - expected).abs() / allowed).max()
                assert excess <= 1, f"step {t}, shape {tuple(p.shape)}: {float(excess):.3g} times the bound"


@settings(common, max_examples=60)
@given(rules=st.permutations([mo.CoupledDecay(0.1), mo.RadialProjection(), mo.TrustRatio(), mo.SelectiveProjection()]),
       count=st.integers(2, 4))  # fmt: skip
def test_any_other_order_is_refused_with_the_right_one(rules: list[Rule], count: int) -> None:
    listed = rules[:count]
    right = sorted(listed, key=attrgetter("order"))
    p = nn.Parameter(torch.ones(2, 2))
    if listed == right:
        assert mo.SGD([p], lr=0.1, rules=listed, anchor="zero").param_groups[0]["lr"] == 0.1
        return
    names = r".*".join(type(rule).__name__ for rule in right)
    with pytest.raises(ValueError, match=names):
        mo.SGD([p], lr=0.1, rules=listed)
