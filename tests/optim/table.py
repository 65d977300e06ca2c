"""The one table of optimizers. Every generic test runs over its rows and variants; a new method is a new row."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import torch

import mooring as mo
from tests.reference import adamp, base, composition, spd, swd

Scope = Literal["pointwise", "row", "tensor", "model"]


@dataclass(frozen=True)
class OptimizerRow:
    """One optimizer: its class, the naive reference it must equal, and the variants worth running.

    Attributes:
        name: the public name in `mooring`.
        reference: the naive float64 implementation; takes the same options.
        options: options every variant starts from (learning rates that make the test problems move).
        variants: options to add, by name. "default" is always there and adds nothing.
        scope: how much of the model one element's step depends on.
        torch_class: the torch.optim class that computes the same thing, or None.
        torch_variants: the variants for which that is true.
        branches: decisions of the method that its variants, taken together, must exercise on the test net.
        make: builds the optimizer where it is no class of its own (rules composed by hand); takes the same options.
    """

    name: str
    reference: type[base.Reference]
    options: Mapping[str, Any]
    variants: Mapping[str, Mapping[str, Any]]
    scope: Scope
    torch_class: type[torch.optim.Optimizer] | None = None
    torch_variants: frozenset[str] = frozenset()
    branches: frozenset[str] = field(default_factory=frozenset)
    make: Callable[..., torch.optim.Optimizer] | None = None

    @property
    def cls(self) -> type[torch.optim.Optimizer]:
        found: type[torch.optim.Optimizer] = getattr(mo, self.name)
        return found

    @property
    def adaptive(self) -> bool:
        return "betas" in self.reference.defaults

    @property
    def adam(self) -> bool:
        """Adam's moments, so torch's AdamW checkpoints fit."""
        return "amsgrad" in self.reference.defaults

    @property
    def momentum(self) -> bool:
        """SGD's momentum buffer, so torch's SGD checkpoints fit."""
        return "momentum" in self.reference.defaults

    @property
    def remembering(self) -> str:
        """A variant with all the state that the method can have."""
        return "amsgrad" if self.adam else "momentum" if self.momentum else "default"

    @property
    def anchored(self) -> bool:
        return "anchor" in self.reference.defaults

    def hyper(self, variant: str = "default") -> dict[str, Any]:
        """The options of a variant."""
        return {**self.options, **self.variants[variant]}

    def build(self, params: Iterable[Any], variant: str = "default", **more: Any) -> torch.optim.Optimizer:
        """The optimizer; the announcement of what weight_decay means for anchored methods has a test of its own."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*anchor.*", category=UserWarning)
            warnings.filterwarnings("ignore", message=".*pulls the weights to zero.*", category=UserWarning)
            make = self.make or self.cls
            # Many tests take one tensor for the whole model.
            return make(params, **{"one_parameter": True, **self.hyper(variant), **more})


def row(
    name: str,
    reference: type[base.Reference],
    options: Mapping[str, Any],
    scope: Scope,
    variants: Mapping[str, Mapping[str, Any]],
    *,
    torch_class: type[torch.optim.Optimizer] | None = None,
    unlike_torch: Iterable[str] = (),
    branches: Iterable[str] = (),
    make: Callable[..., torch.optim.Optimizer] | None = None,
) -> OptimizerRow:
    every = {"default": {}, **variants}
    like_torch = frozenset(every) - frozenset(unlike_torch) if torch_class is not None else frozenset[str]()
    return OptimizerRow(name, reference, options, every, scope, torch_class, like_torch, frozenset(branches), make)


def adam_projected_stable_selective(params: Any, **options: Any) -> torch.optim.Optimizer:
    projection = {k: options.pop(k) for k in ("delta", "wd_ratio") if k in options}
    decay, strength = options.pop("weight_decay", 1e-4), options.pop("strength", 1.0)
    rules = [mo.RadialProjection(**projection), mo.StableDecay(decay), mo.SelectiveProjection(strength)]
    return mo.Adam(params, rules=rules, **options)


def sgd_projected_selective(params: Any, **options: Any) -> torch.optim.Optimizer:
    projection = {k: options.pop(k) for k in ("delta", "wd_ratio", "eps") if k in options}
    decay, strength = options.pop("weight_decay", 0.0), options.pop("strength", 1.0)
    rules = [
        mo.RadialProjection(**projection),
        mo.DecoupledDecay(decay, toward="anchor"),
        mo.SelectiveProjection(strength),
    ]
    return mo.SGD(params, rules=rules, **options)


SGD_VARIANTS: dict[str, dict[str, Any]] = {
    "momentum": {"momentum": 0.9},
    "dampening": {"momentum": 0.8, "dampening": 0.4, "weight_decay": 0.05},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.05},
    "maximize": {"momentum": 0.5, "maximize": True, "weight_decay": 0.05},
    "decay": {"weight_decay": 0.1},
    "dampening without momentum": {"dampening": 0.5, "weight_decay": 0.1},
}
ADAM_VARIANTS: dict[str, dict[str, Any]] = {
    "amsgrad": {"amsgrad": True, "betas": (0.8, 0.9)},
    "maximize": {"maximize": True},
    "betas": {"betas": (0.5, 0.7), "eps": 1e-4},
    "no momentum": {"betas": (0.0, 0.9)},
}
PROJECTION_VARIANTS: dict[str, dict[str, Any]] = {
    "delta 0": {"delta": 0.0},
    "delta .5": {"delta": 0.5},
    "always projected": {"delta": 100.0},
    "wd_ratio": {"weight_decay": 0.5, "wd_ratio": 0.0, "delta": 0.5},
    "capped decay": {"weight_decay": 200.0, "wd_ratio": 0.5, "delta": 0.5},
    "declared by row": {"scale_invariant": "row"},
    "declared by tensor": {"scale_invariant": "tensor", "wd_ratio": 0.5},
    "declared none": {"scale_invariant": "none"},
}
ANCHOR_VARIANTS: dict[str, dict[str, Any]] = {
    "anchor zero": {"anchor": "zero"},
    "anchor none": {"anchor": None},
    "strength .3": {"strength": 0.3},
    "strength 0": {"strength": 0.0},
    "decay to the anchor": {"weight_decay": 0.3},
    "decay to zero": {"weight_decay": 0.3, "anchor": "zero"},
}

ROWS: tuple[OptimizerRow, ...] = (
    row(
        "AdamW",
        base.AdamW,
        {"lr": 1e-2},
        "pointwise",
        {**ADAM_VARIANTS, "no decay": {"weight_decay": 0.0}, "capped decay": {"weight_decay": 150.0}},
        torch_class=torch.optim.AdamW,
        unlike_torch={"capped decay"},
    ),
    row("SGD", base.SGD, {"lr": 5e-2}, "pointwise", SGD_VARIANTS, torch_class=torch.optim.SGD),
    row(
        "AdamP",
        adamp.AdamP,
        {"lr": 1e-2, "weight_decay": 0.1},
        "tensor",
        {**ADAM_VARIANTS, **PROJECTION_VARIANTS, "nesterov": {"nesterov": True}, "no decay": {"weight_decay": 0.0}},
        branches={"rows", "tensor", "none", "1-D", "zero gradient"},
    ),
    row(
        "SGDP",
        adamp.SGDP,
        {"lr": 5e-2, "weight_decay": 0.05},
        "tensor",
        {
            **SGD_VARIANTS,
            **{name: {"momentum": 0.9, **options} for name, options in PROJECTION_VARIANTS.items()},
            "project_buffer": {"momentum": 0.9, "project_buffer": True, "delta": 0.5},
            "project_buffer, nesterov": {"momentum": 0.9, "project_buffer": True, "nesterov": True, "delta": 0.5},
        },
        branches={"rows", "tensor", "none", "1-D", "zero gradient"},
    ),
    row(
        "AdamS",
        swd.AdamS,
        {"lr": 1e-2, "weight_decay": 2e-3},
        "model",
        {**ADAM_VARIANTS, "no decay": {"weight_decay": 0.0}, "capped decay": {"weight_decay": 20.0}},
        branches={"capped", "uncapped"},
    ),
    row(
        "SGDS",
        swd.SGDS,
        {"lr": 5e-2},
        "pointwise",
        {**SGD_VARIANTS, "capped decay": {"weight_decay": 5.0, "momentum": 0.9}},
    ),
    row(
        "AdamSPD",
        spd.AdamSPD,
        {"lr": 1e-2},
        "tensor",
        {**ADAM_VARIANTS, **ANCHOR_VARIANTS},
        branches={"inactive", "contracted", "active, not moving away"},
    ),
    row(
        "SGDSPD",
        spd.SGDSPD,
        {"lr": 5e-2},
        "tensor",
        {**SGD_VARIANTS, **{name: {"momentum": 0.9, **options} for name, options in ANCHOR_VARIANTS.items()}},
        branches={"inactive", "contracted", "active, not moving away"},
    ),
    row(
        "Adam",
        base.Adam,
        {"lr": 1e-2, "weight_decay": 0.05},
        "pointwise",
        {**ADAM_VARIANTS, "nesterov": {"nesterov": True}, "no decay": {"weight_decay": 0.0}},
        torch_class=torch.optim.Adam,
        unlike_torch={"nesterov"},
    ),
    row(
        "Adai",
        swd.Adai,
        {"lr": 0.1},
        "model",
        {"decay": {"weight_decay": 0.05}, "maximize": {"maximize": True}, "betas": {"betas": (0.5, 0.9), "eps": 0.1}},
    ),
    row(
        "AdaiS",
        swd.AdaiS,
        {"lr": 0.1, "weight_decay": 0.05},
        "model",
        {"betas": {"betas": (0.5, 0.9)}, "capped decay": {"weight_decay": 15.0}},
    ),
    row(
        "Adam + projection + stable decay + SPD",
        composition.AdamProjectedStableSelective,
        {"lr": 1e-2, "weight_decay": 2e-3},
        "model",
        {
            "amsgrad": {"amsgrad": True, "betas": (0.8, 0.9)},
            "maximize": {"maximize": True},
            "delta .5": {"delta": 0.5, "nesterov": True},
            "anchor zero": {"anchor": "zero", "strength": 0.5},
            "capped decay": {"weight_decay": 30.0, "wd_ratio": 0.5},
        },
        branches={"rows", "tensor", "none", "inactive", "contracted"},
        make=adam_projected_stable_selective,
    ),
    row(
        "SGD + projection + decay to the anchor + SPD",
        composition.SGDProjectedSelective,
        {"lr": 5e-2, "weight_decay": 0.1},
        "tensor",
        {
            "momentum": {"momentum": 0.9},
            "dampening": {"momentum": 0.8, "dampening": 0.4, "delta": 0.5},
            "nesterov": {"momentum": 0.9, "nesterov": True, "wd_ratio": 0.0},
            "anchor zero": {"momentum": 0.9, "anchor": "zero"},
        },
        branches={"rows", "tensor", "none", "inactive", "contracted"},
        make=sgd_projected_selective,
    ),
)

BY_NAME: dict[str, OptimizerRow] = {r.name: r for r in ROWS}

every_row = pytest.mark.parametrize("row", ROWS, ids=lambda r: r.name)
every_variant = pytest.mark.parametrize(
    ("row", "variant"), [pytest.param(r, v, id=f"{r.name}-{v}") for r in ROWS for v in r.variants]
)
every_torch_variant = pytest.mark.parametrize(
    ("row", "variant"),
    [pytest.param(r, v, id=f"{r.name}-{v}") for r in ROWS for v in r.variants if v in r.torch_variants],
)
adam_rows = pytest.mark.parametrize("row", [r for r in ROWS if r.adam], ids=lambda r: r.name)
momentum_rows = pytest.mark.parametrize("row", [r for r in ROWS if r.momentum], ids=lambda r: r.name)
anchored_rows = pytest.mark.parametrize("row", [r for r in ROWS if r.anchored], ids=lambda r: r.name)
# Classes of their own, with a paper's signature and a line of their own in print().
named_rows = pytest.mark.parametrize("row", [r for r in ROWS if r.make is None], ids=lambda r: r.name)
