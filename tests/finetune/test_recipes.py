"""Methods that are recipes: how they are written, what is said to wrong ones, and that they are what Python builds."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mooring as mo
from mooring.finetune.errors import SpecError
from mooring.finetune.methods import BASES, DECAYS, METHODS, resolve
from mooring.finetune.models import MLP
from mooring.finetune.optimizers import build_optimizer, check_method, needs_closure, pipeline, state_bytes
from mooring.finetune.rules import takes
from mooring.finetune.spec import MethodSpec, TrialSpec
from mooring.rules.decay import Decay

PROJECTION = {"RadialProjection": {"delta": 0.2}}
RECIPE: dict[str, Any] = {
    "label": "mine",
    "name": "adam",
    "lr": 1e-2,
    "rules": [PROJECTION, {"StableDecay": 5e-4}, {"TrustRatio": None}, "SelectiveProjection"],
}


def steps(build: Callable[[torch.nn.Module], torch.optim.Optimizer], count: int = 12) -> list[torch.Tensor]:
    """The weights of one small net after some steps on one fixed problem."""
    torch.manual_seed(0)
    model = MLP(4)
    inputs, labels = torch.randn(64, 4), torch.randint(2, (64,))
    optimizer = build(model)
    for _ in range(count):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


PYTHON: list[tuple[dict[str, Any], Callable[[Any], torch.optim.Optimizer]]] = [
    (
        RECIPE,
        lambda model: mo.Adam(
            model.parameters(),
            lr=1e-2,
            rules=[
                mo.RadialProjection(delta=0.2),
                mo.StableDecay(5e-4),
                mo.TrustRatio(),
                mo.SelectiveProjection(),
            ],
        ),
    ),
    (
        {"name": "sgd", "lr": 0.1, "rules": [{"DecoupledDecay": {"weight_decay": 1e-2, "toward": "anchor"}}]},
        lambda model: mo.SGD(model.parameters(), lr=0.1, momentum=0.9, rules=[mo.DecoupledDecay(1e-2, "anchor")]),
    ),
    (
        {"optimizer": "mooring:Adai", "lr": 0.5, "anchor": "zero", "rules": [{"SelectiveProjection": 2}]},
        lambda model: mo.Adai(model.parameters(), lr=0.5, anchor="zero", rules=[mo.SelectiveProjection(2)]),
    ),
    (
        {"wrap": "torch.optim:NAdam", "lr": 1e-2, "anchor": "zero", "rules": [{"SelectiveProjection": 1.5}]},
        lambda model: mo.wrap(torch.optim.NAdam(model.parameters(), lr=1e-2), [mo.SelectiveProjection(1.5)], "zero"),
    ),
    (
        {"wrap": "adamw", "lr": 1e-2, "rules": ["TrustRatio"]},
        lambda model: mo.wrap(
            mo.AdamW(model.parameters(), **{**METHODS["adamw"].spec.options, "lr": 1e-2}), [mo.TrustRatio()]
        ),
    ),
]


@pytest.mark.filterwarnings("ignore:.*pulls the weights to zero:UserWarning")
@pytest.mark.parametrize(("request_", "build"), PYTHON)
def test_a_recipe_is_what_python_builds_bit_for_bit(
    request_: dict[str, Any], build: Callable[[Any], torch.optim.Optimizer]
) -> None:
    found = steps(lambda model: build_optimizer(resolve(request_), model))
    plain = steps(lambda model: torch.optim.SGD(model.parameters(), lr=0.0))
    for p, q, start in zip(found, steps(build), plain):
        assert torch.equal(p, q) and not torch.equal(p, start)


def test_the_resolved_form_reads_back_and_has_one_shape() -> None:
    spec = resolve(RECIPE)
    assert spec.rules == (PROJECTION, {"StableDecay": 5e-4}, {"TrustRatio": {}}, {"SelectiveProjection": {}})
    assert resolve(spec.model_dump(mode="json")) == spec
    assert MethodSpec.model_validate_json(spec.model_dump_json()) == spec
    wrapped = resolve(PYTHON[3][0])
    assert wrapped.wrap and resolve(wrapped.model_dump()) == wrapped
    assert str(spec) == (
        "mooring:Adam(lr=0.01, rules=[RadialProjection(delta=0.2), StableDecay(0.0005), TrustRatio(), "
        "SelectiveProjection()])"
    )
    assert str(wrapped) == "wrap(torch.optim:NAdam(lr=0.01, anchor='zero'), rules=[SelectiveProjection(1.5)])"


def test_a_label_that_is_not_given_names_the_rules() -> None:
    assert resolve({**RECIPE, "label": "x"}).label == "x"
    without = {key: value for key, value in RECIPE.items() if key != "label"}
    assert resolve(without).label == "adam+RadialProjection+StableDecay+TrustRatio+SelectiveProjection"


def test_rules_and_their_order_are_part_of_a_trial_and_methods_without_rules_keep_their_key() -> None:
    def key(**changes: Any) -> str:
        return TrialSpec(method=resolve({**RECIPE, **changes}), seed=0).key()

    keys = [
        key(),
        key(rules=RECIPE["rules"][:3]),
        key(rules=[*RECIPE["rules"][:3], {"SelectiveProjection": 0.5}]),
        key(rules=[RECIPE["rules"][0], RECIPE["rules"][2], RECIPE["rules"][1]]),
        key(rules=["TrustRatio"]),
        key(rules=["TrustRatio"], wrap=True),
    ]
    assert len(set(keys)) == len(keys)
    assert key(label="other") == key()
    # What earlier versions wrote for a plain method.
    assert set(resolve("adamw").model_dump()) == {"label", "optimizer", "options"}


def test_a_listed_decay_takes_the_place_of_the_built_in_one() -> None:
    assert "weight_decay" in METHODS["sgd"].spec.options
    assert "weight_decay" not in resolve({"name": "sgd", "rules": [{"CoupledDecay": 1e-3}]}).options
    assert "weight_decay" in resolve({"name": "sgd", "rules": ["SelectiveProjection"]}).options
    with pytest.raises(SpecError, match=r"method 'both': .*got 0.1 beside CoupledDecay in rules; give the amount"):
        check_method(resolve({"name": "sgd", "weight_decay": 0.1, "rules": [{"CoupledDecay": 1e-3}], "label": "both"}))


def test_the_names_known_without_torch_are_the_library_s() -> None:
    rules = {name: getattr(mo, name) for name in mo._RULES}
    assert {name for name, rule in rules.items() if issubclass(rule, Decay)} == set(DECAYS)
    bases = {name for name in mo._OPTIMIZERS if takes(getattr(mo, name), "rules")}
    assert bases == set(BASES.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rules": ["RadialProjektion"]}, r"unknown rule 'RadialProjektion' \(did you mean 'RadialProjection'\?\)"),
        ({"rules": "TrustRatio"}, "rules must be a list, one item for each rule, not 'TrustRatio'"),
        ({"rules": [{"StableDecay": 1, "toward": "anchor"}]}, "a rule is a name, or one name with its options"),
        ({"rules": [3]}, "a rule is a name, or one name with its options"),
        ({"rules": [{"StableDecay": [1, "anchor"]}]}, "give its options by name"),
        ({"rules": [{"StableDecay": float("nan")}]}, "options of rule 'StableDecay' must be plain numbers"),
        ({"rules": None}, "rules must be a list"),
        ({"name": "adan"}, r"unknown method 'adan' \(did you mean 'ada.*'\?\); the methods are .*, adam, adai"),
        ({"rules": [], "wrap": True, "name": "adamw"}, "wrap puts rules on an optimizer's step; list them"),
        ({"wrap": "torch.optim:NAdam"}, "'wrap' already names the optimizer"),
        ({"options": {"rules": []}}, "'rules' stands beside 'options', not in it"),
    ],
)
def test_a_recipe_that_cannot_be_read(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        resolve({**RECIPE, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"rules": ["SelectiveProjection", PROJECTION]},
            r"list them as \[RadialProjection\(...\), SelectiveProjection\(...\)\]",
        ),
        ({"rules": [PROJECTION, PROJECTION]}, "RadialProjection is listed twice"),
        ({"rules": [{"CoupledDecay": 1}, {"StableDecay": 1}]}, "2 decays that share the option weight_decay"),
        ({"rules": [{"StableDecay": {"wait_decay": 1}}]}, r"rule StableDecay has no option 'wait_decay' \(did you"),
        ({"rules": [{"TrustRatio": 3}]}, "rule TrustRatio takes no options, got 3"),
        ({"rules": [{"TrustRatio": {"eps": 3}}]}, "rule TrustRatio has no option 'eps'; it has none"),
        ({"rules": [{"StableDecay": {"toward": "mars"}}]}, "rule StableDecay refused .*toward must be 'zero' or"),
        ({"rules": [{"SelectiveProjection": -1}]}, r"refused lr=0.01, rules=\[.*strength must be >= 0, got -1"),
        ({"rules": ["no.such.module:Rule"]}, "'no.such.module' cannot be imported"),
        ({"rules": ["torch.nn:Linear"]}, "'torch.nn:Linear' is not a subclass of mooring.step.rule.Rule"),
        ({"wieght_decay": 1}, r"mooring:Adam has no option 'wieght_decay' \(did you mean 'weight_decay'\?\)"),
        ({"name": "adamw"}, "mooring:AdamW takes no rules; build on mooring:Adam, .* with wrap: mooring:AdamW"),
        ({"name": "adai"}, "missing 1 required positional argument: 'lr'"),
        (
            {"name": "adamw", "wrap": True, "rules": [{"DecoupledDecay": 1}]},
            r"wrap\(mooring:AdamW\) refused .* AdamW has an option weight_decay itself",
        ),
        ({"name": "adamw", "wrap": True}, "StableDecay acts inside the moments"),
    ],
)
def test_a_recipe_that_cannot_be_built_names_the_method(change: dict[str, Any], message: str) -> None:
    request = {**RECIPE, **change}
    if change.get("name") == "adai":
        del request["lr"]
    with pytest.raises(SpecError, match=rf"method 'mine': .*{message}"):
        check_method(resolve(request))


def test_the_options_that_all_optimizers_share_are_known_by_name() -> None:
    common = {"max_grad_norm": 1.0, "non_finite": "skip", "state_dtype": "bfloat16"}
    spec = resolve({"name": "adam", "lr": 1e-2, **common, "rules": ["TrustRatio"]})
    group = build_optimizer(spec, MLP(4)).param_groups[0]
    assert {name: group[name] for name in common} == common
    assert pipeline(build_optimizer(spec, MLP(4)))[0] == "clip(max_grad_norm=1) and skip non-finite gradients"
    with pytest.raises(SpecError, match=r"has no option 'max_gradnorm' \(did you mean 'max_grad_norm'\?\)"):
        check_method(resolve({"name": "adamw", "max_gradnorm": 1.0}))


def test_an_optimizer_that_needs_a_closure_is_not_wrapped() -> None:
    with pytest.raises(SpecError, match=r"torch\.optim:LBFGS cannot be wrapped, its step needs a closure"):
        check_method(resolve({"wrap": "torch.optim:LBFGS", "rules": ["SelectiveProjection"]}))
    assert not needs_closure(build_optimizer(resolve(PYTHON[3][0]), MLP(4)))


def test_rules_that_fight_are_said_with_the_method() -> None:
    (said,) = check_method(resolve(RECIPE))
    assert said.startswith("method 'mine': StableDecay pulls the weights to zero")
    assert check_method(resolve("adamspd")) == []


def test_a_rule_of_one_s_own_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rules_of_mine.py").write_text(
        "from mooring.step.rule import Rule\n"
        "class Halve(Rule):\n"
        "    order = 1\n"
        "    def __init__(self, factor=0.5):\n"
        "        self.factor = factor\n"
        "    def decide(self, x, totals):\n"
        "        x.move.scale(self.factor)\n"
    )
    monkeypatch.chdir(tmp_path)
    spec = resolve({"name": "adam", "lr": 1e-2, "rules": [{"rules_of_mine:Halve": 0.25}]})
    assert spec.label == "adam+Halve"
    found = steps(lambda model: build_optimizer(spec, model))
    expected = steps(lambda model: mo.Adam(model.parameters(), lr=2.5e-3))
    for p, q in zip(found, expected):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


def test_the_pipeline_is_the_line_that_print_shows() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = build_optimizer(resolve(RECIPE), MLP(4))
    line = " -> ".join(pipeline(optimizer))
    assert line in repr(optimizer)
    assert [stage.partition("(")[0] for stage in pipeline(optimizer)] == [
        "adam", "radial projection", "stable decay", "trust ratio", "selective projection", "step",
    ]  # fmt: skip
    assert pipeline(build_optimizer(resolve(PYTHON[3][0]), MLP(4)))[0] == "step of NAdam"
    assert pipeline(build_optimizer(resolve("torch.optim:NAdam"), MLP(4))) == ["step of NAdam"]


@pytest.mark.parametrize(
    ("request_", "numbers"),
    [(PYTHON[1][0], 2), (PYTHON[3][0], 2), ({**PYTHON[3][0], "anchor": "capture"}, 3), (PYTHON[4][0], 2)],
)
def test_the_memory_of_a_recipe_is_measured(request_: dict[str, Any], numbers: int) -> None:
    """Moments, and one more number per weight where there is an anchor."""
    models = []

    def build(model: torch.nn.Module) -> torch.optim.Optimizer:
        models.append((model, build_optimizer(resolve(request_), model)))
        return models[-1][1]

    steps(build, 2)
    ((model, optimizer),) = models
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    assert round(state_bytes(optimizer) / weights, 1) == numbers
