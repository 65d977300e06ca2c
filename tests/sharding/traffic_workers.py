"""What each of two processes hands to its reductions, counted, beside what the optimizer says of itself."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import mooring as mo
from mooring.perturb.frame import Perturbed
from tests.optim.table import ROWS


class Counted:
    """The bytes of every reduction that is taken inside the block."""

    def __enter__(self) -> list[int]:
        self._reduce, found = dist.all_reduce, list[int]()

        def counted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            found.append(tensor.numel() * tensor.element_size())
            return self._reduce(tensor, *args, **kwargs)

        dist.all_reduce = counted
        return found

    def __exit__(self, *_: object) -> None:
        dist.all_reduce = self._reduce


def weights(kind: str) -> list[nn.Parameter]:
    """Rows, uneven and with an empty shard, a split vector, a copy and a plain tensor; or rows that are split."""
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    shapes = [((5, 4), Shard(0)), ((1, 6), Shard(0)), ((7,), Shard(0)), ((4, 4), Replicate())]
    if kind == "columns":
        shapes = [((5, 4), Shard(1)), ((3, 8), Shard(1)), ((7,), Shard(0)), ((6, 2), Shard(0))]
    split = [distribute_tensor(torch.randn(shape), mesh, [place]) for shape, place in shapes]
    return [nn.Parameter(x) for x in (*split, torch.randn(3, 2))]


def stepped(optimizer: Any, params: list[nn.Parameter]) -> dict[str, Any]:
    """What was said before any step, and what the second step hands over."""
    said = [(c.bytes, c.processes) for c in mo.communication(optimizer)]
    empty = not optimizer.state
    steps = []
    for _ in range(2):
        for p in params:
            p.grad = torch.ones_like(p)
        with Counted() as counted:
            optimizer.step()
        steps.append(counted)
    return {"said": said, "steps": steps, "unchanged": empty}


def every_row() -> dict[str, Any]:
    """By placement, row and clipping."""
    found: dict[str, Any] = {}
    for kind in ("rows", "columns"):
        for row in ROWS:
            if kind == "columns" and "rows" not in row.branches:
                continue
            for options in ({}, {"max_grad_norm": 1.0})[: 2 if kind == "rows" and not row.branches else 1]:
                params = weights(kind)
                found[f"{kind}, {row.name}, {options}"] = stepped(row.build(params, **options), params)
        params = weights(kind)
        optimizer = mo.wrap(torch.optim.SGD(params, lr=0.1, foreach=False), [mo.SelectiveProjection()])
        found[f"{kind}, wrapped"] = stepped(optimizer, params)
        found[f"{kind}, wrapped, in training"] = stepped(optimizer, params)
    refused = mo.SAM(torch.optim.SGD(weights("rows"), lr=0.1), model=nn.Module())
    assert isinstance(refused, Perturbed)
    try:
        mo.communication(refused)  # type: ignore[arg-type]
    except TypeError as error:
        found["refused"] = str(error)
    return found
