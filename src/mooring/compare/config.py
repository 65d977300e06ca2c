"""What one comparison is: the YAML file, the command line's overrides, and the errors that help to correct them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mooring.finetune.errors import SpecError, suggestion
from mooring.finetune.methods import resolve
from mooring.finetune.spec import MethodSpec, TrainSpec, TrialSpec
from mooring.finetune.task_spec import SPECS, AnyTask, OwnTaskSpec, TaskSpec

DEFAULT_METHODS = ("adamw", "sgd", "adamp", "adams", "adamspd")
DEFAULT_SEEDS = 10
DEFAULT_BASELINE = "adamw"
ZERO_SHOT = "zero-shot"  # the row of the untouched start in tables and CSV files; no method may be called so

QUICK: dict[str, dict[str, Any]] = {
    "task": {"starts": 1},
    "train": {"steps": 100, "eval_every": 20, "epochs": 0},
    "compare": {"seeds": 3},
}
"""What ``--quick`` changes: enough to see everything work in under a minute, too few seeds to resolve anything."""


class ConfigError(Exception):
    """The request is wrong; the message is one sentence that says what would be right."""


class _Section(BaseModel):
    # Unknown keys are errors: a misspelt option that is silently ignored would make a comparison wrong.
    model_config = ConfigDict(extra="forbid", frozen=True)


class CompareSpec(_Section):
    """Which methods, over which seeds, against which baseline.

    Attributes:
        methods: Names of built-in methods, ``module:Class``, or mappings (``{name: adamp, lr: 1e-3, label: slow}``),
            recipes among them: ``{name: adam, lr: 1e-3, rules: [RadialProjection, {StableDecay: 5e-4}]}``, and
            gradients at moved weights: ``{name: adamp, perturb: {NSO: {sigma: 0.01, k: 2}}}``.
        seeds: A number (that many, from 0), a list, or text such as ``"0,3,7"`` or ``"10-19"``.
        baseline: The label of the method that the others are compared to; ``adamw`` if it runs, else the first.
        budget: What all methods get alike. ``steps``: ``train.steps`` optimizer steps, whatever each costs.
            ``gradients``: as many gradient evaluations as that, so a method of two gradients per step takes half the
            steps, with the learning rate's schedule over these.
        device: Where every trial runs: ``cpu``, ``cuda``, ``cuda:1``.
        threads: torch's threads in every trial.
    """

    methods: tuple[MethodSpec, ...] = Field(default=DEFAULT_METHODS, validate_default=True)
    seeds: tuple[int, ...] = Field(default=DEFAULT_SEEDS, validate_default=True)
    baseline: str = ""
    budget: Literal["steps", "gradients"] = "steps"
    device: str = Field(default="cpu", pattern=r"cpu|cuda(:\d+)?")
    threads: int = Field(default=1, ge=1)

    @field_validator("methods", mode="before")
    @classmethod
    def _resolve_methods(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = split_methods(value)
        if not isinstance(value, (list, tuple)) or not value:
            raise ValueError(f"must be a list of at least one method, not {value!r}")
        return tuple(resolve(item) for item in value)

    @field_validator("methods")
    @classmethod
    def _labels_differ(cls, value: tuple[MethodSpec, ...]) -> tuple[MethodSpec, ...]:
        seen: dict[str, str] = {}
        for method in value:
            slug = slug_of(method.label)
            if slug == ZERO_SHOT:
                raise ValueError(f"the label {method.label!r} is kept for the untouched start; give another label")
            if slug in seen:
                raise ValueError(
                    f"two methods are called {seen[slug]!r} and {method.label!r}; give one of them a label of its own, "
                    f"as in {{name: {method.label}, label: {method.label}-2, lr: 0.001}}"
                )
            seen[slug] = method.label
        return value

    @field_validator("seeds", mode="before")
    @classmethod
    def _read_seeds(cls, value: Any) -> Any:
        return read_seeds(value)

    @model_validator(mode="after")
    def _baseline_is_run(self) -> CompareSpec:
        labels = [method.label for method in self.methods]
        if not self.baseline:
            found = DEFAULT_BASELINE if DEFAULT_BASELINE in labels else labels[0]
            object.__setattr__(self, "baseline", found)
        elif self.baseline not in labels:
            raise ValueError(
                f"the baseline {self.baseline!r} is not among the methods {', '.join(labels)}"
                f"{suggestion(self.baseline, labels)}; add it to the methods or choose one of them"
            )
        return self


class RunConfig(_Section):
    """Everything that determines the results of one comparison."""

    sections: ClassVar[dict[str, type[BaseModel]]] = {"task": TaskSpec, "train": TrainSpec, "compare": CompareSpec}

    task: AnyTask = Field(default_factory=lambda: TaskSpec.model_validate({}))
    train: TrainSpec = Field(default_factory=TrainSpec)
    compare: CompareSpec = Field(default_factory=CompareSpec)

    @property
    def labels(self) -> tuple[str, ...]:
        """The methods' labels, in order."""
        return tuple(method.label for method in self.compare.methods)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, in order."""
        return self.compare.seeds

    @property
    def baseline(self) -> str:
        """The label of the baseline."""
        return self.compare.baseline

    def train_of(self, method: MethodSpec) -> TrainSpec:
        """How one method trains: as all do, or with the steps that the budget of gradients leaves it."""
        equal_steps = self.compare.budget == "steps" or method.gradients_per_step == 1
        return self.train if equal_steps else self.train.with_budget_of(method.gradients_per_step)

    def trial(self, method: MethodSpec, seed: int) -> TrialSpec:
        """One method and one seed."""
        return TrialSpec(
            method=method,
            task=self.task,
            train=self.train_of(method),
            seed=seed,
            threads=self.compare.threads,
            device=self.compare.device,
        )

    def trials(self) -> list[TrialSpec]:
        """Every trial of the grid: all methods of the first seed, then of the next, so that pairs finish together."""
        return [self.trial(method, seed) for seed in self.seeds for method in self.compare.methods]

    def identified(self) -> RunConfig:
        """The same comparison with what its data and model say: their hashes, and the steps that ``epochs`` means.

        An embedded task's stays as it is.

        Raises:
            SpecError: Data or model are not there, or not laid out as the task expects.
            ConfigError: ``epochs`` with an embedded task, which has no passes to count.
        """
        if not isinstance(self.task, OwnTaskSpec):
            if self.train.epochs:
                raise ConfigError("train.epochs is for tasks on your own data; an embedded task takes train.steps")
            return self
        from mooring.finetune.own.identify import identify

        task, examples = identify(self.task)
        if self.train.epochs and not examples:
            raise ConfigError("train.epochs: the tokens of a tokenizer are not counted beforehand; give train.steps")
        return self.model_copy(update={"task": task, "train": self.train.for_examples(examples)})

    def to_yaml(self) -> str:
        """The resolved configuration as YAML that ``mooring compare`` reads back to the same configuration."""
        return yaml.safe_dump(
            self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, default_flow_style=None, width=110
        )


def slug_of(label: str) -> str:
    """A label as a folder name."""
    return re.sub(r"[^a-z0-9._+=-]+", "-", label.lower()).strip("-.") or "method"


def split_methods(text: str) -> list[Any]:
    """``"adamw,adamp[lr=1e-3,label=slow],recipe.yaml"`` as the list a YAML file would hold.

    Options stand in brackets. A YAML file holds one method, or a list of them.

    Raises:
        ValueError: Something cannot be read.
    """
    found: list[Any] = []
    for item in re.findall(r"[^,\[\]]+(?:\[[^\]]*\])?|[\[\]]", text):
        name, bracket, inside = item.strip().partition("[")
        if not name:
            if bracket:
                raise ValueError(f"cannot read the methods {text!r}: write options as name[lr=0.001,weight_decay=0]")
            continue
        if name.endswith((".yaml", ".yml")):
            found += _methods_in(Path(name), bracket)
            continue
        if not bracket:
            found.append(name)
            continue
        options: dict[str, Any] = {"optimizer" if ":" in name else "name": name}
        for pair in inside.removesuffix("]").split(","):
            key, equals, value = pair.partition("=")
            if not equals or not key.strip():
                raise ValueError(f"cannot read the option {pair.strip()!r} of method {name!r}: write name[lr=0.001]")
            options[key.strip()] = yaml.load(value, _Loader)
        found.append(options)
    if not found:
        raise ValueError(f"no method in {text!r}; write names separated by commas, as in adamw,adamp")
    return found


def _methods_in(path: Path, bracket: str) -> list[Any]:
    if bracket:
        raise ValueError(f"{str(path)!r}: options in brackets go with a name; write them in the file")
    try:
        content = load_yaml(path)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    methods = content if isinstance(content, list) else [content]
    for method in methods:
        if not isinstance(method, (str, dict)):
            raise ValueError(f"{str(path)!r} must hold a method or a list of methods, not {method!r}")
        if isinstance(method, dict) and set(method) & set(RunConfig.sections):
            raise ValueError(
                f"{str(path)!r} is a whole configuration; a file among the methods holds methods alone, "
                f"and this one is read by: mooring compare {path}"
            )
    if not methods:
        raise ValueError(f"{str(path)!r} holds no method")
    return methods


def read_seeds(value: Any) -> tuple[int, ...]:
    """Seeds from a number (that many, from 0), a list, or text: ``"10"``, ``"0,3,7"``, ``"10-19"``, ``"5,"``."""
    help_text = "write a number of seeds (10), a list (0,3,7) or a range (10-19)"
    if isinstance(value, bool) or not isinstance(value, (int, str, list, tuple)):
        raise ValueError(f"cannot read the seeds {value!r}: {help_text}")
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",")]
        if len(parts) == 1 and parts[0].isdecimal():
            return read_seeds(int(parts[0]))
        found: list[int] = []
        for part in parts:
            match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
            if match:
                found.extend(range(int(match[1]), int(match[2] or match[1]) + 1))
            elif part:
                raise ValueError(f"cannot read the seeds {value!r}: {help_text}")
        value = found
    if isinstance(value, int):
        if value < 1:
            raise ValueError(f"seeds must be at least 1, got {value}")
        return tuple(range(value))
    if not value or any(isinstance(seed, bool) or not isinstance(seed, int) or seed < 0 for seed in value):
        raise ValueError(f"cannot read the seeds {value!r}: {help_text}, all of them 0 or more")
    return tuple(dict.fromkeys(value))


class _Loader(yaml.SafeLoader):
    """Safe YAML with the floats of YAML 1.2, and without duplicate keys.

    PyYAML's own reader takes ``5e-3`` for text, which is how everybody writes a learning rate.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for index, key in enumerate(keys) if key in keys[:index]]
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice[0]!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: There is no such file, it is not YAML, or not a mapping.
    """
    data = load_yaml(path)
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{str(path)!r} must hold the sections task, train and compare, not {type(data).__name__}")
    return data


def load_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        ConfigError: There is no such file, or it is not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = suggestion(path.name, (p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else ())
        raise ConfigError(f"there is no file {str(path)!r}{near}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {str(path)!r}: {error}") from None
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{str(path)!r}{place} is not valid YAML: {getattr(error, 'problem', error)}") from None


def build_config(*layers: Mapping[str, Any], source: str = "") -> RunConfig:
    """Merge mappings (later ones win, section by section) and check the result.

    Args:
        layers: Mappings with the sections ``task``, ``train`` and ``compare``; ``task: name`` may be text.
        source: The file's name, put in front of messages.

    Raises:
        ConfigError: With one line for every problem.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for section, content in layer.items():
            if section == "task" and isinstance(content, str):
                content = {"name": content}
            if isinstance(content, Mapping) and isinstance(merged.get(section), dict):
                merged[section] = {**merged[section], **content}
            else:
                merged[section] = dict(content) if isinstance(content, Mapping) else content
    try:
        return RunConfig.model_validate({key: {} if value is None else value for key, value in merged.items()})
    except SpecError as error:
        raise ConfigError(f"{source}: {error}" if source else str(error)) from None
    except ValidationError as error:
        lines = list(dict.fromkeys(_explain(problem) for problem in error.errors()))
        raise ConfigError("\n".join(f"{source}: {line}" if source else line for line in lines)) from None


def _explain(problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    kind: type[BaseModel] | None = None
    if location[0] == "task" and len(location) > 1 and location[1] in SPECS:
        kind = SPECS[location.pop(1)]  # which description was asked for: no key of the file
    path = ".".join(location)
    if problem["type"] == "extra_forbidden":
        section = (kind or RunConfig.sections.get(location[0])) if len(location) > 1 else RunConfig
        for name in location[1:-1]:
            field = section.model_fields.get(name) if section else None
            section = _described(field.annotation) if field else None
        known = [name for name, field in section.model_fields.items() if not field.exclude] if section else []
        return f"unknown key {path!r}{suggestion(location[-1], known)}; the keys there are {', '.join(known)}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error":
        # Our own messages name the value; the task's and the baseline's name the key as well.
        return f"{path}: {message}" if len(location) > 1 else message
    if problem["type"] == "model_type":
        section = kind or RunConfig.sections[location[0]]
        return f"{path} should hold the keys {', '.join(section.model_fields)}, got {problem['input']!r}"
    message = message.removeprefix("Input should be ")
    return f"{path} should be {message}, got {problem['input']!r}"


def _described(annotation: Any) -> type[BaseModel] | None:
    """The description that a field holds, perhaps beside None."""
    found = [one for one in (annotation, *get_args(annotation)) if isinstance(one, type) and issubclass(one, BaseModel)]
    return found[0] if found else None
