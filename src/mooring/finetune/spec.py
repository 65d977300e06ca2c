"""What a trial is, as data: everything that determines its result and nothing else. No torch here."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from mooring import _RULES as RULES
from mooring.finetune import perturbations
from mooring.finetune.errors import suggestion
from mooring.finetune.task_spec import AnyTask, Spec
from mooring.finetune.task_spec import TaskSpec as TaskSpec  # a part of a trial, asked for here

RESULT_VERSION = 1
"""Part of every trial's key. Raise it when a change to this package changes what a trial computes, so that a folder
of finished trials is never continued with trials that mean something else."""
PERTURBED_VERSIONS = {"NSO": 2, "RSAM": 2}
"""The same for trials with these perturbations alone: until 2, gradients of earlier steps were added to the present."""

MODULE_CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class MethodSpec(Spec):
    """An optimizer class, the keyword arguments it is built with, its rules, and where its gradients are taken.

    Attributes:
        label: The name under which results are shown; it does not enter the trial's key.
        optimizer: ``"mooring:AdamP"``, ``"torch.optim:NAdam"`` or any importable ``"module:Class"``.
        options: The keyword arguments of the class, ``lr`` among them. Lists reach the optimizer as tuples.
        rules: The recipe, in order: each ``{"StableDecay": {"weight_decay": 5e-4}}``, with a number or a word in place
            of the inner mapping ``{"StableDecay": 5e-4}``, its first argument. A name is one of mooring's rules or the
            ``"module:Class"`` of one's own.
        wrap: The rules act on the step of ``optimizer`` from outside, as `mooring.wrap` does, instead of being handed
            to its class as ``rules``.
        perturb: Gradients at moved weights, around all of the above: ``{"NSO": {"sigma": 0.01, "k": 1}}``, with a
            number in place of the inner mapping its first option. Empty: gradients at the weights themselves.
    """

    label: str = Field(min_length=1)
    optimizer: str
    options: dict[str, Any] = Field(default_factory=dict)
    rules: tuple[dict[str, Any], ...] = ()
    wrap: bool = False
    perturb: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @field_validator("optimizer")
    @classmethod
    def _module_and_class(cls, value: str) -> str:
        if not MODULE_CLASS.fullmatch(value):
            raise ValueError(f"{value!r} is not of the form 'module:Class', for example 'torch.optim:NAdam'")
        return value

    @field_validator("options")
    @classmethod
    def _plain_data(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "rules" in value:
            raise ValueError("'rules' stands beside 'options', not in it")
        plain: dict[str, Any] = _plain("options", value)
        return plain

    @field_validator("rules", mode="before")
    @classmethod
    def _rules_by_name(cls, value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"rules must be a list, one item for each rule, not {value!r}")
        return tuple(_rule(item) for item in value)

    @field_validator("perturb", mode="before")
    @classmethod
    def _perturbation_by_name(cls, value: Any) -> Any:
        return _plain("the options of perturb", perturbations.read(value))

    @model_validator(mode="after")
    def _something_to_wrap_with(self) -> MethodSpec:
        if self.wrap and not self.rules:
            raise ValueError("wrap puts rules on an optimizer's step; list them under 'rules', or write optimizer")
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_not_used(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A method without them is written, and hashed, as it was before there were any: its trials stay finished.
        content: dict[str, Any] = handler(self)
        return {name: value for name, value in content.items() if name not in ("rules", "wrap", "perturb") or value}

    def __str__(self) -> str:
        """The method as Python would write it: ``mooring:Adam(lr=0.001, rules=[StableDecay(0.0005)])``."""
        options = [f"{name}={value!r}" for name, value in self.options.items()]
        rules = [f"rules=[{self.rules_text}]"] if self.rules else []
        if self.wrap:
            text = f"wrap({self.optimizer}({', '.join(options)}), {', '.join(rules)})"
        else:
            text = f"{self.optimizer}({', '.join(options + rules)})"
        for name, given in self.perturb.items():
            text = f"{name}({', '.join([text, *(f'{key}={value!r}' for key, value in given.items())])})"
        return text

    @property
    def perturb_text(self) -> str:
        """The perturbation as Python would write it, without the optimizer; empty without one."""
        return "".join(_rule_text(name, given) for name, given in self.perturb.items())

    @property
    def gradients_per_step(self) -> int:
        """How many gradients one step evaluates. A closure's own calls (L-BFGS) are not known beforehand: 1."""
        return perturbations.gradients_per_step(self.perturb)

    @property
    def rules_text(self) -> str:
        """The rules as Python would write them, without brackets."""
        return ", ".join(_rule_text(name, arguments) for rule in self.rules for name, arguments in rule.items())


def _plain(what: str, value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} must be plain numbers, strings, booleans or lists: {error}") from None


def _rule(item: Any) -> dict[str, Any]:
    """``"RadialProjection"``, ``{"StableDecay": 5e-4}`` or ``{"StableDecay": {"weight_decay": 5e-4}}``, checked."""
    if isinstance(item, str):
        item = {item: None}
    if not isinstance(item, Mapping) or len(item) != 1:
        raise ValueError(
            "a rule is a name, or one name with its options as in {StableDecay: {weight_decay: 0.0005}}, "
            f"not {item!r}"
        )
    ((name, arguments),) = item.items()
    if not isinstance(name, str) or (name not in RULES and not MODULE_CLASS.fullmatch(name)):
        raise ValueError(
            f"unknown rule {name!r}{suggestion(str(name), RULES)}; the rules are {', '.join(RULES)}, or a class of "
            "your own as 'module:Class'"
        )
    if isinstance(arguments, (list, tuple)):
        raise ValueError(f"rule {name!r}: give its options by name, as in {{{name}: {{option: value}}}}")
    return {name: _plain(f"the options of rule {name!r}", {} if arguments is None else arguments)}


def _rule_text(name: str, arguments: Any) -> str:
    if not isinstance(arguments, dict):
        return f"{name}({arguments!r})"
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


class TrainSpec(Spec):
    """How the fine-tuning runs, the same for every method of a comparison.

    Attributes:
        steps: Optimizer steps.
        batch_size: Examples per step.
        schedule: What the learning rate does after the warm-up: falls to zero along a cosine, or linearly, or stays.
            Or, ``step``, it is multiplied by ``drop_factor`` after every ``drop_every`` of the training.
        warmup: The share of the steps over which the learning rate rises linearly to its full value.
        eval_every: Steps between evaluations; the start and the last step are always evaluated.
        epochs: Passes over the training examples, for a task on data of one's own: it sets ``steps`` (whole batches of
            each pass counted), and ``eval_every``, where that is not given, to one pass. 0: ``steps`` says how long.
        drop_every: With schedule ``step``: the share of the steps between two drops (0.4 of 200 epochs: after 80, 160).
        drop_factor: With schedule ``step``: what a drop multiplies the learning rate by.
    """

    steps: int = Field(default=300, ge=1)
    batch_size: int = Field(default=32, ge=2)
    schedule: Literal["cosine", "linear", "constant", "step"] = "cosine"
    warmup: float = Field(default=0.1, ge=0.0, lt=1.0)
    eval_every: int = Field(default=30, ge=1)
    epochs: int = Field(default=0, ge=0)
    drop_every: float = Field(default=0.0, ge=0.0, lt=1.0)
    drop_factor: float = Field(default=0.1, gt=0.0, lt=1.0)

    @model_validator(mode="after")
    def _drops_belong_to_the_step_schedule(self) -> TrainSpec:
        if (self.schedule == "step") != (self.drop_every > 0):
            raise ValueError(
                "schedule 'step' and drop_every (the share of the steps between two drops) go together, "
                f"got schedule {self.schedule!r} and drop_every {self.drop_every:g}"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_not_used(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A training without them is written, and hashed, as it was before there were any: its trials stay finished.
        content: dict[str, Any] = handler(self)
        unused = set() if self.epochs else {"epochs"}
        unused |= set() if self.schedule == "step" else {"drop_every", "drop_factor"}
        return {name: value for name, value in content.items() if name not in unused}

    def for_examples(self, count: int) -> TrainSpec:
        """The same training with ``steps``, and ``eval_every`` if it was not given, set by the number of examples."""
        if not self.epochs:
            return self
        per_epoch = max(1, count // self.batch_size)
        every = {} if "eval_every" in self.model_fields_set else {"eval_every": per_epoch}
        return TrainSpec.model_validate({**self.model_dump(), "steps": self.epochs * per_epoch, **every})

    def with_budget_of(self, gradients_per_step: int) -> TrainSpec:
        """The same training in as many gradient evaluations as ``steps`` steps of one gradient each take.

        Fewer steps, rounded down and at least one, with the warm-up and the decay of the learning rate over these; the
        evaluations come after about as many gradients as before.
        """
        steps, every = self.steps // gradients_per_step, self.eval_every // gradients_per_step
        return self.model_copy(update={"steps": max(1, steps), "eval_every": max(1, every)})

    def _drops(self) -> list[float]:
        count = math.ceil(1 / self.drop_every - 1e-6) - 1
        return [number * self.drop_every * self.steps for number in range(1, count + 1)]

    def lr_factor(self, step: int) -> float:
        """What multiplies the learning rate at ``step`` (counted from 0); never zero, so every step trains."""
        warm = round(self.warmup * self.steps)
        if step < warm:
            return (step + 1) / warm
        if self.schedule == "step":
            # A share such as 1/3 is not exact in binary: the drop belongs to the step that it rounds to.
            return float(self.drop_factor ** sum(step >= round(at) for at in self._drops()))
        done = (step - warm) / (self.steps - warm)
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        return 1 - done if self.schedule == "linear" else 1.0


class TrialSpec(Spec):
    """One trial: a method, a task, a way to train and a seed."""

    method: MethodSpec
    task: AnyTask = Field(default_factory=TaskSpec)
    train: TrainSpec = Field(default_factory=TrainSpec)
    seed: int = Field(ge=0)
    threads: int = Field(default=1, ge=1)
    device: str = "cpu"

    @property
    def start(self) -> int:
        """The index of the pretrained start this trial begins from."""
        return self.seed % self.task.starts

    def key(self) -> str:
        """A short hash of everything that determines the result; the method's label is not part of it."""
        content = self.model_dump(mode="json")
        del content["method"]["label"]
        content["task"] = self.task.identity()
        content["version"] = max([RESULT_VERSION, *(PERTURBED_VERSIONS.get(name, 0) for name in self.method.perturb)])
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]
