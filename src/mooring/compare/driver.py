"""One start of ``mooring compare``: check, prepare, run what is missing, and keep what fails."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mooring.compare import worker
from mooring.compare.config import ConfigError, RunConfig
from mooring.compare.progress import Activity, Progress
from mooring.compare.runner import Job, Listener, Outcome, Runner
from mooring.compare.store import RunFolder
from mooring.finetune.files import write_text
from mooring.finetune.spec import TrialSpec
from mooring.finetune.task_spec import OwnTaskSpec, TaskSpec

_PREPARATION = ".preparation"
# torch imports its compiler when the first optimizer is built, which takes longer than most trials of a small task.
SLOW_IMPORTS = ("mooring.finetune.trial", "mooring.optim", "torch._dynamo", "mooring.compare.warm")
_IMAGES = ("sklearn.datasets", "kornia.enhance", "kornia.geometry.transform")
SLOW_IMPORTS_OF_TASK = {"vision-fonts2digits": _IMAGES, "digits-retrieval": _IMAGES}


class PreparationError(Exception):
    """The task's data or starts could not be made; no trial was run."""


@dataclass(frozen=True)
class Ran:
    """How many trials this start ran, and how many of the folder's grid failed."""

    done_before: int
    run: int
    failed: int


def run_missing(folder: RunFolder, config: RunConfig, jobs: int, progress: Progress) -> Ran:
    """Run every trial of the grid that is not finished; one that failed before is tried again.

    Raises:
        ConfigError: A method's class or options cannot be used.
        PreparationError: The task could not be prepared.
    """
    missing = [spec for spec in config.trials() if folder.status(spec) != "done"]
    for spec in config.trials():
        if spec not in missing:
            progress.state[_pair(spec)] = "done"
    done_before = len(progress.state) - len(missing)
    if done_before:
        progress.message(f"{done_before} of {len(progress.state)} trials are finished already and are kept.")
    needed = {spec.seed for spec in missing} | {s for s in config.seeds if not folder.zero_shot_file(s).is_file()}
    if not needed:
        return Ran(done_before, 0, 0)
    runner = Runner(jobs, (*SLOW_IMPORTS, *_slow_imports(config.task)))
    _prepare(runner, folder, config, needed, progress)
    listener = _Trials(folder, missing, progress)
    runner.run(listener.jobs, listener)
    return Ran(done_before, len(missing), listener.failed)


def _slow_imports(task: TaskSpec) -> tuple[str, ...]:
    if not isinstance(task, OwnTaskSpec):
        return SLOW_IMPORTS_OF_TASK.get(task.name, ())
    own = ("mooring.finetune.own.task", "PIL.Image")
    return (
        own if task.model.builtin else (*own, "transformers.models.auto.modeling_auto", "transformers.modeling_utils")
    )


def _pair(spec: TrialSpec) -> tuple[str, int]:
    return spec.method.label, spec.seed


def _prepare(runner: Runner, folder: RunFolder, config: RunConfig, seeds: set[int], progress: Progress) -> None:
    output = folder.path / _PREPARATION
    check = Job("checking the methods", worker.check_methods, ([*config.compare.methods],), output / "check.txt")
    # Different optimizers are checked before minutes of training, and a wrong option is the user's to correct.
    _demand(runner, [check], progress)
    by_start: dict[int, dict[int, Path]] = defaultdict(dict)
    for seed in sorted(seeds):
        by_start[seed % config.task.starts][seed] = folder.zero_shot_file(seed)
    starts = [
        Job(
            f"start {index}",
            worker.start,
            (config.task, index, by_start[index], config.compare.device, config.compare.threads),
            output / f"start_{index}.txt",
        )
        for index in sorted(by_start)
    ]
    _demand(runner, starts, progress)
    for left in output.iterdir():
        left.unlink()
    output.rmdir()


def _demand(runner: Runner, jobs: list[Job], progress: Progress) -> None:
    for outcome in runner.run(jobs, _Preparation(progress)).values():
        if outcome.bad_request:
            raise ConfigError(str(outcome.error))
        if outcome.error:
            raise PreparationError(f"{outcome.error}\n{outcome.details}")


class _Preparation(Listener):
    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def started(self, job: Job) -> None:
        self.progress.activities[job.name] = Activity(job.name)

    def event(self, job: Job, event: dict[str, Any]) -> None:
        activity = self.progress.activities[job.name]
        if event["event"] == "message":
            self.progress.message(str(event["text"]))
        if "steps" in event:
            if not activity.steps:
                self.progress.message(f"Pretraining {job.name} (once; it is cached).")
            activity.step, activity.steps, activity.note = event["step"], event["steps"], "pretraining"

    def ended(self, job: Job, outcome: Outcome) -> None:
        del self.progress.activities[job.name]


class _Trials(Listener):
    def __init__(self, folder: RunFolder, missing: list[TrialSpec], progress: Progress) -> None:
        self.folder, self.progress = folder, progress
        self.failed = 0
        self.specs: dict[str, TrialSpec] = {}
        self.jobs: list[Job] = []
        for spec in missing:
            path = folder.trial_folder(spec.method.label, spec.seed)
            job = Job(f"{spec.method.label} seed {spec.seed}", worker.trial, (spec, path), path / "output.txt")
            self.specs[job.name] = spec
            self.jobs.append(job)

    def starting(self, job: Job) -> None:
        self.folder.clear_trial(self.specs[job.name])

    def started(self, job: Job) -> None:
        self.progress.state[_pair(self.specs[job.name])] = "running"
        self.progress.activities[job.name] = Activity(job.name, steps=self.specs[job.name].train.steps)

    def event(self, job: Job, event: dict[str, Any]) -> None:
        activity = self.progress.activities[job.name]
        activity.step = int(event.get("step", activity.step))
        if "id/accuracy" in event:
            activity.note = _scores(event)

    def ended(self, job: Job, outcome: Outcome) -> None:
        spec = self.specs[job.name]
        del self.progress.activities[job.name]
        path = self.folder.trial_folder(*_pair(spec))
        if outcome.error is None:
            final = json.loads((path / "final.json").read_text(encoding="utf-8"))
            self.progress.trial_ended(_pair(spec), "done", _scores(final), outcome.seconds)
            return
        self.failed += 1
        write_text(path / "error.txt", f"{outcome.error}\n\n{outcome.details}".rstrip() + "\n")
        self.progress.trial_ended(_pair(spec), "failed", f"failed: {outcome.error}", outcome.seconds)


def _scores(metrics: dict[str, Any]) -> str:
    shown = (("ID", "id/accuracy"), ("OOD", "ood/accuracy"))
    return "  ".join(f"{name} {100 * metrics[key]:5.1f}" for name, key in shown if key in metrics)
