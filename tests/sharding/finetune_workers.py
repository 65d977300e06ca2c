"""What runs in every process of tests/sharding/test_finetune.py: trials in float64, stopped and continued."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from mooring.finetune import trial
from mooring.finetune.checkpoints import Checkpoints
from mooring.finetune.data import Split, TaskData
from mooring.finetune.errors import SpecError
from mooring.finetune.methods import resolve
from mooring.finetune.norms import normalise_over
from mooring.finetune.spec import TaskSpec, TrainSpec, TrialSpec
from mooring.finetune.tasks.starts import Start, load_start
from mooring.finetune.team import Team

STEPS, STOP, BATCH = 8, 5, 33  # a batch that no even number of processes divides
DIGITS = {"starts": 1, "pretrain_steps": 20, "pretrain_examples": 400}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "adamspd": ("adamspd", DIGITS),
    "adamp": ("adamp", DIGITS),
    "adams": ("adams", DIGITS),
    "nso": ({"name": "adamp", "perturb": {"NSO": {"sigma": 0.01, "k": 1}}}, DIGITS),
    "sam": ("sam", {"name": "synthetic-spurious", "starts": 1, "pretrain_steps": 20}),
    "retrieval": ("adamp", {"name": "digits-retrieval", **DIGITS}),
    "text": ("adamspd", {"name": "text-characters", "starts": 1, "pretrain_steps": 5, "pretrain_examples": 200}),
    "weight norm": (
        "adamp",
        {"name": "text-characters-weight-norm", "starts": 1, "pretrain_steps": 5, "pretrain_examples": 200},
    ),
}


def spec_of(case: str) -> TrialSpec:
    method, task = CASES[case]
    return TrialSpec(
        method=resolve(method),
        task=TaskSpec.model_validate(task),
        train=TrainSpec(steps=STEPS, batch_size=BATCH, eval_every=STEPS),
        seed=1,
    )


def wide(start: Start) -> Start:
    """The same start in float64, evaluated on little."""

    def cast(x: Tensor) -> Tensor:
        return x.double() if x.is_floating_point() else x

    def both(split: Any) -> Split:
        return Split(cast(split.inputs), split.labels)

    kept = ("id", "ood.anti", "ood.code")
    evaluation = {k: both(v).rows(torch.arange(71)) for k, v in start.data.evaluation.items() if k in kept}
    data = TaskData(both(start.data.train), evaluation)
    if start.task.chunk:
        start.task.chunk = 35  # of 71 examples in two processes, one calls the model twice and the other once
    return replace(start, model=start.model.double(), state={k: cast(v) for k, v in start.state.items()}, data=data)


def with_dropout(start: Start) -> Start:
    start.model.hidden.append(nn.Dropout(0.5))  # type: ignore[operator, union-attr]
    return start


def run(case: str, folder: Path, team: Team, *, stop: bool = False, dropout: bool = False) -> list[str]:
    """One trial, or its beginning; the messages it reported."""
    messages: list[str] = []

    def report(event: dict[str, Any]) -> None:
        if event["event"] == "message":
            messages.append(event["text"])
        if event["event"] == "checkpoint" and stop:
            raise KeyboardInterrupt

    def start_of(*arguments: Any) -> Start:
        found = load_start(*arguments)
        return wide(with_dropout(found) if dropout else found)

    before, trial.load_start = trial.load_start, start_of
    try:
        trial.run_trial(spec_of(case), folder, report, team, Checkpoints(folder, STOP))
    except KeyboardInterrupt:
        assert stop
    finally:
        trial.load_start = before
    return messages


def here() -> Team:
    size = dist.get_world_size()
    return Team(dist.get_rank(), size, 0, init_device_mesh("cpu", (size,)))


def trials(folder: str, plan: dict[str, list[str]]) -> list[list[str]]:
    """Every case in the ways it is asked for; the messages of those that were continued, and of dropout last."""
    team, root, said = here(), Path(folder), []
    for case, ways in plan.items():
        if "straight" in ways:
            run(case, root / case / "straight", team)
        if "continued" in ways:
            run(case, root / case / "continued", team, stop=True)
            if team.first:
                shutil.copytree(root / case / "continued", root / case / "from two")
            said.append(run(case, root / case / "continued", team))
        if "from one" in ways:
            run(case, root / case / "from one", team)
    said.append(run("sam", root / "dropout straight", team, dropout=True))
    run("sam", root / "dropout", team, stop=True, dropout=True)
    run("sam", root / "dropout", team, dropout=True)
    return said


def norms(first: int) -> dict[str, float]:
    """Batch normalization of a batch split into ``first`` rows and the others, against torch's of the whole batch."""
    team = here()
    part = slice(0, first) if team.first else slice(first, None)
    worst: dict[str, float] = {}
    for name, layer, shape in (
        ("1d", nn.BatchNorm1d(3), (7, 3)),
        ("1d over places", nn.BatchNorm1d(3, momentum=None), (7, 3, 4)),
        ("2d, no weights", nn.BatchNorm2d(3, affine=False), (7, 3, 2, 2)),
        ("3d, not tracked", nn.BatchNorm3d(3, track_running_stats=False), (7, 3, 2, 1, 2)),
    ):
        torch.manual_seed(0)
        whole, model = layer.double(), nn.Sequential(copy.deepcopy(layer).double())
        normalise_over(model, team.group)
        for _ in range(3):
            x, to = torch.randn(shape, dtype=torch.float64) + 2, torch.randn(shape, dtype=torch.float64)
            ours, theirs = x[part].clone().requires_grad_(), x.clone().requires_grad_()
            y, expected = model(ours), whole(theirs)
            (y * to[part]).sum().backward()
            (expected * to).sum().backward()
        gaps = [y - expected[part], ours.grad - theirs.grad[part]]  # type: ignore[operator, index]
        gaps += [mine - other for mine, other in zip(model.buffers(), whole.buffers())]
        for mine, other in zip(model.parameters(), whole.parameters()):
            total = mine.grad.clone()  # type: ignore[union-attr]
            dist.all_reduce(total)
            gaps.append(total - other.grad)  # type: ignore[operator]
        model.eval(), whole.eval()
        gaps.append(model(x) - whole(x))
        worst[name] = max(float(gap.abs().max()) for gap in gaps)
    return worst


def refused() -> str:
    """What is said of a layer whose running statistics would differ between processes."""
    try:
        normalise_over(nn.Sequential(nn.InstanceNorm1d(3, track_running_stats=True)), None)
    except SpecError as error:
        return str(error)
    return ""
