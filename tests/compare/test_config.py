"""What a user may write, and what is said when it is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mooring.compare.config import ConfigError, build_config, read_seeds, read_yaml, slug_of, split_methods


def test_defaults() -> None:
    config = build_config({})
    assert config.task.name == "vision-fonts2digits"
    assert config.labels == ("adamw", "sgd", "adamp", "adams", "adamspd")
    assert config.seeds == tuple(range(10))
    assert config.baseline == "adamw"
    assert len(config.trials()) == 50
    assert len({trial.key() for trial in config.trials()}) == 50


def test_the_resolved_file_reads_back_to_the_same_configuration(tmp_path: Path) -> None:
    config = build_config(
        {
            "task": "synthetic-spurious",
            "train": {"steps": 7, "warmup": 1e-3},
            "compare": {
                "methods": ["adamp", {"name": "adamw", "lr": 1e-5, "label": "slow"}, "torch.optim:NAdam"],
                "seeds": [3, 5],
                "baseline": "slow",
            },
        }
    )
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert build_config(read_yaml(path)) == config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"tran": {}}, "unknown key 'tran' (did you mean 'train'?); the keys there are task, train, compare"),
        ({"train": {"stepz": 3}}, "unknown key 'train.stepz' (did you mean 'steps'?)"),
        ({"task": {"startz": 3}}, "unknown key 'task.startz' (did you mean 'starts'?)"),
        ({"compare": {"seed": 3}}, "unknown key 'compare.seed' (did you mean 'seeds'?)"),
        ({"train": {"steps": 0}}, "train.steps should be greater than or equal to 1, got 0"),
        ({"train": {"schedule": "cosin"}}, "train.schedule should be 'cosine'"),
        ({"train": 5}, "train should hold the keys steps, batch_size"),
        ({"task": "fonts"}, "unknown task 'fonts'"),
        ({"task": "synthetic-spurius"}, "did you mean 'synthetic-spurious'?"),
        ({"compare": {"methods": "adamv"}}, "did you mean 'adamw'?"),
        ({"compare": {"methods": []}}, "compare.methods: must be a list of at least one method, not []"),
        ({"compare": {"methods": 3}}, "must be a list of at least one method, not 3"),
        ({"compare": {"methods": "adamw,adamw"}}, "two methods are called 'adamw' and 'adamw'"),
        ({"compare": {"methods": "adamw,adamp[lr]"}}, "write name[lr=0.001]"),
        ({"compare": {"methods": "adamw[label=zero-shot]"}}, "is kept for the untouched start"),
        ({"compare": {"methods": "adamp", "baseline": "adamw"}}, "add it to the methods or choose one of them"),
        ({"compare": {"seeds": "few"}}, "write a number of seeds (10), a list (0,3,7) or a range (10-19)"),
        ({"compare": {"seeds": 0}}, "seeds must be at least 1, got 0"),
        ({"compare": {"seeds": [-1]}}, "all of them 0 or more"),
        ({"compare": {"seeds": [1.5]}}, "cannot read the seeds"),
    ],
)
def test_what_is_wrong_is_named_and_what_would_be_right_is_suggested(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(content, source="run.yaml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("run.yaml: ")
    assert "\n" not in str(caught.value)


def test_every_problem_has_its_line() -> None:
    with pytest.raises(ConfigError) as caught:
        build_config({"train": {"stepz": 3, "batch_size": "many"}})
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("value", "seeds"),
    [
        (3, (0, 1, 2)), ("3", (0, 1, 2)), ("0,3,7", (0, 3, 7)), ("5,", (5,)), ("10-12", (10, 11, 12)),
        ([4, 2, 4], (4, 2)), ("1, 4-5", (1, 4, 5)),
    ],
)  # fmt: skip
def test_seeds(value: Any, seeds: tuple[int, ...]) -> None:
    assert read_seeds(value) == seeds


def test_methods_with_options_on_the_command_line() -> None:
    assert split_methods("adamw, torch.optim:NAdam[lr=2e-3,label=n], adamp[nesterov=true,betas=0.8]") == [
        "adamw",
        {"optimizer": "torch.optim:NAdam", "lr": 2e-3, "label": "n"},
        {"name": "adamp", "nesterov": True, "betas": 0.8},
    ]


def test_yaml_takes_learning_rates_as_people_write_them(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("compare: {methods: [{name: adamw, lr: 5e-3, weight_decay: 1E-2, eps: 1.e-8}]}\n")
    options = build_config(read_yaml(path)).compare.methods[0].options
    assert (options["lr"], options["weight_decay"], options["eps"]) == (5e-3, 1e-2, 1e-8)
    assert yaml.safe_load("5e-3") == "5e-3"  # the reason for a loader of our own


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [", "line 1 is not valid YAML"),
        ("train: {steps: 1}\ntrain: {steps: 2}", "the key 'train' is given twice"),
        ("- train", "must hold the sections task, train and compare, not list"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_yaml(path)


def test_a_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "compare.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"there is no file .*did you mean 'compare.yaml'"):
        read_yaml(tmp_path / "compar.yaml")
    assert read_yaml(tmp_path / "compare.yaml") == {}


def test_later_layers_win_key_by_key() -> None:
    config = build_config({"train": {"steps": 5, "batch_size": 8}}, {"train": {"steps": 6}}, {"task": None})
    assert (config.train.steps, config.train.batch_size) == (6, 8)


def test_the_baseline_is_adamw_if_it_runs_and_the_first_method_otherwise() -> None:
    assert build_config({"compare": {"methods": "sgd,adamw"}}).baseline == "adamw"
    assert build_config({"compare": {"methods": "sgd,sgdp"}}).baseline == "sgd"


def test_labels_become_folder_names() -> None:
    assert slug_of("AdamW lr=5e-3/β") == "adamw-lr=5e-3"
    assert slug_of("../../etc") == "etc"
    assert slug_of("…") == "method"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("missing.yaml", None, "there is no file 'missing.yaml'"),
        ("whole.yaml", "compare: {seeds: 3}", "is a whole configuration; a file among the methods holds methods alone"),
        ("empty.yaml", "", "must hold a method or a list of methods, not None"),
        ("none.yaml", "[]", "holds no method"),
        ("number.yml", "[3]", "must hold a method or a list of methods, not 3"),
        ("bad.yaml", "rules: [", "is not valid YAML"),
        ("fine.yaml[lr=1]", None, "options in brackets go with a name; write them in the file"),
        ("rule.yaml", "{name: adam, rules: [TrustRation]}", "unknown rule 'TrustRation' (did you mean 'TrustRatio'?)"),
    ],
)
def test_a_bad_file_among_the_methods(
    name: str, text: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path(name).write_text(text)
    with pytest.raises(ConfigError) as caught:
        build_config({"compare": {"methods": f"adamw,{name}"}})
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_recipes_read_back_from_the_resolved_file(tmp_path: Path) -> None:
    rules = ["RadialProjection", {"StableDecay": {"weight_decay": 5e-4, "toward": "anchor"}}]
    methods = [
        "adamw",
        {"name": "adam", "lr": 1e-3, "label": "mine", "rules": rules},
        {"wrap": "torch.optim:NAdam", "rules": [{"SelectiveProjection": 1.0}]},
    ]
    config = build_config({"compare": {"methods": methods}})
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert build_config(read_yaml(path)) == config
    assert config.labels == ("adamw", "mine", "NAdam+SelectiveProjection")
    assert len({trial.key() for trial in config.trials()}) == 30
