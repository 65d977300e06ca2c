"""torch.distributed.checkpoint initialises an optimizer by a dry run; that run must leave no trace."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from tests.optim.problems import TinyNet, backward, make_net
from tests.optim.table import OptimizerRow, every_row

ways = pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])


def options(flat: bool) -> StateDictOptions:
    return StateDictOptions(flatten_optimizer_state_dict=flat)


def make(row: OptimizerRow) -> tuple[TinyNet, torch.optim.Optimizer]:
    net = make_net()
    groups: list[dict[str, Any]] = [
        {"params": [p for p in net.parameters() if p.dim() > 1]},
        {"params": [p for p in net.parameters() if p.dim() < 2], "lr": 1e-3},
    ]
    return net, row.build(groups, "default" if row.adaptive else "momentum")


def train(net: TinyNet, optimizer: torch.optim.Optimizer, start: int, stop: int) -> list[Tensor]:
    for t in range(start, stop):
        backward(net, t)
        net.unused.grad = torch.full_like(net.unused, 0.1)
        optimizer.step()
    net.zero_grad()
    return [p.detach().clone() for p in net.parameters()]


@ways
@pytest.mark.parametrize("tensor_lr", [False, True])
@every_row
def test_the_dry_run_leaves_no_trace(row: OptimizerRow, flat: bool, tensor_lr: bool) -> None:
    net, optimizer = make(row)
    if tensor_lr:
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(group["lr"])
    before = [p.detach().clone() for p in net.parameters()]
    get_optimizer_state_dict(net, optimizer, options=options(flat))
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before))
    untouched_net, untouched = make(row)
    if tensor_lr:
        for group in untouched.param_groups:
            group["lr"] = torch.tensor(group["lr"])
    # Only now do the pretrained weights arrive: an anchor taken in the dry run would be the wrong one.
    with torch.no_grad():
        for module in (net, untouched_net):
            for p in module.parameters():
                p.mul_(1.25)
    for x, y in zip(train(net, optimizer, 0, 12), train(untouched_net, untouched, 0, 12)):
        assert torch.equal(x, y)


@ways
@every_row
def test_a_fresh_optimizer_resumes_bitwise(row: OptimizerRow, flat: bool) -> None:
    net, optimizer = make(row)
    train(net, optimizer, 0, 9)
    saved = copy.deepcopy(get_optimizer_state_dict(net, optimizer, options=options(flat)))
    other_net, other = make(row)
    other_net.load_state_dict(net.state_dict())
    set_optimizer_state_dict(other_net, other, saved, options=options(flat))
    for x, y in zip(train(other_net, other, 9, 15), train(net, optimizer, 9, 15)):
        assert torch.equal(x, y)


@every_row
def test_empty_groups_survive(row: OptimizerRow) -> None:
    """Builders for LoRA+ and the like pass groups that may be empty; such a group must keep its options on resume."""
    net = nn.Linear(3, 2, dtype=torch.float64)

    def fresh() -> torch.optim.Optimizer:
        return row.build([{"params": list(net.parameters())}, {"params": []}])

    optimizer = fresh()
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    other = fresh()
    other.load_state_dict(saved)
    other.step()
    nested = get_optimizer_state_dict(net, optimizer)
    third = fresh()
    set_optimizer_state_dict(net, third, nested)
    third.step()
