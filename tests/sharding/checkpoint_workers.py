"""What each process does in the tests of checkpoints that another number of processes wrote."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.tensor import distribute_tensor

import mooring as mo
from mooring.anchors.distributed import SavedShards
from mooring.perturb.frame import Perturbed
from mooring.step.shards import is_sharded, local
from tests.optim.table import BY_NAME, ROWS
from tests.sharding.sides import full
from tests.sharding.workers import Net, build, distance, groups, shard, train

BREAK, END = 4, 6  # with a parameter that skips step 3

Make = Callable[[nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class Case:
    """One way to train.

    Attributes:
        make: the optimizer.
        flat: whether its state dict is flat.
        dtype: of the weights.
    """

    make: Make
    flat: bool = False
    dtype: torch.dtype = torch.float64


def cases(folder: Path) -> dict[str, Case]:
    """Every row of the table with all the state it can have; then what else may be in a state or in groups."""
    found = {row.name: Case(lambda model, row=row: row.build(groups(model), row.remembering)) for row in ROWS}

    def of(row: str, variant: str = "default", **options: Any) -> Make:
        return lambda model: BY_NAME[row].build(groups(model), variant, **options)

    written, source = str(folder / "captured.safetensors"), str(folder / "pretrained.safetensors")
    found |= {
        # The tracked sum of v, which amsgrad has no use for.
        "AdamS, its sum": Case(of("AdamS")),
        "AdamS, flat": Case(of("AdamS"), flat=True),
        "AdamW, flat": Case(of("AdamW", "amsgrad"), flat=True),
        "AdamSPD, flat": Case(of("AdamSPD"), flat=True),
        "AdamSPD, captured into a file": Case(of("AdamSPD", anchor_store="cpu", anchor_file=written)),
        "AdamSPD, captured in bfloat16": Case(of("AdamSPD", anchor_store="bfloat16"), dtype=torch.float32),
        "AdamSPD, from a file": Case(of("AdamSPD", anchor=source, anchor_store="mmap")),
        "AdamW, moments in bfloat16": Case(of("AdamW", state_dtype="bfloat16"), dtype=torch.float32),
        "AdamW, stochastic": Case(of("AdamW", rounding="stochastic"), dtype=torch.bfloat16),
        "AdamW, kahan": Case(of("AdamW", rounding="kahan", state_dtype="bfloat16"), dtype=torch.bfloat16),
        "AdamW, kahan, flat": Case(of("AdamW", rounding="kahan"), flat=True, dtype=torch.bfloat16),
    }

    def perturbed(method: Callable[..., Perturbed], inner: Make, model: nn.Module) -> Perturbed:
        return method(inner(model), model=model)

    found |= {
        "NSO": Case(partial(perturbed, partial(mo.NSO, sigma=0.05, seed=5), of("AdamS"))),
        "NSO, flat": Case(partial(perturbed, partial(mo.NSO, sigma=0.05, seed=5), of("AdamSPD")), flat=True),
        "SAM": Case(partial(perturbed, partial(mo.SAM, rho=0.1), of("AdamSPD"))),
        "RSAM": Case(partial(perturbed, partial(mo.RSAM, sigma=0.05, rho=0.1, seed=5), of("SGDS", "momentum"))),
    }
    return found


class Run:
    """A model and its optimizer on all processes, which may be one without a process group."""

    def __init__(self, case: Case, *, elsewhere: bool = False) -> None:
        net = build().to(case.dtype)
        if elsewhere:  # what a load has to replace, all of it
            with torch.no_grad():
                for x in [*net.parameters(), *net.buffers()]:
                    x.add_(1)
        self.model = shard(net) if dist.is_initialized() else net
        self.optimizer = case.make(self.model)
        if elsewhere:
            for group in self.optimizer.param_groups:
                group["lr"] = 0.5
                group.update({name: 77 for name in ("noise_seed", "noise_draws", "draws") if name in group})
        self.options = StateDictOptions(flatten_optimizer_state_dict=case.flat)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds; of a fresh optimizer after a dry run."""
        self.model.zero_grad()
        weights, state = get_state_dict(self.model, self.optimizer, options=self.options)
        return {"model": weights, "optimizer": state}

    def load(self, state: dict[str, Any]) -> None:
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=self.options,
        )

    def train(self, first: int, last: int, inside: Callable[[], None] | None = None) -> None:
        """Take steps.

        Args:
            first: the first of them.
            last: the one after the last.
            inside: called in every pass at moved weights.
        """
        if not isinstance(self.optimizer, Perturbed):
            train(self.model, self.optimizer, first, last - first)  # type: ignore[arg-type]
            return
        for step in range(first, last):
            generator = torch.Generator().manual_seed(step)
            tokens = torch.randint(7, (6,), generator=generator)
            target = torch.randn(6, 1, generator=generator, dtype=torch.float64)
            self.optimizer.zero_grad()
            for pass_ in self.optimizer.passes():
                with pass_:
                    if inside is not None and pass_.stage.place is not None:
                        inside()
                    pass_.backward((self.model(tokens) - target).square().mean())
            self.optimizer.step()

    def weights(self) -> list[Tensor]:
        return [full(p.detach()).clone() for p in [*self.model.parameters(), *self.model.buffers()]]


# What differs in how its state is kept; on more than two processes, and on as many as saved, these stand for all.
FEW = (
    "AdamP",
    "Adam + projection + stable decay + SPD",
    "AdamS, flat",
    "AdamSPD, captured into a file",
    "AdamSPD, from a file",
    "AdamW, kahan",
    "NSO",
)


def continued(folder: str, save: str | None, load: list[str], few: bool = False) -> dict[str, Any]:
    """Train all cases, save in the middle and train on; then load and train on from each of the checkpoints.

    Returns:
        By checkpoint and case, the largest error of a displacement relative to its size, and whether every bit agrees
        with the run that was never interrupted here. Under ``"dry"``, the cases that a dry run changed.
    """
    every = {name: case for name, case in cases(Path(folder)).items() if name in FEW or not few}
    source = Path(folder, "pretrained.safetensors")
    if not source.exists():  # only the first run, which is one process, comes here
        save_file({name: 0.9 * p.detach() + 0.01 for name, p in build().named_parameters()}, source)
    start, middle, straight, runs, dry = {}, {}, {}, {}, []
    for name, case in every.items():
        run = runs[name] = Run(case)
        start[name] = run.weights()
        before = [dict(group) for group in run.optimizer.param_groups]
        run.state()
        counts = {float(state["step"]) for state in run.optimizer.state.values() if "step" in state}
        moved = not all(torch.equal(x, y) for x, y in zip(run.weights(), start[name]))
        if moved or counts - {0.0} or before != [dict(group) for group in run.optimizer.param_groups]:
            dry.append(name)
        run.train(0, BREAK)
        middle[name] = run.state()
    if save is not None:
        dcp.save(middle, checkpoint_id=str(Path(folder, save)))
    for name, run in runs.items():
        run.train(BREAK, END)
        straight[name] = run.weights()
    found: dict[str, Any] = {"dry": dry}
    for checkpoint in load:
        others = {name: Run(case, elsewhere=True) for name, case in every.items() if name in FEW or checkpoint != save}
        states = {name: run.state() for name, run in others.items()}
        dcp.load(states, checkpoint_id=str(Path(folder, checkpoint)))
        for name, run in others.items():
            run.load(states[name])
            run.train(BREAK, END)
            ends = run.weights()
            errors = [
                float((x - y).double().norm() / (y - s).double().norm().clamp(min=1e-300))
                for x, y, s in zip(ends, straight[name], start[name])
            ]
            bitwise = all(torch.equal(x, y) for x, y in zip(ends, straight[name]))
            found[f"{checkpoint}: {name}"] = max(errors), bitwise
    return found


class Late(FileSystemWriter):
    """Writes its data when it is told to."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.now = Event()

    def write_data(self, *arguments: Any) -> Any:
        if not self.now.wait(60):
            raise TimeoutError("nobody let the data be written")
        return super().write_data(*arguments)


def saved_meanwhile(folder: str) -> dict[str, dict[str, bool]]:
    """A checkpoint is begun between two steps and written while the weights are perturbed, twice in a training."""
    background = dist.new_group(backend="gloo")  # the writing thread's own, since the passes use the other
    found = {}
    for name in ("NSO", "NSO, flat", "SAM", "RSAM"):
        run = Run(cases(Path(folder))[name])
        run.train(0, 1)
        for step in (1, 2):
            true, path = run.weights(), Path(folder, f"{name} {step}")
            writer = Late(path)
            saving = dcp.async_save(run.state(), storage_writer=writer, process_group=background)
            moved, refused = [], []

            def write(
                run: Run = run, writer: Late = writer, saving: Any = saving, moved: Any = moved, refused: Any = refused
            ) -> None:
                if not moved:
                    moved.append(run.weights())
                    try:
                        run.state()
                    except RuntimeError as error:
                        refused.append("perturbed" in str(error))
                    assert not saving.done()
                    writer.now.set()
                    saving.result()  # all of it is written before this pass ends

            run.train(step, step + 1, inside=write)
            other = Run(cases(Path(folder))[name], elsewhere=True)
            dcp.load(state := other.state(), checkpoint_id=str(path))
            other.load(state)
            exact = all(torch.equal(x, y) for x, y in zip(other.weights(), true))
            other.train(step, step + 1)
            found[f"{name}, step {step}"] = {
                "the weights of the call": exact,
                "moved when they were written": not all(torch.equal(x, y) for x, y in zip(moved[0], true)),
                "refused inside": refused == [True],
                "goes on bitwise": all(torch.equal(x, y) for x, y in zip(run.weights(), other.weights())),
            }
    return found


class Reads:
    """Counts the bytes that are read from the pieces of a checkpoint."""

    def __enter__(self) -> Reads:
        self.bytes, self._load = 0, SavedShards._load

        def counted(shards: SavedShards, key: str, piece: Any) -> Tensor:
            value = self._load(shards, key, piece)
            self.bytes += value.nbytes
            return value

        SavedShards._load = counted  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        SavedShards._load = self._load  # type: ignore[method-assign]


def hosted(how: str, make: Make) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A sharded model and an optimizer that was built before the host put the parameters there that are trained."""
    if how == "meta":  # built on shards without values, which a host fills; these parameters stay the same objects
        with torch.device("meta"):
            model = shard(Net().double())
        optimizer = make(model)
        model.to_empty(device="cpu")
        values = build().state_dict()
        with torch.no_grad():
            for name, x in [*model.named_parameters(), *model.named_buffers()]:
                x.copy_(distribute_tensor(values[name], x.device_mesh, x.placements) if is_sharded(x) else values[name])
        return model, optimizer
    plain = build()
    with torch.no_grad():
        for p in plain.parameters():
            p.mul_(1.5)  # what is loaded below is what counts
    optimizer = make(plain)
    names = [
        [n for n, p in plain.named_parameters() if any(p is q for q in g["params"])] for g in optimizer.param_groups
    ]
    plain.load_state_dict(build().state_dict())
    model = shard(plain)
    now = dict(model.named_parameters())
    for group, own in zip(optimizer.param_groups, names):  # as Accelerate does
        group["params"] = [now[n] for n in own]
    return model, optimizer


def swapped(folder: str) -> dict[str, dict[str, Any]]:
    """Anchors where a host changes parameters after the optimizer was built, against one process that does not."""
    start = {name: p.detach().clone() for name, p in build().named_parameters()}
    pretrained = {name: 0.9 * p + 0.01 for name, p in start.items()}
    file, saved = str(Path(folder, "weights.safetensors")), str(Path(folder, "saved"))
    split = shard(build())
    with torch.no_grad():
        for p in split.parameters():
            p.mul_(0.9).add_(0.01)
    dcp.save({"model": get_model_state_dict(split)}, checkpoint_id=saved)
    if dist.get_rank() == 0:
        save_file(pretrained, file)
    dist.barrier()
    found = {}
    for kind, options in {
        "captured": {"anchor": "capture"},
        "captured into a file": {"anchor_store": "cpu", "anchor_file": "{}.safetensors"},
        "safetensors": {"anchor": file, "anchor_store": "mmap"},
        "checkpoint": {"anchor": saved},
        "checkpoint on the host": {"anchor": saved, "anchor_store": "cpu"},
    }.items():
        for how in ("swapped", "meta"):
            where = {k: v.format(Path(folder, f"{how} {kind} {{}}")) for k, v in options.items()}

            def make(model: nn.Module, on: str = "shards", where: dict[str, str] = where) -> torch.optim.Optimizer:
                return mo.AdamSPD(groups(model), lr=0.01, **{k: v.format(on) for k, v in where.items()})  # type: ignore[arg-type]

            single = build()
            train(single, make(single, f"rank {dist.get_rank()}"), 0, END)
            with Reads() as reads:
                model, optimizer = hosted(how, make)
                train(model, optimizer, 0, END)  # type: ignore[arg-type]
            own = sum(local(p.detach()).nbytes for p in model.parameters())
            expected = start if kind.startswith("captured") else pretrained
            anchors = {name: optimizer.anchor_of(p) for name, p in model.named_parameters()}  # type: ignore[attr-defined]
            found[f"{how}, {kind}"] = {
                "error": distance(model, single, start),
                "anchors": all(torch.equal(full(anchors[name]), x) for name, x in expected.items()),
                "sharded alike": all(anchors[n].placements == p.placements for n, p in model.named_parameters()),
                "read": reads.bytes == (own if kind.startswith("checkpoint") else 0),
            }
    return found


def without_a_model() -> str:
    """What NSO says that was given no module, when its weights are shards by now."""
    _, base = hosted("swapped", lambda model: mo.AdamW(groups(model), lr=0.01))
    whole = build()
    nso = mo.NSO(mo.AdamW(groups(whole), lr=0.01))
    for group, now in zip(nso.param_groups, base.param_groups):
        group["params"] = now["params"]
    try:
        nso.step(lambda: 0.0)
    except ValueError as error:
        return str(error)
    return ""


def on_two(folder: str) -> dict[str, Any]:
    """One start of the processes for what two of them show."""
    return {"meanwhile": saved_meanwhile(folder), "swapped": swapped(folder), "without a model": without_a_model()}
