"""What each process does in the tests of noise that differs between the copies of data parallelism."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import mooring as mo
from mooring.kernels import random
from mooring.perturb.noise import draw
from mooring.perturb.weights import Member
from tests.sharding.mesh_workers import Block
from tests.sharding.sides import full

K, SIGMA, SEED, STEPS = 2, 0.1, 3, 4


def build() -> Block:
    torch.manual_seed(3)
    return Block().double()


def loss_of(model: nn.Module, step: int, rows: int) -> Tensor:
    """On the rows that the data-parallel rank ``rows`` has at a step."""
    generator = torch.Generator().manual_seed(100 * step + rows)
    x = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    y = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    out: Tensor = (model(x) - y).square().mean()
    return out


def base_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9)


def nso_of(model: nn.Module) -> mo.NSO:
    return mo.NSO(base_of(model), sigma=SIGMA, k=K, per_rank=True, seed=SEED, model=model)


def take(nso: mo.NSO, model: nn.Module, step: int, rows: int) -> None:
    nso.zero_grad()
    for pass_ in nso.passes():
        with pass_:
            pass_.backward(loss_of(model, step, rows))
    nso.step()


def naive(copies: list[int]) -> tuple[list[Tensor], int]:
    """The mean over data-parallel ranks and their copies' draws, by hand; how many different draws there were.

    Args:
        copies: the copy of the model that each data-parallel rank works on.
    """
    model = build()
    base = base_of(model)
    params, names = list(model.parameters()), [name for name, _ in model.named_parameters()]
    seen = set()
    for t in range(STEPS):
        total, values = [torch.zeros_like(p) for p in params], [p.detach().clone() for p in params]
        for rows, replica in enumerate(copies):
            for j in range(K):
                noise = [
                    draw(Member(p, {}, n), "normal", random.key("nso", SEED, t, j, replica + 1, n)).view(p.shape)
                    for p, n in zip(params, names)
                ]
                seen.add(float(noise[0].flatten()[0]))
                for sign in (SIGMA, -SIGMA):
                    with torch.no_grad():
                        for p, value, u in zip(params, values, noise):
                            p.copy_(value + sign * u)
                    for sum_, g in zip(total, torch.autograd.grad(loss_of(model, t, rows), params)):
                        sum_.add_(g / (2 * K * len(copies)))
        for p, value, g in zip(params, values, total):
            p.data.copy_(value)
            p.grad = g
        base.step()
    return [p.detach() for p in params], len(seen)


def compared(model: nn.Module, rows: int, copies: list[int]) -> dict[str, Any]:
    """Trained with noise for each copy: against the mean by hand, and whether the copies are still equal."""
    start = [p.detach().clone() for p in build().parameters()]
    nso = nso_of(model)
    for t in range(STEPS):
        take(nso, model, t, rows)
    ends = [full(p.detach()) for p in model.parameters()]
    everyones: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, ends)
    expected, draws = naive(copies)
    return {
        "error": max(float((x - y).norm() / (y - s).norm()) for x, y, s in zip(ends, expected, start)),
        "draws": draws,
        "equal": all(torch.equal(x, y) for other in everyones for x, y in zip(other, ends)),
    }


def hybrid() -> nn.Module:
    """Two copies of two shards."""
    model, mesh = build(), init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    for layer in (model.up, model.down, model):
        fully_shard(layer, mesh=mesh)
    return model


def over_tensors() -> nn.Module:
    """Two copies of a model that is split by tensors, whose other weights lie on another mesh."""
    mesh = init_device_mesh("cpu", (2, 1, 2), mesh_dim_names=("replicate", "shard", "tensor"))
    model = parallelize_module(build(), mesh["tensor"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    for layer in (model.up, model.down, model):
        fully_shard(layer, mesh=mesh["replicate", "shard"])
    return model


def refused(model: nn.Module) -> str:
    try:
        nso_of(model)
    except ValueError as error:
        return str(error)
    return ""


def resumed() -> bool:
    """Stopped after two steps and continued by other objects, bit for bit."""
    rank = dist.get_rank()
    straight = hybrid()
    one = nso_of(straight)
    for t in range(2):
        take(one, straight, t, rank)
    saved = copy.deepcopy(get_state_dict(straight, one))
    other = hybrid()
    two = nso_of(other)
    set_state_dict(other, two, model_state_dict=saved[0], optim_state_dict=saved[1])
    for t in range(2, STEPS):
        take(one, straight, t, rank)
        take(two, other, t, rank)
    pairs = zip(straight.parameters(), other.parameters())
    return all(torch.equal(full(p.detach()), full(q.detach())) for p, q in pairs)


def on_four() -> dict[str, Any]:
    """HSDP, where two processes are a copy, alone and with tensor parallelism inside it; DDP in a group of its own."""
    rank = dist.get_rank()
    pairs = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    in_pairs = DistributedDataParallel(build(), process_group=pairs[rank % 2])
    line = init_device_mesh("cpu", (4,), mesh_dim_names=("shard",))
    tensors = parallelize_module(
        build(), init_device_mesh("cpu", (4,)), {"head": RowwiseParallel(), "norm": SequenceParallel()}
    )
    return {
        "HSDP": compared(hybrid(), rank, [0, 0, 1, 1]),
        "HSDP over tensor parallelism": compared(over_tensors(), rank // 2, [0, 1]),
        "DDP in pairs": compared(in_pairs, rank // 2, [0, 1]),
        "resumed": resumed(),
        "refused": {
            "DeviceMesh((4,)": refused(tensors),  # where the norm's weights are replicated, and are one copy
            "DeviceMesh((shard=4)": refused(fully_shard(build(), mesh=line)),
        },
    }
