"""All subsets of rules on all bases against the naive composition; what is refused, and with which advice."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

import mooring as mo
from mooring.step.rule import Rule
from tests.optim.problems import backward, gradients, make_groups, make_net
from tests.reference.composition import Composition

STEPS = 200
BASES: dict[str, tuple[type, dict[str, Any]]] = {
    "adam": (mo.Adam, {"lr": 1e-2}),
    "sgd": (mo.SGD, {"lr": 2e-2, "momentum": 0.8, "dampening": 0.3}),
    "adai": (mo.Adai, {"lr": 5e-2, "betas": (0.1, 0.99), "eps": 1e-3}),
}
PROJECTIONS: dict[str, tuple[Rule | None, dict[str, Any]]] = {
    "": (None, {}),
    "projection": (mo.RadialProjection(delta=0.5, wd_ratio=0.3), {"project": True, "delta": 0.5, "wd_ratio": 0.3}),
}
DECAYS: dict[str, tuple[Rule | None, dict[str, Any]]] = {"": (None, {})}
for _name, _rule in {"coupled": mo.CoupledDecay, "decoupled": mo.DecoupledDecay, "stable": mo.StableDecay}.items():
    for _toward in ("zero", "anchor"):
        _options = {"decay": _name, "weight_decay": 0.02, "toward": _toward}
        DECAYS[f"{_name} to {_toward}"] = (_rule(0.02, toward=_toward), _options)
RATIOS: dict[str, tuple[Rule | None, dict[str, Any]]] = {"": (None, {}), "trust": (mo.TrustRatio(), {"trust": True})}
CONTRACTIONS: dict[str, tuple[Rule | None, dict[str, Any]]] = {
    "": (None, {}),
    "selective": (mo.SelectiveProjection(0.8), {"strength": 0.8}),
}
COMPOSITIONS = list(itertools.product(BASES, PROJECTIONS, DECAYS, RATIOS, CONTRACTIONS))


@pytest.mark.parametrize(
    ("base", "names"),
    [pytest.param(b, rest, id=" + ".join([b, *filter(None, rest)])) for b, *rest in COMPOSITIONS],
)
def test_follows_the_naive_composition(base: str, names: list[str]) -> None:
    cls, hyper = BASES[base]
    chosen = [table[name] for table, name in zip((PROJECTIONS, DECAYS, RATIOS, CONTRACTIONS), names)]
    rules = sorted((rule for rule, _ in chosen if rule is not None), key=lambda rule: rule.order)
    if names[2] == "trust":
        hyper = {**hyper, "lr": 2e-3}  # a step is lr |p| long, so a large lr grows weights exponentially
    options = {**hyper, "base": base, **{k: v for _, extra in chosen for k, v in extra.items()}}

    ours, theirs = make_net(), make_net()
    shared = {"betas": (0.9, 0.999), **hyper} if cls is not mo.SGD else hyper
    our_groups, their_groups = make_groups(ours, shared), make_groups(theirs, shared)
    start = [p.detach().clone() for group in our_groups for p in group["params"]]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*while SelectiveProjection.*", category=UserWarning)
        optimizer = cls(our_groups, **hyper, rules=rules)
    reference = Composition([{**options, **group} for group in their_groups])
    for t in range(STEPS):
        backward(ours, t)
        optimizer.step()
        backward(theirs, t)
        reference.step(gradients(their_groups))
        with torch.no_grad():
            for group, result in zip(their_groups, reference.groups, strict=True):
                for p, value in zip(group["params"], result["params"], strict=True):
                    p.copy_(value)
    end = [p.detach() for group in our_groups for p in group["params"]]
    expected = [p for group in reference.groups for p in group["params"]]
    moved = torch.cat([(e - s).flatten() for s, e in zip(start, expected)]).norm()
    error = torch.cat([(e - o).flatten() for o, e in zip(end, expected)]).norm()
    print(f"relative error {error / moved:.2g}, nearest decision {min(reference.margins):.2g}")
    assert moved > 1e-2
    assert error <= 1e-9 * moved


def assert_same_bits(*makes: Callable[[Any], torch.optim.Optimizer]) -> None:
    """Two optimizers leave the same weights after 30 steps."""
    nets = [make_net() for _ in makes]
    optimizers = [make(net.parameters()) for make, net in zip(makes, nets)]
    for t in range(30):
        for net, optimizer in zip(nets, optimizers):
            backward(net, t)
            optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(nets[0].parameters(), nets[1].parameters()))


@pytest.mark.parametrize("base", BASES)
def test_without_rules_it_is_the_base_bitwise(base: str) -> None:
    """A rule that is switched off, by its option, changes no bit."""
    cls, hyper = BASES[base]
    off = [mo.RadialProjection(delta=0.0), mo.DecoupledDecay(0.0), mo.SelectiveProjection(0.0)]
    assert_same_bits(lambda p: cls(p, **hyper), lambda p: cls(p, **hyper, rules=off))


@pytest.mark.parametrize(
    ("named", "composed"),
    [
        (lambda p: mo.AdamW(p, lr=1e-2), lambda p: mo.Adam(p, lr=1e-2, rules=[mo.DecoupledDecay(0.01)])),
        (
            lambda p: mo.AdamP(p, lr=1e-2, weight_decay=0.1),
            lambda p: mo.Adam(p, lr=1e-2, rules=[mo.RadialProjection(), mo.DecoupledDecay(0.1)]),
        ),
        (
            lambda p: mo.AdamS(p, lr=1e-2, weight_decay=1e-3),
            lambda p: mo.Adam(p, lr=1e-2, rules=[mo.StableDecay(1e-3)]),
        ),
        (lambda p: mo.AdamSPD(p, lr=1e-2), lambda p: mo.Adam(p, lr=1e-2, rules=[mo.SelectiveProjection()])),
        (
            lambda p: mo.SGDS(p, lr=1e-2, momentum=0.9, weight_decay=0.01),
            lambda p: mo.SGD(p, lr=1e-2, momentum=0.9, rules=[mo.StableDecay(0.01)]),
        ),
        (
            lambda p: mo.AdaiS(p, lr=1e-2, weight_decay=0.1),
            lambda p: mo.Adai(p, lr=1e-2, rules=[mo.DecoupledDecay(0.1)]),
        ),
    ],
    ids=["AdamW", "AdamP", "AdamS", "AdamSPD", "SGDS", "AdaiS"],
)
def test_named_optimizers_are_recipes(named: Any, composed: Any) -> None:
    assert_same_bits(named, composed)


@pytest.mark.parametrize(
    ("rules", "options", "message"),
    [
        (
            [mo.SelectiveProjection(), mo.RadialProjection()],
            {},
            r"list them as \[RadialProjection.*SelectiveProjection",
        ),
        ([mo.DecoupledDecay(0.1), mo.CoupledDecay(0.1)], {}, r"list them as \[CoupledDecay"),
        ([mo.DecoupledDecay(0.1), mo.StableDecay(0.1)], {}, "2 decays that share the option weight_decay; keep one"),
        ([mo.RadialProjection(), mo.RadialProjection()], {}, "RadialProjection is listed twice"),
        ([mo.StableDecay(0.1)], {"weight_decay": 0.2}, r"weight_decay: got 0.2 .* give the amount to the rule"),
        ([mo.BufferHorizonDecay(0.1)], {}, "needs SGD, use DecoupledDecay"),
    ],
)
def test_conflicts_are_refused_with_the_fix(rules: list[Rule], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mo.Adam([torch.nn.Parameter(torch.ones(2, 2))], rules=rules, **options)


def test_what_is_not_a_rule_is_refused() -> None:
    p = torch.nn.Parameter(torch.ones(2, 2))
    with pytest.raises(TypeError, match=r"write RadialProjection\(\)"):
        mo.Adam([p], rules=[mo.RadialProjection])
    with pytest.raises(TypeError, match="expected rules, got 'spd'"):
        mo.Adam([p], rules=["spd"])


def test_decay_to_zero_beside_an_anchor_warns() -> None:
    p = torch.nn.Parameter(torch.ones(2, 2))
    with pytest.warns(UserWarning, match="use toward='anchor'"):
        mo.Adam([p], rules=[mo.DecoupledDecay(0.1), mo.SelectiveProjection()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mo.Adam([p], rules=[mo.DecoupledDecay(0.1, toward="anchor"), mo.SelectiveProjection()])
        mo.Adam([p], rules=[mo.DecoupledDecay(0.1), mo.SelectiveProjection()], anchor="zero")


def test_print_shows_the_stages_in_their_order() -> None:
    p = torch.nn.Parameter(torch.ones(2, 2))
    text = repr(mo.SGD([p], lr=0.1, momentum=0.9, rules=[mo.CoupledDecay(0.1), mo.RadialProjection(), mo.TrustRatio()]))
    stages = ["coupled decay", "momentum(", "radial projection", "trust ratio", "step"]
    assert [text.index(s) for s in stages] == sorted(text.index(s) for s in stages)
