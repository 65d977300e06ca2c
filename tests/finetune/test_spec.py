from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from mooring.finetune.methods import resolve
from mooring.finetune.spec import MethodSpec, TaskSpec, TrainSpec, TrialSpec
from mooring.finetune.tasks import TASKS


def test_specifications_and_registries_import_no_torch() -> None:
    code = (
        "import sys, mooring.finetune.spec, mooring.finetune.methods, mooring.finetune.tasks;"
        "print(sorted(set(sys.modules) & {'torch', 'numpy', 'kornia', 'sklearn', 'matplotlib'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_task_defaults_are_resolved_so_that_a_saved_specification_is_complete() -> None:
    for name, info in TASKS.items():
        spec = TaskSpec(name=name)
        assert (spec.pretrain_steps, spec.pretrain_examples) == (info.pretrain_steps, info.pretrain_examples)
        assert TaskSpec(name=name, pretrain_steps=7).pretrain_steps == 7


def test_unknown_task_is_an_error_that_suggests() -> None:
    with pytest.raises(
        ValidationError, match=r"unknown task 'vision-font2digits' \(did you mean 'vision-fonts2digits'"
    ):
        TaskSpec(name="vision-font2digits")


@pytest.mark.parametrize("spec", [TaskSpec, TrainSpec])
def test_unknown_keys_are_errors(spec: type) -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        spec(stepps=3)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 0.9), (7, 0.5), (300, 0.1)])
def test_learning_rate_rises_then_falls_and_is_never_zero(schedule: str, steps: int, warmup: float) -> None:
    spec = TrainSpec(steps=steps, schedule=schedule, warmup=warmup)
    factors = [spec.lr_factor(step) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    top = max(range(steps), key=factors.__getitem__)
    assert factors[top] == 1
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert (schedule == "constant") or steps < 10 or factors[-1] < 0.02


def test_key_holds_what_determines_the_result_and_not_the_label() -> None:
    spec = TrialSpec(method=resolve("adamw"), seed=1)
    assert spec.key() == TrialSpec.model_validate_json(spec.model_dump_json()).key()
    relabelled = spec.model_copy(update={"method": spec.method.model_copy(update={"label": "other"})})
    assert relabelled.key() == spec.key()
    changes = {
        "method": resolve({"name": "adamw", "lr": 0.5}),
        "task": TaskSpec(data_seed=1),
        "train": TrainSpec(steps=299),
        "seed": 2,
        "threads": 2,
        "device": "cuda",
    }
    keys = {spec.model_copy(update={name: value}).key() for name, value in changes.items()}
    assert len(keys | {spec.key()}) == len(changes) + 1


def test_start_is_the_seed_modulo_the_starts() -> None:
    starts = [TrialSpec(method=resolve("adamw"), task=TaskSpec(starts=3), seed=seed).start for seed in range(5)]
    assert starts == [0, 1, 2, 0, 1]


@pytest.mark.parametrize("options", [{"lr": float("nan")}, {"lr": object()}])
def test_options_are_plain_data(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="plain numbers"):
        MethodSpec(label="x", optimizer="torch.optim:AdamW", options=options)
