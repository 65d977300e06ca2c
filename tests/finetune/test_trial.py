from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mooring.finetune.errors import SpecError, TrialError
from mooring.finetune.evaluate import predict
from mooring.finetune.files import write_json
from mooring.finetune.methods import METHODS, resolve
from mooring.finetune.metrics import load_predictions, summarize
from mooring.finetune.models import MLP, ConvNet
from mooring.finetune.pretrain import pretrain
from mooring.finetune.seeds import generator
from mooring.finetune.spec import TaskSpec, TrainSpec, TrialSpec
from mooring.finetune.tasks import TASKS, task_info, zero_shot
from mooring.finetune.tasks.printed import printed_digits
from mooring.finetune.tasks.starts import load_start
from mooring.finetune.trial import run_trial


def jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def with_method(spec: TrialSpec, request: Any) -> TrialSpec:
    return spec.model_copy(update={"method": resolve(request)})


def test_the_same_specification_gives_the_same_bits(short: TrialSpec, tmp_path: Path) -> None:
    run_trial(short, tmp_path / "a")
    torch.manual_seed(77)
    torch.rand(5)
    run_trial(short, tmp_path / "b")
    a, b = (load_predictions(tmp_path / name / "predictions.npz") for name in "ab")
    assert list(a) == list(b)
    assert all(np.array_equal(a[split].logits, b[split].logits) for split in a)
    other = short.model_copy(update={"seed": 5})
    run_trial(other, tmp_path / "c")
    assert not np.array_equal(
        a["retention"].logits, load_predictions(tmp_path / "c/predictions.npz")["retention"].logits
    )


def test_vision_trial_gives_the_same_bits(vision: TaskSpec, tmp_path: Path) -> None:
    spec = TrialSpec(method=resolve("adamspd"), task=vision, train=TrainSpec(steps=6), seed=1)
    for name in "ab":
        run_trial(spec, tmp_path / name)
    a, b = (load_predictions(tmp_path / name / "predictions.npz") for name in "ab")
    assert all(np.array_equal(a[split].logits, b[split].logits) for split in a)


def test_everything_promised_is_written(short: TrialSpec, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    final = run_trial(short, tmp_path, events.append)
    assert {path.name for path in tmp_path.iterdir()} == {
        "spec.json",
        "provenance.json",
        "metrics.jsonl",
        "layers.csv",
        "model.safetensors",
        "predictions.npz",
        "final.json",
    }
    assert TrialSpec.model_validate_json((tmp_path / "spec.json").read_text()) == short
    assert json.loads((tmp_path / "final.json").read_text()) == final
    assert all(math.isfinite(value) for value in final.values())
    rows = jsonl(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 5, 10, 12]
    assert rows[0]["drift/l2"] == 0 < rows[1]["drift/l2"]
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)
    assert rows[-1]["seconds"] == final["time/train_s"]
    evaluations = [event for event in events if event["event"] == "eval"]
    assert [{key: event[key] for key in row} for event, row in zip(evaluations, rows, strict=True)] == rows
    assert all(event["steps"] == 12 for event in events if event["event"] in ("step", "eval"))


def test_final_holds_the_promised_numbers(short: TrialSpec, vision: TaskSpec, tmp_path: Path) -> None:
    final = run_trial(short.model_copy(update={"task": vision}), tmp_path)
    splits = [
        "train",
        "id_val",
        "id",
        "retention",
        "ood",
        *(f"ood.{kind}" for kind in task_info(vision.name).ood_kinds),
    ]
    splits += [f"ood.{kind}.{s}" for kind in ("noise", "contrast", "shift", "occlusion") for s in (1, 2, 3)]
    expected = {f"{split}/{metric}" for split in splits for metric in ("accuracy", "nll", "ece")}
    expected |= {"train/loss", "drift/l2", "drift/relative", "time/train_s", "time/step_s", "time/step_update_s"}
    expected |= {"memory/peak_bytes", "memory/optimizer_state_bytes", "cost/gradient_evaluations", "start", "steps"}
    assert set(final) == expected
    assert final["cost/gradient_evaluations"] == final["steps"] == 12
    assert final["start"] == 1
    assert 0 < final["time/step_update_s"] < final["time/step_s"]


def test_metrics_are_recomputed_from_the_predictions(short: TrialSpec, tmp_path: Path) -> None:
    final = run_trial(short, tmp_path)
    recomputed = summarize(load_predictions(tmp_path / "predictions.npz"))
    assert recomputed == {name: final[name] for name in recomputed}
    last = jsonl(tmp_path / "metrics.jsonl")[-1]
    assert recomputed == {name: last[name] for name in recomputed}


def test_the_kept_weights_make_the_predictions(short: TrialSpec, tmp_path: Path) -> None:
    run_trial(short, tmp_path)
    start = load_start(short.task, short.seed)
    start.model.load_state_dict(load_file(tmp_path / "model.safetensors"))
    again = predict(start.task, start.model, {"id": start.data.evaluation["id"]})["id"]
    assert np.array_equal(again.logits, load_predictions(tmp_path / "predictions.npz")["id"].logits)


def test_drift_is_recomputed_from_the_layers(short: TrialSpec, tmp_path: Path) -> None:
    final = run_trial(short, tmp_path)
    with (tmp_path / "layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["name", "numel", "drift_l2", "drift_relative", "norm0", "drift_angle"]
    assert math.hypot(*(float(row["drift_l2"]) for row in rows)) == pytest.approx(final["drift/l2"], rel=1e-12)
    assert sum(int(row["numel"]) for row in rows) == sum(p.numel() for p in MLP(22).parameters())


@pytest.mark.parametrize("task", TASKS)
def test_the_evaluation_before_training_is_the_zero_shot_point(task: str, short: TrialSpec, tmp_path: Path) -> None:
    tiny = TaskSpec(name=task, starts=2, pretrain_steps=2, pretrain_examples=200)
    spec = short.model_copy(update={"task": tiny, "train": TrainSpec(steps=1)})
    run_trial(spec, tmp_path)
    before = jsonl(tmp_path / "metrics.jsonl")[0]
    point = zero_shot(spec.task, spec.seed)
    assert point == {name: before[name] for name in point}


def test_methods_are_paired(short: TrialSpec, tmp_path: Path) -> None:
    run_trial(short, tmp_path / "a")
    run_trial(with_method(short, "torch.optim:SGD"), tmp_path / "b")
    a, b = (jsonl(tmp_path / name / "metrics.jsonl")[0] for name in "ab")
    measured = [name for name in a if "/" in name]
    assert [a[name] for name in measured] == [b[name] for name in measured]


@pytest.mark.parametrize("name", METHODS)
def test_every_built_in_method_learns_the_synthetic_task(name: str, spurious: TaskSpec, tmp_path: Path) -> None:
    spec = TrialSpec(method=METHODS[name].spec, task=spurious, train=TrainSpec(steps=100, eval_every=100), seed=0)
    final = run_trial(spec, tmp_path)
    before = zero_shot(spurious, 0)
    assert final["id/accuracy"] > before["id/accuracy"] + 0.05
    assert final["ood.anti/accuracy"] < before["ood.anti/accuracy"] - 0.05
    assert final["drift/l2"] > 0


@pytest.mark.parametrize("name", METHODS)
def test_every_built_in_method_runs_on_the_vision_task(name: str, vision: TaskSpec, tmp_path: Path) -> None:
    spec = TrialSpec(method=METHODS[name].spec, task=vision, train=TrainSpec(steps=5, eval_every=5), seed=0)
    assert run_trial(spec, tmp_path)["drift/l2"] > 0


def test_an_optimizer_that_needs_a_closure_is_charged_for_every_gradient(short: TrialSpec, tmp_path: Path) -> None:
    final = run_trial(with_method(short, {"name": "torch.optim:LBFGS", "lr": 0.1, "max_iter": 3}), tmp_path)
    assert final["cost/gradient_evaluations"] > 2 * final["steps"]


def test_a_diverging_trial_says_where_and_is_not_finished(short: TrialSpec, tmp_path: Path) -> None:
    run_trial(short, tmp_path)
    wild = with_method(short, {"name": "torch.optim:SGD", "lr": 1e30, "label": "wild"})
    with pytest.raises(TrialError, match=r"'wild' diverged: .* step \d+ of 12, learning rate [\d.e+]+; a lower lr"):
        run_trial(wild, tmp_path)
    assert not (tmp_path / "final.json").exists()


def test_an_optimizer_that_raises_says_where(short: TrialSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raising_module.py").write_text(
        "import torch\n"
        "class Raising(torch.optim.SGD):\n"
        "    def step(self, closure=None):\n"
        "        raise KeyError('moment')\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrialError, match=r"method 'Raising': the step of .* raised at step 1: KeyError: 'moment'"):
        run_trial(with_method(short, "raising_module:Raising"), tmp_path / "trial")


@pytest.mark.parametrize(("device", "says"), [("toaster", "cannot be used here"), ("meta", "on 'cpu' or 'cuda'")])
def test_a_device_that_cannot_be_used_is_a_wrong_request(
    device: str, says: str, short: TrialSpec, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=f"device '{device}'.*{says}"):
        run_trial(short.model_copy(update={"device": device}), tmp_path)


def test_json_refuses_what_json_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"a": math.nan})


def test_the_spurious_feature_costs_fine_tuning_its_robustness(spurious: TaskSpec, tmp_path: Path) -> None:
    spec = TrialSpec(method=resolve({"name": "adamw", "lr": 1e-3}), task=spurious, seed=0)
    final, before = run_trial(spec, tmp_path), zero_shot(spurious, 0)
    assert before["id/accuracy"] == pytest.approx(before["ood.anti/accuracy"], abs=0.06)
    assert final["id/accuracy"] > 0.9
    assert final["ood.anti/accuracy"] < before["ood.anti/accuracy"] - 0.15


def test_printed_digits_teach_handwriting() -> None:
    """A shortened pretraining already reads most held-out print, and much handwriting it has never seen."""
    torch.manual_seed(0)
    model = ConvNet()
    assert 130_000 < sum(parameter.numel() for parameter in model.parameters()) < 150_000
    start = load_start(TaskSpec(starts=1, pretrain_steps=1, pretrain_examples=100), 0)
    source = printed_digits(3000, generator("short"))
    pretrain(start.task, model, source, 80, 3e-3, generator("order"), lambda event: None)
    evaluation = start.data.evaluation
    with torch.no_grad():
        accuracy = {
            name: (model(evaluation[name].inputs).argmax(1) == evaluation[name].labels).float().mean().item()
            for name in ("retention", "id", "ood.later_rows")
        }
    assert accuracy["retention"] > 0.9
    assert accuracy["ood.later_rows"] > 0.4
