"""Methods whose gradients are taken at moved weights: how they are written, and that the loop trains them rightly."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import mooring as mo
from mooring.finetune.data import Split, batches
from mooring.finetune.errors import SpecError
from mooring.finetune.loop import Progress, train
from mooring.finetune.methods import METHODS, resolve
from mooring.finetune.models import MLP
from mooring.finetune.optimizers import build_optimizer, check_method, pipeline
from mooring.finetune.perturbations import PERTURBATIONS
from mooring.finetune.seeds import generator
from mooring.finetune.spec import MethodSpec, TaskSpec, TrainSpec, TrialSpec
from mooring.finetune.tasks.starts import load_task

TASK = TaskSpec(name="synthetic-spurious", starts=1)
# Given by the trial, or about several processes, or another batch for every pass.
NOT_IN_A_COMPARISON = {"base", "model", "seed", "norm", "fresh_batches", "per_rank"}


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_the_options_are_those_of_the_class(name: str) -> None:
    parameters = set(inspect.signature(getattr(mo, name)).parameters) - NOT_IN_A_COMPARISON
    assert set(PERTURBATIONS[name]) == parameters


@pytest.mark.parametrize(
    ("perturb", "count"),
    [
        ({"NSO": {"k": 3}}, 6),
        ({"NSO": {"k": 2, "two_point": False, "clean": 0.3}}, 3),
        ({"NSO": {"sigma": 0}}, 1),
        ({"NSO": {"clean": 1, "k": 4}}, 1),
        ({"RSAM": 0.1}, 2),
        ({"ASAM": {"rho": 0}}, 1),
        ("RSAM", 2),
        ({"RSAM": {"rho": 0}}, 1),
    ],
)
def test_gradients_are_counted_before_training_as_the_optimizer_counts_them(perturb: Any, count: int) -> None:
    spec = resolve({"optimizer": "torch.optim:SGD", "lr": 0.1, "perturb": perturb})
    built = build_optimizer(spec, MLP(4))
    assert spec.gradients_per_step == built.gradients_per_step == count  # type: ignore[attr-defined]


def test_ways_to_write_them() -> None:
    nso = METHODS["nso"].spec
    assert resolve("NSO") == nso
    assert resolve({"name": "nso", "k": 2, "lr": 0.5, "label": "two"}) == MethodSpec(
        label="two",
        optimizer="mooring:AdamW",
        options={**nso.options, "lr": 0.5},
        perturb={"NSO": {"sigma": 0.01, "k": 2}},
    )
    composed = resolve({"optimizer": "mooring:AdamP", "lr": 1e-3, "perturb": {"NSO": {"sigma": 0.02, "k": 2}}})
    assert composed.label == "AdamP+NSO"
    assert str(composed) == "NSO(mooring:AdamP(lr=0.001), sigma=0.02, k=2)"
    assert resolve({"name": "adamspd", "perturb": "NSO"}).label == "adamspd+NSO"
    assert resolve({"name": "sgd", "perturb": {"SAM": 0.1}}).perturb == {"SAM": {"rho": 0.1}}
    ruled = resolve({"name": "adam", "lr": 1e-2, "rules": ["RadialProjection"], "perturb": {"NSO": None}})
    assert ruled.label == "adam+RadialProjection+NSO"
    assert pipeline(build_optimizer(ruled, MLP(4)))[0] == "gradient of NSO(sigma=0.01; 2 gradients per step)"
    assert resolve(composed.model_dump()) == composed


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"name": "adamw", "perturb": "NSOO"}, r"unknown perturbation 'NSOO' \(did you mean 'NSO'\?\)"),
        ({"name": "adamw", "perturb": {"NSO": {"sigm": 1}}}, r"no option 'sigm' \(did you mean 'sigma'\?\)"),
        ({"name": "adamw", "perturb": {"SAM": {"model": 1}}}, "SAM has no option 'model'"),
        ({"name": "adamw", "perturb": {"SAM": {}, "NSO": {}}}, "one name"),
        ({"name": "adamw", "perturb": {"SAM": [1]}}, "options by name"),
        ({"name": "nso", "perturb": "SAM"}, "perturbs by itself"),
        ({"name": "sam", "rhoo": 1}, r"no option 'rhoo' \(did you mean 'rho'\?\)"),
        ({"name": "nso", "k": 0}, "k must be an integer >= 1, got 0"),
        ({"name": "nso", "k": "two"}, "k must be an integer >= 1, got 'two'"),
        ({"optimizer": "torch.optim:LBFGS", "perturb": "SAM"}, "needs a closure of its own"),
    ],
)
def test_a_wrong_one_says_what_is_wrong(request_: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        check_method(resolve(request_))


def test_the_perturbation_is_part_of_what_a_trial_is() -> None:
    def key(request: Any) -> str:
        return TrialSpec(method=resolve(request), task=TASK, seed=0).key()

    options = METHODS["adamw"].spec.options
    asked = [
        "adamw",
        "nso",
        {"name": "nso", "k": 2},
        {"name": "nso", "sigma": 0.1},
        "sam",
        {"optimizer": "mooring:AdamW", **options, "perturb": "SAM"},
    ]
    assert len({key(request) for request in asked}) == len(asked)
    assert key({"optimizer": "mooring:AdamW", **options, "perturb": {"SAM": 0.05}}) == key("sam")
    assert "perturb" not in METHODS["adamw"].spec.model_dump()  # keys of trials from before stay


def small(seed: int) -> tuple[nn.Module, Split]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    return model, Split(torch.randn(24, 5, dtype=torch.float64), torch.randint(3, (24,)))


def trained(request: Any, model: nn.Module, examples: Split, steps: int = 4) -> Progress:
    spec = TrialSpec(
        method=resolve(request),
        task=TASK,
        train=TrainSpec(steps=steps, batch_size=8, schedule="constant", warmup=0),
        seed=5,
    )
    optimizer = build_optimizer(spec.method, model, seed=spec.seed, steps=steps)
    return train(spec, load_task(TASK), model, optimizer, examples, lambda progress: None)


def test_the_loop_takes_sams_step() -> None:
    model, examples = small(0)
    naive, _ = small(0)
    progress = trained({"optimizer": "torch.optim:SGD", "lr": 0.2, "perturb": {"SAM": 0.3}}, model, examples)
    weights = list(naive.parameters())
    for rows in batches(24, 8, 4, generator("order", 5)):
        batch = examples.rows(rows)

        def gradients(batch: Split = batch) -> tuple[Tensor, ...]:
            return torch.autograd.grad(cross_entropy(naive(batch.inputs), batch.labels), weights)

        first = gradients()
        norm = torch.cat([g.flatten() for g in first]).norm()
        with torch.no_grad():
            before = [w.clone() for w in weights]
            for w, g in zip(weights, first, strict=True):
                w += 0.3 * g / norm
            with torch.enable_grad():
                second = gradients()
            for w, b, g in zip(weights, before, second, strict=True):
                w.copy_(b - 0.2 * g)
    assert progress.gradient_evaluations == 8
    for ours, theirs in zip(model.parameters(), weights, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_noise_belongs_to_the_trials_seed_and_the_loss_is_the_mean_over_passes() -> None:
    request = {"optimizer": "torch.optim:SGD", "lr": 0.2, "perturb": {"NSO": {"sigma": 0.3, "k": 2}}}
    model, examples = small(0)
    progress = trained(request, model, examples, steps=1)
    assert progress.gradient_evaluations == 4

    naive, _ = small(0)
    nso = mo.NSO(torch.optim.SGD(naive.named_parameters(), lr=0.2), sigma=0.3, k=2, seed=5)
    (rows,) = batches(24, 8, 1, generator("order", 5))
    batch = examples.rows(rows)
    losses = []
    for pass_ in nso.passes():
        with pass_:
            loss = cross_entropy(naive(batch.inputs), batch.labels)
            losses.append(loss.item())
            pass_.backward(loss)
    nso.step()
    assert progress.loss == pytest.approx(sum(losses) / 4, rel=1e-12)
    for ours, theirs in zip(model.parameters(), naive.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_running_statistics_see_the_true_weights_once_a_step_and_cost_no_gradient() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).double()
    first: Any = model[0]
    norm: Any = model[1]
    examples = small(0)[1]
    (rows,) = batches(24, 8, 1, generator("order", 5))
    expected = 0.1 * first(examples.rows(rows).inputs).mean(0).detach()
    progress = trained(
        {"optimizer": "torch.optim:SGD", "lr": 0.2, "perturb": {"NSO": {"sigma": 1.0}}}, model, examples, steps=1
    )
    assert progress.gradient_evaluations == 2
    assert norm.num_batches_tracked == 1
    torch.testing.assert_close(norm.running_mean, expected, rtol=1e-12, atol=1e-14)


def test_a_schedule_of_the_noise_runs_over_the_training() -> None:
    request = {"name": "nso", "schedule": "linear"}
    built: Any = build_optimizer(resolve(request), MLP(4), steps=70)
    assert built._config["schedule_steps"] == 70
    named: Any = build_optimizer(resolve({**request, "schedule_steps": 9}), MLP(4), steps=70)
    assert named._config["schedule_steps"] == 9
