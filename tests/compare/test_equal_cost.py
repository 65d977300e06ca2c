"""Views at equal cost: what is read where, and which training the budget of gradients gives."""

from __future__ import annotations

import json

import pytest

from mooring.compare import metrics
from mooring.compare.config import ConfigError, build_config
from mooring.compare.equal_cost import AtEqualCost, Cost, views
from mooring.compare.repeat import command_for
from mooring.compare.report import write_report
from mooring.compare.request import Request, resolve_request
from mooring.compare.results import Results
from mooring.compare.store import RunFolder
from mooring.compare.summary import summary

from .conftest import MakeRun
from .page import read_page

METHODS = ["adamw", "sgd", {"name": "nso", "k": 2}, "sam"]
PER_STEP = {"adamw": 1, "sgd": 1, "nso": 4, "sam": 2}


@pytest.fixture
def folder(make_run: MakeRun) -> RunFolder:
    """Made-up trials of 40 steps, evaluated every 10, whose methods differ in gradients and in seconds."""
    made = make_run(methods=METHODS, seeds=6)
    for seed in range(6):
        for label, count in PER_STEP.items():
            trial = made.trial_folder(label, seed)
            rows = [json.loads(line) for line in (trial / "metrics.jsonl").read_text().splitlines()]
            for row in rows:
                row |= {"gradients": count * row["step"], "seconds": count * row["step"] * (1.5 if seed else 0.5)}
            (trial / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            final = json.loads((trial / "final.json").read_text())
            final |= {"cost/gradient_evaluations": 40 * count, "time/train_s": rows[-1]["seconds"]}
            (trial / "final.json").write_text(json.dumps(final))
    return made


@pytest.mark.parametrize("cost", ["gradients", "seconds"])
@pytest.mark.parametrize(("baseline", "expected"), [("adamw", (40, 40, 10, 20)), ("sam", (40, 40, 20, 40))])
def test_every_method_is_read_at_its_last_evaluation_within_the_baselines_cost(
    folder: RunFolder, cost: Cost, baseline: str, expected: tuple[int, ...]
) -> None:
    content = folder.stored_config().model_dump(mode="json")
    content["compare"]["baseline"] = baseline
    results = Results(folder, build_config(content))
    view = AtEqualCost(results, cost)
    assert view.values(metrics.STEPS) == {
        label: dict.fromkeys(range(6), step) for label, step in zip(PER_STEP, expected, strict=True)
    }
    found = view.values(metrics.OOD)
    for label, step in zip(PER_STEP, expected, strict=True):
        for seed in range(6):
            lines = (folder.trial_folder(label, seed) / "metrics.jsonl").read_text().splitlines()
            (row,) = [row for row in map(json.loads, lines) if row["step"] == step]
            assert found[label][seed] == row["ood/accuracy"]


def test_the_report_shows_both_views_and_the_ratios(folder: RunFolder) -> None:
    results = Results(folder)
    assert [view.cost for view in views(results)] == ["gradients", "seconds"]
    page = read_page(write_report(results))
    for cost, ratio in (("gradients", "×0.25"), ("seconds", "×0.25")):
        rows = {row.find("th").text: row.text for row in page.by_id(f"equal-{cost}").find_all("tr")[1:]}
        (of_nso,) = [text for label, text in rows.items() if label.startswith("nso")]
        assert of_nso.endswith(f"10 {ratio}")
    cost_rows = [row.text for row in page.by_id("cost").find_all("tr")]
    assert any("160 ×4.00" in text for text in cost_rows)
    fairness = page.by_id("fairness").text
    assert "not the same number of gradient evaluations" in fairness
    assert "Not so sam:" in fairness  # its options are the defaults, and these were not tuned
    assert (folder.path / "plots" / "curve_ood_gradients.png").is_file()
    found = summary(results)
    assert found["equal_cost"]["gradients"]["nso"]["steps"] == "10"
    assert "cost/gradient_evaluations" not in found["methods"]["nso"]["differences"]
    assert found["methods"]["nso"]["metrics"]["cost/gradient_evaluations"]["mean"] == 160


def test_without_a_difference_in_gradients_there_is_no_view_of_them(make_run: MakeRun) -> None:
    results = Results(make_run(methods="adamw,sgd", seeds=3))
    assert [view.cost for view in views(results)] == ["seconds"]
    assert views(Results(make_run("one", methods="adamw", seeds=3))) == []
    assert views(Results(make_run("none", methods="adamw,sgd", seeds=1, missing=[("adamw", 0)]))) == []


def test_a_folder_from_before_gradients_were_recorded_is_read(make_run: MakeRun) -> None:
    changes = {("sam", seed): {"cost/gradient_evaluations": 80} for seed in range(3)}
    results = Results(make_run(methods="adamw,sam", seeds=3, changes=changes))
    found = AtEqualCost(results, "gradients").values(metrics.STEPS)
    assert found == {"adamw": dict.fromkeys(range(3), 40), "sam": dict.fromkeys(range(3), 20)}


def test_a_budget_of_gradients_divides_the_steps_and_keeps_the_schedule_whole() -> None:
    config = build_config({"train": {"steps": 300}, "compare": {"methods": METHODS, "seeds": 1, "budget": "gradients"}})
    trains = {spec.method.label: spec.train for spec in config.trials()}
    assert {label: train.steps for label, train in trains.items()} == {"adamw": 300, "sgd": 300, "nso": 75, "sam": 150}
    assert trains["adamw"] == config.train
    assert trains["sam"].eval_every == 15
    for train in trains.values():
        factors = [train.lr_factor(step) for step in range(train.steps)]
        assert max(factors) == 1.0
        assert factors[-1] < 0.001
        assert abs(factors.index(1.0) / train.steps - 0.1) < 0.02
    equal = build_config({"train": {"steps": 300}, "compare": {"methods": METHODS, "seeds": 1}})
    assert all(spec.train == equal.train for spec in equal.trials())
    # What does not depend on the budget is the same trial.
    keys = [{spec.method.label: spec.key() for spec in found.trials()} for found in (config, equal)]
    assert [label for label in PER_STEP if keys[0][label] == keys[1][label]] == ["adamw", "sgd"]


def test_a_folder_keeps_its_budget(make_run: MakeRun) -> None:
    folder = make_run(methods="adamw,sam", seeds=2, config={"compare": {"methods": "adamw,sam", "budget": "gradients"}})
    asked = resolve_request(Request(output_dir=folder.path, seeds="4"))
    with folder:
        assert folder.open(asked, {}).config.compare.budget == "gradients"
        with pytest.raises(ConfigError, match=r"compare\.budget is 'gradients' there, 'steps' asked"):
            folder.open(resolve_request(Request(output_dir=folder.path, budget="steps")), {})


@pytest.mark.parametrize("methods", ["adamw,nso", "adamw,nso[k=2,label=two]", "adamw,sam[rho=0.1,lr=0.002,label=wide]"])
def test_the_command_names_budget_and_perturbation(methods: str) -> None:
    config = resolve_request(Request(methods=methods, budget="gradients"))
    command = command_for(config)
    assert command.startswith("mooring compare --methods ")
    words = command.split()
    assert resolve_request(Request(methods=words[3].strip("'"), budget=words[words.index("--budget") + 1])) == config
