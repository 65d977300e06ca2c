"""What each of four processes does on two-dimensional meshes: the same step as one process, from the same gradients."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard
from torch.nn.parallel import DistributedDataParallel

import mooring as mo
from mooring.step.shards import like_shard, piece
from tests.optim.table import ROWS
from tests.sharding.sides import (
    STAGES,
    Build,
    Collectives,
    Margins,
    Place,
    build_of,
    draw,
    follow,
    full,
    here,
    part_of,
    spread,
)
from tests.sharding.traffic_workers import Counted


def layouts() -> dict[str, list[Place]]:
    """Weights as FSDP, HSDP, tensor parallelism and both kinds of two-dimensional parallelism hold them."""
    line = init_device_mesh("cpu", (4,))
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    dp, tp = mesh["dp"], mesh["tp"]
    copies, split = Replicate(), Shard(0)
    by_column, strided = Shard(1), _StridedShard(0, split_factor=2)
    vector: Place = ((7,), mesh, [split, copies])
    uneven: list[tuple[int, ...]] = [(6, 5), (5, 4), (1, 6), (2, 3, 3), (7,), (3,)]  # the last rank has often nothing
    return {
        "FSDP": [(shape, line, [split]) for shape in uneven],
        "HSDP": [((5, 4), mesh, [copies, split]), ((1, 6), mesh, [copies, split]), ((7,), mesh, [copies, split])],
        "TP": [((6, 5), mesh, [copies, split]), ((3, 6), mesh, [copies, by_column]), ((4, 4), mesh, [copies, copies])],
        "FSDP and TP by columns": [((5, 6), mesh, [split, by_column]), vector, ((4, 3), mesh, [copies, split])],
        "FSDP and TP on the same rows": [((9, 4), mesh, [strided, split]), ((2, 3), mesh, [strided, split]), vector],
        "the same columns twice": [((3, 9), mesh, [by_column, by_column]), vector],
        "slices of a mesh": [
            ((5, 6), mesh, [split, split]), ((5, 4), dp, [split]), ((6,), dp, [split]), ((7,), tp, [split]),
            ((4, 3), tp, [split]), ((3, 4), mesh, [split, by_column]), ((3, 3), None, []),
        ],
    }  # fmt: skip


def experts() -> list[Place]:
    """On one half of the processes one expert, on the other three, split among them; the rest is everyone's."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "ep"))
    everyones: list[Place] = [((5, 6), mesh, [Shard(0), Shard(0)]), ((4, 3), mesh, [Shard(0), Replicate()])]
    shapes: list[tuple[int, ...]] = [(5, 4), (3, 3), (6,)]
    own = shapes[:1] if mesh.get_local_rank("ep") == 0 else shapes
    return [*everyones, *((shape, mesh["dp"], [Shard(0)]) for shape in own)]


def adam_all(params: Any, **options: Any) -> torch.optim.Optimizer:
    rules = [mo.RadialProjection(0.5), mo.DecoupledDecay(0.1), mo.TrustRatio(), mo.SelectiveProjection(0.5)]
    return mo.Adam(params, lr=0.02, rules=rules, **options)


def adai_held(params: Any, **options: Any) -> torch.optim.Optimizer:
    return mo.Adai(params, lr=0.1, rules=[mo.RadialProjection(0.5), mo.SelectiveProjection()], **options)


def lamb(params: Any, **options: Any) -> torch.optim.Optimizer:
    return mo.Adam(params, lr=0.02, rules=[mo.DecoupledDecay(0.1), mo.TrustRatio()], **options)


def amsgrad_by_columns(params: Any, **options: Any) -> torch.optim.Optimizer:
    """Rows along dimension 1, and a scan that reads the state."""
    rules = [mo.RadialProjection(0.5), mo.StableDecay(1e-3)]
    return mo.Adam([{"params": params, "row_dim": 1}], lr=0.02, amsgrad=True, rules=rules, **options)


def wrapped(params: Any) -> torch.optim.Optimizer:
    return mo.wrap(torch.optim.RMSprop(params, lr=0.01), [mo.RadialProjection(0.5), mo.SelectiveProjection()])


# Beside the table's: the builder, and the stages that ask the network for sums.
COMPOSITIONS: dict[str, tuple[Build, str]] = {
    "Adam + projection + decay + trust ratio + SPD": (adam_all, "projection trust contraction"),
    "Adai + projection + SPD": (adai_held, "first projection contraction"),
    "LAMB": (lamb, "trust"),
    "AMSGrad + projection by columns + stable decay": (amsgrad_by_columns, "scan projection"),
    "wrap(RMSprop) + projection + SPD": (wrapped, "projection contraction"),
}
BUILDERS: dict[str, Build] = {row.name: build_of(row) for row in ROWS} | {k: b for k, (b, _) in COMPOSITIONS.items()}


def stepped(steps: int, dtype: str, names: list[str]) -> dict[str, Any]:
    """By layout and optimizer: error, the collectives of a step and of the first, and the smallest margin."""
    found, known = {}, layouts()
    for name in names:
        for method, build in BUILDERS.items():
            result = follow(build, known[name], steps, dtype=getattr(torch, dtype))
            found[f"{name}: {method}"] = result.error, result.collectives, result.first, result.margin
    return found


def with_experts(steps: int) -> dict[str, Any]:
    """Where slices of a mesh hold different tensors, and one of them has no gradient at times."""
    layout, found = experts(), {}
    for method, stages in STAGES.items():
        if "scan" not in stages:  # a mean over the model would be another one on each half
            without = {3: [2]} if len(layout) == 3 else {4: [3, 4]}
            result = follow(BUILDERS[method], layout, steps, without=without)
            found[method] = result.error, result.collectives, result.first
    return found


def accounts() -> dict[str, bool]:
    """Whether what an optimizer says that it sends is what its second step sends, slots included."""
    found = {}
    for method in STAGES:
        layout = layouts()["slices of a mesh"]
        params = [nn.Parameter(spread(x, place)) for x, place in zip(draw(layout, 0), layout)]
        optimizer = BUILDERS[method](params)
        said = [c.bytes for c in mo.communication(optimizer)]
        for seed in (1, 2):
            for p, x, place in zip(params, draw(layout, seed), layout):
                p.grad = spread(x, place)
            with Counted() as counted:
                optimizer.step()
        found[method] = said == counted == [c.bytes for c in mo.communication(optimizer)]
    return found


def added_later() -> tuple[float, int]:
    """Weights on a slice that were not there when its slot was agreed on: error, and the collectives of a step."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    layout: list[Place] = [((5, 6), mesh, [Shard(0), Shard(0)]), ((5, 4), mesh["dp"], [Shard(0)])]
    whole = [nn.Parameter(x) for x in draw(layout, 0)]
    split = [nn.Parameter(spread(x, place)) for x, place in zip(draw(layout, 0), layout)]
    optimizers = [mo.AdamP(params[:1], delta=0.5) for params in (whole, split)]
    for seed in (1, 2, 3):
        if seed == 2:
            for optimizer, params in zip(optimizers, (whole, split)):
                optimizer.add_param_group({"params": params[1:]})
        for p, q, x, place in zip(whole, split, draw(layout, seed), layout):
            p.grad, q.grad = x, spread(x, place)
        optimizers[0].step()
        with Collectives() as counted:
            optimizers[1].step()
    start = draw(layout, 0)
    errors = [
        float((here(q.detach()) - part_of(p.detach(), place)).norm() / (p.detach() - x).norm())
        for p, q, x, place in zip(whole, split, start, layout)
    ]
    return max(errors), counted.count


def ddp(steps: int) -> dict[str, Any]:
    """Every optimizer on a model in DistributedDataParallel, each process with its own rows of the batch.

    Whether the weights are those of one process to the bit, given the gradients that DDP has averaged; how far these
    are from the gradient of the whole batch; how far weights have moved; and the margin.
    """
    torch.manual_seed(3)
    single, inner = Block().double(), Block().double()
    start = {name: p.detach().clone() for name, p in single.named_parameters()}
    model = DistributedDataParallel(inner)
    rank, found = dist.get_rank(), {}
    own = slice(2 * rank, 2 * rank + 2)
    for method, build in BUILDERS.items():
        single.load_state_dict(start)
        inner.load_state_dict(start)
        one, ours, margins, worst = build(list(single.parameters())), build(list(model.parameters())), Margins(), 0.0
        for step in range(steps):
            x, y = batch(step)
            single.zero_grad()
            model.zero_grad()
            (single(x) - y).square().mean().backward()
            (model(x[own]) - y[own]).square().mean().backward()
            for p, q in zip(single.parameters(), inner.parameters()):
                worst = max(worst, float((p.grad - q.grad).norm() / p.grad.norm()))
                p.grad = q.grad.clone()
            with margins:  # around both: it reads one product more, and kernels form several together
                one.step()
                ours.step()
        same = all(torch.equal(p, q) for p, q in zip(single.parameters(), inner.parameters()))
        moved = min(float((p.detach() - start[name]).norm()) for name, p in single.named_parameters())
        found[method] = same, worst, moved, margins.smallest
    return found


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 6, generator=generator, dtype=torch.float64)
    return x, torch.randn(8, 3, generator=generator, dtype=torch.float64)


POLICIES: dict[str, dict[str, Any]] = {
    "mixed precision": {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)},
    "offload": {"offload_policy": CPUOffloadPolicy(pin_memory=False)},
}


def policies(steps: int) -> dict[str, Any]:
    """Every optimizer under FSDP2's mixed precision and its offload: error given FSDP's own gradients, and margin."""
    mesh, found = init_device_mesh("cpu", (4,)), {}
    for policy, given in POLICIES.items():
        torch.manual_seed(3)
        single, model = Block().double(), Block().double()
        start = [p.detach().clone() for p in single.parameters()]
        for layer in (model.up, model.down, model):
            fully_shard(layer, mesh=mesh, **given)
        for method, build in BUILDERS.items():
            with torch.no_grad():
                for p, q, x in zip(single.parameters(), model.parameters(), start):
                    p.copy_(x)
                    q.copy_(distribute_tensor(x, q.device_mesh, q.placements))
            one, ours, margins = build(list(single.parameters())), build(list(model.parameters())), Margins()
            worst = 0.0
            for step in range(steps):
                inputs, target = batch(step)
                model.zero_grad()
                (model(inputs).double() - target).square().mean().backward()
                for p, q in zip(single.parameters(), model.parameters()):
                    p.grad = full(q.grad).clone()
                with margins:
                    one.step()
                ours.step()
                for p, q, x in zip(single.parameters(), model.parameters(), start):
                    worst = max(worst, float((full(q.detach()) - p.detach()).norm() / (p.detach() - x).norm()))
            found[f"{policy}: {method}"] = worst, margins.smallest
    return found


PERTURBED: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "NSO": lambda base: mo.NSO(base, sigma=0.05, k=2, model=nn.Module()),
    "SAM": lambda base: mo.SAM(base, rho=0.1, model=nn.Module()),
    "ASAM": lambda base: mo.ASAM(base, rho=0.1, model=nn.Module()),
    "RSAM": lambda base: mo.RSAM(base, rho=0.1, sigma=0.05, model=nn.Module()),
}


def climbed(method: str, layout: list[Place], steps: int, mine: Sequence[int], **options: Any) -> float:
    """A perturbed step's displacement against one process: f(w) = sum of (w^4 / 4 - c w)."""
    start, targets = draw(layout, 1), draw(layout, 2)
    ends: list[dict[int, torch.Tensor]] = []
    for held, given in ((range(len(layout)), {}), (mine, options)):
        places = layout if held is mine else [(shape, None, []) for shape, _, _ in layout]
        params = {i: nn.Parameter(spread(start[i], places[i])) for i in held}
        named = [(f"w{i}", p) for i, p in params.items()]
        optimizer = PERTURBED[method](mo.AdamW(named, lr=0.01, **given))
        for _ in range(steps):
            optimizer.zero_grad()
            for pass_ in optimizer.passes():
                with pass_, torch.no_grad():
                    for i, p in params.items():
                        g = like_shard(here(p.detach()) ** 3 - part_of(targets[i], places[i]), p)
                        p.grad = g if p.grad is None else p.grad + g
            optimizer.step()
        ends.append({i: p.detach() for i, p in params.items()})
    one, ours = ends
    return max(float((here(ours[i]) - part_of(one[i], layout[i])).norm() / (one[i] - start[i]).norm()) for i in mine)


def perturbed(steps: int) -> dict[str, float]:
    """NSO and SAM's family on every layout."""
    return {
        f"{name}: {method}": climbed(method, layout, steps, list(range(len(layout))))
        for name, layout in layouts().items()
        for method in PERTURBED
    }


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
            counts = []
            for step in range(steps):
                x, y = batch(step)
                for model, optimizer in zip((single, split), optimizers):
                    optimizer.zero_grad()
                    # The same batch everywhere: the mean of gradients over processes is that of one.
                    (model(x) - y).square().mean().backward()
                optimizers[0].step()
                with Collectives() as seen:
                    optimizers[1].step()
                counts.append(seen.count)
            error = max(
                float((full(q.detach()) - p.detach()).norm() / (p.detach() - s).norm())
                for p, q, s in zip(single.parameters(), split.parameters(), start)
            )
            found[f"{kind}: {row.name}"] = error, max(counts[1:]), counts[0]
        found[kind] = sorted({str(getattr(p, "placements", "whole")) for p in split.parameters()})
    return found


def clipped(steps: int) -> dict[str, Any]:
    """The longest chains of sums: gradients clipped, rows split, tested and contracted, on three meshes."""
    layout, options = layouts()["slices of a mesh"], {"max_grad_norm": 0.5, "non_finite": "skip"}
    found = {name: follow(BUILDERS[name], layout, steps, poison=3, **options) for name in STAGES}
    return {name: (result.error, result.collectives) for name, result in found.items()}


def stages() -> tuple[list[Place], list[int], Any]:
    """Two stages of a pipeline, each split over two processes: all weights, which this process has, its group."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pp", "dp"))
    dp, split = mesh["dp"], [Shard(0)]
    first: list[Place] = [((5, 4), dp, split), ((7,), dp, split), ((3, 3), None, [])]
    second: list[Place] = [((1, 6), dp, split), ((4, 3), dp, split)]
    mine = range(3) if mesh.get_local_rank("pp") == 0 else range(3, 5)
    return [*first, *second], list(mine), mesh.get_group("pp")


def pipeline(steps: int) -> dict[str, Any]:
    """Every optimizer on two stages against one process with both: as it is, and clipped, with NaN on one stage alone.

    At the second step the second stage has no gradient at all.
    """
    layout, mine, group = stages()
    found: dict[str, Any] = {}
    for name, options in {
        "plain": {"without": {2: [3, 4]}},
        "clipped": {"without": {2: [3, 4]}, "poison": 4, "max_grad_norm": 0.5, "non_finite": "skip"},
    }.items():
        for method in STAGES:
            result = follow(BUILDERS[method], layout, steps, mine=mine, process_group=group, **options)
            found[f"{name}: {method}"] = result.error, result.collectives
    for method in PERTURBED:
        found[f"perturbed: {method}"] = climbed(method, layout, steps, mine, process_group=group)
    found["alone"] = follow(BUILDERS["AdamS"], layout, steps, mine=mine).error  # without the group, another mean
    return found | copies_of(group)


def copies_of(group: Any) -> dict[str, Any]:
    """What of the group is in a copy, a pickle and a checkpoint."""
    p = nn.Parameter(torch.ones(2, 2))
    optimizer = mo.AdamS([p, nn.Parameter(torch.ones(2))], process_group=group)
    again = pickle.loads(pickle.dumps(optimizer))
    for other in again.param_groups[0]["params"]:
        other.grad = torch.ones_like(other)
    said = ""
    try:
        again.step()
    except RuntimeError as error:
        said = str(error)
    again.process_group = group
    again.step()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (p * (dist.get_rank(group) + 1)).sum()
        loss.backward()
        return loss

    mo.NSO(optimizer, sigma=0.1).step(closure)
    return {
        "copied": copy.deepcopy(optimizer).process_group is group,
        "said": said,
        "saved": "process_group" in str(optimizer.state_dict()),
        "mean": float(optimizer._plan.batches[0].scanned),
        "cost": mo.cost(optimizer)[0].collectives,
    }


def everything() -> dict[str, Any]:
    """All of the above in one start of the processes."""
    return {
        "float64": stepped(5, "float64", list(layouts())),
        "bfloat16": stepped(3, "bfloat16", ["FSDP", "HSDP", "TP", "FSDP and TP on the same rows"]),
        "clipped": clipped(4),
        "experts": with_experts(5),
        "accounts": accounts(),
        "added later": added_later(),
        "DDP": ddp(4),
        "policies": policies(2),
        "trained": trained(5),
        "perturbed": perturbed(4),
        "pieces": pieces(),
        "pipeline": pipeline(5),
    }
