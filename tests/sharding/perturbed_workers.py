"""What each process does in the tests of perturbed steps under DDP and FSDP2."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import mooring as mo
from mooring.kernels import random
from mooring.perturb.frame import Perturbed
from mooring.perturb.noise import draw
from mooring.perturb.weights import Member
from tests.sharding.sides import full
from tests.sharding.workers import distance

BATCH = 4  # rows of each process


class Net(nn.Module):
    """Rows that divide unevenly (7, 5, 3) and fewer rows than processes (1); running statistics where asked for."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.first = nn.Linear(6, 5)
        self.conv = nn.Conv1d(1, 3, 3, bias=False)
        self.norm = nn.BatchNorm1d(3) if norm else nn.Identity()
        self.last = nn.Linear(9, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.first(self.embed(tokens))
        out: Tensor = self.last(torch.tanh(self.norm(self.conv(x.unsqueeze(1)))).flatten(1))
        return out


def build(norm: bool) -> Net:
    torch.manual_seed(7)
    return Net(norm).double()


def rows(step: int, which: slice) -> tuple[Tensor, Tensor]:
    """Rows of the batch of all processes together."""
    generator = torch.Generator().manual_seed(step)
    n = BATCH * dist.get_world_size()
    tokens = torch.randint(7, (n,), generator=generator)
    return tokens[which], torch.randn(n, 1, generator=generator, dtype=torch.float64)[which]


def mine(rank: int | None = None) -> slice:
    rank = dist.get_rank() if rank is None else rank
    return slice(BATCH * rank, BATCH * (rank + 1))


EVERYTHING = slice(None)


def loss_of(model: nn.Module, step: int, which: slice) -> Tensor:
    tokens, target = rows(step, which)
    loss: Tensor = (model(tokens) - target).square().mean()
    return loss


def take(optimizer: Perturbed, model: nn.Module, step: int, which: slice, micro: int = 1) -> None:
    optimizer.zero_grad()
    for pass_ in optimizer.passes():
        with pass_:
            for i in range(micro):
                loss = loss_of(model, step, slice(which.start + i, which.stop, micro) if micro > 1 else which)
                pass_.backward(loss / micro)
    optimizer.step()


METHODS: dict[str, Any] = {
    "NSO": lambda base, model: mo.NSO(base, sigma=0.05, k=2, clean=0.3, seed=3, model=model),
    "NSO relative": lambda base, model: mo.NSO(base, sigma=0.1, relative=True, seed=3, model=model),
    "SAM": lambda base, model: mo.SAM(base, rho=0.1, model=model),
    "USAM": lambda base, model: mo.USAM(base, rho=0.1, model=model),
    "ASAM": lambda base, model: mo.ASAM(base, rho=0.3, model=model),
    "RSAM": lambda base, model: mo.RSAM(base, rho=0.1, sigma=0.05, seed=3, model=model),
}
GRADIENTS = {"NSO": 5, "NSO relative": 2, "SAM": 2, "USAM": 2, "ASAM": 2, "RSAM": 2}


def base_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9)


def starts(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


class Reductions:
    """Counts the buckets that DDP averages."""

    def __init__(self, model: DistributedDataParallel) -> None:
        self.count = 0

        def hook(_, bucket):  # type: ignore[no-untyped-def]  # DDP refuses annotations that are strings
            self.count += 1
            work = dist.all_reduce(bucket.buffer().div_(dist.get_world_size()), async_op=True)
            return work.get_future().then(lambda done: done.value()[0])

        model.register_comm_hook(None, hook)


# --- DDP ---------------------------------------------------------------------------------------------------------


def ddp(steps: int) -> dict[str, Any]:
    """Every method against one process on the batch of all; how many times a step averaged gradients."""
    found: dict[str, Any] = {}
    for name, make in METHODS.items():
        single, inner = build(False), build(False)
        start = starts(single)
        model = DistributedDataParallel(inner)
        reductions = Reductions(model)
        one, ours = make(base_of(single), single), make(base_of(inner), model)
        counts = []
        for t in range(steps):
            take(one, single, t, EVERYTHING)
            before = reductions.count
            take(ours, model, t, mine(), micro=2 if t % 2 else 1)
            counts.append(reductions.count - before)
        found[name] = {"error": distance(inner, single, start), "reductions": counts}
    return found


def ddp_names(steps: int) -> float:
    """Named through the wrapper or not, an element's noise is the same."""
    nets = [build(False), build(False)]
    start = starts(nets[0])
    models = [DistributedDataParallel(net) for net in nets]
    ones = [
        METHODS["NSO"](torch.optim.SGD(models[0].named_parameters(), lr=0.1), models[0]),
        METHODS["NSO"](torch.optim.SGD(nets[1].named_parameters(), lr=0.1), models[1]),
    ]
    for t in range(steps):
        for one, model in zip(ones, models):
            take(one, model, t, mine())
    return distance(nets[0], nets[1], start)


def local_norm(steps: int) -> dict[str, Any]:
    """SAM whose processes climb their own gradient, against a loop over the processes' batches."""
    found: dict[str, Any] = {}
    for name, options in {"SAM": {"rho": 0.1}, "USAM": {"rho": 0.1}}.items():
        inner, naive, other = build(False), build(False), build(False)
        start = starts(naive)
        model = DistributedDataParallel(inner)
        reductions = Reductions(model)
        ours = getattr(mo, name)(base_of(inner), norm="local", model=model, **options)
        everyones = getattr(mo, name)(base_of(other), **options)
        base = base_of(naive)
        counts = []
        for t in range(steps):
            before = reductions.count
            take(ours, model, t, mine())
            counts.append(reductions.count - before)
            take(everyones, other, t, EVERYTHING)
            params = list(naive.parameters())
            total = [torch.zeros_like(p) for p in params]
            for rank in range(dist.get_world_size()):
                first = torch.autograd.grad(loss_of(naive, t, mine(rank)), params)
                norm = torch.cat([g.flatten() for g in first]).norm() if name == "SAM" else 1.0
                values = [p.detach().clone() for p in params]
                with torch.no_grad():
                    for p, g in zip(params, first):
                        p.add_(g * (options["rho"] / norm))
                second = torch.autograd.grad(loss_of(naive, t, mine(rank)), params)
                with torch.no_grad():
                    for p, value, sum_, g in zip(params, values, total, second):
                        p.copy_(value)
                        sum_.add_(g / dist.get_world_size())
            for p, g in zip(params, total):
                p.grad = g
            base.step()
        found[name] = {
            "error": distance(inner, naive, start),
            "from global": distance(other, naive, start),
            "reductions": counts,
        }
    return found


def per_rank(steps: int) -> dict[str, Any]:
    """Each process its own draws, against a loop over the processes' draws and batches."""
    inner, naive = build(False), build(False)
    start = starts(naive)
    model = DistributedDataParallel(inner)
    ours = mo.NSO(base_of(inner), sigma=0.1, k=2, per_rank=True, seed=3, model=model)
    base = base_of(naive)
    names = [name for name, _ in naive.named_parameters()]
    seen = set()
    for t in range(steps):
        take(ours, model, t, mine())
        params = list(naive.parameters())
        total = [torch.zeros_like(p) for p in params]
        values = [p.detach().clone() for p in params]
        for rank in range(dist.get_world_size()):
            for j in range(2):
                noise = [
                    draw(Member(p, {}, n), "normal", random.key("nso", 3, t, j, rank + 1, n)).view(p.shape)
                    for p, n in zip(params, names)
                ]
                seen.add(float(noise[0].flatten()[0]))
                for sign in (0.1, -0.1):
                    with torch.no_grad():
                        for p, value, u in zip(params, values, noise):
                            p.copy_(value + sign * u)
                    grads = torch.autograd.grad(loss_of(naive, t, mine(rank)), params)
                    for sum_, g in zip(total, grads):
                        sum_.add_(g / (4 * dist.get_world_size()))
        for p, value, g in zip(params, values, total):
            p.data.copy_(value)
            p.grad = g
        base.step()
    return {"error": distance(inner, naive, start), "draws": len(seen)}


def cleared() -> dict[str, str]:
    """Clearing the module's gradients inside a pass loses what is not averaged yet; the optimizer's own does not."""
    inner = build(False)
    model = DistributedDataParallel(inner)
    nso = METHODS["NSO"](base_of(inner), model)
    before = starts(inner)
    said = {}

    def closure(clear: Any) -> Tensor:
        clear()
        loss = loss_of(model, 0, mine())
        loss.backward()
        return loss

    try:
        nso.step(lambda: closure(model.zero_grad))
    except RuntimeError as error:
        said["model"] = str(error)
    said["moved"] = str(any(not torch.equal(p, before[n]) for n, p in inner.named_parameters()))
    nso.step(lambda: closure(nso.zero_grad))
    single = build(False)
    one = METHODS["NSO"](base_of(single), single)
    take(one, single, 0, EVERYTHING)
    said["error"] = str(distance(inner, single, before) < 1e-12)
    return said


def infinite() -> dict[str, Any]:
    """An overflow on one process, in any pass, skips the step on all of them."""
    found: dict[str, Any] = {}
    for name, make in {
        **METHODS,
        "local": lambda base, model: mo.SAM(base, norm="local", model=model),
        "local USAM": lambda base, model: mo.USAM(base, norm="local", model=model),
    }.items():
        inner = build(False)
        model = DistributedDataParallel(inner)
        optimizer = make(base_of(inner), model)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        skipped = []
        for at in range(optimizer.gradients_per_step):
            before = starts(inner)
            optimizer.zero_grad()
            for pass_ in optimizer.passes(scaler=scaler):
                with pass_:
                    loss = loss_of(model, 0, mine())
                    if pass_.index == at and dist.get_rank() == 1:
                        loss = loss * float("inf")
                    pass_.backward(loss)
            scaler.step(optimizer)
            scaler.update()
            skipped.append(all(torch.equal(p, before[n]) for n, p in inner.named_parameters()))
        found[name] = {"skipped": skipped, "scale": scaler.get_scale() * 2 ** len(skipped)}
    return found


# --- FSDP2 -------------------------------------------------------------------------------------------------------


def shard(model: Net) -> Net:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in (model.first, model.conv):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def fsdp(steps: int) -> dict[str, Any]:
    """Every method, with statistics and an evaluation between steps, against one process given the same batch.

    All processes see the same rows, so that the statistics of each are those of the one.
    """
    found: dict[str, Any] = {}
    for name, make in METHODS.items():
        single, model = build(True), shard(build(True))
        start = starts(single)
        one, ours = make(base_of(single), single), make(base_of(model), model)
        outputs = 0.0
        for t in range(steps):
            take(one, single, t, EVERYTHING)
            take(ours, model, t, EVERYTHING)
            for net in (single, model):
                net.eval()
            with torch.no_grad():  # leaves the root gathered
                difference = loss_of(model, t, EVERYTHING) - loss_of(single, t, EVERYTHING)
            outputs = max(outputs, abs(float(difference)))
            for net in (single, model):
                net.train()
        buffers = max(
            float((b - c).abs().max()) for b, c in zip(model.norm.buffers(), single.norm.buffers(), strict=True)
        )
        found[name] = {"error": distance(model, single, start), "outputs": outputs, "buffers": buffers}
    return found


def fsdp_split_batch(steps: int) -> dict[str, float]:
    """Each process its own rows; gradients are averaged by FSDP in every pass."""
    found = {}
    for name, make in METHODS.items():
        single, model = build(False), shard(build(False))
        start = starts(single)
        one, ours = make(base_of(single), single), make(base_of(model), model)
        for t in range(steps):
            take(one, single, t, EVERYTHING)
            take(ours, model, t, mine())
        found[name] = distance(model, single, start)
    return found


def interrupted() -> dict[str, bool]:
    """A raise inside a pass leaves the true shards, and no gathered copy of the moved ones."""
    found = {}
    for name, make in METHODS.items():
        model = shard(build(False))
        optimizer = make(base_of(model), model)
        take(optimizer, model, 0, mine())
        before = {n: full(p.detach()).clone() for n, p in model.named_parameters()}
        with torch.no_grad():
            value = float(loss_of(model, 1, mine()))
        try:
            for pass_ in optimizer.passes():
                with pass_:
                    loss = loss_of(model, 1, mine())
                    if pass_.stage.place is not None:
                        raise KeyboardInterrupt
                    pass_.backward(loss)
        except KeyboardInterrupt:
            pass
        same = all(torch.equal(full(p.detach()), before[n]) for n, p in model.named_parameters())
        with torch.no_grad():
            found[name] = same and float(loss_of(model, 1, mine())) == value
    return found


def without_a_model() -> str:
    model = shard(build(False))
    try:
        mo.NSO(base_of(model))
    except ValueError as error:
        return str(error)
    return ""


def resumed(folder: str) -> dict[str, bool]:
    """Through files of torch.distributed.checkpoint, into a model and an optimizer that began elsewhere.

    All processes see the same rows: a checkpoint holds one copy of the running statistics, not each process's own.
    """
    found = {}
    for name, make in METHODS.items():
        straight = shard(build(True))
        one = make(mo.AdamSPD(straight.named_parameters(), lr=0.01), straight)
        for t in range(2):
            take(one, straight, t, EVERYTHING)
        weights, state = get_state_dict(straight, one)
        path = str(Path(folder, name))
        dcp.save({"model": weights, "optimizer": state}, checkpoint_id=path)
        for t in range(2, 4):
            take(one, straight, t, EVERYTHING)

        other = build(True)
        with torch.no_grad():
            for p in other.parameters():
                p.add_(1.0)
        other = shard(other)
        two = make(mo.AdamSPD(other.named_parameters(), lr=0.01), other)
        for group in two.param_groups:
            group["noise_seed"] = 99
        weights, state = get_state_dict(other, two)
        dcp.load({"model": weights, "optimizer": state}, checkpoint_id=path)
        set_state_dict(other, two, model_state_dict=weights, optim_state_dict=state)
        for t in range(2, 4):
            take(two, other, t, EVERYTHING)
        found[name] = all(
            torch.equal(full(p.detach()), full(q.detach()))
            for p, q in zip(straight.parameters(), other.parameters(), strict=True)
        ) and all(torch.equal(b, c) for b, c in zip(straight.buffers(), other.buffers(), strict=True))
    return found


def noise_is_that_of_the_whole() -> bool:
    """A shard's part of the noise is cut out of the whole tensor's, also where shards are uneven or empty."""
    single, model = build(False), shard(build(False))
    one, ours = METHODS["NSO"](base_of(single), single), METHODS["NSO"](base_of(model), model)
    same = True
    for left, right in zip(one.passes(), ours.passes()):
        with left:
            values = copy.deepcopy(starts(single))
        with right:
            same = same and all(torch.equal(full(p.detach()), values[n]) for n, p in model.named_parameters())
    return same


def ddp_everything(steps: int) -> dict[str, Any]:
    """One start of the processes for all tests under DDP."""
    return {
        "methods": ddp(steps),
        "names": ddp_names(steps),
        "local": local_norm(steps),
        "per rank": per_rank(steps),
        "cleared": cleared(),
        "infinite": infinite(),
    }


def fsdp_everything(steps: int, folder: str) -> dict[str, Any]:
    """One start of the processes for all tests under FSDP2."""
    return {
        "methods": fsdp(steps),
        "split batch": fsdp_split_batch(steps),
        "interrupted": interrupted(),
        "refused": without_a_model(),
        "resumed": resumed(folder),
        "noise": noise_is_that_of_the_whole(),
    }
