"""What each of four processes does on two-dimensional meshes: the same step as one process, from the same gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard

import mooring as mo
from mooring.step.shards import piece
from tests.optim.table import ROWS
from tests.sharding.sides import Collectives, Place, follow, full, here, part_of, spread


def layouts() -> dict[str, list[Place]]:
    """Weights as HSDP, tensor parallelism and both kinds of two-dimensional parallelism hold them."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    copies, split = Replicate(), Shard(0)
    by_column, strided = Shard(1), _StridedShard(0, split_factor=2)
    vector: Place = ((7,), mesh, [split, copies])
    return {
        "HSDP": [((5, 4), mesh, [copies, split]), ((1, 6), mesh, [copies, split]), ((7,), mesh, [copies, split])],
        "TP": [((6, 5), mesh, [copies, split]), ((3, 6), mesh, [copies, by_column]), ((4, 4), mesh, [copies, copies])],
        "FSDP and TP by columns": [((5, 6), mesh, [split, by_column]), vector, ((4, 3), mesh, [copies, split])],
        "FSDP and TP on the same rows": [((9, 4), mesh, [strided, split]), ((2, 3), mesh, [strided, split]), vector],
        "the same columns twice": [((3, 9), mesh, [by_column, by_column]), vector],
    }


def every_row(steps: int) -> dict[str, Any]:
    """By layout and row: error and collectives."""
    found = {}
    for name, layout in layouts().items():
        for row in ROWS:
            result = follow(row, layout, steps)
            found[f"{name}: {row.name}"] = result.error, result.collectives
    return found


def perturbed(steps: int) -> dict[str, float]:
    """NSO's and SAM's displacement on every layout against one process: f(w) = sum of (w^4 / 4 - c w)."""
    makers = {
        "NSO": lambda base: mo.NSO(base, sigma=0.05, k=2, model=nn.Module()),
        "SAM": lambda base: mo.SAM(base, rho=0.1, model=nn.Module()),
        "ASAM": lambda base: mo.ASAM(base, rho=0.1, model=nn.Module()),
    }
    found = {}
    for name, layout in layouts().items():
        for method, make in makers.items():
            generator = torch.Generator().manual_seed(1)
            start = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape, _, _ in layout]
            c = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape, _, _ in layout]
            ends = []
            for sharded in (False, True):
                params = [nn.Parameter(spread(x, pl) if sharded else x.clone()) for x, pl in zip(start, layout)]
                named = [(f"w{i}", p) for i, p in enumerate(params)]
                optimizer = make(mo.AdamW(named, lr=0.01))
                for _ in range(steps):
                    optimizer.zero_grad()
                    for pass_ in optimizer.passes():
                        with pass_, torch.no_grad():
                            for p, target, place in zip(params, c, layout):
                                if sharded:
                                    own = here(p.detach())
                                    g = own**3 - part_of(target, place)
                                    whole = DTensor.from_local(
                                        g, place[1], place[2], run_check=False, shape=p.shape, stride=p.stride()
                                    )
                                else:
                                    whole = p.detach() ** 3 - target
                                p.grad = whole if p.grad is None else p.grad + whole
                    optimizer.step()
                ends.append([p.detach() for p in params])
            found[f"{name}: {method}"] = max(
                float((here(q) - part_of(p, place)).norm() / (p - x).norm())
                for p, q, x, place in zip(*ends, start, layout)
            )
    return found


def pieces() -> bool:
    """Where a piece begins, against where its first element stands in the whole tensor."""
    for layout in layouts().values():
        for shape, mesh, placements in layout:
            numbers = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
            place = (shape, mesh, placements)
            mine, where = part_of(numbers, place), piece(spread(numbers, place))
            assert tuple(mine.shape) == where.shape, (shape, placements)
            if mine.numel():
                first = torch.tensor(where.offset).tolist()
                assert float(mine.flatten()[0]) == float(numbers[tuple(first)]), (shape, placements)
    return True


class Block(nn.Module):
    """Two layers as tensor parallelism splits them, by columns and by rows, between weights that it leaves whole."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.up = nn.Linear(6, 10)  # even over tp, as its forward pass wants; 5 rows each are uneven over dp
        self.down = nn.Linear(10, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(x + self.down(torch.tanh(self.up(self.norm(x)))))
        return out


def parallel(kind: str) -> nn.Module:
    """The model as torch splits it: FSDP's replicas of shards, tensor parallelism, or FSDP over tensor parallelism."""
    torch.manual_seed(3)
    model = Block().double()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    if kind == "HSDP":
        for layer in (model.up, model.down, model):
            fully_shard(layer, mesh=mesh)
        return model
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    parallelize_module(model, mesh["tp"], plan)
    if kind == "FSDP and TP":
        for layer in (model.up, model.down, model):
            fully_shard(layer, mesh=mesh["dp"])
    return model


def trained(steps: int) -> dict[str, Any]:
    """Every row on every kind, from its own backward passes: error against one process, collectives, placements."""
    found: dict[str, Any] = {}
    for kind in ("HSDP", "TP", "FSDP and TP"):
        for row in ROWS:
            torch.manual_seed(3)
            single, split = Block().double(), parallel(kind)
            start = [p.detach().clone() for p in single.parameters()]
            optimizers = [row.build(list(m.named_parameters()), "default") for m in (single, split)]
            most = 0
            for step in range(steps):
                generator = torch.Generator().manual_seed(step)
                x = torch.randn(8, 6, generator=generator, dtype=torch.float64)
                y = torch.randn(8, 3, generator=generator, dtype=torch.float64)
                for model, optimizer in zip((single, split), optimizers):
                    optimizer.zero_grad()
                    # The same batch everywhere: the mean of gradients over processes is that of one.
                    (model(x) - y).square().mean().backward()
                optimizers[0].step()
                with Collectives() as seen:
                    optimizers[1].step()
                most = max(most, seen.count)
            error = max(
                float((full(q.detach()) - p.detach()).norm() / (p.detach() - s).norm())
                for p, q, s in zip(single.parameters(), split.parameters(), start)
            )
            found[f"{kind}: {row.name}"] = error, most
        found[kind] = sorted({str(getattr(p, "placements", "whole")) for p in split.parameters()})
    return found
