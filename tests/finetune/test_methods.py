from __future__ import annotations

from typing import Any

import pytest
import torch

import mooring
import mooring.perturb.frame
from mooring.finetune.errors import SpecError
from mooring.finetune.methods import METHODS, resolve
from mooring.finetune.models import MLP
from mooring.finetune.optimizers import build_optimizer, check_method, needs_closure, state_bytes
from mooring.finetune.spec import MethodSpec


def test_names_classes_and_mappings_resolve() -> None:
    assert resolve("AdamP") == METHODS["adamp"].spec
    assert resolve("torch.optim:NAdam") == MethodSpec(label="NAdam", optimizer="torch.optim:NAdam")
    assert resolve({"name": "adamw", "lr": 0.5, "label": "fast"}) == MethodSpec(
        label="fast", optimizer="mooring:AdamW", options={**METHODS["adamw"].spec.options, "lr": 0.5}
    )
    assert resolve({"optimizer": "a.b:C", "options": {"lr": 1}}).options == {"lr": 1}
    assert resolve(METHODS["sgd"].spec) is METHODS["sgd"].spec


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ("adampp", r"unknown method 'adampp' \(did you mean 'adamp'\?\); the methods are adamw, sgd"),
        ("torch.optim:", "not of the form 'module:Class'"),
        ({"lr": 1}, "holds either 'name'"),
        ({"name": "adamw", "optimizer": "torch.optim:SGD"}, "holds either 'name'"),
        ({"name": "adamw", "lr": 1, "options": {"lr": 2}}, r"\['lr'\] given both"),
        ({"name": "adamw", "options": 3}, "must be a mapping"),
        ({"name": "adamw", "lr": object()}, "plain numbers"),
        (3, "not 3"),
    ],
)
def test_a_wrong_request_says_what_is_wrong(request_: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        resolve(request_)


def inner(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer that a perturbation is around, or the optimizer itself."""
    return optimizer.base if isinstance(optimizer, mooring.perturb.frame.Perturbed) else optimizer


@pytest.mark.parametrize("name", METHODS)
def test_every_built_in_method_builds_over_named_parameters(name: str) -> None:
    built = build_optimizer(METHODS[name].spec, MLP(4))
    optimizer = inner(built)
    assert [type(built).__name__] == list(METHODS[name].spec.perturb) or built is optimizer
    assert type(optimizer) is getattr(mooring, METHODS[name].spec.optimizer.partition(":")[2])
    assert optimizer.param_groups[0]["param_names"][0] == "hidden.0.weight"
    assert set(METHODS[name].space) <= set(optimizer.param_groups[0])


@pytest.mark.parametrize("name", METHODS)
def test_declared_memory_is_what_the_optimizer_keeps(name: str) -> None:
    model = MLP(4)
    optimizer = inner(build_optimizer(METHODS[name].spec, model))
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    # Scalars (step counts, sums) are not counted per weight.
    assert round(state_bytes(optimizer) / weights, 1) == METHODS[name].state_per_weight


@pytest.mark.parametrize("name", METHODS)
def test_declared_cost_is_what_the_library_counts(name: str) -> None:
    built = build_optimizer(METHODS[name].spec, MLP(4))
    (counted,) = mooring.cost(inner(built))  # type: ignore[arg-type]
    info = METHODS[name]
    assert info.gradients_per_step == getattr(built, "gradients_per_step", 1)
    assert (counted.state_bytes, counted.passes) == (4 * info.state_per_weight, info.passes)
    assert (counted.collectives, counted.gradients) == (info.collectives, 1)
    assert str(counted).partition(",")[0] == info.cost.partition(",")[0]


def test_ranges_are_written_as_people_write_numbers() -> None:
    assert METHODS["adamspd"].ranges == "lr 1e-4 to 3e-2 (log), strength 0.1 to 2"
    assert METHODS["adams"].ranges == "lr 1e-4 to 3e-2 (log), weight_decay 1e-5 to 0.1 (log)"


@pytest.mark.parametrize(
    ("optimizer", "options", "message"),
    [
        ("torch.optim:AdamX", {}, r"'torch.optim' has no 'AdamX' \(did you mean 'Adam"),
        ("no.such.module:Adam", {}, "'no.such.module' cannot be imported"),
        ("torch.nn:Linear", {}, "not a subclass of torch.optim.Optimizer"),
        ("torch.optim:AdamW", {"weight_deacy": 1}, r"no option 'weight_deacy' \(did you mean 'weight_decay'\?\)"),
        ("torch.optim:AdamW", {"lr": -1}, r"refused lr=-1: .*-1"),
        ("mooring:AdamW", {"lr": -1}, r"refused lr=-1: .*-1"),
        ("torch.optim:Muon", {}, "refused its defaults: "),
    ],
)
def test_a_refused_option_names_method_and_option(optimizer: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=rf"method 'mine': .*{message}"):
        check_method(MethodSpec(label="mine", optimizer=optimizer, options=options))


def test_lists_reach_the_optimizer_as_tuples() -> None:
    spec = MethodSpec(label="x", optimizer="torch.optim:AdamW", options={"betas": [0.5, 0.9]})
    assert build_optimizer(spec, MLP(4)).param_groups[0]["betas"] == (0.5, 0.9)


def test_a_class_in_the_working_folder_that_takes_plain_parameters_is_found(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_optimizer_module.py").write_text(
        "import torch\n"
        "class Mine(torch.optim.SGD):\n"
        "    def __init__(self, params, lr=0.1):\n"
        "        params = list(params)\n"
        "        self.elements = sum(p.numel() for p in params)\n"
        "        super().__init__(params, lr=lr)\n"
    )
    monkeypatch.chdir(tmp_path)
    optimizer = build_optimizer(resolve("my_optimizer_module:Mine"), MLP(4))
    assert optimizer.elements == sum(p.numel() for p in MLP(4).parameters())  # type: ignore[attr-defined]


def test_only_an_optimizer_that_cannot_step_without_a_closure_is_given_one() -> None:
    assert needs_closure(build_optimizer(resolve("torch.optim:LBFGS"), MLP(4)))
    assert not needs_closure(build_optimizer(resolve("torch.optim:AdamW"), MLP(4)))
    assert not needs_closure(build_optimizer(resolve("adamp"), MLP(4)))
