"""One trial: fine-tune one start with one method and one seed, and write down everything that was measured."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

import mooring
from mooring.finetune import drift as drift_files
from mooring.finetune.cache import silent
from mooring.finetune.devices import usable_device
from mooring.finetune.errors import SpecError, TrialError
from mooring.finetune.evaluate import evaluation_splits, predict
from mooring.finetune.files import write_atomic, write_json, write_jsonl, write_text
from mooring.finetune.loop import Progress, train
from mooring.finetune.metrics import Prediction, Scored, save_predictions, summarize
from mooring.finetune.optimizers import build_optimizer, pipeline, state_bytes
from mooring.finetune.seeds import own_global_rng, threads
from mooring.finetune.spec import TrialSpec
from mooring.finetune.tasks.starts import Start, load_start
from mooring.measure.distance import drift, weight_norm

FINAL = "final.json"
MODEL = "model.safetensors"
_REPORT_SECONDS = 0.1


def run_trial(spec: TrialSpec, folder: Path, report: Callable[[dict[str, Any]], None] = silent) -> dict[str, float]:
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
            ``{"event": "step", "step", "steps", "loss", "lr"}``.

    Raises:
        SpecError: The method or the device cannot be used.
        TrialError: Training failed; the message says at which step and with which learning rate.
    """
    device = _device(spec.device)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FINAL).unlink(missing_ok=True)
    write_text(folder / "spec.json", spec.model_dump_json(indent=1) + "\n")
    with (
        threads(spec.threads),
        own_global_rng(device, "trial", spec.seed),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
    ):
        start = load_start(spec.task, spec.seed, report)
        trial = _Trial(spec, folder, report, start, device)
        write_json(folder / "provenance.json", _provenance(start, trial.optimizer))
        return trial.run()


class _Trial:
    def __init__(
        self,
        spec: TrialSpec,
        folder: Path,
        report: Callable[[dict[str, Any]], None],
        start: Start,
        device: torch.device,
    ) -> None:
        self.spec, self.folder, self.report, self.start = spec, folder, report, start
        self.model = start.model.to(device)
        self.optimizer = build_optimizer(
            spec.method, self.model, seed=spec.seed, steps=spec.train.steps, head=start.head
        )
        self.examples = start.data.train.to(device)
        self.splits = {name: split.to(device) for name, split in evaluation_splits(start.data).items()}
        self.rows: list[dict[str, float]] = []
        self.predictions: dict[str, Prediction | Scored] = {}
        self.reported = -math.inf
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def run(self) -> dict[str, float]:
        progress = train(self.spec, self.start.task, self.model, self.optimizer, self.examples, self.between_steps)
        moved = drift(_trained(self.model), self.start.state)
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
        write_text(self.folder / "layers.csv", drift_files.to_csv(moved))
        write_atomic(self.folder / MODEL, lambda path: path.write_bytes(save(_on_cpu(self.model))))
        write_atomic(self.folder / "predictions.npz", lambda path: save_predictions(path, self.predictions))
        write_json(self.folder / FINAL, final)
        return final

    def between_steps(self, progress: Progress) -> None:
        step, steps = progress.step, self.spec.train.steps
        if step % self.spec.train.eval_every == 0 or step == steps:
            self.evaluate(progress)
        elif time.perf_counter() - self.reported >= _REPORT_SECONDS:
            self.reported = time.perf_counter()
            self.report({"event": "step", "step": step, "steps": steps, "loss": progress.loss, "lr": progress.lr})

    def evaluate(self, progress: Progress) -> None:
        self.predictions = predict(self.start.task, self.model, self.splits)
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
        write_jsonl(self.folder / "metrics.jsonl", self.rows)
        self.report({"event": "eval", "steps": self.spec.train.steps, **row})


def _on_cpu(model: nn.Module) -> dict[str, Tensor]:
    # Copies: weights that share memory, as tied ones do, are more than the file's format takes. What is frozen lies
    # where it was loaded from.
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    kept = {name: x.detach() for name, x in model.state_dict().items() if name not in frozen}
    return {name: x.to("cpu", copy=True).contiguous() for name, x in kept.items()}


def _trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


def _device(name: str) -> torch.device:
    device = usable_device(name)
    if device.type not in ("cpu", "cuda"):
        # Clocks and random states are handled for these two.
        raise SpecError(f"device {name!r}: a trial runs on 'cpu' or 'cuda'")
    return device


def _provenance(start: Start, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    packages = ("torch", "numpy", "kornia", "safetensors", *getattr(start.task, "packages", ()))
    installed = {name: importlib.metadata.version(name) for name in packages}
    return {
        "start_sha256": start.sha256,
        "pipeline": pipeline(optimizer),
        "python": platform.python_version(),
        "packages": {"mooring": mooring.__version__, **installed},
    }


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
