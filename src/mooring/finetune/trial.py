"""One trial: fine-tune one start with one method and one seed, and write down everything that was measured."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

import mooring
from mooring.finetune import drift as drift_files
from mooring.finetune.cache import silent
from mooring.finetune.checkpoints import Checkpoints, Saved
from mooring.finetune.errors import SpecError, TrialError
from mooring.finetune.evaluate import evaluation_splits, predict
from mooring.finetune.files import write_atomic, write_json, write_jsonl, write_text
from mooring.finetune.loop import Progress, train
from mooring.finetune.metrics import Prediction, Scored, save_predictions, summarize
from mooring.finetune.optimizers import build_optimizer, pipeline, state_bytes
from mooring.finetune.seeds import own_global_rng, threads
from mooring.finetune.spec import TrialSpec
from mooring.finetune.tasks.starts import Start, load_start
from mooring.finetune.team import ALONE, Team
from mooring.measure.distance import drift, weight_norm
from mooring.step.shards import whole

FINAL = "final.json"
MODEL = "model.safetensors"
_REPORT_SECONDS = 0.1


def run_trial(
    spec: TrialSpec,
    folder: Path,
    report: Callable[[dict[str, Any]], None] = silent,
    team: Team = ALONE,
    checkpoints: Checkpoints | None = None,
) -> dict[str, float]:
    """Run one trial and return its final metrics.

    In ``folder`` it writes, each file atomically: ``spec.json``, ``provenance.json``, ``metrics.jsonl`` (a row per
    evaluation), ``layers.csv``, ``model.safetensors`` (the weights at the end, for ``mooring inspect``),
    ``predictions.npz``, and last ``final.json``, whose presence means that the trial is finished. The same
    specification gives bitwise the same predictions on the same machine. Peak memory is that of the process, so it is
    honest only where a trial has a process of its own.

    Args:
        spec: What to run.
        folder: Where to write; made if it is missing.
        report: Receives ``{"event": "eval", "step", "steps", ...metrics}`` and, at most every tenth of a second,
            ``{"event": "step", "step", "steps", "loss", "lr"}``, and ``{"event": "message", "text"}``.
        team: The processes that share the model and every batch; all of them call this, the first one writes and
            reports.
        checkpoints: Where to continue from and what to write on the way; without it a trial runs from its beginning.

    Raises:
        SpecError: The method or the device cannot be used, or the batch or the model not with so many processes.
        TrialError: Training failed; the message says at which step and with which learning rate.
        KeyboardInterrupt: The training was asked to stop, and has written a checkpoint.
    """
    device = _device(spec.device, team)
    if spec.train.batch_size < team.size:
        raise SpecError(
            f"train.batch_size is {spec.train.batch_size}, and {team.size} processes need an example each: give a "
            "larger batch_size or start fewer processes"
        )
    if team.first:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FINAL).unlink(missing_ok=True)
        write_text(folder / "spec.json", spec.model_dump_json(indent=1) + "\n")
    # Each process draws other dropout masks, because it has other examples.
    stream = ("trial", spec.seed) if team.first else ("trial", spec.seed, "process", team.rank)
    with (
        threads(spec.threads),
        own_global_rng(device, *stream),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
    ):
        start = load_start(spec.task, spec.seed, report)
        trial = _Trial(spec, folder, report, start, device, team, checkpoints)
        if team.first:
            write_json(folder / "provenance.json", _provenance(start, trial.optimizer, team))
        return trial.run()


class _Trial:
    def __init__(
        self,
        spec: TrialSpec,
        folder: Path,
        report: Callable[[dict[str, Any]], None],
        start: Start,
        device: torch.device,
        team: Team,
        checkpoints: Checkpoints | None,
    ) -> None:
        self.spec, self.folder, self.report, self.start = spec, folder, report, start
        self.team, self.checkpoints = team, checkpoints
        if team.size == 1:
            self.model = start.model.to(device)
        else:
            from mooring.finetune.split import split  # FSDP is slow to import

            self.model = split(start.model, team.mesh, start.task.methods)
        self.optimizer = build_optimizer(
            spec.method, self.model, seed=spec.seed, steps=spec.train.steps, head=start.head
        )
        self.examples = start.data.train.to(device)
        self.splits = {name: split.to(device) for name, split in evaluation_splits(start.data).items()}
        self.rows: list[dict[str, float]] = []
        self.predictions: dict[str, Prediction | Scored] = {}
        self.reported = -math.inf
        self.random: dict[str, Tensor] = {}
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def run(self) -> dict[str, float]:
        progress = self.train()
        moved = drift(_trained(self.model), self.start.state)
        weights = _on_cpu(self.model, self.team)
        final = {
            **summarize(self.predictions),
            **drift_files.metrics(moved),
            "time/train_s": progress.train_seconds,
            "time/step_s": statistics.median(progress.step_seconds),
            "time/step_update_s": statistics.median(progress.update_seconds),
            "memory/peak_bytes": _peak_bytes(self.examples.device),
            "memory/optimizer_state_bytes": state_bytes(self.optimizer),
            "cost/gradient_evaluations": progress.gradient_evaluations,
            "start": self.spec.start,
            "steps": self.spec.train.steps,
        }
        if self.team.first:
            write_text(self.folder / "layers.csv", drift_files.to_csv(moved))
            write_atomic(self.folder / MODEL, lambda path: path.write_bytes(save(weights)))
            write_atomic(self.folder / "predictions.npz", lambda path: save_predictions(path, self.predictions))
            write_json(self.folder / FINAL, final)
        return final

    def train(self) -> Progress:
        progress = None
        if self.checkpoints is not None:
            saved = self.team.from_first(self.checkpoints.newest())
            progress = None if saved is None else self.continue_from(saved)
            self.team.training = True
        self.random = self.random_states()
        progress = train(
            self.spec,
            self.start.task,
            self.model,
            self.optimizer,
            self.examples,
            self.between_steps,
            self.team,
            progress,
        )
        if self.checkpoints is not None:
            self.team.training = False  # not after an error: the caller is to answer a signal then
        return progress

    def random_states(self) -> dict[str, Tensor]:
        states = {"cpu": torch.get_rng_state()}
        if self.examples.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.examples.device)
        return states

    def between_steps(self, progress: Progress) -> None:
        self.look(progress)
        self.say_where_random()
        step, steps = progress.step, self.spec.train.steps
        if self.checkpoints is None or step in (0, steps):
            return
        if self.team.stopping or self.checkpoints.due(step):
            self.keep(progress)
        if self.team.stopping:
            raise KeyboardInterrupt

    def say_where_random(self) -> None:
        """Once: that the masks of dropout are other ones than in one process."""
        if self.team.size == 1 or not self.random:
            return
        now = self.random_states()
        if any(not torch.equal(now[name], state) for name, state in self.random.items()):
            text = (
                f"The model draws random numbers as it trains (dropout): each of the {self.team.size} processes draws "
                "its own, so this is another draw of the same training than with one process."
            )
            self.report({"event": "message", "text": text})
            self.random = {}

    def keep(self, progress: Progress) -> None:
        assert self.checkpoints is not None
        content = {"optimizer": self.optimizer.state_dict(), "progress": asdict(progress), "rows": self.rows}
        self.checkpoints.save(self.team, progress.step, _kept(self.model), content, self.random_states())
        self.report({"event": "checkpoint", "step": progress.step, "steps": self.spec.train.steps})

    def continue_from(self, saved: Saved) -> Progress:
        assert self.checkpoints is not None
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        like = {f"content.optimizer.state.{i}.": p for i, p in enumerate(parameters)}
        loaded = self.checkpoints.load(self.team, saved, _kept(self.model), like)
        self.optimizer.load_state_dict(loaded.content["optimizer"])
        self.rows = loaded.content["rows"]
        if "cpu" in loaded.own:
            torch.set_rng_state(loaded.own["cpu"])
        if "cuda" in loaded.own:
            torch.cuda.set_rng_state(loaded.own["cuda"], self.examples.device)
        # Written anew, without what an earlier start measured after the checkpoint.
        if self.team.first:
            write_jsonl(self.folder / "metrics.jsonl", self.rows)
        by = f", written by {saved.processes} processes" if saved.processes != self.team.size else ""
        text = f"Continuing from {saved.path}: step {saved.step} of {self.spec.train.steps}{by}."
        self.report({"event": "message", "text": text})
        return Progress(**loaded.content["progress"])

    def look(self, progress: Progress) -> None:
        step, steps = progress.step, self.spec.train.steps
        if step % self.spec.train.eval_every == 0 or step == steps:
            self.evaluate(progress)
        elif time.perf_counter() - self.reported >= _REPORT_SECONDS:
            self.reported = time.perf_counter()
            self.report({"event": "step", "step": step, "steps": steps, "loss": progress.loss, "lr": progress.lr})

    def evaluate(self, progress: Progress) -> None:
        self.predictions = predict(self.start.task, self.model, self.splits, self.team)
        row: dict[str, float] = {
            "step": progress.step,
            "gradients": progress.gradient_evaluations,
            "seconds": progress.train_seconds,
            "lr": progress.lr,
        }
        row |= summarize(self.predictions)
        row |= drift_files.metrics(drift(_trained(self.model), self.start.state))
        row["weight_norm"] = weight_norm(self.model)
        if progress.losses_since_evaluation:
            row["train/batch_loss"] = statistics.fmean(progress.losses_since_evaluation)
            progress.losses_since_evaluation.clear()
        bad = [name for name, value in row.items() if not math.isfinite(value)]
        if bad:
            raise TrialError(
                f"method {self.spec.method.label!r} diverged: {bad[0]} is {row[bad[0]]} after step {progress.step} of "
                f"{self.spec.train.steps}, learning rate {progress.lr:g}; a lower lr may help"
            )
        self.rows.append(row)
        if self.team.first:
            write_jsonl(self.folder / "metrics.jsonl", self.rows)
        self.report({"event": "eval", "steps": self.spec.train.steps, **row})


def _kept(model: nn.Module) -> dict[str, Tensor]:
    # What is frozen lies where it was loaded from.
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: x.detach() for name, x in model.state_dict().items() if name not in frozen}


def _on_cpu(model: nn.Module, team: Team) -> dict[str, Tensor]:
    # Copies: weights that share memory, as tied ones do, are more than the file's format takes. Split ones are gathered
    # one at a time, by all, and the first process alone keeps them.
    found = {}
    for name, x in _kept(model).items():
        tensor = whole(x)
        if team.first:
            found[name] = tensor.to("cpu", copy=True).contiguous()
    return found


def _trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


def _device(name: str, team: Team) -> torch.device:
    device = team.device(name)
    if device.type not in ("cpu", "cuda"):
        # Clocks and random states are handled for these two.
        raise SpecError(f"device {name!r}: a trial runs on 'cpu' or 'cuda'")
    return device


def _provenance(start: Start, optimizer: torch.optim.Optimizer, team: Team) -> dict[str, Any]:
    packages = ("torch", "numpy", "kornia", "safetensors", *getattr(start.task, "packages", ()))
    installed = {name: importlib.metadata.version(name) for name in packages}
    return {
        "start_sha256": start.sha256,
        "pipeline": pipeline(optimizer),
        **({} if team.size == 1 else {"processes": team.size}),
        "python": platform.python_version(),
        "packages": {"mooring": mooring.__version__, **installed},
    }


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
