"""What each process of the sharding tests does."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard

import mooring as mo
from tests.optim.table import BY_NAME, ROWS, OptimizerRow
from tests.sharding.sides import Collectives, Place, build_of, draw, follow, full, spread


class Net(nn.Module):
    """Rows that divide unevenly (7, 5, 3), a tensor with fewer rows than ranks (1), vectors, a bias of one element."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.first = nn.Linear(6, 5)
        self.norm = nn.LayerNorm(5)
        self.conv = nn.Conv1d(1, 3, 3, bias=False)
        self.batch_norm = nn.BatchNorm1d(3)
        self.last = nn.Linear(9, 1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.first(self.embed(tokens)))
        x = torch.relu(self.batch_norm(self.conv(x.unsqueeze(1))))
        return self.last(x.flatten(1))


def build() -> Net:
    torch.manual_seed(7)
    return Net().double()


def shard(model: Net) -> Net:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in (model.first, model.conv, model.last):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def train(model: Net, optimizer: torch.optim.Optimizer, first: int, steps: int) -> None:
    sign = -1 if optimizer.defaults["maximize"] else 1  # climb a bounded hill, not an unbounded loss
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(7, (6,), generator=generator)
        target = torch.randn(6, 1, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        (sign * (model(tokens) - target).square().mean()).backward()
        if step % 5 == 3:
            model.norm.weight.grad = None  # a parameter that skips steps
        optimizer.step()


def groups(model: nn.Module) -> list[dict[str, Any]]:
    named = list(model.named_parameters())
    return [{"params": named[:3]}, {"params": named[3:], "lr": 0.004}]


def distance(model: nn.Module, reference: nn.Module, start: dict[str, torch.Tensor]) -> float:
    """The largest relative error of a parameter's displacement."""
    worst = 0.0
    for (name, p), q in zip(model.named_parameters(), reference.parameters()):
        moved = (q.detach() - start[name]).norm()
        worst = max(worst, float((full(p.detach()) - q.detach()).norm() / moved))
    return worst


def trained(row: OptimizerRow, variant: str, steps: int, **options: Any) -> tuple[float, int, int]:
    """Relative displacement error against one process, the most collectives that one step took, and what cost says."""
    single = build()
    start = {name: p.detach().clone() for name, p in single.named_parameters()}
    reference = row.build(groups(single), variant, **options)
    sharded = shard(build())
    optimizer = row.build(groups(sharded), variant, **options)

    counts: list[int] = []
    seen = Collectives()

    def before(*_: Any) -> None:
        seen.__enter__()

    def after(*_: Any) -> None:
        seen.__exit__()
        counts.append(seen.count)

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
    train(single, reference, 0, steps)
    train(sharded, optimizer, 0, steps)
    return distance(sharded, single, start), max(counts), max(c.collectives for c in mo.cost(optimizer))


def every_row(steps: int) -> dict[str, Any]:
    results = {}
    for row in ROWS:
        for variant in row.variants:
            results[f"{row.name}, {variant}"] = trained(row, variant, steps)
    return results


def clipped(steps: int) -> dict[str, Any]:
    """The same with gradients clipped in the step, and steps with NaN on one process left out by all."""
    return {row.name: trained(row, "default", steps, max_grad_norm=0.5, non_finite="skip") for row in ROWS}


def checkpoint(name: str, variant: str, full_state: bool) -> dict[str, Any]:
    """Train, save, load into a fresh model and optimizer, train on: distance to training without the break."""
    row = BY_NAME[name]
    straight = shard(build())
    start = {n: full(p.detach()).clone() for n, p in straight.named_parameters()}
    optimizer = row.build(straight.named_parameters(), variant)
    train(straight, optimizer, 0, 12)

    broken = shard(build())
    train(broken, first := row.build(broken.named_parameters(), variant), 0, 5)
    options = StateDictOptions(full_state_dict=full_state, broadcast_from_rank0=full_state)
    saved = get_optimizer_state_dict(broken, first, options=options)
    fresh = row.build(broken.named_parameters(), variant)
    broken.zero_grad()  # without gradients the checkpointer makes a dry run of a fresh optimizer
    empty = get_optimizer_state_dict(broken, row.build(broken.named_parameters(), variant))
    set_optimizer_state_dict(broken, fresh, saved, options=options)
    train(broken, fresh, 5, 7)
    same = all(torch.equal(full(p), full(q)) for p, q in zip(straight.parameters(), broken.parameters()))
    moved = {n: float((full(p.detach()) - start[n]).norm()) for n, p in straight.named_parameters()}
    return {"bitwise": same, "moved": min(moved.values()), "keys of a fresh state": len(empty["state"])}


def checkpoints() -> dict[str, dict[str, Any]]:
    """All rows, sharded and gathered checkpoints, in one start of the processes."""
    return {
        f"{row.name}, {'gathered' if full_state else 'sharded'}": checkpoint(row.name, row.remembering, full_state)
        for row in ROWS
        for full_state in (False, True)
    }


def places() -> list[Place]:
    """Weights that are split by rows, across rows, over one of two mesh dimensions, or not at all."""
    line = init_device_mesh("cpu", (2,))
    copies = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    return [
        ((5, 4), line, [Shard(0)]),
        ((3, 6), line, [Shard(1)]),
        ((2, 3, 3), line, [Shard(2)]),
        ((4, 4), line, [Replicate()]),
        ((4, 3), copies, [Replicate(), Shard(0)]),
        ((7,), line, [Shard(0)]),
        ((5, 4), None, []),
        ((7,), None, []),
    ]


def mixed(steps: int) -> dict[str, tuple[float, list[str]]]:
    """Per row of the table: the largest relative error of a displacement, and what was dispatched on DTensors."""
    layout = places()
    found = {row.name: follow(build_of(row), layout, steps) for row in ROWS}
    return {name: (result.error, result.dispatched) for name, result in found.items()}


def screened(steps: int) -> dict[str, tuple[float, list[str]]]:
    """The same with clipping, and with NaN on one process alone at every third step, which all have to skip."""
    layout = places()
    options: dict[str, Any] = {"poison": 3, "max_grad_norm": 2.0, "non_finite": "skip"}
    found = {row.name: follow(build_of(row), layout, steps, **options) for row in ROWS}
    return {name: (result.error, result.dispatched) for name, result in found.items()}


def rounded(steps: int) -> dict[str, bool]:
    """bfloat16 weights, whose random bits must not depend on how they are split: bitwise equality."""
    layout, results = places(), {}
    for options in ({"rounding": "stochastic"}, {"state_dtype": "bfloat16"}, {"rounding": "kahan"}):
        start = draw(layout, 0, torch.bfloat16)
        whole = [nn.Parameter(x.clone()) for x in start]
        split = [nn.Parameter(spread(x, place)) for x, place in zip(start, layout)]
        reference, optimizer = (mo.AdamW(params, lr=1e-2, **options) for params in (whole, split))  # type: ignore[arg-type]
        for t in range(steps):
            for p, q, g, place in zip(whole, split, draw(layout, t + 1, torch.bfloat16), layout):
                p.grad, q.grad = g, spread(g, place)
            reference.step()
            optimizer.step()
        same = all(torch.equal(full(q.detach()), p.detach()) for p, q in zip(whole, split))
        results[str(options)] = same and not any(torch.equal(p.detach(), x) for p, x in zip(whole, start))
    return results


def anchored(folder: str, steps: int) -> dict[str, Any]:
    """Sharded anchors from a source, and captured into files: error against one process, and a bitwise resume."""
    whole = build()
    start = {name: p.detach().clone() for name, p in whole.named_parameters()}
    source = str(Path(folder, "pretrained.safetensors"))
    if dist.get_rank() == 0:
        save_file({name: 0.9 * p + 0.01 for name, p in start.items()}, source)
    dist.barrier()
    results = {}
    for kind, store in (("source", "device"), ("source", "mmap"), ("capture", "cpu"), ("given", "device")):

        def make(model: nn.Module, where: str, kind: str = kind, store: str = store) -> Any:
            file = str(Path(folder, f"{store}-{where}.safetensors"))
            anchor = source if kind == "source" else "capture"
            options = {"anchor": anchor, "anchor_store": store, "anchor_file": file}
            optimizer = mo.AdamSPD(model.named_parameters(), lr=0.01, **options)
            if kind == "given":
                optimizer.anchor_to({name: 0.8 * p for name, p in start.items()})
            return optimizer

        single, sharded = build(), shard(build())
        # One process's file is written by each rank for itself, the sharded one by rank 0 for all.
        train(single, make(single, f"single-{dist.get_rank()}"), 0, 2 * steps)
        train(sharded, first := make(sharded, "sharded"), 0, steps)
        saved = copy.deepcopy(get_optimizer_state_dict(sharded, first))
        middle = {name: p.detach().clone() for name, p in sharded.named_parameters()}
        train(sharded, first, steps, steps)
        ends = [full(p.detach()) for p in sharded.parameters()]
        with torch.no_grad():
            for name, p in sharded.named_parameters():
                p.copy_(middle[name])
        resumed = make(sharded, "sharded")
        sharded.zero_grad()
        set_optimizer_state_dict(sharded, resumed, saved)
        train(sharded, resumed, steps, steps)
        factor = {"source": 0.9, "capture": 1.0, "given": 0.8}[kind]
        expected = {name: factor * p + 0.01 * (kind == "source") for name, p in start.items()}
        results[f"{kind} {store}"] = {
            "asked": all(torch.equal(full(first.anchor_of(p)), expected[n]) for n, p in sharded.named_parameters()),
            "error": distance(sharded, single, start),
            "bitwise": all(torch.equal(full(p.detach()), end) for p, end in zip(sharded.parameters(), ends)),
            "saved": any("anchor" in state for state in saved["state"].values()),
        }
    one, many = (Path(folder, f"cpu-{name}.safetensors").read_bytes() for name in ("single-0", "sharded"))
    results["the same file"] = one == many
    # A file of another run is refused on every rank, and nobody waits for the others for ever.
    other = shard(build())
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(2.0)
    try:
        options = {"anchor_store": "cpu", "anchor_file": str(Path(folder, "cpu-sharded.safetensors"))}
        train(other, mo.AdamSPD(other.named_parameters(), **options), 0, 1)
    except ValueError as error:
        results["refused"] = "holds other weights" in str(error)
    return results
