"""What each of two processes does where torch hands over flat pieces (FSDP version 1) or some of the parameters."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.optim import ZeroRedundancyOptimizer

import mooring as mo
from tests.optim.table import ROWS, OptimizerRow


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def backward(net: nn.Module, step: int) -> None:
    """The same batch everywhere, so the mean of the gradients over processes is that of one."""
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    net(x).square().mean().backward()


def wrapped(net: nn.Module, original: bool) -> FullyShardedDataParallel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that this is on a CPU, and that there is a second version
        return FullyShardedDataParallel(net, use_orig_params=original, device_id=torch.device("cpu"))


def refusal(act: Callable[[], Any]) -> str:
    try:
        act()
    except ValueError as error:
        return str(error)
    return ""


def weights(net: nn.Module) -> list[torch.Tensor]:
    if not isinstance(net, FullyShardedDataParallel):
        return [p.detach().clone() for p in net.parameters()]
    with warnings.catch_warnings(), FullyShardedDataParallel.summon_full_params(net):
        warnings.simplefilter("ignore")
        return [p.detach().clone().reshape(-1) for p in net.module.parameters()]


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[torch.Tensor]:
    for step in range(steps):
        optimizer.zero_grad()
        backward(net, step)
        optimizer.step()
    return weights(net)


def distance(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    whole = torch.cat([x.reshape(-1) for x in expected])
    return float((torch.cat([x.reshape(-1) for x in found]) - whole).norm() / whole.norm())


def follow(row: OptimizerRow, original: bool, steps: int) -> dict[str, Any]:
    """The error of a pointwise recipe against one process, or what a refusal says; wrapped before the optimizer."""
    net = wrapped(network(), original)
    if row.scope != "pointwise":
        return {"refused": refusal(lambda: row.build(net.parameters()))}
    single = network()
    return {
        "error": distance(
            train(net, row.build(net.parameters()), steps), train(single, row.build(single.parameters()), steps)
        )
    }


def after(row: OptimizerRow, trained: int) -> dict[str, Any]:
    """The same where FSDP takes the parameters from an optimizer that has them, before or after its first step."""
    net = network()
    optimizer = row.build(net.parameters())
    train(net, optimizer, trained)
    sharded = wrapped(net, True)
    optimizer.zero_grad()
    backward(sharded, 9)
    before = weights(sharded)
    said = refusal(optimizer.step)
    return {"refused": said, "moved": distance(weights(sharded), before)}


def hosts(steps: int) -> list[dict[str, Any]]:
    """By host."""
    return [fsdp1(steps), zero_redundancy(steps)]


def fsdp1(steps: int) -> dict[str, Any]:
    """By case and row."""
    found = {
        f"{row.name}, {'original' if original else 'flat'}": follow(row, original, steps)
        for row in ROWS
        for original in (False, True)
    }
    # Pointwise state of whole tensors would not fit to the pieces either, so only a fresh optimizer is wrapped then.
    found |= {f"{row.name}, wrapped later": after(row, 0) for row in ROWS}
    found |= {f"{row.name}, wrapped in training": after(row, 2) for row in ROWS if row.scope != "pointwise"}
    for method in (mo.NSO, mo.SAM):
        net = network()
        base = torch.optim.SGD(net.parameters(), lr=0.1)
        early = method(base)
        sharded = wrapped(net, True)
        late = refusal(lambda method=method, sharded=sharded: method(torch.optim.SGD(sharded.parameters(), lr=0.1)))
        found[f"{method.__name__}, wrapped later"] = {"refused": refusal(early.passes)}
        found[f"{method.__name__}, original"] = {"refused": late}
    return found


def zero_redundancy(steps: int) -> dict[str, Any]:
    """Whole tensors, some on each process: rows and norms of tensors are right, what reads the model is refused."""
    found: dict[str, Any] = {}
    for row in ROWS:
        single, net = network(), network()
        make = row.make or row.cls
        made: list[Any] = []

        def build(make: Any = make, net: nn.Module = net, made: list[Any] = made, row: OptimizerRow = row) -> None:
            made.append(ZeroRedundancyOptimizer(net.parameters(), optimizer_class=make, **row.hyper()))

        said = refusal(build)
        found[row.name] = {"refused": said}
        if not said:
            expected = train(single, row.build(single.parameters()), steps)
            found[row.name]["error"] = distance(train(net, made[0], steps), expected)
    clip = refusal(lambda: ZeroRedundancyOptimizer(network().parameters(), optimizer_class=mo.AdamW, max_grad_norm=1.0))
    found["AdamW, clipped"] = {"refused": clip}
    return found
